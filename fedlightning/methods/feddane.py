"""FedDANE."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedlightning.method import ClientContext, Grad
from fedlightning.methods.fedprox import FedProx
from fedlightning.state import State


class FedDane(FedProx):
    """A federated Newton-type method: T. Li et al., Asilomar 2019, arXiv:2001.01920.

        h_i = Σ p_j ∇f_j(x) − ∇f_i(x)   over all data of the participants
        w ← w − η [g_i(w) + h_i + μ (w − x)]   K times from w = x,        x ← x + η_g Σ p_i (w_i − x)

    Each client thus minimises f_i(w) + ⟨h_i, w − x⟩ + μ/2 ‖w − x‖². With all clients and full batches it reaches the exact
    minimiser for any K. Travels: 2 models down, 2 up, in two exchanges a round; a pass over the client's data comes before
    its local steps. Remembered: nothing. The paper draws other clients for the gradients than for the local steps, its code
    the same, as we do. The paper finds it behind FedProx where few of unlike clients take part.

    Args:
        mu: weight μ of the proximal term; the paper tries 0, 0.001, 0.01, 0.1, 1.
    """

    def gradient_pass(self) -> Literal["none", "local", "mean"]:
        """Both ∇f_i(x) and its mean."""
        return "mean"

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        """g_i(w) + μ (w − x) + h_i."""
        return super().direction(local, grad, client) - client.gradient + client.server.gradient
