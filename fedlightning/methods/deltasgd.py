"""Δ-SGD."""

from __future__ import annotations

from typing import Literal

import torch

from fedlightning.method import ClientContext, Grad, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class DeltaSGD(FedAvg):
    """Clients that choose their own step size: Kim et al., ICLR 2024, arXiv:2306.11201.

        η_k = min{γ ‖w_k − w_{k−1}‖ / (2 ‖g_i(w_k) − g_i(w_{k−1})‖), √(1 + δ θ_{k−1}) η_{k−1}},  θ_k = η_k / η_{k−1}
        w_{k+1} = w_k − η_k g_i(w_k)   K times from w_0 = x,  with η_0, θ_0 given        x ← x + η_g mean(w_i − x)

    Norms are over the whole vector; where one of the two is 0, only the second branch counts, and η grows with each step. It
    stays below the root of the dtype's largest number: else a client that fits its data exactly overflows it in 1,800 steps.
    Each round begins anew. Travels: 1 model down, 1 up. Remembered: nothing. The official code lets the first step grow too.

    Args:
        gamma: γ; 2 throughout the paper.
        delta: δ, how fast the step may grow; 0.1 throughout the paper, 1 in its theory.
        theta: θ_0.
        grad_diff: where g_i(w_{k−1}) comes from: "same_batch" evaluates it on the batch of step k, at a second gradient a
            step; "reuse" takes that of step k − 1, which is the same for full batches and noisy otherwise.
        lr: η_0; 0.2 throughout the paper.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    lr: float = 0.2
    gamma: float = hyper(2.0, "(0, inf)")
    delta: float = hyper(0.1, "[0, inf)")
    theta: float = hyper(1.0, "[0, inf)")
    grad_diff: Literal["same_batch", "reuse"] = hyper("same_batch", ("same_batch", "reuse"))

    def on_client_start(self, client: ClientContext) -> State:
        """The base's, with w_{k−1}, g_i(w_{k−1}), η_{k−1} and θ_{k−1}."""
        local = super().on_client_start(client)
        theta = torch.full_like(client.lr, self.theta)
        return local.replace(previous=local.w, d=torch.zeros_like(local.w), eta=client.lr, theta=theta)

    def on_local_step(self, local: State, grad: Grad, client: ClientContext) -> State:
        """A step of η_k along the base's direction."""
        d = self.direction(local, grad, client)
        reuse = self.grad_diff == "reuse"
        before = local.d if reuse else self.direction(local.replace(w=local.previous), grad, client)
        moved, changed = (local.w - local.previous).norm(), (d - before).norm()
        growth = (1 + self.delta * local.theta).sqrt() * local.eta
        growth = growth.clamp(max=torch.finfo(growth.dtype).max ** 0.5)
        smooth = torch.minimum(self.gamma * moved / (2 * changed), growth)
        eta = torch.where((moved > 0) & (changed > 0), smooth, growth)
        first = client.step == 0  # η_0 and θ_0 are given
        eta, theta = torch.where(first, local.eta, eta), torch.where(first, local.theta, eta / local.eta)
        after = local.replace(previous=local.w, d=d, eta=eta, theta=theta)
        return after.replace(w=local.w - after.eta * self.clip_and_decay(d, local.w, client))
