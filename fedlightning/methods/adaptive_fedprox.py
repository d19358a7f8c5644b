"""FedProx with a μ that follows the training loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedlightning.method import ClientContext, Grad, Round, hyper
from fedlightning.methods.fedprox import FedProx
from fedlightning.state import State


class AdaptiveFedProx(FedProx):
    """The heuristic of Li et al., MLSys 2020, arXiv:1812.06127, for μ: more when the training loss rises, less when it falls.

        w ← w − η [g_i(w) + μ_t (w − x)]   K times from w = x,        x ← x + η_g Σ p_i (w_i − x)
        f(x_{t+1}) > f(x_t):                         μ_{t+1} = μ_t + s
        f fell five rounds in a row, t − 4 … t:      μ_{t+1} = max(μ_t − s, 0), and the count begins again

    f is the mean loss over all devices' training data, so that is evaluated after every round; the paper leaves open where
    the count begins after a step, and what follows an f that stays the same: here it ends the row. Travels: 1 model and μ
    down, 1 model up. Remembered: nothing. Logged: μ of the next round, as `server/mu`.

    Args:
        mu: μ_0; the paper starts from 1 on IID data and from 0 on the others, the worst choice for each.
        mu_step: s; the paper takes 0.1.
        patience: rounds in a row in which f must fall; the paper takes 5.
    """

    downlink = ("mu",)

    mu: float = 0.0
    mu_step: float = hyper(0.1, "(0, inf)")
    patience: int = hyper(5, "[1, inf)")

    def configure_server(self, x: Tensor) -> State:
        return super().configure_server(x).replace(**self._entries(x, self.mu, math.nan, 0))

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        plain = super(FedProx, self).direction(local, grad, client)  # without its constant μ
        return plain + client.server.mu * (local.w - client.x)

    def on_evaluation(self, server: State, metrics: Mapping[str, float], round: Round) -> State:
        server, mu, loss = super().on_evaluation(server, metrics, round), float(server.mu), metrics["train_all/loss"]
        falls = int(server.falls) + 1 if loss < server.loss else 0
        if loss > server.loss:
            mu += self.mu_step
        elif falls == self.patience:
            mu, falls = max(mu - self.mu_step, 0.0), 0
        return server.replace(**self._entries(server.x, mu, loss, falls))

    @staticmethod
    def _entries(x: Tensor, mu: float, loss: float, falls: int) -> dict[str, Tensor]:
        named = {"mu": mu, "loss": loss, "falls": falls}
        return {name: torch.tensor(value, dtype=torch.float64, device=x.device) for name, value in named.items()}
