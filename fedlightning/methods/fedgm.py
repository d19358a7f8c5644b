"""FedGM."""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from fedlightning.errors import require_within
from fedlightning.method import Round, hyper
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class FedGM(FedAvg):
    """General server momentum: J. Sun, Wu, Huang and Zhang, AAAI 2024, arXiv:2312.12670.

        Δ̄ = mean(w_i − x)
        d ← β d + (1 − β) Δ̄  from d = 0,        x ← x + η_g [(1 − ν) Δ̄ + ν d]

    ν = 0 and β = 0 are FedAvg; ν = 1 with η_g = η / (1 − β) is FedAvgM at η, ν = β its Nesterov form. Travels: 1 model
    down, 1 up. Remembered: 1 model more at the server. On top of another method: `class A(FedGM, Scaffold)`; for clients
    of unequal K, the paper's autonomous form, over normalised averaging: `class A(FedNova, FedGM)`.

    Args:
        beta: momentum β, usually 0.9.
        nu: how much of the step is momentum, ν; 0.7 is usual elsewhere for quasi-hyperbolic momentum.
        stages: the multistage form: (T_s, η_s, β_s, ν_s) of each stage in turn, where η_s multiplies `server_lr`; the last
            stage has no end. None keeps `beta` and `nu`.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    beta: float = hyper(0.9, "[0, 1)")
    nu: float = hyper(0.9, "[0, 1]")
    stages: tuple[tuple[int, float, float, float], ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in self.stages or ():
            for i, within in enumerate(("[1, inf)", "(0, inf)", "[0, 1)", "[0, 1]")):
                require_within(stage[i], within, f"Number {i} of each of `stages` of FedGM")

    def configure_server(self, x: Tensor) -> State:
        """The base's, and the momentum d."""
        return super().configure_server(x).replace(d=torch.zeros_like(x))

    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        """The base's step, with (1 − ν) Δ̄ + ν d in the place of Δ̄."""
        _, lr, beta, nu = self._stage(round.index)
        d = beta * server.d + (1 - beta) * mean.delta
        step = lr * ((1 - nu) * mean.delta + nu * d)
        return super().on_aggregate(server, mean.replace(delta=step), round).replace(d=d)

    def _stage(self, round: int) -> tuple[int, float, float, float]:
        stages = self.stages or ((1, 1.0, self.beta, self.nu),)
        ends = list(accumulate(stage[0] for stage in stages))
        return stages[min(sum(end <= round for end in ends), len(stages) - 1)]
