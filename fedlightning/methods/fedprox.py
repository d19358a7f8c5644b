"""FedProx."""

from __future__ import annotations

from torch import Tensor

from fedlightning.method import ClientContext, Grad, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class FedProx(FedAvg):
    """Federated averaging with a proximal term: Li et al., MLSys 2020, arXiv:1812.06127.

        w ← w − η [g_i(w) + μ (w − x)]   K times from w = x,        x ← x + η_g Σ p_i (w_i − x)

    Each client thus minimises f_i(w) + μ/2 ‖w − x‖²; μ = 0 is FedAvg, and so is K = 1. Travels: 1 model down, 1 up.
    Remembered: nothing. The paper's Algorithm 2 draws clients in proportion to n_i and averages uniformly: that is
    `sampler=SizeWeighted()` with `weighting="uniform"`. The default follows its experiments, which draw uniformly and weight
    by n_i. Stragglers do part of their work: `stragglers=Stragglers(0.9)` of the trainer.

    Args:
        mu: weight μ of the proximal term; the paper tries 0.001, 0.01, 0.1, 1.
    """

    mu: float = hyper(0.01, "[0, inf)")

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        """g_i(w) + μ (w − x)."""
        return super().direction(local, grad, client) + self.mu * (local.w - client.x)
