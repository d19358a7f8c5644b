"""FedCM, also called FedAvg-M."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedlightning.method import ClientContext, Grad, Round, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class FedCM(FedAvg):
    """Client momentum: J. Xu et al., 2021, arXiv:2106.10874; as FedAvg-M: Cheng et al., ICLR 2024, arXiv:2306.16504.

        w ← w − η [β g_i(w) + (1 − β) G]   K_i times from w = x
        G ← mean((x − w_i) / (K_i η))  from G = 0,        x ← x + η_g mean(w_i − x)

    With one K for all, the step of the server is γ G, γ = η_g η K. β = 1 is FedAvg; the first round is FedAvg at β η.
    Travels: 2 models down, 2 up (1 would do if all K_i were equal). Remembered: 1 model more at the server. Some codes
    leave G undivided by K η, which makes the momentum vanish; we follow the papers.

    Args:
        beta: weight β of the client's own gradient (FedCM's α), 0.1 in FedCM's code; usual are 0.05, 0.1, 0.3, 0.5.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    beta: float = hyper(0.1, "(0, 1]")
    downlink: ClassVar[tuple[str, ...]] = ("momentum",)

    def configure_server(self, x: Tensor) -> State:
        """The global model, and G."""
        return super().configure_server(x).replace(momentum=torch.zeros_like(x))

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        """β g_i(w) + (1 − β) G."""
        return self.beta * super().direction(local, grad, client) + (1 - self.beta) * client.server.momentum

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        """(x − w_i) / (K η) goes up as well."""
        upload, state = super().on_client_end(local, client)
        return upload.replace(momentum=(self.start(client) - local.w) / (client.num_steps * client.lr)), state

    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        """The base's step, and the next G."""
        return super().on_aggregate(server, mean, round).replace(momentum=mean.momentum)
