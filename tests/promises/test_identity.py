"""What a run goes on from: only what it began as."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import fit
from torch import Tensor, nn

from fedlightning import (
    Batching,
    Classification,
    ConfigurationError,
    Examples,
    FedAvg,
    FedMethod,
    FedProx,
    ModelCheckpoint,
    Partition,
    RoundState,
    Scaffold,
    State,
    TensorData,
)
from fedlightning._hashing import described, digest
from fedlightning.methods import FedLESAM, FedNova
from fedlightning.participation.samplers import ClientSampler
from fedlightning.server.client_memory import ClientMemory

pytestmark = pytest.mark.quick

SIZE = 3000  # more than the thousand examples that were once looked at


def examples(change: int | None = None, double: bool = False) -> Examples:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(SIZE, 4, generator=generator), torch.randint(0, 3, (SIZE,), generator=generator)
    if change is not None:
        inputs[change, 2] += 1e-3
    return Examples(inputs.double() if double else inputs, targets)


def clients(parts: int = 5, *, shift: int = 0) -> Partition:
    return Partition.of(torch.arange(SIZE).roll(shift).split(SIZE // parts))


def data(train: Examples | None = None, owners: Partition | None = None, **more: Any) -> TensorData:
    return TensorData(train or examples(), owners or clients(), **({"batching": Batching(300)} | more))


def task(frozen: int = 0, table: float = 1.0) -> Classification:
    torch.manual_seed(frozen)
    base = nn.Linear(4, 6).requires_grad_(False)
    base.register_buffer("table", torch.full((2,), table), persistent=False)
    torch.manual_seed(9)
    return Classification(nn.Sequential(base, nn.Tanh(), nn.Linear(6, 3)), 3)


def frozen_run(
    method: FedMethod,
    model: Classification | None = None,
    source: TensorData | None = None,
    rounds: int = 2,
    **options: Any,
) -> RoundState:
    """A run on a network of which a layer is frozen, with two clients a round."""
    return fit(method, model or task(), source or data(), rounds, clients_per_round=2, **options).state


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("frozen", lambda: {"model": task(frozen=1)}),
        ("frozen", lambda: {"model": task(table=2.0)}),
        ("training_data", lambda: {"source": data(examples(change=1))}),
        ("training_data", lambda: {"source": data(examples(change=2999))}),
        ("partition", lambda: {"source": data(owners=clients(shift=1))}),
        ("test_data", lambda: {"source": data(test=examples(change=2999))}),
        ("test_data", lambda: {"source": data(test=examples(), test_clients=clients(shift=1))}),
        ("batches", lambda: {"source": data(batching=Batching(300, drop_last=True))}),
    ],
)
def test_a_checkpoint_goes_on_only_on_the_same_base_and_data(
    name: str, changed: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    frozen_run(
        FedAvg(), source=data(test=examples()) if name == "test_data" else None, callbacks=[ModelCheckpoint(tmp_path)]
    )
    with pytest.raises(ConfigurationError, match=f"A run goes on only as it began, but `{name}` is") as found:
        frozen_run(FedAvg(), rounds=3, ckpt_path=tmp_path / "last.ckpt", **changed())
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 500


def test_a_plain_value_that_a_layer_or_a_task_keeps_is_looked_at_too(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    def scaled(scale: float, lr: float = 0.1) -> Classification:
        return Classification(nn.Sequential(Scaled(scale), task().model), 3, lr=lr)

    frozen_run(FedAvg(), scaled(1.0), callbacks=[ModelCheckpoint(tmp_path)])
    frozen_run(FedAvg(), scaled(1.0, lr=0.2), rounds=2, ckpt_path=tmp_path / "last.ckpt")  # of the centralised baseline
    with pytest.raises(ConfigurationError, match="A run goes on only as it began, but `model` is"):
        frozen_run(FedAvg(), scaled(2.0), rounds=3, ckpt_path=tmp_path / "last.ckpt")


def test_other_parameters_that_are_trained_and_more_rounds_go_on(tmp_path: Path) -> None:
    frozen_run(FedAvg(), callbacks=[ModelCheckpoint(tmp_path)])
    other = task()
    with torch.no_grad():
        other.model[2].weight.zero_()
    assert torch.equal(
        frozen_run(FedAvg(), other, rounds=4, ckpt_path=tmp_path / "last.ckpt").server.x,
        frozen_run(FedAvg(), rounds=4).server.x,
    )


# -- from a state ---------------------------------------------------------------------------------------------------------
class Twin(FedAvg):
    """The method, and something that is none of its mathematics."""


class Rated(FedAvg):
    """Another method, whose states have the same entries."""

    rate: float = 0.5


class Other(FedMethod):
    """The same, without a base."""


def widened(state: RoundState) -> RoundState:
    rows = {client: State(c=row.c.double()) for client, row in state.memory.rows().items()}
    return RoundState(state.round, state.server, ClientMemory(rows), state.buffers)


def unknown(state: RoundState) -> RoundState:
    return RoundState(state.round, state.server, ClientMemory({7: State(c=torch.zeros(21))}), state.buffers)


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (FedAvg(), {"method": Scaffold()}, "it was made by FedAvg, and the method is Scaffold"),
        (Scaffold(), {"method": FedAvg()}, "it was made by Scaffold, and the method is FedAvg"),
        (FedAvg(), {"method": Twin()}, "it was made by FedAvg, and the method is Twin"),
        (FedProx(), {"method": FedAvg()}, "it was made by FedProx, and the method is FedAvg"),
        (FedNova(), {"method": FedAvg()}, "it was made by FedNova, and the method is FedAvg"),
        (FedAvg(), {"method": FedNova()}, "it was made by FedAvg, and the method is FedNova"),
        (Other(), {"method": FedAvg()}, "it was made by Other, and the method is FedAvg"),
        (Rated(), {"method": FedAvg()}, "it was made by Rated, and the method is FedAvg"),
        (
            FedLESAM(reference="client"),
            {"method": FedLESAM(reference="server")},
            r"a server remembers has no such `x_old` \(float32 \[21\]\)",
        ),
        (Scaffold(), {"source": data(owners=clients(shift=1))}, "what the clients of another partition remember"),
        (Scaffold(), {"model": task().double(), "source": data(examples(double=True))}, "`dtype` is 'torch.float32' in the state and 'torch.float64'"),
        (FedAvg(), {"model": task(frozen=1)}, "`frozen` is"),
        (FedAvg(), {"model": Classification(nn.Sequential(*task().model, nn.BatchNorm1d(3, affine=False)), 3)}, "`buffers` is"),
        (Scaffold(), {"change": widened}, r"a client remembers has no such `c` \(float32 \[21\]\)"),
        (Scaffold(), {"change": unknown}, "it holds what client 7 remembers, and there are 5 clients"),
        (FedAvg(), {"change": lambda s: RoundState(-1, s.server)}, "its `round` is -1"),
        (FedAvg(), {"change": lambda s: RoundState(1.5, s.server)}, "its `round` is 1.5"),
        (Scaffold(), {"change": lambda s: RoundState(1, State(x=s.server.x))}, "a server remembers has no such `c`"),
    ],
)  # fmt: skip
def test_a_state_that_is_no_state_of_this_run_is_refused(first: FedMethod, then: dict[str, Any], message: str) -> None:
    state = then.pop("change", lambda state: state)(frozen_run(first))
    with pytest.raises(ConfigurationError, match=message) as found:
        frozen_run(then.pop("method", first), **then, state=state, rounds=3)
    assert "\n" not in str(found.value)


def test_a_state_goes_on_with_another_rate_seed_or_length() -> None:
    for first, then in ((FedAvg(), FedAvg(lr=0.3)), (Scaffold(), Scaffold(lr=0.3, option="I"))):
        state = frozen_run(first)
        assert frozen_run(then, rounds=4, state=state, seed=5).round == 4
    assert frozen_run(FedAvg(), rounds=3, state=frozen_run(Twin())).round == 3
    assert frozen_run(FedAvg(), rounds=3, source=data(owners=clients(shift=1)), state=frozen_run(FedAvg())).round == 3
    by_hand = RoundState(0, State(x=torch.zeros(21)))
    assert frozen_run(FedAvg(), state=by_hand).round == 2


def test_a_new_run_may_begin_at_the_model_of_another_method() -> None:
    trained = task().with_state(frozen_run(FedAvg()))
    assert frozen_run(Scaffold(), trained).round == 2


# -- hashes ---------------------------------------------------------------------------------------------------------------
def test_a_digest_tells_every_bit_dtype_shape_and_order() -> None:
    tensors = [torch.arange(40_000_000, dtype=torch.uint8), torch.zeros(3, 2), torch.tensor(1.0), torch.ones(2).bool()]
    first = digest(tensors)
    assert digest([tensor.clone() for tensor in tensors]) == first
    last = tensors[0].clone()
    last[-1] += 1
    others = [
        [last, *tensors[1:]], [*tensors[:1], tensors[1].T, *tensors[2:]], [*tensors[:1], tensors[1].int(), *tensors[2:]],
        [tensors[0], tensors[2], tensors[1], tensors[3]], tensors[:-1], [*tensors, torch.empty(0)],
    ]  # fmt: skip
    assert len({first, *map(digest, others)}) == 7


@pytest.mark.parametrize("cores", [1, 3])
def test_a_digest_does_not_depend_on_the_cores(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.arange(9_000_000), torch.arange(5)]
    expected = digest(tensors)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert digest(tensors) == expected


class Every(ClientSampler):
    """A sampler of one's own, without a `repr`."""

    def __init__(self, step: int, order: Tensor) -> None:
        self.step, self.order = step, order

    def sample(self, round: int, num_clients: int, count: int, seed: int) -> list[int]:
        return [(round * self.step + k) % num_clients for k in range(count)]


@dataclass(frozen=True)
class Table:
    values: Tensor


def test_an_object_is_described_by_its_fields_and_not_by_its_address() -> None:
    one, same, other = Every(1, torch.arange(3000)), Every(1, torch.arange(3000)), Every(1, torch.arange(3000).roll(1))
    assert described(one) == described(same)
    assert described(one) != described(other) != described(Every(2, torch.arange(3000).roll(1)))
    large = torch.zeros(5000)
    changed = large.clone()
    changed[2500] = 1
    assert repr(large) == repr(changed)
    assert described(Table(large)) != described(Table(changed))
    assert described({"a": [1, (2.0, None)]}) == "{'a': [1, (2.0, None)]}"
    assert described(np.zeros(2)) != described(np.ones(2))
    assert described(lambda x: x + 1) != described(lambda x: x * 2)
    assert " at 0x" not in described([object(), described])


def test_a_run_with_a_sampler_of_ones_own_goes_on(tmp_path: Path) -> None:
    def run(sampler: ClientSampler, rounds: int, **how: Any) -> RoundState:
        return frozen_run(FedAvg(), rounds=rounds, sampler=sampler, **how)

    run(Every(2, torch.arange(9)), 2, callbacks=[ModelCheckpoint(tmp_path)])
    assert run(Every(2, torch.arange(9)), 3, ckpt_path=tmp_path / "last.ckpt").round == 3
    with pytest.raises(ConfigurationError, match="`sampler` is 'Every"):
        run(Every(1, torch.arange(9)), 3, ckpt_path=tmp_path / "last.ckpt")
