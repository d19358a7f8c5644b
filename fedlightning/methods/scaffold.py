"""SCAFFOLD."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, zeros_like

from fedlightning.method import ClientContext, Grad, Round, hyper
from fedlightning.methods.conditions import expect_plain_sgd
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class Scaffold(FedAvg):
    """Stochastic controlled averaging: Karimireddy et al., ICML 2020, arXiv:1910.06378.

        w ← w − η [g_i(w) − c_i + c]   K times from w = x
        I: c_i⁺ = ∇f_i(x),        II: c_i⁺ = c_i − c + (x − w_i) / (K η)
        x ← x + η_g mean(w_i − x),        c ← c + (m / N) mean(c_i⁺ − c_i)

    With full batches it reaches the exact minimiser for any K; with clipping, II does not. Travels: 2 models down, 2 up.
    Remembered: 1 model at each client that took part, 1 more at the server. `weighting="examples"`, which the paper does
    not have, reaches the minimiser of the weighted objective under full participation.

    Args:
        option: II costs nothing and is the one of the paper's experiments, I costs a pass over the client's data.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    option: Literal["I", "II"] = hyper("II", ("I", "II"))
    downlink: ClassVar[tuple[str, ...]] = ("c",)

    def check(self, round: Round) -> None:
        super().check(round)
        if self.option == "II":
            expect_plain_sgd(self)

    def gradient_pass(self) -> Literal["none", "local", "mean"]:
        return "local" if self.option == "I" else super().gradient_pass()

    def configure_server(self, x: Tensor) -> State:
        return super().configure_server(x).replace(c=zeros_like(x))

    def configure_client(self, x: Tensor) -> State:
        return super().configure_client(x).replace(c=zeros_like(x))

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        return super().direction(local, grad, client) - client.state.c + client.server.c

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        upload, state = super().on_client_end(local, client)
        mean = (self.start(client) - local.w) / (client.num_steps * client.lr)
        c = client.gradient if self.option == "I" else state.c - client.server.c + mean
        return upload.replace(delta_c=c - state.c), state.replace(c=c)

    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        share = round.num_participants / round.num_clients
        return super().on_aggregate(server, mean, round).replace(c=server.c + share * mean.delta_c)
