"""A deterministic minimiser of smooth functions of one vector."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[float, Tensor]]

_MEMORY, _DECREASE = 10, 1e-4
"""Pairs that are remembered, and the share of the predicted decrease that a step must reach."""


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        point: [P].
        start: the objective at the start.
        value: the objective at `point`.
        gradient_norm: the gradient's L2 norm there.
        passes: evaluations of the objective and its gradient.
    """

    point: Tensor
    start: float
    value: float
    gradient_norm: float
    passes: int


def minimise(objective: Objective, start: Tensor, tolerance: float, passes: int, rounding: float) -> Minimum:
    """L-BFGS (Liu & Nocedal, 1989) with ten pairs; steps are halved until they decrease the objective enough (Armijo).

    The bits depend on the arguments alone. A step may raise the objective by its rounding, so that the gradient can be
    brought down where differences of the objective are noise already.

    Args:
        objective: gives the value and the gradient [P] (float64) at a point [P].
        start: [P] (float64).
        tolerance: of the gradient's L2 norm, where it stops.
        passes: evaluations at most; then it stops where it is.
        rounding: of the objective, relative to its value, e.g. a few times the machine epsilon of its dtype.
    """
    x, pairs = start, deque[tuple[Tensor, Tensor]](maxlen=_MEMORY)
    value, gradient = objective(x)
    first, used = value, 1
    while not float(gradient.norm()) <= tolerance and used < passes:
        direction = _direction(gradient, pairs)
        slope = float(direction.dot(gradient))
        if slope >= 0:
            pairs.clear()
            direction, slope = -gradient, -float(gradient.dot(gradient))
        length = 1.0 if pairs else min(1.0, 1 / float(gradient.norm()))
        while used < passes:
            point = x + length * direction
            reached, new_gradient = objective(point)
            used += 1
            if reached <= value + _DECREASE * length * slope + rounding * abs(value):
                _remember(pairs, point - x, new_gradient - gradient)
                x, value, gradient = point, reached, new_gradient
                break
            length /= 2
    return Minimum(x, first, value, float(gradient.norm()), used)


def _remember(pairs: deque[tuple[Tensor, Tensor]], step: Tensor, change: Tensor) -> None:
    """Keep a pair (s, y) of positive curvature."""
    if float(step.dot(change)) > 1e-10 * float(step.norm() * change.norm()):
        pairs.append((step, change))


def _direction(gradient: Tensor, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """−H g by the two-loop recursion, H the inverse Hessian that the pairs imply."""
    newest_first = list(pairs)[::-1]
    q, factors = gradient.clone(), []
    for s, y in newest_first:
        factors.append(s.dot(q) / s.dot(y))
        q -= factors[-1] * y
    if newest_first:
        s, y = newest_first[0]
        q *= s.dot(y) / y.dot(y)
    for (s, y), factor in zip(newest_first[::-1], factors[::-1], strict=True):
        q += (factor - y.dot(q) / s.dot(y)) * s
    return torch.neg(q)
