"""FedYogi."""

from __future__ import annotations

from torch import Tensor

from fedlightning.methods.fedadam import FedAdam
from fedlightning.state import State


class FedYogi(FedAdam):
    """Averaging with Yogi on the server: Reddi et al., ICLR 2021, arXiv:2003.00295. It is `FedAdam`, except for

        v ← v − (1 − β₂) Δ̄² sign(v − Δ̄²)

    so v grows as Adam's does and falls slowly. Travels: 1 model down, 1 up. Remembered: 2 models more at the server.
    """

    def moments(self, server: State, delta: Tensor) -> State:
        """The moments after Δ̄."""
        square = delta.square()
        v = server.v - (1 - self.beta2) * square * (server.v - square).sign()
        return super().moments(server, delta).replace(v=v)
