"""FedSAM."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedlightning.method import ClientContext, Grad, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class FedSAM(FedAvg):
    """Sharpness-aware clients: Qu et al., ICML 2022, arXiv:2206.02618.

        δ = ρ g_i(w) / ‖g_i(w)‖
        w ← w − η g_i(w + δ)   K times from w = x,        x ← x + η_g mean(w_i − x)

    Both gradients are on the same batch; 1e-12 is added to the norm. ρ = 0 is FedAvg. On top of another method:
    `class A(FedSAM, Scaffold)`. Travels: 1 model down, 1 up. Remembered: nothing.

    Args:
        rho: radius ρ; usual are 0.01 to 0.5.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    rho: float = hyper(0.05, "[0, inf)")

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        """The base's, of the gradient at w + δ."""

        def sharp(w: Tensor) -> Tensor:
            g = grad(w)
            return grad(w + self.rho / (g.norm() + 1e-12) * g)

        return super().direction(local, sharp, client)
