"""SCAFFOLD."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedlightning.method import ClientContext, Grad, Round
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class Scaffold(FedAvg):
    """Stochastic controlled averaging: Karimireddy et al., ICML 2020, arXiv:1910.06378, option II.

        w ← w − η [g_i(w) − c_i + c]   K times from w = x
        c_i⁺ = c_i − c + (x − w_i) / (K η)
        x ← x + η_g mean(w_i − x),        c ← c + (m / N) mean(c_i⁺ − c_i)

    With full batches it reaches the exact minimiser for any K. Travels: 2 models down, 2 up. Remembered: 1 model at each
    client that took part, 1 more at the server. Clients count alike, as in the paper; `weighting="examples"` reaches the
    minimiser of the weighted objective under full participation. Clipping and decay break the exactness, since
    (x − w_i) / (K η) is then no mean gradient.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    downlink: ClassVar[tuple[str, ...]] = ("x", "c")

    def configure_server(self, x: Tensor) -> State:
        """The global model and the server's control variate."""
        return State(x=x, c=torch.zeros_like(x))

    def configure_client(self, x: Tensor) -> State:
        """The client's control variate."""
        return State(c=torch.zeros_like(x))

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        """g_i(w) − c_i + c."""
        return grad(local.w) - client.state.c + client.server.c

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        """w_i − x and c_i⁺ − c_i go up; c_i⁺ stays."""
        delta = local.w - client.x
        c = client.state.c - client.server.c - delta / (client.num_steps * client.lr)
        return State(delta=delta, delta_c=c - client.state.c), State(c=c)

    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        """Both means, the control variate's over all N clients."""
        share = round.num_participants / round.num_clients
        return super().on_aggregate(server, mean, round).replace(c=server.c + share * mean.delta_c)
