"""FedDyn."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedlightning.method import ClientContext, Grad, Round, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class FedDyn(FedAvg):
    """Dynamic regularisation: Acar et al., ICLR 2021, arXiv:2111.04263.

        w ← w − η [g_i(w) − g_i' + α (w − x)]   K times from w = x
        g_i' ← g_i' − α (w_i − x),        h ← h − α (m / N) mean(w_i − x)
        x ← x + η_g mean(w_i − x) − h / α

    Each client thus minimises f_i(w) − ⟨g_i', w⟩ + α/2 ‖w − x‖², and g_i' tends to ∇f_i(x). With full batches it reaches
    the exact minimiser for any K if the subproblems are solved well enough: a small α needs many steps, since α cancels
    from the server's rule. Travels: 1 model down, 1 up. Remembered: 1 model at each client that took part, 1 more at the
    server. On top of another method or in front of a server optimizer: `class A(FedDyn, FedAdam)`, since h sums up what
    clients did. The official code divides α by the client's share of the examples; we follow the paper.

    Args:
        alpha: weight α; the paper tries 0.001, 0.01, 0.1.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    alpha: float = hyper(0.01, "(0, inf)")

    def configure_server(self, x: Tensor) -> State:
        """The global model, and h."""
        return super().configure_server(x).replace(h=torch.zeros_like(x))

    def configure_client(self, x: Tensor) -> State:
        """g_i'."""
        return super().configure_client(x).replace(g=torch.zeros_like(x))

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        """g_i(w) − g_i' + α (w − x)."""
        return super().direction(local, grad, client) - client.state.g + self.alpha * (local.w - client.x)

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        """w_i − x goes up; g_i' − α (w_i − x) stays."""
        upload, state = super().on_client_end(local, client)
        return upload, state.replace(g=state.g - self.alpha * (local.w - client.x))

    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        """The base's step, moved by −h / α."""
        after = super().on_aggregate(server, mean, round)
        h = server.h - self.alpha * round.num_participants / round.num_clients * mean.delta
        return after.replace(x=after.x - h / self.alpha, h=h)
