"""What a GPU does: clients per second and TFLOP/s for 1 to 16 slots, as CUDA graphs, too, and cohorts of 10 and 50.

python -m recipes.benchmarks.gpu

ResNet-18 and LeNet on CIFAR-100 over the clients of A0d01C100 (Dirichlet(0.01), 100 clients), or on made-up images of its
size where the files are not there; 50 clients a round take 10 local steps of 50 images. Seconds of a round are the median
without the first. TFLOP/s count the model's products and convolutions, forward and backward, over the examples that were
trained on, and are set against a product of large matrices in the same precision, measured on the same card.
"""

import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from fedlightning.cli.recipe import run_program  # first: it looks at the command line before torch is imported

# isort: split

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedlightning import Batching, Callback, Classification, ConfigurationError, FedAvg, FederatedTrainer, SlotStrategy
from fedlightning import _interpreter as interpreter
from fedlightning.callbacks.base import CohortResult
from fedlightning.datasets import CIFAR100, FakeImages
from fedlightning.datasets.vision import ImageData
from fedlightning.models import build_model


class Clock(Callback):
    """Notes the seconds of each round and the examples trained on; ends a row whose time is up."""

    def __init__(self, data: ImageData, limit: float) -> None:
        self.data, self.limit = data, limit
        self.seconds: list[float] = []
        self.examples: list[int] = []

    def on_round_start(self, trainer: FederatedTrainer, round: object) -> None:
        """Start the clock."""
        self.began, self.count = time.perf_counter(), 0

    def on_cohort_end(self, trainer: FederatedTrainer, cohort: CohortResult) -> None:
        """Count the filled places of the cohort's batches."""
        for client, steps in zip(cohort.clients, cohort.num_steps.tolist(), strict=True):
            size, batching = self.data.clients.size(client), self.data.batching
            epochs, rest = divmod(steps, batching.batches(size))
            self.count += epochs * size + min(rest * (batching.size or size), size)

    def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
        """Note the round; its results have been waited for."""
        self.seconds.append(time.perf_counter() - self.began)
        self.examples.append(self.count)
        trainer.should_stop = len(self.seconds) > 1 and sum(self.seconds) > self.limit


def made(options: SimpleNamespace) -> ImageData:
    """CIFAR-100, or images made on the spot; the same for all rows."""
    batching = Batching(options.batch_size, steps=options.local_steps)
    if (Path(options.data_dir) / "cifar-100-python").is_dir():
        return CIFAR100("A0d01C100", root=options.data_dir, batching=batching, augment=True)
    return FakeImages("A0d01C100", num_train=options.images, num_test=100, batching=batching, augment=True)


def flops(model: str, batch: int) -> float:
    """Floating-point operations of one example, forward and backward."""
    network = build_model(model, (3, 32, 32), 100).to("meta")
    inputs = torch.empty(batch, 3, 32, 32, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(inputs).sum().backward()
    return counter.get_total_flops() / batch


def ceiling(device: torch.device, precision: str) -> float:
    """TFLOP/s of a product of large random matrices in this precision."""
    size = 8192 if device.type == "cuda" else 512
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    torch.set_float32_matmul_precision(before)
    return 2 * size**3 / statistics.median(times) / 1e12


def row(options: SimpleNamespace, data: ImageData, model: str, runner: str, slots: int, cohort: int) -> Clock:
    """A few rounds of one setting."""
    clock = Clock(data, options.limit)
    names = [f"{options.device}/{i}" for i in range(slots)]
    strategy = SlotStrategy(names, runner=runner, cohort_size=cohort, precision=options.precision)
    task = Classification(build_model(model, (3, 32, 32), 100), 100)
    trainer = FederatedTrainer(
        options.rounds + 1, options.participants, strategy, [clock], logger=False, evaluate_every=0
    )
    trainer.fit(FedAvg(lr=0.01, clip_norm=10.0), task, data)
    return clock


def check(options: SimpleNamespace) -> None:
    """Check the flags before data are made.

    Raises:
        ConfigurationError: a number is below 1, or there is no such GPU.
    """
    numbers = {key: value for key, value in vars(options).items() if isinstance(value, int)}
    numbers |= {key: min(value) for key, value in vars(options).items() if isinstance(value, list) and key != "models"}
    for key, value in numbers.items():
        if value < 1:
            flag = f"--{key.replace('_', '-')}"
            raise ConfigurationError(f"`{flag}` must be at least 1, but is {value}; raise it, or leave it out.")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(
            f"`--device` must be there, but is {options.device!r}, and there is no GPU here; `--device cpu --rounds 1` tries "
            "the table out on the CPU."
        )


def main(
    *,
    device: str = "cuda:0",
    rounds: int = 5,
    models: list[str] = ["resnet18", "lenet"],  # noqa: B006 - it is read alone
    slots: list[int] = [1, 2, 4, 8, 16],  # noqa: B006
    cohorts: list[int] = [10, 50],  # noqa: B006
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "bf16-mixed",
    participants: int = 50,
    local_steps: int = 10,
    batch_size: int = 50,
    images: int = 50_000,
    data_dir: str = "data",
    limit: float = 12.0,
    minutes: float = 8.5,
) -> None:
    """Clients per second and TFLOP/s on a GPU: run every row and print the table as it grows.

    Args:
        device: cuda:0, or cpu for trying it out, without graphs.
        rounds: rounds of each row after the first.
        models: by name.
        slots: numbers of slots.
        cohorts: sizes of cohorts on one slot.
        precision: 32-true, tf32 or bf16-mixed.
        participants: clients a round.
        local_steps: of each client.
        batch_size: images of a local step.
        images: made-up images, where CIFAR-100 is not there.
        data_dir: where CIFAR-100 is.
        limit: seconds after which a row ends, after a round.
        minutes: no row begins after so many.
    """
    options = SimpleNamespace(**locals())
    check(options)
    measure(options)


def measure(options: SimpleNamespace) -> None:
    """Run every row and print the table as it grows."""
    device, began = torch.device(options.device), time.perf_counter()
    data = made(options)
    data.setup()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}; {interpreter.description()}; torch {torch.__version__}; {data.name}; {options.precision}")
    best = ceiling(device, options.precision)
    print(f"A product of large matrices runs at {best:.3g} TFLOP/s.")
    runners = ["loop", "cuda_graph"] if device.type == "cuda" else ["loop"]
    settings = [(runner, count, 1) for count in options.slots for runner in runners]
    settings += [("vmap", 1, size) for size in options.cohorts]
    print(f"{'model':10} runner     slots cohort  s/round  clients/s  TFLOP/s  of the card's")
    for model in options.models:
        each = flops(model, options.batch_size)
        for runner, count, size in settings:
            what = f"{model:10} {runner:10} {count:5} {size:6}"
            if time.perf_counter() - began > 60 * options.minutes:
                print(f"{what}  left out: the time is up")
                continue
            try:
                clock = row(options, data, model, runner, count, size)
            except (ValueError, RuntimeError) as error:
                print(f"{what}  failed: {str(error).splitlines()[0]}")
                continue
            seconds = statistics.median(clock.seconds[1:])
            speed = each * statistics.mean(clock.examples) / seconds / 1e12
            print(f"{what} {seconds:8.3f} {options.participants / seconds:10.1f} {speed:8.3g} {speed / best:9.1%}")


if __name__ == "__main__":
    run_program(main)
