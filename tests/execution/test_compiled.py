"""Local steps as graphs: they give the loop's numbers, are built once, and say why where they cannot be."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from small_runs import ALL, fit, named, same, small_task, unequal_clients
from torch import Tensor, nn

from fedlightning import (
    Batching,
    Callback,
    Classification,
    ConfigurationError,
    Examples,
    FedAvg,
    FederatedTrainer,
    FedMethod,
    FedProx,
    MethodError,
    Partition,
    Scaffold,
    SlotStrategy,
    TensorData,
)
from fedlightning.callbacks.base import CohortResult
from fedlightning.data.module import FederatedDataModule, Schedule
from fedlightning.datasets import FakeImages, Synthetic
from fedlightning.execution import auto
from fedlightning.execution.auto import AutoRules, Execution, Wishes, Workload, resolve
from fedlightning.execution.packing import pack, share_out, steps_together
from fedlightning.execution.runners.compiled import build as packages
from fedlightning.execution.runners.compiled import native as walks
from fedlightning.execution.runners.compiled.runner import CompiledBackend
from fedlightning.execution.runners.traced import Given, TracedBackend, Walk, Walked, split_rows, walk_in_python
from fedlightning.layout import Layout
from fedlightning.methods import DeltaSGD, FedDane
from fedlightning.models import LeNet, LogisticRegression

needs_compiler = pytest.mark.skipif(packages.compiler() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for all tests here, and not the user's."""
    folder = tmp_path_factory.getbasetemp() / "programs"
    monkeypatch.setenv("FEDLIGHTNING_CACHE", str(folder))
    return folder


# -- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_traced_steps_of_unequal_clients_give_the_loops_numbers(name: str) -> None:
    """1 to 20 steps, in cohorts that are padded at their end, in their batches and in their width, with dropout."""
    method = named(name)
    model = small_task(nn.Dropout(0.3))
    same(
        fit(method, model, rounds=2, runner="traced", cohort_size=2).state,
        fit(method, model, rounds=2, runner="loop").state,
        1e-12,
    )


@needs_compiler
@pytest.mark.parametrize(
    "method",
    [
        FedProx(mu=0.5),
        pytest.param(DeltaSGD(), marks=pytest.mark.slow),
        pytest.param(Scaffold(), marks=pytest.mark.slow),
        pytest.param(FedDane(mu=0.1), marks=pytest.mark.slow),
    ],
    ids=lambda method: type(method).__name__,
)
def test_compiled_steps_give_the_loops_numbers(method: FedMethod) -> None:
    """DeltaSGD's first step is another than the rest; FedDANE has a pass of gradients, which is a graph of its own."""
    model, losses = small_task(nn.Dropout(0.3)), (Losses(), Losses())
    compiled_run = fit(method, model, rounds=3, runner="compiled", cohort_size=2, callbacks=(losses[0],)).state
    same(compiled_run, fit(method, model, rounds=3, runner="loop", callbacks=(losses[1],)).state, 1e-12)
    assert losses[0].seen.keys() == losses[1].seen.keys()
    assert all(abs(loss - losses[1].seen[where]) < 1e-12 for where, loss in losses[0].seen.items())


@pytest.mark.parametrize("how", ["traced", pytest.param("compiled", marks=needs_compiler)])
def test_large_steps_are_graphs_of_one_step(how: str) -> None:
    """LeNet on batches of 8 images; the last client's second batch has three."""
    generator = torch.Generator().manual_seed(5)
    inputs, targets = torch.randn(43, 3, 32, 32, generator=generator).double(), torch.arange(43) % 10
    owners = Partition.of(torch.arange(43).split([16, 16, 11]))
    images = TensorData(Examples(inputs, targets), owners, batching=Batching(8))
    model = Classification(LeNet(3, 10).double(), 10)
    described = Described()
    runs = [
        fit(Scaffold(), model, images, 2, runner=runner, slots=slots, callbacks=(described,)).state
        for runner, slots in ((how, 1), (how, 2), ("loop", 1))
    ]
    same(runs[0], runs[2], 1e-12)
    assert torch.equal(runs[0].server.x, runs[1].server.x)
    assert "1 local step a graph, one client at a time" in described.lines[0]


class Described(Callback):
    """What each run's strategy says of itself."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        self.lines.append(trainer.strategy.describe())


@needs_compiler
def test_compiled_bits_do_not_depend_on_slots_nor_on_what_the_cache_held(cache: Path) -> None:
    method, model = FedProx(mu=0.5), small_task(nn.Dropout(0.3))
    first = fit(method, model, rounds=3, runner="compiled", cohort_size=2).state
    before = sorted(cache.rglob("*.pt2"))
    again = fit(method, model, rounds=3, runner="compiled", cohort_size=2, slots=3).state
    assert torch.equal(first.server.x, again.server.x)
    assert before
    assert sorted(cache.rglob("*.pt2")) == before


class Builds:
    """A compiler's part, taken by a package that was built before; notes what was ordered."""

    def __init__(self, package: bytes = b"") -> None:
        self.package, self.orders = package, list[packages.Order]()
        self.names: list[str] = []

    def __call__(self, order: packages.Order, path: Path) -> None:
        self.orders.append(order)
        self.names.append(path.name)
        if not self.package:
            raise NotBuiltError
        path.write_bytes(self.package)


class Walks:
    """Makes the usual walks; notes them, and the packages."""

    def __init__(self) -> None:
        self.paths, self.made = list[Path](), list[Walk]()

    def __call__(self, path: Path, used: Sequence[int], unroll: int) -> Walk:
        self.paths.append(path)
        self.made.append(walks.compiled_walk(path, used, unroll))
        return self.made[-1]


class NotBuiltError(Exception):
    """There is nothing to write."""


@needs_compiler
def test_a_damaged_package_is_compiled_again_before_anything_of_it_is_loaded() -> None:
    """Cut, empty, and with a bit that is not what it was; the compiler's part is taken by the package as it was."""
    method, model, walked = FedProx(mu=0.5), small_task(nn.Dropout(0.3)), Walks()
    expected = fit(method, model, rounds=3, runner=CompiledBackend(8, False, 2, True, 1, walk=walked)).state
    (path,) = walked.paths
    whole = path.read_bytes()
    builds, middle = Builds(whole[:-32]), len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 16]) + whole[middle + 1 :]
    for damaged in (whole[:1000], b"", flipped):
        path.write_bytes(damaged)
        walks.library_in.cache_clear()  # as in a new process
        again = fit(method, model, rounds=3, runner=CompiledBackend(8, False, 2, True, 1, build=builds)).state
        assert torch.equal(again.server.x, expected.server.x)
        assert path.read_bytes() == whole
    assert builds.names == [path.name] * 3
    assert all(len(each.graph.graph.find_nodes(op="placeholder")) == len(each.inputs) for each in builds.orders)


@needs_compiler
@pytest.mark.parametrize("gathers", [True, False])
def test_steps_called_from_c_are_those_called_from_python(gathers: bool) -> None:
    """Several clients of a cohort, of unequal steps; batches that C picks from the examples, or that were made before."""
    walked: list[int] = []

    def both(path: Path, used: Sequence[int], unroll: int) -> Walk:
        native = walks.compiled_walk(path, used, unroll)
        assert isinstance(native, walks.NativeWalk)
        python = walk_in_python(packages.load(path), used, unroll)

        def walk(given: Sequence[Given], calls: Sequence[int]) -> Callable[[], Walked]:
            assert any(each.index is not None for each in given) == gathers
            from_c, from_python = native(given, calls), python(given, calls)

            def steps() -> Walked:
                (state, losses), (expected, known) = from_c(), from_python()
                assert all(map(torch.equal, (*state, losses), (*expected, known)))
                walked.append(len(calls))
                return state, losses

            return steps

        return walk

    clients = unequal_clients(kind=TensorData if gathers else Identity)
    backend = CompiledBackend(8, False, 3, gathers, 1, walk=both)
    fit(FedProx(mu=0.5), small_task(nn.Dropout(0.3)), clients, runner=backend)
    assert max(walked) > 1


@pytest.mark.parametrize("name", ["fedprox", "deltasgd", "scaffold"])
def test_blocks_that_end_within_a_client_change_no_bit(name: str) -> None:
    """DeltaSGD's first step is another than the rest, SCAFFOLD's clients remember something."""
    model, backends = small_task(nn.Dropout(0.3)), [TracedBackend(8, False, 3, True, block) for block in (512, 1)]
    assert [backend.block() for backend in backends] == [4096, 8]  # the longest client takes 20 steps
    losses = Losses(), Losses()
    whole, cut = (
        fit(named(name), model, runner=backend, callbacks=[look]).state
        for backend, look in zip(backends, losses, strict=True)
    )
    assert torch.equal(whole.server.x, cut.server.x)
    assert losses[0].seen == losses[1].seen


def test_blocks_hold_all_rows_in_order() -> None:
    assert list(split_rows((24, 16, 8), 16)) == [(0, (16,), 0), (0, (8, 8), 16), (1, (8, 8), 32)]
    assert list(split_rows((16, 8, 8, 8), 24)) == [(0, (16, 8), 0), (2, (8, 8), 24)]
    assert list(split_rows((16, 8), 4096)) == [(0, (16, 8), 0)]


@pytest.mark.parametrize("batching", [{"epochs": 1}, {"epochs": None, "steps": 1}])
def test_a_step_that_is_the_only_one_gives_the_loops_numbers(batching: dict[str, int | None]) -> None:
    runs = [
        fit(DeltaSGD(), small_task(), unequal_clients(**batching), 3, **how).state
        for how in ({"runner": "traced", "cohort_size": 4}, {"runner": "loop"})
    ]
    same(*runs)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_cohorts_come_in_packing_order_for_any_number_of_slots(slots: int) -> None:
    seen = Cohorts()
    fit(FedAvg(), small_task(), rounds=2, runner="traced", slots=slots, cohort_size=2, callbacks=(seen,))
    assert seen.clients == [(1, 3), (5, 6), (2, 0), (4,)] * 2
    assert min(seen.seconds) > 0


class Cohorts(Callback):
    """What was trained together, and for how long."""

    def __init__(self) -> None:
        self.clients: list[tuple[int, ...]] = []
        self.seconds: list[float] = []

    def on_cohort_end(self, trainer: FederatedTrainer, cohort: CohortResult) -> None:
        self.clients.append(cohort.clients)
        self.seconds.append(cohort.seconds)


class Losses(Callback):
    """The mean loss of each client in each round."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, int], float] = {}

    def on_cohort_end(self, trainer: FederatedTrainer, cohort: CohortResult) -> None:
        for client, loss in zip(cohort.clients, cohort.loss.tolist(), strict=True):
            self.seen[trainer.round, client] = loss


class Identity(TensorData):
    """Its batches look as if they were more than picked examples."""

    def preprocess(self, inputs: Tensor) -> Tensor:
        return inputs


class Astray(TensorData):
    """Its third round asks for an example that there is not."""

    def schedule(self, client: int, round: int, seed: int, num_steps: int) -> Schedule:
        drawn = super().schedule(client, round, seed, num_steps)
        return drawn if round < 2 else drawn._replace(index=drawn.index + 1000)


@needs_compiler
def test_an_example_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError, match="examples that the training set has"):
        fit(
            FedProx(mu=0.5),
            small_task(nn.Dropout(0.3)),
            unequal_clients(kind=Astray),
            3,
            runner="compiled",
            cohort_size=3,
        )


@needs_compiler
def test_an_operation_that_only_python_knows_is_compiled_around() -> None:
    """C cannot call it, so such steps are called from Python."""

    class Determined(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            squares = torch.stack([inputs.detach()[:, :2], inputs.detach()[:, 1:]], 1)
            return inputs + torch.linalg.det(squares).unsqueeze(1)

    walked = Walks()
    model, backend = small_task(Determined()), CompiledBackend(8, False, 2, True, 1, walk=walked)
    runs = [fit(FedAvg(lr=0.05), model, rounds=3, runner=runner).state for runner in (backend, "loop")]
    same(*runs)
    assert [isinstance(walk, walks.NativeWalk) for walk in walked.made] == [False]


def test_traced_steps_take_augmentation_and_uint8() -> None:
    images = FakeImages(
        "IIDC4", shape=(3, 8, 8), classes=3, num_train=24, num_test=6, augment=True, batching=Batching(4, epochs=2)
    )
    model = Classification(LogisticRegression(192, 3), 3)
    run = {how: fit(FedAvg(lr=0.01), model, images, runner=how).state for how in ("traced", "loop")}
    torch.testing.assert_close(run["traced"].server.x, run["loop"].server.x, rtol=0, atol=1e-6)


def test_each_hyperparameter_and_layer_has_its_own_graph() -> None:
    def name(method: FedMethod, model: Classification) -> str:
        builds = Builds()
        with pytest.raises(NotBuiltError):
            fit(method, model, runner=CompiledBackend(8, False, 1, True, 1, build=builds))
        return builds.names[0]

    names = [
        name(FedProx(mu=0.5), small_task()),
        name(FedProx(mu=0.25), small_task()),
        name(FedProx(mu=0.5, weight_decay=0.1), small_task()),
        name(FedProx(mu=0.5), small_task(nn.Tanh())),
    ]
    assert len(set(names)) == len(names)
    assert name(FedProx(mu=0.5, lr=0.7), small_task()) == names[0]  # the learning rate is an input


# -- what is chosen, and refused --------------------------------------------------------------------------------------
def chosen(model: nn.Module, clients: FederatedDataModule, participants: int, rounds: int) -> Execution:
    """What auto decides."""
    clients.setup()
    work = Workload.of(FedAvg(), clients, participants, rounds)
    classification = Classification(model, 10)
    return resolve(Wishes(), FedAvg(), classification, Layout.of(classification), clients, work)[0]


def test_auto_compiles_long_runs_of_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "compiler", lambda: "c++")

    def how(rounds: int, model: nn.Module, batch_size: int | None = 10) -> str:
        return chosen(model, Synthetic(seed=1, batching=Batching(batch_size, epochs=20)), 10, rounds).runner

    assert how(200, LogisticRegression(60, 10)) == "compiled"
    assert how(10, LogisticRegression(60, 10)) == "loop"
    assert how(200, LogisticRegression(60, 10), batch_size=None) == "loop"
    convolutional = nn.Sequential(nn.Unflatten(1, (1, 60)), nn.Conv1d(1, 1, 51), nn.Flatten())
    assert how(20, convolutional) == "compiled"
    assert how(20, LogisticRegression(60, 10)) == "loop"
    assert how(1, convolutional) == "loop"
    assert how(200, nn.Sequential(*convolutional[:2], nn.GroupNorm(1, 1), nn.Flatten())) == "loop"
    monkeypatch.setattr(auto, "compiler", lambda: None)
    assert how(200, LogisticRegression(60, 10)) == "loop"


def test_auto_compiles_no_convolutions_of_empty_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five clients of 9 images in batches of 8, and as many of 15: 16 places each."""
    monkeypatch.setattr(auto, "compiler", lambda: "c++")
    filled, taken = [], []
    for size in (9, 15):
        images = TensorData(
            Examples(torch.zeros(5 * size, 1, 28, 28), torch.zeros(5 * size, dtype=torch.int64)),
            Partition.of(torch.arange(5 * size).split(size)),
            batching=Batching(8),
        )
        images.setup()
        filled.append(Workload.of(FedAvg(), images, 5, 10_000).filled)
        taken.append(chosen(LeNet(1, 10, 28), images, 5, 10_000).runner)
    assert filled == [9 / 16, 15 / 16]
    assert taken == ["loop", "compiled"]


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "compiler", lambda: None)
    with pytest.raises(ConfigurationError, match="`runner='compiled'` needs a C\\+\\+ compiler"):
        fit(FedAvg(), small_task(), rounds=3, runner="compiled")
    described = Described()
    fit(FedAvg(), small_task(), rounds=1, runner="auto", callbacks=(described,), rules=AutoRules(compile_dense=1))
    assert "not compiled: no C++ compiler was found" in described.lines[0]


def test_running_statistics_are_refused() -> None:
    model = Classification(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).double(), 3)
    given = unequal_clients()
    given.setup()
    even = TensorData(given.train, Partition.of(torch.arange(96).split(32)), batching=Batching(4))
    with pytest.raises(ConfigurationError, match=r"`runner` must be 'loop' for a model with 'model\.1'"):
        fit(FedAvg(), model, even, 3, runner="traced")
    with pytest.raises(ConfigurationError, match="`runner` of SlotStrategy must be 'auto', 'loop', 'vmap', "):
        SlotStrategy(runner="yes")  # type: ignore[arg-type]


def test_a_hook_that_branches_on_a_tensor_is_named() -> None:
    class Branches(FedMethod):
        def direction(self, local, grad, client) -> Tensor:  # type: ignore[no-untyped-def]
            return grad(local.w) if client.round < 1 else 2 * grad(local.w)

    with pytest.raises(MethodError, match=r"Branches.direction.*torch.where"):
        fit(Branches(), small_task(), runner="traced")


class DrawsGlobally(FedMethod):
    """Noise that no key fixes."""

    def direction(self, local, grad, client) -> Tensor:  # type: ignore[no-untyped-def]
        return grad(local.w) + torch.rand(1)


class WritesToShared(FedMethod):
    """A server's tensor that every client would find changed."""

    def direction(self, local, grad, client) -> Tensor:  # type: ignore[no-untyped-def]
        client.x.mul_(0.5)
        return grad(local.w)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (DrawsGlobally(), r"DrawsGlobally.direction.*global random numbers.*keyed_uniform"),
        (WritesToShared(), r"WritesToShared.direction.*changed `local.w` in place, which others share"),
    ],
)
def test_a_hook_that_a_graph_would_not_repeat_is_named(method: FedMethod, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        fit(method, small_task(), runner="traced")


def test_a_model_that_draws_global_random_numbers_is_refused() -> None:
    model = Classification(nn.Sequential(nn.Linear(6, 3), nn.RReLU()).double(), 3)
    with pytest.raises(ConfigurationError, match=r"`runner` must be 'loop' .* random numbers that no key reaches"):
        fit(FedAvg(), model, runner="traced")


class Attends(nn.Module):
    """Torch's own attention over three tokens of two features."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(2, 3), dropout

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.view(-1, 1, 3, 2)
        attended = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=self.dropout)
        logits: Tensor = self.linear(attended.mean((1, 2)))
        return logits


def test_attention_is_traced_but_not_its_own_dropout() -> None:
    model = Classification(Attends(0.0).double(), 3)
    same(fit(FedAvg(), model, runner="traced").state, fit(FedAvg(), model, runner="loop").state)
    with pytest.raises(ConfigurationError, match=r"random numbers that no key reaches"):
        fit(FedAvg(), Classification(Attends(0.1).double(), 3), runner="traced")


def test_auto_falls_back_to_the_loop_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Branches(FedMethod):
        def direction(self, local, grad, client) -> Tensor:  # type: ignore[no-untyped-def]
            return grad(local.w) if client.round < 1 else 2 * grad(local.w)

    monkeypatch.setattr(auto, "compiler", lambda: "c++")
    model, described = small_task(), Described()
    with pytest.warns(
        UserWarning, match=r"otherwise than planned: .*not compiled, since .*Branches.direction.*torch.where"
    ):
        taken = fit(
            Branches(), model, rounds=3, runner="auto", rules=AutoRules(compile_dense=1), callbacks=(described,)
        ).state
    assert "one client at a time" in described.lines[0]
    assert torch.equal(taken.server.x, fit(Branches(), model, rounds=3, runner="loop").state.server.x)


# -- who trains with whom ---------------------------------------------------------------------------------------------
def test_clients_are_packed_with_their_like() -> None:
    steps = [2620, 420, 400, 220, 200, 180, 120, 120, 100, 60]
    order = list(range(10))
    assert pack(order, steps, 4) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert pack(order, steps, 4, share=0.2) == [(0,), (1, 2), (3, 4, 5, 6), (7, 8, 9)]
    assert pack(order, [5] * 10, 8, share=0.2) == [tuple(range(8)), (8, 9)]
    assert pack(order, steps, 1) == [(i,) for i in order]


def test_compiled_cohorts_are_shared_out_evenly() -> None:
    assert share_out([5, 4, 3, 2, 1], 2) == [(0, 3, 4), (1, 2)]
    assert share_out([5, 4, 3, 2, 1], 1) == [(0, 1, 2, 3, 4)]
    assert share_out([9, 1, 1], 8) == [(0,), (1,), (2,)]
    assert len(share_out([1] * 80, 2)) == 10
    assert share_out([40_000, 10, 10], 1) == [(0,), (1, 2)]
    assert share_out([2, 2, 2, 2], 1, most=4) == [(0, 2), (1, 3)]
    for most in (32_768, 9):  # not three shares, of which one slot takes two
        assert [len(positions) for positions in share_out([1] * 20, 2, most)] == [5] * 4


def test_batches_that_are_made_beforehand_are_few() -> None:
    """Where a batch is more than examples as they lie in memory, those of the cohorts a slot takes at a time take 32 MiB."""
    images, plain = (
        FakeImages("IIDC4", num_train=8, num_test=4, augment=how, batching=Batching(4)) for how in (True, False)
    )
    gathered = unequal_clients()
    for module in (images, plain, gathered):
        module.setup()
    inputs, targets = plain.batch(plain.train, torch.arange(4))
    assert steps_together(images) == steps_together(plain) == 32 * 2**20 // (inputs.nbytes + targets.nbytes)
    assert steps_together(gathered) == 32_768


@pytest.mark.parametrize(("features", "products"), [(20, False), (20_000, True)])
def test_only_small_products_become_sums(features: int, products: bool) -> None:
    """A product below a hundred thousand multiplications or so is fused with what is around it; a larger one is a library's."""
    inputs, targets = torch.randn(24, features, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 3
    clients = TensorData(
        Examples(inputs, targets), Partition.of(torch.arange(24).split(6)), batching=Batching(3, epochs=2)
    )
    method, model = FedAvg(lr=0.1), Classification(LogisticRegression(features, 3), 3)
    runs = [fit(method, model, clients, 1, runner=how).state.server.x for how in ("traced", "loop")]
    torch.testing.assert_close(*runs, rtol=0, atol=1e-5)
    code = order_of(method, model, clients).graph.code
    assert ("aten.addmm" in code) == ("aten.mm" in code) == products


def test_inputs_that_a_graph_does_not_look_at_are_left_out() -> None:
    """It looks at w, the learning rate, inputs, targets, which places are filled, and which rows are steps."""
    model = Classification(LogisticRegression(6, 3).double(), 3)
    order = order_of(FedAvg(lr=0.1), model, unequal_clients())
    assert [tuple(each.shape) for each in order.inputs] == [(21,), (), (8, 4, 6), (8, 4), (8, 4), (8,)]
    assert order.inputs[4].dtype == torch.bool


def order_of(method: FedMethod, model: Classification, clients: TensorData) -> packages.Order:
    """What a compiler would be given."""
    builds = Builds()
    with pytest.raises(NotBuiltError):
        fit(method, model, clients, runner=CompiledBackend(8, False, 1, True, 1, build=builds))
    return builds.orders[0]
