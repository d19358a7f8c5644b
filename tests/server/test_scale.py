"""A million clients: what a round costs does not grow with them, nor with those that took part before."""

import tempfile
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import fit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedlightning import (
    Batching,
    Callback,
    Classification,
    ConfigurationError,
    Examples,
    FedAvg,
    FederatedTrainer,
    FedMethod,
    ModelCheckpoint,
    Partition,
    RoundProgress,
    RoundState,
    Scaffold,
    SlotStrategy,
    State,
    TensorData,
    stream,
)
from fedlightning.data import RandomCropFlip
from fedlightning.datasets import FakeImages
from fedlightning.evaluation.pooled import ClientSums, Split
from fedlightning.models import MLP
from fedlightning.participation import SizeWeighted, UniformSampling
from fedlightning.server.aggregation import OrderedMean
from fedlightning.server.checkpoint import load_checkpoint, save_checkpoint
from fedlightning.server.client_memory import ClientMemory, read_dump

MILLION = 1_000_000


def task() -> Classification:
    torch.manual_seed(0)
    return Classification(MLP(6, 3, (8,)))


def shared(num: int, size: int = 3) -> TensorData:
    """Many clients over few examples, so that nothing but the partition is large."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(300, 6, generator=generator), torch.randint(0, 3, (300,), generator=generator)
    clients = Partition.of_sizes(torch.full((num,), size), torch.arange(num * size) % 300)
    test_clients = Partition.of_owners(torch.arange(100) * 7919 % num, num)
    data = TensorData(
        Examples(inputs, targets), clients, Examples(inputs[:100], targets[:100]), test_clients, batching=Batching(2)
    )
    data.shared_examples = True
    return data


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.count = max(self.count, leaf.numel())
        return result


class Watch(Callback):
    """Watches the trainer's thread from the second round on, when the first one made what is made once."""

    def __init__(self) -> None:
        self.largest, self.traced = Largest(), 0

    def on_round_start(self, trainer: FederatedTrainer, round: object) -> None:
        if trainer.round == 1:
            tracemalloc.start()
            self.largest.__enter__()

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        self.largest.__exit__(None, None, None)
        self.traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


# -- whole runs -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [FedAvg(), Scaffold()], ids=["fedavg", "scaffold"])
def test_a_round_with_a_million_clients_makes_nothing_of_their_number(method: FedMethod, tmp_path: Path) -> None:
    watch, data = Watch(), shared(MILLION)
    before = _resident()
    callbacks = [watch, ModelCheckpoint(tmp_path)]
    trainer = FederatedTrainer(4, 10, SlotStrategy(1), callbacks, logger=False)
    trainer.fit(method, task(), data)
    assert watch.largest.count < 10_000  # numbers in a tensor
    assert watch.traced < 3_000_000  # bytes of Python and NumPy, of the slots' threads too
    assert _resident() - before < 100 * 2**20
    assert (tmp_path / "last.ckpt").stat().st_size < 200_000


def _resident() -> int:
    fields = Path("/proc/self/statm")
    return int(fields.read_text().split()[1]) * 4096 if fields.exists() else 0


def test_the_watch_sees_what_grows() -> None:
    clients = Partition.of_sizes(torch.full((1000,), 3))
    with Largest() as largest:
        assert int(clients.offsets[1:].sum()) == 3000 * 1001 / 2
    assert largest.count == 1  # a slice is a view
    with Largest() as largest:
        assert int(clients.sizes.sum()) == 3000
    assert largest.count == 1000


def test_uniform_sampling_of_a_million_allocates_nothing_of_their_number() -> None:
    tracemalloc.start()
    assert len(set(UniformSampling().sample(0, MILLION, 10, seed=0))) == 10
    assert tracemalloc.get_traced_memory()[1] < 50_000
    tracemalloc.stop()


# -- what clients remember ----------------------------------------------------------------------------------------------
def row(number: float, size: int = 5) -> State:
    return State(c=torch.full((size,), number), n=torch.tensor(int(number)))


def numbers(rows: Mapping[int, State]) -> dict[int, float]:
    for state in rows.values():
        assert bool((state.c == state.c[0]).all())
        assert int(state.n) == float(state.c[0])
    return {client: float(state.c[0]) for client, state in rows.items()}


@pytest.fixture(params=["host", "files", "beyond"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> ClientMemory:
    """A chunk is three rows of `c`, or eight of `n`."""
    if request.param == "host":
        return ClientMemory(chunk=64)
    return ClientMemory(None, tmp_path, 20, host_bytes=150 if request.param == "beyond" else 0, chunk=64)


def test_a_memory_that_is_held_keeps_the_rows_that_are_replaced_after_it(empty: ClientMemory) -> None:
    history = [empty]
    expected: list[dict[int, float]] = [{}]
    for t in range(12):
        changed = {(3 * t + i) % 11: float(10 * t + i) for i in range(4)}
        history.append(history[-1].updated({client: row(value) for client, value in changed.items()}))
        expected.append(expected[-1] | changed)
    assert [numbers(each.rows()) for each in history] == expected
    assert history[1].get(5) is None
    assert len(history[1].rows()) == 4
    with pytest.raises(KeyError):
        history[1].rows()[5]


def test_two_ways_on_from_one_memory_do_not_meet(empty: ClientMemory) -> None:
    first = empty.updated({1: row(1), 2: row(2), 3: row(3), 4: row(4)})
    one = first.updated({1: row(10), 5: row(50)})
    other = first.updated({2: row(20)})
    one, other = one.updated({3: row(30)}), other.updated({1: row(11)})
    assert numbers(first.rows()) == {1: 1, 2: 2, 3: 3, 4: 4}
    assert numbers(one.rows()) == {1: 10, 2: 2, 3: 30, 4: 4, 5: 50}
    assert numbers(other.rows()) == {1: 11, 2: 20, 3: 3, 4: 4}


def test_what_get_gives_is_not_changed_by_an_update(empty: ClientMemory) -> None:
    held = empty.updated({1: row(1)})
    found = held.get(1)
    held.updated({1: row(2)})
    assert found is not None
    assert float(found.c[0]) == 1


class Interrupting(Tensor):
    """Whoever copies it is interrupted."""

    def detach(self) -> Tensor:
        raise KeyboardInterrupt


def interrupting(state: State) -> State:
    """A row that cannot be written to its end."""
    return state.apply(lambda tensor: tensor.as_subclass(Interrupting))


def test_an_update_that_fails_halfway_leaves_the_memory_as_it_was(empty: ClientMemory, tmp_path: Path) -> None:
    held = empty.updated({client: row(client) for client in range(6)})
    before = numbers(held.rows())
    with pytest.raises(KeyboardInterrupt):
        held.updated({2: row(200), 6: row(600), 7: interrupting(row(700))})
    assert numbers(held.rows()) == before
    save_checkpoint(tmp_path / "a.ckpt", RoundState(1, State(x=torch.ones(1)), held), {}, {})
    assert numbers(load_checkpoint(tmp_path / "a.ckpt")[0].memory.rows()) == before
    assert numbers(held.updated({7: row(7)}).rows()) == before | {7: 7}


def test_checkpoints_hold_every_row_and_no_more(empty: ClientMemory, tmp_path: Path) -> None:
    held = empty.updated({client: row(client) for client in (9, 4, 0, 7, 3, 12, 5)})
    held = held.updated({4: State(c=torch.ones(2)), 5: row(55)}).updated({4: row(44), 9: State(d=torch.ones(3))})
    save_checkpoint(tmp_path / "a.ckpt", RoundState(1, State(x=torch.ones(1)), held), {}, {})
    found = load_checkpoint(tmp_path / "a.ckpt")[0].memory.rows()
    odd = found[9]
    assert list(odd) == ["d"]
    assert numbers({c: found[c] for c in found if c != 9}) == {4: 44, 0: 0, 7: 7, 3: 3, 12: 12, 5: 55}
    ids, content = held.dump()
    assert len(ids) == sum(map(len, content["entries"]["c"])) == 7
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in content["entries"]["c"])


def test_a_checkpoint_of_mapped_rows_is_as_large_as_they_are(tmp_path: Path) -> None:
    mapped = ClientMemory(None, tmp_path / "rows", MILLION).updated({999_999: State(c=torch.ones(1000))})
    save_checkpoint(tmp_path / "a.ckpt", RoundState(1, State(x=torch.ones(1)), mapped), {}, {})
    assert (tmp_path / "a.ckpt").stat().st_size < 20_000


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool, torch.complex64, torch.int64])
def test_every_type_and_shape_lies_in_files(dtype: torch.dtype, tmp_path: Path) -> None:
    state = State(a=torch.tensor([[1, 0, 1]]).to(dtype), b=torch.tensor(1).to(dtype), none=torch.zeros(0, dtype=dtype))
    held = ClientMemory(None, tmp_path, 4).updated({2: state, 3: state})
    for found in (held.rows()[3], read_dump(*held.dump())[3]):
        assert all(torch.equal(found[name], state[name]) and found[name].dtype == dtype for name in state)


def test_an_update_costs_its_own_rows_however_many_took_part() -> None:
    held = ClientMemory({client: State(c=torch.ones(1)) for client in range(20_000)})
    tracemalloc.start()
    after = held.updated({5: State(c=torch.zeros(1)), 30_000: State(c=torch.zeros(1))})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000  # a copied dictionary of the clients would take 600,000
    assert float(after.rows()[5].c) == 0
    assert float(held.rows()[5].c) == 1


def test_an_earlier_memory_does_not_lose_its_file_to_a_later_one(tmp_path: Path) -> None:
    first = ClientMemory(None, tmp_path, 4).updated({1: row(1)})
    second = ClientMemory(None, tmp_path, 4).updated({1: row(2)})
    assert (numbers(first.rows()), numbers(second.rows())) == ({1: 1}, {1: 2})


def test_a_directory_needs_the_number_of_clients(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"`num_clients` of ClientMemory must be at least 1 .* but is 0"):
        ClientMemory(None, tmp_path)


# -- in a run -----------------------------------------------------------------------------------------------------------
def scaffold(rounds: int, folder: Path | None = None, **options: Any) -> RoundState:
    return fit(Scaffold(), task(), shared(12), rounds, clients_per_round=4, memory_dir=folder, **options).state


def same(one: RoundState, other: RoundState) -> None:
    assert torch.equal(one.server.x, other.server.x)
    assert torch.equal(one.server.c, other.server.c)
    assert one.memory.rows().keys() == other.memory.rows().keys()
    assert all(torch.equal(one.memory.rows()[client].c, found.c) for client, found in other.memory.rows().items())


def test_rows_beyond_the_stated_size_lie_in_a_file_and_change_no_bit(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_host, begun = scaffold(5, callbacks=[RoundProgress()]), scaffold(1)
    assert "at most 3.891 KiB in the host's memory\n" in capsys.readouterr().out
    opened: list[Path] = []
    usual = tempfile.TemporaryFile

    def spy(*, dir: Path, **options: Any) -> Any:
        opened.append(dir)
        return usual(dir=dir, **options)

    monkeypatch.setattr("tempfile.TemporaryFile", spy)
    memory = ClientMemory(dict(begun.memory.rows()), Path("logs"), 12, host_bytes=700, chunk=400)
    same(on_host, scaffold(5, callbacks=[RoundProgress()], state=replace(begun, memory=memory)))
    assert opened == [Path("logs")]
    assert "in the host's memory up to 6.519e-07 GiB, beyond in a file in logs" in capsys.readouterr().out
    assert list((own_folder / "logs").iterdir()) == []


class Interrupted(ClientMemory):
    """An update of it is interrupted after two of four rows."""

    def updated(self, rows: Mapping[int, State]) -> ClientMemory:
        third = list(rows)[2]
        return super().updated({**rows, third: interrupting(rows[third])})


@pytest.mark.parametrize("files", [True, False])
def test_killed_in_the_midst_of_an_update_and_resumed_changes_no_bit(files: bool, tmp_path: Path) -> None:
    folder = tmp_path / "rows" if files else None
    begun = scaffold(2, folder)
    memory = Interrupted(dict(begun.memory.rows()), folder, 12)
    with pytest.raises(KeyboardInterrupt):
        scaffold(5, folder, callbacks=[ModelCheckpoint(tmp_path)], state=replace(begun, memory=memory))
    same(scaffold(2), load_checkpoint(tmp_path / "last.ckpt")[0])
    same(scaffold(5), scaffold(5, folder, ckpt_path=tmp_path / "last.ckpt"))


def test_a_state_that_is_held_goes_on_twice_to_the_same_bits(tmp_path: Path) -> None:
    held = scaffold(2, tmp_path)
    first = scaffold(5, tmp_path, state=held)
    same(first, scaffold(5, tmp_path, state=held))
    same(held, scaffold(2))


# -- who takes part -----------------------------------------------------------------------------------------------------
def weighted(sizes: list[int]) -> tuple[SizeWeighted, int]:
    """A sampler of these clients, and of so many tiny ones beside them that it draws without a number for each; N."""
    every = [*(10**9 * size for size in sizes), *[1] * (10_001 - len(sizes))]
    return SizeWeighted(every), len(every)


def test_successive_draws_have_the_exact_chances() -> None:
    counts = np.zeros((4, 4))
    sampler, every = weighted([4, 3, 2, 1])
    for t in range(20_000):
        a, b = sampler.sample(t, every, 2, seed=0)
        counts[a, b] += 1
    p = np.array([4, 3, 2, 1]) / 10
    for a in range(4):
        for b in range(a + 1, 4):
            chance = p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b])
            assert abs(counts[a, b] / 20_000 - chance) < 4 * (chance * (1 - chance) / 20_000) ** 0.5


def test_clients_left_beside_one_that_holds_nearly_all_are_found() -> None:
    found = SizeWeighted([10**12, *[1] * 20_000]).sample(0, 20_001, 11, seed=0)
    assert len(set(found)) == 11
    assert 0 in found
    sampler, every = weighted([1] * 50)
    assert sampler.sample(0, every, 50, seed=0) == list(range(50))


def test_sizes_of_many_clients_are_drawn_without_a_number_for_each() -> None:
    sampler = SizeWeighted().bind(Partition.of_sizes(torch.ones(MILLION, dtype=torch.int64)))
    found = sampler.sample(0, MILLION, 10, seed=0)
    tracemalloc.start()
    assert sampler.sample(0, MILLION, 10, seed=0) == found == sorted(set(found))
    assert tracemalloc.get_traced_memory()[1] < 50_000
    tracemalloc.stop()
    assert sampler.sample(1, MILLION, 10, seed=0) != found


# -- the data path --------------------------------------------------------------------------------------------------------
def test_a_partition_from_sizes() -> None:
    made = Partition.of_sizes(torch.tensor([2, 1, 3]))
    assert [made.client(c).tolist() for c in range(3)] == [[0, 1], [2], [3, 4, 5]]
    assert (made.largest, made.size(2), made.num_clients) == (3, 3, 3)
    assert made.sizes_of((2, 0, 2)).tolist() == [3, 2, 3]
    assert Partition.of_sizes(torch.tensor([1, 1]), torch.tensor([7, 5])).client(1).tolist() == [5]


@pytest.mark.parametrize("offsets", [[0, 1, 2], [1, 2, 3], [0, 2, 4]])
def test_offsets_must_be_those_of_the_indices(offsets: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="`offsets` of the partition must go from 0 to its 3 `indices`"):
        Partition(torch.arange(3), torch.tensor(offsets)).check(3)


def test_falling_offsets_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="`offsets` of the partition must not fall, but go from 3 to 2 at client 1"
    ):
        Partition(torch.arange(3), torch.tensor([0, 3, 2, 3])).check(3)


def test_a_mirrored_partition_takes_memory_for_one_class_at_a_time() -> None:
    clients = Partition.of_sizes(torch.ones(20_000, dtype=torch.int64))
    labels, other = torch.arange(20_000) % 50, torch.arange(500) % 51
    with Largest() as largest:
        mirrored = clients.mirror(labels, other)
    assert largest.count < 100_000
    for c in range(50):
        owners = mirrored.owners()[other[mirrored.indices] == c]
        assert bool((labels[owners] == c).all())


def test_a_schedule_is_a_permutation_for_each_epoch() -> None:
    data = TensorData(
        Examples(torch.zeros(30, 1), torch.zeros(30)),
        Partition.of_sizes(torch.tensor([13, 17])),
        batching=Batching(5, epochs=4),
    )
    data.setup()
    found = data.schedule(1, 6, 3, 16).index
    assert found.shape == (16, 5)
    rng, owned = stream(3, "shuffle", 6, 1), np.arange(13, 30)
    for epoch in found.view(4, 20):
        assert epoch[:17].tolist() == rng.permutation(owned).tolist()
        assert epoch[17:].tolist() == [-1] * 3
    assert torch.equal(data.schedule(1, 6, 3, 6).index, found[:6])


@pytest.mark.parametrize(
    ("shape", "padding", "flip"), [((3, 32, 32), 4, True), ((1, 5, 7), 2, True), ((2, 6, 4), 0, False)]
)
def test_windows_by_numpy_are_those_by_torch(shape: tuple[int, ...], padding: int, flip: bool) -> None:
    change, rng = RandomCropFlip(padding, flip), stream(0, "test")
    images = torch.from_numpy(rng.integers(0, 256, (40, *shape), dtype=np.uint8))
    draws = torch.from_numpy(change.draw(rng, (40,)))
    found, by_torch = change.apply(images, draws), change.apply(images.to(torch.int32), draws)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert torch.equal(found, by_torch.to(torch.uint8))
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    for image, window, (top, left, mirrored) in zip(padded, found, draws.tolist(), strict=True):
        part = image[:, top : top + shape[1], left : left + shape[2]]
        assert torch.equal(window, part.flip(-1) if mirrored else part)


def test_pixels_are_standardised_to_the_bits_of_each_channel_by_itself() -> None:
    data = FakeImages("IIDC2", shape=(3, 8, 8), classes=2, num_train=20, num_test=4)
    data.mean, data.std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    data.setup()
    assert data.train.inputs.is_contiguous()
    inputs = data.train.inputs[:7]
    channels = zip(inputs.unbind(1), data.mean, data.std, strict=True)
    expected = torch.stack([channel * (1 / (255 * std)) - mean / std for channel, mean, std in channels], 1)
    assert torch.equal(data.preprocess(inputs), expected)
    floats = inputs.float()
    data.preprocess(floats)
    assert torch.equal(floats, inputs.float())


# -- evaluation and the mean ----------------------------------------------------------------------------------------------
def test_evaluation_sums_over_the_clients_that_have_examples() -> None:
    owners = torch.tensor([5, 5, 2, 900_000, 2, 5, 17])
    clients = Partition.of_owners(owners, MILLION)
    split = Split("test", Examples(torch.zeros(7), torch.zeros(7)), clients)
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    sums = ClientSums(split)
    assert split.ends.tolist() == [2, 5, 6, 7]
    with Largest() as largest:
        for chunk in ((0, 3), (3, 7)):
            sums.add(chunk, {"accuracy": scores[clients.indices[slice(*chunk)]]})
        found = sums.metrics()
    assert largest.count < 10
    means = np.array([4.0, 3.0, 7.0, 4.0])
    assert found["test/accuracy"] == pytest.approx(4.0)
    assert found["test_clients/accuracy_mean"] == pytest.approx(means.mean())
    assert found["test_clients/accuracy_std"] == pytest.approx(means.std())
    assert found["test_clients/accuracy_worst_decile"] == pytest.approx(3.0)


def test_a_long_row_is_added_in_pieces_to_the_same_bits() -> None:
    rows = torch.randn(2, 3, 100_001, generator=torch.Generator().manual_seed(0))
    mean = OrderedMean(torch.device("cpu"))
    mean.add(State(x=rows), torch.tensor([3.0, 0.7], dtype=torch.float64))
    total = torch.zeros(3, 100_001, dtype=torch.float64)
    for each, weight in zip(rows, (3.0, 0.7), strict=True):
        total.add_(each, alpha=weight)
    assert torch.equal(mean.result().x, (total / 3.7).float())
