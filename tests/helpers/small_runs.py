"""A small problem and a quiet run of it, for tests that compare one run with another.

`fit(method)` trains a small network on seven clients of 1 to 40 examples, in float64; a test names what it wants otherwise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fedlightning import (
    Batching,
    Classification,
    Examples,
    FedAvg,
    FederatedDataModule,
    FederatedTask,
    FederatedTrainer,
    FedMethod,
    Partition,
    RoundState,
    SlotStrategy,
    TensorData,
)
from fedlightning.methods import method_named, method_names
from fedlightning.models import MLP

SIZES = [3, 40, 7, 25, 1, 12, 9]
ALL = [name for name in method_names() if name != "adaptivefedprox"]
SMALL = {"fedadam": 0.01, "fedyogi": 0.01, "fedadagrad": 0.01, "fedams": 0.01, "fedmpx": 0.01}
STRATEGY = ("runner", "cohort_size", "precision", "threads_per_slot", "memory_dir", "memory_bytes", "rules")


def named(name: str) -> FedMethod:
    """A method at a step at which it goes down."""
    options = {"server_lr": SMALL[name]} if name in SMALL else {}
    return method_named(name)(lr=0.05, **options)  # type: ignore[arg-type]


def unequal_clients(
    dtype: torch.dtype = torch.float64,
    kind: type[TensorData] = TensorData,
    sizes: Sequence[int] = SIZES,
    **batching: Any,
) -> TensorData:
    """Clients of these sizes, whose examples have 6 features and one of 3 labels.

    They train on batches of four and for two epochs, unless `batching` says otherwise: fields of `Batching`.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(sizes), 6, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, 3, (sum(sizes),), generator=generator)
    clients = Partition.of(torch.arange(sum(sizes)).split(list(sizes)))
    return kind(Examples(inputs, targets), clients, batching=Batching(**{"size": 4, "epochs": 2, **batching}))


def small_task(*layers: nn.Module, dtype: torch.dtype = torch.float64) -> Classification:
    """A small network, and these layers behind it."""
    torch.manual_seed(1)
    return Classification(nn.Sequential(MLP(6, 3, (8,)), *layers).to(dtype), 3)


def quiet_trainer(rounds: int = 2, slots: Any = 1, **options: Any) -> FederatedTrainer:
    """A trainer that writes nothing, shows nothing and evaluates nothing, unless it is told to.

    Args:
        rounds: of the run.
        slots: of its strategy, which also gets whatever of `options` is an argument of `SlotStrategy`.
        **options: any other argument of the trainer, `strategy` included.
    """
    chosen = {name: options.pop(name) for name in STRATEGY if name in options}
    quiet = {"callbacks": [], "logger": False, "evaluate_every": 0}
    strategy = options.pop("strategy", None) or SlotStrategy(slots, **chosen)
    return FederatedTrainer(rounds, strategy=strategy, **quiet | options)


def fit(
    method: FedMethod | None = None,
    task: FederatedTask | None = None,
    data: FederatedDataModule | None = None,
    rounds: int = 2,
    *,
    state: RoundState | None = None,
    ckpt_path: str | Path | Literal["last"] | None = None,
    **options: Any,
) -> FederatedTrainer:
    """Train: FedAvg, the small task and the unequal clients where nothing else is given; `options` are `quiet_trainer`'s.

    Returns:
        The trainer, whose `state` is what came of it.
    """
    trainer = quiet_trainer(rounds, **options)
    trainer.fit(method or FedAvg(), task or small_task(), data or unequal_clients(), state, ckpt_path)
    return trainer


def same(one: RoundState, other: RoundState, atol: float = 1e-12) -> None:
    """Check that two runs ended alike."""
    torch.testing.assert_close(one.server.x, other.server.x, rtol=0, atol=atol)
    torch.testing.assert_close(one.buffers, other.buffers, rtol=0, atol=atol)
    for client, row in one.memory.rows().items():
        for name in row:
            torch.testing.assert_close(row[name], other.memory.rows()[client][name], rtol=0, atol=10 * atol)
