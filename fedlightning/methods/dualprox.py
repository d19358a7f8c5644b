"""DualPROX."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from fedlightning.method import ClientContext, Grad, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class DualProx(FedAvg):
    """Two proximal terms, to the global model and to the local iterate before: FedRed without its correction.

        explicit:  v = clip(g_i(w_k) + c μ (w_k − x) + c λ (w_k − w_{k−1})),  w_{k+1} = w_k − η v,  w_{−1} = w_0 = x
        implicit:  w_{k+1} = argmin_w ⟨g_i(w_k), w⟩ + 1/(2η) ‖w − w_k‖² + c μ/2 ‖w − x‖² + c λ/2 ‖w − w_k‖²
        x ← x + η_g Σ p_i (w_i − x),        c = 1/2 if `half_factor` else 1

    No paper of its own; the two terms are those of Jiang et al., ICML 2024, arXiv:2404.08447, see `FedRed`. Explicit is
    FedProx(c μ) with heavy ball of coefficient −η c λ; implicit is FedProx(c μ) at η / (1 + η c (λ + μ)). λ = μ = 0 is
    FedAvg. Travels: 1 model down, 1 up. Remembered: nothing. The program it comes from takes w_k itself for w_{k−1}, so
    that its λ has no effect; we implement what it says.

    Args:
        mu: weight μ of the term to the global model; 0.01 to 0.1 in that program.
        lam: weight λ of the term to the iterate before; 0.01 to 0.1 in that program.
        variant: a gradient step on both terms, or their exact minimum.
        half_factor: whether c is 1/2, as in that program.
        clip_norm: largest norm of v; 1 in that program.
    """

    clip_norm: float | None = 1.0
    mu: float = hyper(0.01, "[0, inf)")
    lam: float = hyper(0.1, "[0, inf)")
    variant: Literal["explicit", "implicit"] = hyper("explicit", ("explicit", "implicit"))
    half_factor: bool = True

    def on_client_start(self, client: ClientContext) -> State:
        """The base's, and w_{k−1}."""
        local = super().on_client_start(client)
        return local.replace(before=local.w)

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        """g_i(w) + c μ (w − x), and + c λ (w − w_{k−1}) for the explicit variant."""
        c, lam = (0.5 if self.half_factor else 1.0), (self.lam if self.variant == "explicit" else 0.0)
        d = super().direction(local, grad, client) + c * self.mu * (local.w - client.x)
        return d + c * lam * (local.w - local.before)

    def on_local_step(self, local: State, grad: Grad, client: ClientContext) -> State:
        """The base's step; the implicit one is shorter."""
        if self.variant == "implicit":
            stiffness = (0.5 if self.half_factor else 1.0) * (self.lam + self.mu)
            client = replace(client, lr=client.lr / (1 + client.lr * stiffness))
        return super().on_local_step(local, grad, client).replace(before=local.w)
