"""FedInit."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedlightning.method import ClientContext, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class FedInit(FedAvg):
    """Relaxed initialisation: Sun et al., NeurIPS 2023, arXiv:2306.05706.

        w_0 = x + β (x − w_i')   with w_i' the client's last model, the first global model if it has none
        w ← w − η g_i(w)   K times from w_0,        x ← x + η_g mean(w_i − x)

    β = 0 and the first round are FedAvg. On top of another method, `class A(FedInit, Scaffold)`: only the start moves,
    proximal terms still hold to x. Travels: 1 model down, 1 up. Remembered: 1 model at each client that took part, and the
    first global model, which every client knows. The official code averages w_i − w_0, which is the same under full
    participation.

    Args:
        beta: relaxation β; the official code has 0.1, usual are 0.01 to 0.1, and large values do not converge.
        aggregate: "model" averages w_i − x, "delta" w_i − w_0.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    beta: float = hyper(0.1, "[0, inf)")
    aggregate: Literal["model", "delta"] = hyper("model", ("model", "delta"))
    preshared: ClassVar[tuple[str, ...]] = ("x0",)

    def configure_server(self, x: Tensor) -> State:
        """The base's, and the first global model."""
        return super().configure_server(x).replace(x0=x)

    def configure_client(self, x: Tensor) -> State:
        """The base's, and the client's last model less the first global model."""
        return super().configure_client(x).replace(trained=torch.zeros_like(x))

    def start(self, client: ClientContext) -> Tensor:
        """The base's, moved by β (x − w_i')."""
        last = client.server.x0 + client.state.trained
        return super().start(client) + self.beta * (client.x - last)

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        """The base's; w_i stays."""
        upload, state = super().on_client_end(local, client)
        if self.aggregate == "delta":
            upload = upload.replace(delta=local.w - self.start(client))
        return upload, state.replace(trained=local.w - client.server.x0)
