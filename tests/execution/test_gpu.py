"""What a GPU needs, as far as a CPU can show it: precision, captured steps, no waiting for the device, memory.

The device "meta" stands for a GPU where it can: its tensors are elsewhere than the host's, and whoever reads a value or mixes
devices gets an error. A tape of operations stands for a CUDA graph: it runs them again on the same memory, without Python.
"""

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from recipe_runner import load
from small_runs import ALL, fit, named, same, small_task, unequal_clients
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fedlightning import (
    Batching,
    Classification,
    ClientError,
    ConfigurationError,
    FedAvg,
    FedMethod,
    FedProx,
    MethodError,
    Partition,
    RoundState,
    Scaffold,
    SlotStrategy,
    State,
    TensorData,
)
from fedlightning.cli.recipe import call_program
from fedlightning.data import TFFCifar
from fedlightning.datasets import FakeImages
from fedlightning.errors import out_of_memory
from fedlightning.execution import bill
from fedlightning.execution.auto import AutoRules, Chooser, Wishes, Workload
from fedlightning.execution.inspection import ACROSS, Obstacle
from fedlightning.execution.model import Replica, flatten_buffers, persistent_buffers
from fedlightning.execution.numerics import Numerics, uses_tensor_cores
from fedlightning.execution.plan import PhasePlan
from fedlightning.execution.pool import WorkerPool
from fedlightning.execution.runners import loop, vmap
from fedlightning.execution.runners._capture import Capture, NoWaiting, StepGraph
from fedlightning.execution.runners.base import Backend, Runner
from fedlightning.execution.runners.cuda_graph import CudaGraphBackend, CudaGraphRunner
from fedlightning.execution.runners.loop import LoopBackend, LoopRunner
from fedlightning.execution.runners.traced import TracedBackend
from fedlightning.execution.runners.vmap import VmapBackend, VmapRunner
from fedlightning.execution.slots import Slot, Worker, make_workers
from fedlightning.execution.step import GRADIENT, LOCAL, LocalStep, Phase
from fedlightning.layout import Layout
from fedlightning.method import Round, visible
from fedlightning.methods import method_names
from fedlightning.models import MLP, LogisticRegression
from fedlightning.participation import Participation, RoundPlan, Work
from fedlightning.server.client_memory import ClientMemory
from fedlightning.server.wire import RoundInputs

META = torch.device("meta")


# -- precision --------------------------------------------------------------------------------------------------------
def test_other_precisions_and_models_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="`precision` of SlotStrategy must be '32-true', 'tf32' or 'bf16-mixed'"
    ):
        SlotStrategy(precision="16-mixed")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="must be of float32 for `precision='bf16-mixed'`, but is of float64"):
        fit(FedAvg(), small_task(), precision="bf16-mixed")


def half(slots: int = 1, precision: str = "bf16-mixed", method: FedMethod | None = None, **how: Any) -> RoundState:
    model, clients = small_task(nn.Dropout(0.3), dtype=torch.float32), unequal_clients(torch.float32)
    how = {"slots": slots, "precision": precision, "runner": "loop"} | how
    return fit(method or Scaffold(lr=0.05), model, clients, **how).state


@pytest.mark.parametrize("how", [{}, {"runner": "vmap", "cohort_size": 3}, {"runner": "traced"}], ids=str)
def test_bfloat16_is_used_in_every_runner_and_states_stay_float32(how: dict[str, object]) -> None:
    loop, full, here = half(), half(precision="32-true"), half(**how)
    assert here.server.x.dtype == here.server.c.dtype == torch.float32
    apart = (here.server.x - full.server.x).norm()
    assert 1e-5 < apart < 0.02 * full.server.x.norm()
    assert (here.server.x - loop.server.x).norm() < 0.5 * apart + 1e-3
    assert torch.equal(here.server.x, half(3, **how).server.x)


class Outputs(FedAvg):
    """Sees what the model gives."""

    def objective(self, model, w, batch, client):  # type: ignore[no-untyped-def]
        outputs = model(w, batch[0])
        if outputs.dtype != torch.float32:
            raise ValueError(f"outputs are of {outputs.dtype}")
        return model.loss(w, batch) + outputs.square().sum(1)


@pytest.mark.parametrize("cohort_size", [1, 3])
def test_a_methods_own_mathematics_is_in_float32(cohort_size: int) -> None:
    half(method=Outputs(lr=0.01), runner="auto", cohort_size=cohort_size)


def test_evaluation_takes_the_precision_too() -> None:
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        model, clients = small_task(dtype=torch.float32), unequal_clients(torch.float32)
        trainer = fit(
            FedAvg(lr=0.0 + 1e-30), model, clients, 1, precision=precision, evaluate_every=1, evaluate_on=("train",)
        )
        found[precision] = trainer.metrics["train_all/loss"]
    assert found["bf16-mixed"] != found["32-true"]
    assert found["bf16-mixed"] == pytest.approx(found["32-true"], rel=1e-2)


def test_convolutions_in_bfloat16() -> None:
    images = FakeImages(
        "IIDC4", shape=(3, 8, 8), classes=3, num_train=24, num_test=6, augment=True, batching=Batching(4)
    )
    model = Classification(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 3)), 3)
    runs = [
        fit(FedAvg(lr=0.01), model, images, precision=precision, cohort_size=size)
        for precision, size in (("32-true", 1), ("bf16-mixed", 1), ("bf16-mixed", 2))
    ]
    full, loop, lifted = (run.state.server.x for run in runs)
    assert 0 < (loop - full).norm() < 0.02 * full.norm()
    torch.testing.assert_close(lifted, loop, rtol=0, atol=5e-3)


def test_torchs_switches_are_set_for_a_run_on_a_gpu_and_put_back() -> None:
    cudnn: Any = torch.backends.cudnn

    def switches() -> tuple[object, ...]:
        return torch.get_float32_matmul_precision(), cudnn.conv.fp32_precision, cudnn.deterministic, cudnn.benchmark

    before = switches()
    for precision, on_gpu, inside in (
        ("tf32", True, ("high", "tf32", True, False)),
        ("bf16-mixed", True, (before[0], before[1], True, False)),
        ("tf32", False, before),
    ):
        with Numerics(precision, on_gpu):
            assert switches() == inside
        assert switches() == before


def test_images_are_turned_on_a_gpu_where_tensor_cores_take_them() -> None:
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    try:
        for setting in ("tf32", "ieee"):
            cudnn.conv.fp32_precision = setting
            assert uses_tensor_cores(torch.float32) == (setting == "tf32")
            with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()):
                assert uses_tensor_cores(torch.bfloat16)
            assert not uses_tensor_cores(torch.float64)
    finally:
        cudnn.conv.fp32_precision = before


# -- captured steps ---------------------------------------------------------------------------------------------------
class Tape(TorchDispatchMode):
    """Operations and the tensors they were given, to run them again on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # An alias stays at its memory, where a parameter may be pointed elsewhere.
        where = _pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}, result))
        self.operations.append((func, *where))
        return result

    @torch.no_grad()
    def again(self) -> None:
        for func, args, kwargs, result in self.operations:
            new = func(*args, **kwargs)
            for old, fresh in zip(_pytree.tree_leaves(result), _pytree.tree_leaves(new), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != fresh.untyped_storage().data_ptr():
                    old.copy_(fresh)


def on_tape() -> Capture:
    def capture(run: Callable[[], None]) -> Callable[[], None]:
        with Tape() as tape:
            run()
        return tape.again

    return capture


def captured(capture: Callable[[], Capture] = on_tape) -> CudaGraphBackend:
    """What captures on slots of a CPU, batches of four."""
    return CudaGraphBackend(4, capture)


@pytest.mark.parametrize("name", ALL)
def test_captured_steps_give_the_loops_numbers(name: str) -> None:
    """1 to 20 steps in batches of 1 to 4, with dropout, over two rounds: nothing of the first may be left in a graph."""
    method, model = named(name), small_task(nn.Dropout(0.3))
    same(fit(method, model, runner=captured()).state, fit(method, model, runner="loop").state)


def test_slots_change_no_bit_of_captured_steps() -> None:
    method, model = Scaffold(lr=0.05), small_task(nn.Dropout(0.3))
    one, three = (fit(method, model, slots=slots, runner=captured()).state for slots in (1, 3))
    assert torch.equal(one.server.x, three.server.x)
    assert torch.equal(one.server.c, three.server.c)


def test_batch_norm_is_captured_on_full_batches_alone() -> None:
    model = Classification(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double(), 3)
    whole = unequal_clients()
    whole.setup()
    clients = TensorData(
        whole.train, Partition.of(torch.arange(97).split([10, 31, 56])), batching=Batching(4, epochs=2)
    )
    loop = fit(FedAvg(), model, clients, runner="loop").state
    same(fit(FedAvg(), model, clients, slots=2, runner=captured()).state, loop)
    assert loop.buffers.abs().sum() > 0


def test_a_methods_objective_is_captured() -> None:
    class Entropy(FedAvg):
        def objective(self, model, w, batch, client):  # type: ignore[no-untyped-def]
            teacher = model(client.x, batch[0]).softmax(-1)
            return model.loss(w, batch) - (teacher * model(w, batch[0]).log_softmax(-1)).sum(-1)

    model = small_task(nn.Dropout(0.2))
    same(fit(Entropy(), model, runner=captured()).state, fit(Entropy(), model, runner="loop").state)


class Peeks(FedAvg):
    """Branches on a value, which the loop allows."""

    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        g = grad(local.w)
        return g / g.norm() if g.norm() > 0.5 else g


def test_a_step_that_waits_is_an_error_where_graphs_were_asked_for() -> None:
    with pytest.raises(
        MethodError, match=r"`Peeks.direction` \(.*test_gpu.py:\d+\) lets the program's path depend .*where"
    ):
        fit(Peeks(), runner=captured())


class Reads(nn.Module):
    """A layer that reads a value."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs / max(1.0, float(inputs.detach().abs().max()))


def broken_capture() -> Capture:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might be …")


def broken_replay() -> Capture:
    def capture(run: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with …")

        return replay

    return capture


@pytest.mark.parametrize(
    ("layer", "capture", "said"),
    [
        (Reads(), on_tape, "aten::_local_scalar_dense reads a tensor's value"),
        (nn.Identity(), broken_capture, "CUDA error: operation not permitted when stream is capturing"),
        (nn.Identity(), broken_replay, "CUDA error: an illegal memory access was encountered"),
    ],
)
def test_whatever_fails_of_captured_steps_names_the_setting_without_them(
    layer: nn.Module, capture: Callable[[], Capture], said: str
) -> None:
    with pytest.raises(
        ClientError, match=r"^Local steps must run as CUDA graphs on slot cpu/0, .*`runner='cuda_graph'`"
    ) as caught:
        fit(FedAvg(), small_task(layer), runner=captured(capture))
    (line,) = str(caught.value).splitlines()
    assert said in line
    assert line.endswith("; use `runner='loop'`.")
    assert caught.value.__notes__[0].startswith("In round 0, client")


def add(state: Any, fixed: Any, stepped: Any) -> tuple[list[Tensor], Tensor]:
    return [state[0] + fixed[0] * stepped[0], state[0].clone()], stepped[0].sum()


def test_what_a_graph_gives_is_not_its_buffers() -> None:
    state, fixed, step = [torch.zeros(2), torch.zeros(2)], [torch.tensor(2.0)], [torch.tensor([3.0, 4])]
    graph = StepGraph(add, state, fixed, step, on_tape())
    first, loss = graph(state, fixed, step)
    kept = [tensor.clone() for tensor in (*first, loss)]
    assert first[0].tolist() == [6.0, 8.0]
    assert first[1].tolist() == [0.0, 0.0]  # the state before, though the next was written to its place
    assert loss == 7.0
    graph([torch.ones(2), torch.ones(2)], [torch.tensor(5.0)], step)
    assert all(torch.equal(now, then) for now, then in zip((*first, loss), kept, strict=True))
    assert state[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(1, 2)])
def test_an_input_of_another_shape_or_dtype_is_refused(wrong: Tensor) -> None:
    state, fixed, step = [torch.zeros(2), torch.zeros(2)], [torch.tensor(2.0)], torch.ones(2)
    graph = StepGraph(add, state, fixed, [step], on_tape())
    with pytest.raises(ValueError, match="A graph's input must be"):
        graph([wrong, state[1]], fixed, [step])


class Noted(CudaGraphBackend):
    """Notes its runners, without keeping them, and the threads in which graphs are captured."""

    def __init__(self, kind: type[CudaGraphRunner] = CudaGraphRunner) -> None:
        super().__init__(4, self.noted)
        self.kind, self.threads = kind, list[str]()
        self.made: list[weakref.ref[CudaGraphRunner]] = []

    def noted(self) -> Capture:
        self.threads.append(threading.current_thread().name)
        return on_tape()

    def __call__(self, step: LocalStep, slot: Worker) -> CudaGraphRunner:
        runner = self.kind(step, slot, self)
        self.made.append(weakref.ref(runner))
        return runner

    def left(self) -> int:
        """How many of the runners are in memory."""
        gc.collect()
        return sum(runner() is not None for runner in self.made)


def test_each_slot_has_a_graph_of_its_own_and_no_more() -> None:
    noted = Noted()
    trainer = fit(Scaffold(), rounds=4, slots=3, runner=noted)
    assert len(noted.threads) == len(set(noted.threads)) <= 3
    assert len(noted.made) == 3
    assert noted.left() == 0  # their memory is free once the run is over
    assert trainer.strategy.compile_seconds > 0


def chooser(wishes: Wishes, model: Classification, work: Workload) -> Chooser:
    slots = (Slot("cuda", 0, 0), Slot("cuda", 0, 1))
    return Chooser(wishes, model, Layout.of(model), work, AutoRules(), slots, lambda: 0.0, None)


@pytest.mark.parametrize("total", [1.0, 1e12])
@pytest.mark.parametrize("participants", [2, 64])
def test_auto_takes_the_plain_loop_on_a_gpu(total: float, participants: int) -> None:
    """No cohorts, no graphs, nothing compiled, however long the run is; by name there are graphs, called experimental."""
    model = Classification(LogisticRegression(6, 3), 3)
    work = Workload(participants, total, 20, balance=1.0, batched=True, filled=1.0)
    taken = chooser(Wishes(), model, work).choose(None)
    assert (taken.runner, taken.cohort_size, taken.describe()) == ("loop", 1, "one client at a time")
    assert chooser(Wishes(cohort_size=2), model, work).choose(None).runner == "vmap"
    by_name = chooser(Wishes(runner="cuda_graph"), model, work).choose(None)
    assert (by_name.runner, by_name.describe()) == ("cuda_graph", "steps as CUDA graphs (experimental)")


class Recurrent(nn.Module):
    """Has a layer of cuDNN's."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 2)


def test_what_cannot_be_captured_is_refused() -> None:
    recurrent = Classification(Recurrent(), 2)
    cases: list[tuple[Classification, bool, Obstacle | None, str]] = [
        (small_task(), False, None, "batches are whole data sets"),
        (recurrent, True, None, "cuDNN's recurrent layer 'model.lstm'"),
        (small_task(), True, ACROSS, "the loss looks across a batch"),
    ]
    for model, batched, obstacle, said in cases:
        work = Workload(2, 1.0, 20, balance=1.0, batched=batched, filled=1.0)
        with pytest.raises(ConfigurationError, match=f"batches of one size, .* but {said}.*; use `runner='loop'`"):
            chooser(Wishes(runner="cuda_graph"), model, work).choose(obstacle)
    with pytest.raises(ConfigurationError, match=r"`runner='cuda_graph'` must have slots on GPUs, .* on a CPU"):
        fit(FedAvg(), small_task(), slots=["cpu/0"], runner="cuda_graph")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_slot_whose_stream_cannot_be_made_is_said_in_one_line() -> None:
    model, clients = small_task(), unequal_clients()
    clients.setup()

    def make(slot: Slot) -> Worker:
        return Worker(slot, Replica(model, Layout.of(model), torch.device("cpu")), clients, clients.train, 1)

    with pytest.raises(
        ConfigurationError, match=r"^Slot cuda:0/0 must have a copy [^\n]*; use [^\n]* `slots='cpu/0'`\.$"
    ):
        make_workers([Slot("cuda", 0, 0)], make)


# -- no waiting for the device ----------------------------------------------------------------------------------------
class Round1(NamedTuple):
    """A round as the trainer makes it, with everything on a device."""

    step: LocalStep
    worker: Worker
    inputs: RoundInputs
    plan: PhasePlan


def round_on(
    device: torch.device, method: FedMethod, model: Classification, clients: Any, phase: Phase = LOCAL
) -> Round1:
    clients.setup()
    layout, replica = Layout.of(model), Replica(model, Layout.of(model), device)
    x = layout.read(model).to(device)
    server, gradients = visible(method, method.configure_server(x)), {}
    if method.gradient_pass() != "none":
        gradients = dict.fromkeys(range(clients.clients.num_clients), x)
        server = server.replace(gradient=x)
    buffers = flatten_buffers(persistent_buffers(model).values(), torch.device("cpu")).to(device)
    worker = Worker(Slot("cpu", 0, 0), replica, clients, clients.train.to(device), 1)
    worker.device = device
    inputs = RoundInputs(Round(0, 7, 3, 0.05), server, ClientMemory(), buffers, gradients)
    return Round1(
        LocalStep(method, replica, layout, phase),
        worker,
        inputs,
        PhasePlan(RoundPlan(Participation(clients), 0, Work()), phase),
    )


def train(runner: Runner, given: Round1, chosen: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> State:
    """The uploads of a cohort whose steps are taken under a watch."""
    for module in (loop, vmap):  # whose numbers are nowhere
        monkeypatch.setattr(module, "result", lambda plan, inputs, ends, losses, *_: (ends[0], losses))
    upload, losses = watched(runner, "steps").run([given.plan.draw(chosen)], given.inputs)[0]  # type: ignore[misc]
    assert losses.device == given.worker.device
    return upload  # type: ignore[return-value]


def watched(runner: Any, name: str) -> Any:
    """The runner, of which a method's calls raise where they wait for the device."""
    usual = getattr(runner, name)

    def watch(*arguments: Any) -> Any:
        with NoWaiting():  # type: ignore[no-untyped-call]
            return usual(*arguments)

    setattr(runner, name, watch)
    return runner


def watching(kind: type[Backend], name: str, *arguments: Any) -> Backend:
    """A backend that makes such runners."""

    class Watching(kind):  # type: ignore[misc, valid-type]
        def __call__(self, step: LocalStep, slot: Worker) -> Runner:
            return watched(super().__call__(step, slot), name)  # type: ignore[no-any-return]

    return Watching(*arguments)


@pytest.mark.parametrize("how", ["loop", "graphs"])
@pytest.mark.parametrize("name", method_names())
def test_no_step_of_any_method_waits_for_the_device_or_mixes_devices(
    name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Classification(nn.Sequential(MLP(6, 3, (8,)), nn.Dropout(0.3)), 3)
    given = round_on(META, named(name), model, unequal_clients(torch.float32))
    graphs = CudaGraphBackend(4, on_tape)
    runner = LoopRunner(given.step, given.worker) if how == "loop" else graphs(given.step, given.worker)
    upload = train(runner, given, (6,), monkeypatch)
    assert {tensor.device.type for tensor in upload.values()} == {"meta"}


@pytest.mark.parametrize("size", [1, 3])
def test_no_step_of_the_gradient_pass_waits_either(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = round_on(META, FedAvg(), small_task(dtype=torch.float32), unequal_clients(torch.float32), GRADIENT)
    runner = VmapRunner(given.step, given.worker, 3) if size > 1 else LoopRunner(given.step, given.worker)
    train(runner, given, (6, 2, 0)[:size], monkeypatch)


@pytest.mark.parametrize("crop", [None, 6])
def test_no_batch_of_images_waits_for_the_device(crop: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    images = FakeImages(
        "IIDC4",
        shape=(3, 8, 8),
        classes=3,
        num_train=24,
        num_test=6,
        augment=True,
        batching=Batching(4),
        transform=TFFCifar(crop, 8) if crop else None,
    )
    model = Classification(LogisticRegression(3 * (crop or 8) ** 2, 3), 3)
    given = round_on(META, FedProx(mu=0.1, clip_norm=1.0), model, images)
    train(LoopRunner(given.step, given.worker), given, (1,), monkeypatch)


WATCHING = {
    "loop": watching(LoopBackend, "steps"),
    "vmap": watching(VmapBackend, "steps", 3, True),
    "traced": watching(TracedBackend, "take", 8, False, 3, True),
}


@pytest.mark.parametrize("name", WATCHING)
def test_no_step_reads_a_value_in_a_run(name: str) -> None:
    fit(FedProx(clip_norm=1.0), small_task(nn.Dropout(0.2)), slots=2, runner=WATCHING[name])


def test_a_step_that_reads_a_value_is_seen_in_a_run() -> None:
    with pytest.raises((RuntimeError, MethodError), match="_local_scalar_dense"):
        fit(Peeks(), runner=WATCHING["loop"])


@pytest.mark.parametrize(
    "wait",
    [lambda t: float(t.sum()), lambda t: t.nonzero(), lambda t: t[t > 0], lambda t: bool((t > 0).all())],
)
def test_the_watch_sees_what_waits(wait: Callable[[Tensor], object]) -> None:
    with NoWaiting(), pytest.raises(RuntimeError, match="for which the host waits"):  # type: ignore[no-untyped-call]
        wait(torch.ones(3))


def test_the_watch_sees_copies_between_devices() -> None:
    with NoWaiting(), pytest.raises(RuntimeError, match="copies between devices"):  # type: ignore[no-untyped-call]
        torch.ones(3).to(META)


# -- memory -----------------------------------------------------------------------------------------------------------
def test_the_bill_adds_up() -> None:
    gib = 2**30
    line = bill.Bill("cuda:0", 4, gib - bill.LIBRARIES, False, 139 * gib).check()
    assert line == "A slot needs about 1 GiB; cuda:0 has 139 GiB free for 4 slots."
    assert bill.Bill("cuda:0", 1, gib, True, 1).each == 2 * gib + bill.LIBRARIES
    assert bill.Bill("cuda:0", 4, gib - bill.LIBRARIES, False, 4 * gib).check()
    with pytest.raises(ConfigurationError, match=r"cuda:0 must have memory for its 4 slots.*use at most 3 slots on it"):
        bill.Bill("cuda:0", 4, gib - bill.LIBRARIES, False, 4 * gib - 1).check()
    with pytest.raises(ConfigurationError, match="use a smaller `cohort_size` or a smaller batch"):
        bill.Bill("cuda:0", 1, gib, False, gib).check()


class FakeMeter:
    """Counts how often the work is done."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.steps = error, list[int]()

    def peak(self, work: Callable[[], Any]) -> int:
        if self.error:
            raise self.error
        result = work()
        self.steps = [int(one.num_steps.sum()) for one in result]
        return 5

    def free(self) -> int:
        return 10**9


def test_the_bill_is_measured_on_a_few_steps_of_the_largest_cohort() -> None:
    given = round_on(torch.device("cpu"), Scaffold(), small_task(), unequal_clients())
    runner = VmapRunner(given.step, given.worker, 3)

    def measured(meter: FakeMeter) -> bill.Bill:
        return bill.measure(meter, runner, given.plan, (1, 3, 2), given.inputs, "cpu", 2, False)

    meter = FakeMeter()
    found = measured(meter)
    assert (meter.steps, found.peak, found.slots, found.device) == ([3 * loop.BLOCK], 5, 2, "cpu")
    with pytest.raises(ConfigurationError, match="must have memory for a local step of 3 clients"):
        measured(FakeMeter(torch.OutOfMemoryError("tried to allocate")))
    with pytest.raises(
        ConfigurationError, match=r"^cpu must take a trial step, [^\n]*no kernel image[^\n]* `slots='cpu/0'`\.$"
    ):
        measured(FakeMeter(RuntimeError("CUDA error: no kernel image is available\nmore")))


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("CUDA error: out of memory\n..."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (MemoryError(), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("shapes"), False),
        (KeyError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, is_memory: bool) -> None:
    assert out_of_memory(error) == is_memory
    reworded = MethodError("reworded")
    reworded.__cause__ = error
    assert out_of_memory(reworded) == is_memory


def worker(number: int) -> Worker:
    model, clients = small_task(), unequal_clients()
    clients.setup()
    replica = Replica(model, Layout.of(model), torch.device("cpu"))
    return Worker(Slot("cpu", 0, number), replica, clients, clients.train, 1)


def test_a_retired_slot_holds_nothing_when_its_work_begins_elsewhere(said: Any) -> None:
    held: list[weakref.ref[Tensor]] = []
    left: list[object] = []
    retired, both = threading.Event(), threading.Barrier(2)
    workers = [worker(0), worker(1)]

    def fill(own: Worker) -> None:
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        try:
            raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")
        except RuntimeError as error:
            raise torch.OutOfMemoryError("out of memory") from error

    def work(own: Worker) -> str:
        if retired.is_set():
            return str(own.slot)
        both.wait(10)
        if own.slot.number == 0:
            fill(own)
        retired.wait(10)
        return "the other's"

    def before_it_is_done_again(line: str) -> None:
        left.extend([held[0](), sum(p.numel() for p in workers[0].replica.task.parameters()), *forgotten])
        retired.set()

    forgotten: list[str] = []
    threads: WorkerPool[str] = WorkerPool(workers, forgotten.append)
    said.then = before_it_is_done_again
    assert sorted(threads.map([work, work])) == ["cpu/1", "the other's"]
    assert left == [None, 0, "cpu/0"]
    assert threads.retired == ["cpu/0"]
    threads.close()


def running_out(kind: type[LoopRunner], after: tuple[int, ...]) -> Any:
    """Runners of a run in which a slot is out of memory after these cohorts, when it is full of them."""
    calls = iter(range(1000))

    class RunsOut(kind):  # type: ignore[misc, valid-type]
        def run(self, *arguments: Any) -> Any:
            result = super().run(*arguments)
            if next(calls) in after:
                raise torch.OutOfMemoryError("tried to allocate")
            return result

    return RunsOut


def test_a_run_in_which_a_slot_runs_out_of_memory_has_the_same_bits(said: Callable[[], list[str]]) -> None:
    method, model = Scaffold(lr=0.05), small_task(nn.Dropout(0.3))
    reference = fit(method, model, rounds=3, runner="loop").state
    said()
    state = fit(method, model, rounds=3, slots=3, runner=running_out(LoopRunner, (4, 9))).state
    assert len([line for line in said() if "ran out of memory and is retired" in line]) == 2
    assert torch.equal(state.server.x, reference.server.x)
    assert torch.equal(state.server.c, reference.server.c)


def test_a_captured_slot_that_runs_out_of_memory_lets_go_of_its_graphs(said: Any) -> None:
    noted = Noted(running_out(CudaGraphRunner, (5,)))
    left: list[int] = []
    said.then = lambda line: left.append(noted.left()) if "is retired" in line else None
    state = fit(Scaffold(lr=0.05), slots=2, runner=noted).state
    assert left == [1]
    assert torch.equal(state.server.x, fit(Scaffold(lr=0.05), runner=captured()).state.server.x)


def test_all_slots_out_of_memory_is_an_error_with_its_cause() -> None:
    def work(_: Worker) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    threads: WorkerPool[None] = WorkerPool([worker(0), worker(1)])
    with pytest.raises(ClientError, match=r"all ran out of it .*tried to allocate 2 GiB") as caught:
        list(threads.map([work]))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert caught.value.__cause__.__traceback__
    threads.close()


# -- the recipe -------------------------------------------------------------------------------------------------------
def test_the_recipe_prints_a_table_on_a_cpu_and_says_that_there_is_no_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = (
        "--rounds 1 --models lenet --slots 1,2 --cohorts 2 --participants 2 --local-steps 1 --batch-size 2 --images 200"
    )
    call_program(load("benchmarks.gpu").main, ["--device", "cpu", "--data-dir", str(tmp_path), *small.split()])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[-3:]] == [
        ["lenet", "loop", "1", "1"], ["lenet", "loop", "2", "1"], ["lenet", "vmap", "1", "2"],
    ]  # fmt: skip
    assert all(float(line.split()[4]) > 0 and line.endswith("%") for line in lines[-3:])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="there is no GPU here; `--device cpu --rounds 1` tries the table out"):
        call_program(load("benchmarks.gpu").main, [])
    for words, flag in (("--rounds 0", "--rounds"), ("--slots 1,0", "--slots"), ("--images -1", "--images")):
        with pytest.raises(ConfigurationError, match=f"`{flag}` must be at least 1, but is "):
            call_program(load("benchmarks.gpu").main, ["--device", "cpu", *words.split()])


def test_the_recipe_counts_a_models_operations() -> None:
    """A product forward and one backward, since inputs need no gradient, of two operations for each weight."""
    assert load("benchmarks.gpu").flops("logistic", 5) == 2 * 2 * 3072 * 100
