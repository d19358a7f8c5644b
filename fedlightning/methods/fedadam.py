"""FedAdam."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlightning.method import Round, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class FedAdam(FedAvg):
    """Averaging with Adam on the server: Reddi et al., ICLR 2021, arXiv:2003.00295.

        m ← β₁ m + (1 − β₁) Δ̄,    v ← β₂ v + (1 − β₂) Δ̄²,    x ← x + η_g m / (√v + τ),    Δ̄ = Σ p_i (w_i − x)

    from m = 0 and v = τ². Travels: 1 model down, 1 up. Remembered: 2 models more at the server. On top of another method:
    `class A(FedAdam, Scaffold)`. Flower starts at v = 0 and corrects the bias; FedExP's code has √(v + τ).

    Args:
        server_lr: η_g; the paper tries half-decades from 0.001 to 10, and so for `lr`.
        beta1: β₁, how long m remembers.
        beta2: β₂, how long v remembers.
        tau: τ, the smaller the more adaptive; the paper tries 1e-5 to 0.1.
        v_init: v before the first round; None is τ².
        bias_correction: whether m is divided by 1 − β₁^t and v by 1 − β₂^t.
        eps_inside_sqrt: √(v + τ) instead of √v + τ.
    """

    server_lr: float = hyper(0.1, "(0, inf)")
    beta1: float = hyper(0.9, "[0, 1)")
    beta2: float = hyper(0.99, "[0, 1)")
    tau: float = hyper(1e-3, "(0, inf)")
    v_init: float | None = hyper(None, "[0, inf)")
    bias_correction: bool = False
    eps_inside_sqrt: bool = False

    def configure_server(self, x: Tensor) -> State:
        """The base's, and the moments m and v."""
        v = torch.full_like(x, self.tau**2 if self.v_init is None else self.v_init)
        return super().configure_server(x).replace(m=torch.zeros_like(x), v=v)

    def moments(self, server: State, delta: Tensor) -> State:
        """The moments after Δ̄."""
        v = self.beta2 * server.v + (1 - self.beta2) * delta.square()
        return State(m=self.beta1 * server.m + (1 - self.beta1) * delta, v=v)

    def root(self, moments: State, correction: float) -> Tensor:
        """√v + τ, with v divided by its correction."""
        v = moments.v / correction
        return (v + self.tau).sqrt() if self.eps_inside_sqrt else v.sqrt() + self.tau

    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        """The base's step, with m / (√v + τ) in the place of Δ̄."""
        t = round.index + 1 if self.bias_correction else float("inf")  # β^∞ = 0
        moments = self.moments(server, mean.delta)
        step = moments.m / (1 - self.beta1**t) / self.root(moments, 1 - self.beta2**t)
        return super().on_aggregate(server, mean.replace(delta=step), round).replace(**moments)
