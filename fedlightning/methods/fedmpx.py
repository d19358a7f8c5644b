"""FedMPX."""

from __future__ import annotations

from fedlightning.method import Round, hyper
from fedlightning.methods.fedadam import FedAdam
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class MPX(FedAvg):
    """Pulls the server's step towards the average of the clients' models; on top of a method with another server step.

        x̂ the method's next model,  w̄ = x + Σ p_i (w_i − x)
        x ← argmin β ‖x − x̂‖² + ½ Σ p_i ‖x − w_i‖² = (β x̂ + ½ w̄) / (β + ½)

    β = 0 is FedAvg, β → ∞ the method itself. Travels and remembered: as with the method. Unpublished.

    Args:
        mpx: β.
    """

    mpx: float = hyper(0.5, "[0, inf)")

    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        """The base's step, then the mean with w̄."""
        after = super().on_aggregate(server, mean, round)
        return after.replace(x=(self.mpx * after.x + 0.5 * (server.x + mean.delta)) / (self.mpx + 0.5))


class FedMPX(MPX, FedAdam):
    """`FedAdam` with `MPX`."""
