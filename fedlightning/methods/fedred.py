"""FedRed."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from fedlightning.method import ClientContext, Grad, hyper
from fedlightning.methods.feddane import FedDane
from fedlightning.state import State


class FedRed(FedDane):
    """Doubly regularised drift correction: Jiang, Rodomanov and Stich, ICML 2024, arXiv:2404.08447, FedRed-GD.

        h_i = mean(∇f_j(x)) − ∇f_i(x)
        w_{k+1} = argmin_w ⟨g_i(w_k) + h_i, w⟩ + 1/(2η) ‖w − w_k‖² + μ/2 ‖w − x‖²   K times from w_0 = x
        x ← x + η_g mean(w_i − x)

    The paper's λ is μ here, its η is 1/η. A step is FedDANE's of η / (1 + η μ). With all clients and full batches it
    reaches the exact minimiser for any K. Travels: 2 models down, 2 up, in two exchanges a round; a pass over the client's
    data comes before its local steps. Remembered: nothing. The paper ends a round by a coin after each step; here K is
    fixed.

    Args:
        mu: weight μ of the term to the global model; the paper ties it to how far the clients' Hessians differ.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    mu: float = hyper(0.1, "[0, inf)")

    def on_local_step(self, local: State, grad: Grad, client: ClientContext) -> State:
        """The base's step, shortened as the exact minimum asks for."""
        return super().on_local_step(local, grad, replace(client, lr=client.lr / (1 + client.lr * self.mu)))
