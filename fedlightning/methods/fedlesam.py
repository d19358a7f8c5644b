"""FedLESAM."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedlightning.method import ClientContext, Grad, Round, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class FedLESAM(FedAvg):
    """Locally estimated global perturbation: Fan et al., ICML 2024, arXiv:2405.18890.

        δ = ρ (x_old − x) / ‖x_old − x‖   with x_old the global model that the client received last, if any
        w ← w − η g_i(w + δ)   K times from w = x,        x ← x + η_g mean(w_i − x)

    1e-7 is added to the norm. ρ = 0 and the first round are FedAvg; x ends within O(ρ) of FedAvg's. On top of another
    method: `class A(FedLESAM, FedProx)`. Travels: 1 model down, 1 up; 2 down with `reference="server"`. Remembered: x_old.

    Args:
        rho: radius ρ; the official code has 0.1 and 0.5, and tries 0.01 to 0.5.
        reference: whose x_old, each "client"'s as in the paper, or the "server"'s last model as in its code.
        norm: of the vector, "global" as in the paper, or the sum of its layers' norms, "sum_layers", as in its code.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    rho: float = hyper(0.1, "[0, inf)")
    reference: Literal["client", "server"] = hyper("client", ("client", "server"))
    norm: Literal["global", "sum_layers"] = hyper("global", ("global", "sum_layers"))
    downlink: ClassVar[tuple[str, ...]] = ("x_old",)

    def configure_server(self, x: Tensor) -> State:
        return self._keep("server", super().configure_server(x), x)

    def configure_client(self, x: Tensor) -> State:
        return self._keep("client", super().configure_client(x), x)

    def on_client_start(self, client: ClientContext) -> State:
        ahead = (client.state if self.reference == "client" else client.server).x_old - client.x
        parts = [ahead] if self.norm == "global" else client.layout.unflatten(ahead).values()
        length = torch.stack([part.norm() for part in parts]).sum()
        return super().on_client_start(client).replace(delta=self.rho / (length + 1e-7) * ahead)

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        return super().direction(local, lambda w: grad(w + local.delta), client)

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        upload, state = super().on_client_end(local, client)
        return upload, self._keep("client", state, client.x)

    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        return self._keep("server", super().on_aggregate(server, mean, round), server.x)

    def _keep(self, owner: str, state: State, x: Tensor) -> State:
        return state.replace(x_old=x) if self.reference == owner else state
