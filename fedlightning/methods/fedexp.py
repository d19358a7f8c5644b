"""FedExP."""

from typing import Literal

import torch
from torch import Tensor

from fedlightning.method import ClientContext, Round, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class FedExP(FedAvg):
    """Extrapolated averaging: Jhunjhunwala, Wang and Joshi, ICLR 2023, arXiv:2301.09604.

        Δ_i = w_i − x,  Δ̄ = Σ p_i Δ_i,  p_i = 1 / m
        η_g = max{1, Σ p_i ‖Δ_i‖² / (2 (‖Δ̄‖² + ε))},        x ← x + η_g Δ̄

    The iterates oscillate, so the model that is evaluated is the average of the last two. `server_lr` multiplies η_g.
    Meant for clients that share an optimum; where they do not, η_g jumps as Δ̄ → 0. Travels: 1 model down, 1 up and a
    number. Remembered: 1 model more at the server. On top of another method: `class A(FedExP, Scaffold)`; in front of a
    server optimizer, too, `class A(FedExP, FedAvgM)`, since it measures what clients did. The official code weights by
    examples, multiplies ε by m, and by 0.998² a round: `weighting`, `eps_scale`, `eps_decay`.

    Args:
        eps: ε; the paper tries 0.001 to 0.1, and takes 0.001 for CIFAR and 0.1 for EMNIST.
        eps_scale: "participants" multiplies ε by m.
        eps_decay: factor on ε after each round.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    eps: float = hyper(1e-3, "[0, inf)")
    eps_scale: Literal["none", "participants"] = hyper("none", ("none", "participants"))
    eps_decay: float = hyper(1.0, "(0, 1]")

    def configure_server(self, x: Tensor) -> State:
        """The base's, and the iterate before x."""
        return super().configure_server(x).replace(previous=x)

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        """‖Δ_i‖² goes up as well."""
        upload, state = super().on_client_end(local, client)
        return upload.replace(square=upload.delta.square().sum()), state

    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        """The base's step, with η_g Δ̄ in the place of Δ̄."""
        eps = self.eps * self.eps_decay**round.index * (round.num_participants if self.eps_scale != "none" else 1)
        below = 2 * (mean.delta.square().sum() + eps)
        step = torch.where(below > 0, mean.square / below, 1.0).clamp(min=1.0)
        return super().on_aggregate(server, mean.replace(delta=step * mean.delta), round).replace(previous=server.x)

    def evaluation_point(self, server: State) -> Tensor:
        """½ (x_{t−1} + x_t)."""
        return (server.previous + server.x) / 2
