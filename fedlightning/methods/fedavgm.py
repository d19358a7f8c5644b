"""FedAvgM."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlightning.method import Round, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class FedAvgM(FedAvg):
    """Federated averaging with server momentum: Hsu, Qi and Brown, 2019, arXiv:1909.06335.

        Δ̄ = Σ p_i (w_i − x)
        v ← β v + Δ̄  from v = 0,        x ← x + η_g v,  or with Nesterov's momentum  x ← x + η_g (Δ̄ + β v)

    β = 0 is FedAvg. The server's effective learning rate is η_g / (1 − β), so a large β wants a smaller `lr`. Travels:
    1 model down, 1 up. Remembered: 1 model more at the server. On top of another method: `class A(FedAvgM, Scaffold)`.
    The client momentum that some call FedAvg-M is `FedCM`. We write the heavy ball; FL-bench runs Nesterov's.

    Args:
        beta: momentum β; the paper tries 0, 0.7, 0.9, 0.97, 0.99, 0.997.
        nesterov: whether the step looks ahead by one more momentum.
    """

    beta: float = hyper(0.9, "[0, 1)")
    nesterov: bool = False

    def configure_server(self, x: Tensor) -> State:
        """The base's, and the momentum v."""
        return super().configure_server(x).replace(velocity=torch.zeros_like(x))

    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        """The base's step, with v in the place of Δ̄."""
        v = self.beta * server.velocity + mean.delta
        step = mean.delta + self.beta * v if self.nesterov else v
        return super().on_aggregate(server, mean.replace(delta=step), round).replace(velocity=v)
