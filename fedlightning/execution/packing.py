"""Who trains with whom: clients in cohorts, and cohorts shared out to slots."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from fedlightning.data.module import FederatedDataModule
from fedlightning.execution.inspection import first_batch

WORTH = 500
"""Steps in graphs that take longer than what else there is to do for a cohort."""

TOGETHER, STEPS_TOGETHER, BYTES_TOGETHER = 8, 32_768, 32 * 2**20
"""Cohorts in graphs that a slot takes at a time, their local steps, and the batches that are made of them beforehand."""


def pack(order: Sequence[int], steps: Sequence[int], size: int, share: float = 1.0) -> list[tuple[int, ...]]:
    """Clients of falling numbers of steps in cohorts of at most `size`.

    Args:
        order: the clients.
        steps: how many each takes.
        size: clients of a cohort.
        share: a cohort of several takes at most this part of all steps, or 500: then no slot is long at work while others
            wait, for cohorts whose clients follow one another.
    """
    cohorts: list[list[int]] = []
    most, total = max(share * sum(steps), WORTH), 0
    for client, count in zip(order, steps, strict=True):
        if cohorts and len(cohorts[-1]) < size and total + count <= most:
            cohorts[-1].append(client)
            total += count
        else:
            cohorts.append([client])
            total = count
    return [tuple(cohort) for cohort in cohorts]


def share_out(costs: Sequence[int], slots: int, most: int = STEPS_TOGETHER) -> list[tuple[int, ...]]:
    """The positions of cohorts that a slot takes together.

    A slot takes at most about eight, of about `most` steps; each goes to those that have least to do so far, and all slots
    take as often, so they are done at about the same time.

    Args:
        costs: local steps of each cohort.
        slots: how many share them.
        most: local steps that a slot takes at a time, unless they are one cohort's.
    """
    times = max(1, -(-len(costs) // (slots * TOGETHER)), -(-sum(costs) // (slots * most)))
    shares = [(0, i, list[int]()) for i in range(min(slots * times, len(costs)))]
    for position, cost in enumerate(costs):
        least, i, positions = heappop(shares)
        heappush(shares, (least + cost, i, [*positions, position]))
    return sorted(tuple(positions) for *_, positions in shares)


def steps_together(data: FederatedDataModule) -> int:
    """Local steps of cohorts in graphs whose plans, and batches where those are made beforehand, are in memory at a time."""
    if data.only_gathers:
        return STEPS_TOGETHER
    batch = first_batch(data)
    example = (batch.inputs.nbytes + batch.targets.nbytes) / max(len(batch.inputs), 1)
    size = data.batching.size or len(batch.inputs)
    return min(STEPS_TOGETHER, max(1, int(BYTES_TOGETHER / max(example * size, 1))))
