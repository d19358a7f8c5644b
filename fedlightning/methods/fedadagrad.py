"""FedAdagrad."""

from __future__ import annotations

from torch import Tensor

from fedlightning.method import hyper
from fedlightning.methods.fedadam import FedAdam
from fedlightning.state import State


class FedAdagrad(FedAdam):
    """Averaging with Adagrad on the server: Reddi et al., ICLR 2021, arXiv:2003.00295. It is `FedAdam`, except for

        v ← v + Δ̄²

    Travels: 1 model down, 1 up. Remembered: 2 models more at the server.

    Args:
        beta1: β₁, how long m remembers; the paper takes 0.
        beta2: not used, and must be 0: v forgets nothing.
    """

    beta1: float = hyper(0.0, "[0, 1)")
    beta2: float = hyper(0.0, "[0, 0]")

    def moments(self, server: State, delta: Tensor) -> State:
        """The moments after Δ̄."""
        return super().moments(server, delta).replace(v=server.v + delta.square())
