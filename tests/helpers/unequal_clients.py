"""A small problem of clients of 1 to 40 examples, for tests that compare runners in float64."""

from typing import Any

import torch
from torch import nn

from fedlightning import Batching, Classification, Examples, FedMethod, Partition, RoundState, TensorData
from fedlightning.methods import method_named, method_names
from fedlightning.models import MLP

SIZES = [3, 40, 7, 25, 1, 12, 9]
ALL = [name for name in method_names() if name != "adaptivefedprox"]
SMALL = {"fedadam": 0.01, "fedyogi": 0.01, "fedadagrad": 0.01, "fedams": 0.01, "fedmpx": 0.01}


def named(name: str) -> FedMethod:
    """A method at a step at which it goes down."""
    options = {"server_lr": SMALL[name]} if name in SMALL else {}
    return method_named(name)(lr=0.05, **options)  # type: ignore[arg-type]


def data(dtype: torch.dtype = torch.float64, kind: type[TensorData] = TensorData, **batching: Any) -> TensorData:
    """The clients, in batches of four and for two epochs unless `batching` says otherwise: fields of `Batching`."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(SIZES), 6, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, 3, (sum(SIZES),), generator=generator)
    clients = Partition.of(torch.arange(sum(SIZES)).split(SIZES))
    return kind(Examples(inputs, targets), clients, batching=Batching(**{"size": 4, "epochs": 2, **batching}))


def task(*layers: nn.Module, dtype: torch.dtype = torch.float64) -> Classification:
    """A small network, and these layers behind it."""
    torch.manual_seed(1)
    return Classification(nn.Sequential(MLP(6, 3, (8,)), *layers).to(dtype), 3)


def same(one: RoundState, other: RoundState, atol: float = 1e-12) -> None:
    """Check that two runs ended alike."""
    torch.testing.assert_close(one.server.x, other.server.x, rtol=0, atol=atol)
    torch.testing.assert_close(one.buffers, other.buffers, rtol=0, atol=atol)
    for client, row in one.memory.rows().items():
        for name in row:
            torch.testing.assert_close(row[name], other.memory.rows()[client][name], rtol=0, atol=10 * atol)
