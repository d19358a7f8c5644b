"""How the examples of a client become the batches of a round."""

from __future__ import annotations

from dataclasses import dataclass

from fedlightning._checked import COUNT, check_fields
from fedlightning.errors import ConfigurationError

_COUNT = "[1, 1000000]"
"""Epochs or steps of a client in a round. All its batches are drawn at once, so there is an upper limit."""


@dataclass(frozen=True)
class Batching:
    """The size of a batch, and how many batches a client trains on in a round.

    Args:
        size: B, examples of a local step; None for all examples of the client. The last batch of an epoch may be smaller.
        epochs: E, passes over the client's examples in a round; 1, unless `steps` is given.
        steps: K, local steps of every client in a round, in place of `epochs`.
        drop_last: leave out the last batch of an epoch where it is not full. Batch norm needs that where the batch has one
            example. A client that fills no batch keeps the one that it has.

    Raises:
        ConfigurationError: a number is not positive or too large, or both `epochs` and `steps` are given.
    """

    size: int | None = 32
    epochs: int | None = None
    steps: int | None = None
    drop_last: bool = False

    def __post_init__(self) -> None:
        check_fields(self, size=COUNT, epochs=_COUNT, steps=_COUNT)
        if self.epochs is not None and self.steps is not None:
            raise ConfigurationError(
                f"Either `epochs` or `steps` of Batching may be given, but both are ({self.epochs} and {self.steps}); leave one "
                "out."
            )
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)

    def batches(self, examples: int) -> int:
        """The number of batches of one epoch over so many examples."""
        size = self.size or examples
        return examples // size if self.drop_last and examples > size else -(-examples // size)

    def num_steps(self, examples: int) -> int:
        """K, the local steps in a round of a client with so many examples."""
        return self.steps or (self.epochs or 1) * self.batches(examples)
