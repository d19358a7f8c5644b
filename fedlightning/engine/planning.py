"""When plans are made: several cohorts' at a time, each slot its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedlightning.engine.executors import Executor
from fedlightning.engine.job import CohortPlan, RoundJob, plan_cohort

_AHEAD, _ENTRIES = 8, 2**18
"""How many cohorts a slot plans at a time, and after how many planned places [K, C, B] it stops."""


def plan_for(executor: Executor, job: RoundJob, clients: tuple[int, ...], device: torch.device) -> CohortPlan:
    """A cohort's plan, laid out as the executor asks."""
    return plan_cohort(job, clients, device, executor.padding(len(clients)))


class Plans:
    """The plans of a round's cohorts.

    To plan a small cohort takes a tenth of a millisecond, but eight times that just after a convolution, which has taken the
    cache. So a slot that finds its cohort without a plan also plans those that will likely be its next: every S-th, with S
    slots. A plan is the same whoever makes it, so nothing depends on it if another slot gets there first. On a GPU no plan is
    made ahead, since its tensors belong to the stream of the slot that makes it.

    Args:
        job: the round.
        cohorts: in the order in which slots take them.
        slots: S.
    """

    def __init__(self, job: RoundJob, cohorts: Sequence[tuple[int, ...]], slots: int) -> None:
        self._job, self._cohorts, self._slots = job, cohorts, slots
        self._ready: dict[tuple[int, torch.device], CohortPlan] = {}

    def take(self, position: int, executor: Executor, device: torch.device) -> CohortPlan:
        """The plan of a cohort; it is given away."""
        if (plan := self._ready.pop((position, device), None)) is not None:
            return plan
        plan = plan_for(executor, self._job, self._cohorts[position], device)
        entries = plan.steps.mask.numel()
        for other in range(position + self._slots, len(self._cohorts), self._slots)[: _AHEAD - 1]:
            if entries > _ENTRIES or device.type != "cpu":
                break
            ahead = plan_for(executor, self._job, self._cohorts[other], device)
            self._ready[other, device] = ahead
            entries += ahead.steps.mask.numel()
        return plan
