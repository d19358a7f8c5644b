"""What a GPU does: clients per second and TFLOP/s for 1 to 16 slots, cohorts of 10 and 50, with and without CUDA graphs.

python recipes/gpu.py

ResNet-18 and LeNet on CIFAR-100 over the clients of A0d01C100 (Dirichlet(0.01), 100 clients), or on made-up images of its
size where the files are not there; 50 clients a round take 10 local steps of 50 images. Seconds of a round are the median
without the first. TFLOP/s count the model's products and convolutions, forward and backward, over the examples that were
trained on, and are set against a product of large matrices in the same precision, measured on the same card.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedlightning import (
    Callback,
    Classification,
    FedAvg,
    FederatedTrainer,
    SlotStrategy,
    interpreter,
)
from fedlightning.callback import CohortResult
from fedlightning.data import CIFAR100, FakeImages
from fedlightning.data.vision import ImageData
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
            size, batch = self.data.clients.size(client), self.data.batch_size or 1
            epochs, rest = divmod(steps, -(-size // batch))
            self.count += epochs * size + min(rest * batch, size)

    def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
        """Note the round; its results have been waited for."""
        self.seconds.append(time.perf_counter() - self.began)
        self.examples.append(self.count)
        trainer.should_stop = len(self.seconds) > 1 and sum(self.seconds) > self.limit


def images(options: argparse.Namespace) -> ImageData:
    """CIFAR-100, or images made on the spot; the same for all rows."""
    batching = {"batch_size": options.batch_size, "steps": options.local_steps, "augment": True}
    if (Path(options.data_dir) / "cifar-100-python").is_dir():
        return CIFAR100("A0d01C100", root=options.data_dir, **batching)
    return FakeImages("A0d01C100", num_train=options.images, num_test=100, **batching)


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


def row(options: argparse.Namespace, data: ImageData, model: str, slots: int, cohort: int, graphs: bool) -> Clock:
    """A few rounds of one setting."""
    clock = Clock(data, options.limit)
    names = [f"{options.device}/{i}" for i in range(slots)]
    strategy = SlotStrategy(names, cohort_size=cohort, compile=graphs, precision=options.precision)
    task = Classification(build_model(model, (3, 32, 32), 100), 100)
    trainer = FederatedTrainer(
        options.rounds + 1, options.participants, strategy, [clock], logger=False, evaluate_every=0
    )
    trainer.fit(FedAvg(lr=0.01, clip_norm=10.0), task, data)
    return clock


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description="Clients per second and TFLOP/s on a GPU.")
    parser.add_argument("--device", default="cuda:0", help="cuda:0, or cpu for trying it out, without graphs")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each row after the first")
    parser.add_argument("--models", default="resnet18,lenet", help="with commas")
    parser.add_argument("--slots", default="1,2,4,8,16", help="numbers of slots, with commas")
    parser.add_argument("--cohorts", default="10,50", help="cohorts on one slot, with commas")
    parser.add_argument("--precision", default="bf16-mixed", help="32-true, tf32 or bf16-mixed")
    parser.add_argument("--participants", type=int, default=50, help="clients a round")
    parser.add_argument("--local-steps", type=int, default=10, help="of each client")
    parser.add_argument("--batch-size", type=int, default=50, help="images of a local step")
    parser.add_argument("--images", type=int, default=50_000, help="made-up images, where CIFAR-100 is not there")
    parser.add_argument("--data-dir", default="data", help="where CIFAR-100 is")
    parser.add_argument("--limit", type=float, default=12.0, help="seconds after which a row ends, after a round")
    parser.add_argument("--minutes", type=float, default=8.5, help="no row begins after so many")
    return parser.parse_args()


def main() -> None:
    """Run every row and print the table as it grows."""
    options = parse()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no GPU here: `--device cpu --rounds 1` tries the table out on the CPU.")
        sys.exit(2)
    device, began = torch.device(options.device), time.perf_counter()
    data = images(options)
    data.setup()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}; {interpreter.description()}; torch {torch.__version__}; {data.name}; {options.precision}")
    best = ceiling(device, options.precision)
    print(f"A product of large matrices runs at {best:.3g} TFLOP/s.")
    slots, cohorts = ([int(n) for n in text.split(",") if n] for text in (options.slots, options.cohorts))
    settings = [(count, 1) for count in slots] + [(1, size) for size in cohorts]
    graphs = (False, True) if device.type == "cuda" else (False,)
    print(f"{'model':10} slots cohort graphs  s/round  clients/s  TFLOP/s  of the card's")
    for model in options.models.split(","):
        each = flops(model, options.batch_size)
        for count, size in settings:
            for captured in graphs:
                what = f"{model:10} {count:5} {size:6} {'on' if captured else 'off':>6}"
                if time.perf_counter() - began > 60 * options.minutes:
                    print(f"{what}  left out: the time is up")
                    continue
                try:
                    clock = row(options, data, model, count, size, captured)
                except (ValueError, RuntimeError) as error:
                    print(f"{what}  failed: {str(error).splitlines()[0]}")
                    continue
                seconds = statistics.median(clock.seconds[1:])
                speed = each * statistics.mean(clock.examples) / seconds / 1e12
                print(f"{what} {seconds:8.3f} {options.participants / seconds:10.1f} {speed:8.3g} {speed / best:9.1%}")


if __name__ == "__main__":
    main()
