"""A plane in the space of the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlightning.errors import ConfigurationError
from fedlightning.randomness import stream


@dataclass(frozen=True)
class Plane:
    """The points origin + a u + b v of two orthonormal directions.

    Attributes:
        origin: [P] (float64).
        directions: u and v as rows [2, P] (float64).
        shares: how much of a path's squared length lies along each, or None where there is no path.
    """

    origin: Tensor
    directions: Tensor
    shares: tuple[float | None, float | None] = (None, None)

    @classmethod
    def spanned(cls, origin: Tensor, first: Tensor, second: Tensor) -> Plane:
        """The plane through `origin` along two vectors [P], made orthonormal by Gram and Schmidt.

        Raises:
            ConfigurationError: they are not two vectors [P], or are linearly dependent.
        """
        given = [direction.detach().cpu().to(torch.float64) for direction in (first, second)]
        if any(direction.shape != origin.shape for direction in given):
            shapes = " and ".join(str(list(direction.shape)) for direction in given)
            raise ConfigurationError(
                f"`directions` of LossLandscape must be two vectors [{origin.numel()}], the model's parameters, but are "
                f"{shapes}; flatten them with `trainer.layout`."
            )
        u = given[0] / given[0].norm()
        v = orthogonal(given[1], u)
        if not (u.isfinite().all() and float(v.norm()) > 1e-9 * float(given[1].norm())):
            raise ConfigurationError(
                "`directions` of LossLandscape must span a plane, but are linearly dependent; give two that are not parallel."
            )
        return cls(origin.to(torch.float64), torch.stack([u, v / v.norm()]))

    def project(self, points: Tensor) -> Tensor:
        """The least-squares coordinates (a, b) of points [n, P]; [n, 2]."""
        return (points.to(torch.float64) - self.origin) @ self.directions.T

    def point(self, coordinates: Tensor) -> Tensor:
        """The parameters [P] at coordinates (a, b) [2]."""
        return self.origin + coordinates @ self.directions


def principal_plane(path: Tensor, seed: int) -> Plane:
    """The plane through the last point of a path [T, P] (float64) along its first two principal components.

    The components are those of the differences to the last point, each with its largest entry positive. A path along a
    straight line has but one; the second direction is then a random one that is orthogonal to it.

    Args:
        path: at least two points.
        seed: of that direction.
    """
    differences = path[:-1] - path[-1]
    _, lengths, components = torch.linalg.svd(differences, full_matrices=False)
    energy = lengths.square()
    found = [row for row, length in zip(components[:2], lengths, strict=False) if length > 1e-9 * lengths[0]]
    rng = stream(seed, "landscape", len(path))
    while len(found) < min(2, path.shape[1]):
        drawn = torch.from_numpy(rng.standard_normal(path.shape[1]))
        for direction in found:
            drawn = orthogonal(drawn, direction)
        found.append(drawn / drawn.norm())
    found = [direction * direction[direction.abs().argmax()].sign() for direction in found]
    found += [torch.zeros_like(path[0])] * (2 - len(found))  # a model of one parameter has no second direction
    shares = [float(energy[i] / energy.sum()) if i < len(energy) and float(energy.sum()) else 0.0 for i in range(2)]
    return Plane(path[-1], torch.stack(found), (shares[0], shares[1]))


def orthogonal(vector: Tensor, unit: Tensor) -> Tensor:
    """A vector without its part along a unit vector, taken out twice against rounding."""
    for _ in range(2):
        vector = vector - vector.dot(unit) * unit
    return vector
