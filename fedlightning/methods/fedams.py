"""FedAMS."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedlightning.errors import ConfigurationError
from fedlightning.method import hyper
from fedlightning.methods.fedadam import FedAdam
from fedlightning.state import State


class FedAMS(FedAdam):
    """Averaging with a stabilised AMSGrad on the server: Wang, Lin and Chen, ICML 2022, arXiv:2205.02719.

        m and v as in `FedAdam`,        v̂ ← max(v̂, v),        τ is the paper's ε
        x ← x + η_g m / √max(v̂, τ)   (option 1)    or    x ← x + η_g m / (√v̂ + τ)   (option 2)

    Travels: 1 model down, 1 up. Remembered: 3 models more at the server. The official code corrects the bias, starts at
    v = 0 and, in its example, at v̂ = 0.001 with ε = 0 and η_g = 1; we keep the defaults of `FedAdam`.

    Args:
        option: where ε stands, 1 or 2.
        max_init: v̂ before the first round; None is that of v.
    """

    option: Literal[1, 2] = 2
    max_init: float | None = hyper(None, "[0, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.option not in (1, 2):
            raise ConfigurationError(f"`option` of FedAMS must be 1 or 2, but is {self.option!r}.")

    def configure_server(self, x: Tensor) -> State:
        """The base's, and v̂."""
        server = super().configure_server(x)
        return server.replace(v_max=server.v if self.max_init is None else torch.full_like(x, self.max_init))

    def moments(self, server: State, delta: Tensor) -> State:
        """The moments after Δ̄."""
        moments = super().moments(server, delta)
        return moments.replace(v_max=torch.maximum(server.v_max, moments.v))

    def root(self, moments: State, correction: float) -> Tensor:
        """√max(v̂, τ) or √v̂ + τ, with v̂ divided by its correction."""
        if self.option == 1:
            return (moments.v_max.clamp(min=self.tau) / correction).sqrt()
        return super().root(moments.replace(v=moments.v_max), correction)
