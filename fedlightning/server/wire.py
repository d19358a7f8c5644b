"""What travels in a round: down to the clients, and up from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedlightning.method import Round
from fedlightning.server.client_memory import ClientMemory
from fedlightning.state import State


@dataclass(frozen=True)
class RoundInputs:
    """What the clients of a round are given; nothing in it is changed by them.

    Attributes:
        round: the round.
        server: what a client sees of the server's state.
        memory: what the clients remember.
        buffers: the global model's buffers, flat [Q].
        gradients: ∇f_i(x) of each client, where the method asked for a pass before the local steps.
    """

    round: Round
    server: State
    memory: ClientMemory
    buffers: Tensor
    gradients: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CohortResult:
    """What a cohort of C clients did in a round.

    Attributes:
        clients: their ids, in packing order.
        upload: what they uploaded, entries [C, …].
        state: what they remember, entries [C, …].
        buffers: their modules' buffers, flat [C, Q] (float64); Q is 0 for a model without running statistics.
        num_examples: [C].
        num_steps: local steps taken [C].
        loss: mean training loss of each client over the examples of its steps [C] (float64): an example counts as often as it
            is seen.
        slot: where it ran.
        seconds: how long it took; of several cohorts that a slot takes together, each has its part by local steps.
    """

    clients: tuple[int, ...]
    upload: State
    state: State
    buffers: Tensor
    num_examples: Tensor
    num_steps: Tensor
    loss: Tensor
    slot: str
    seconds: float
