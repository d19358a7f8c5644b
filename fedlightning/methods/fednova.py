"""FedNova."""

from __future__ import annotations

from fedlightning.method import ClientContext, Round
from fedlightning.methods.fedavg import FedAvg
from fedlightning.state import State


class FedNova(FedAvg):
    """Normalised averaging: Wang et al., NeurIPS 2020, arXiv:2007.07481.

        K_i local steps as in FedAvg,        x ← x + η_g K̄ Σ p_i (w_i − x) / K_i,        K̄ = Σ p_i K_i

    Where clients take unequal numbers of steps, FedAvg favours those with many; here each pulls with its weight p_i alone.
    Equal K_i are FedAvg. Travels: 1 model down, 1 up and a number. Remembered: nothing. On top of another method, whose
    local step must be that of SGD: `class A(FedNova, FedAvgM)`, in this order. The paper divides by ‖a_i‖₁ for local momentum and
    proximal steps, too, which is K_i for SGD alone.
    """

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        """(w_i − x) / K_i and K_i go up."""
        upload, state = super().on_client_end(local, client)
        return upload.replace(delta=upload.delta / client.num_steps, num_steps=client.num_steps), state

    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        """The base's step, with K̄ mean((w_i − x) / K_i) in the place of the mean update."""
        return super().on_aggregate(server, mean.replace(delta=mean.num_steps * mean.delta), round)
