"""What a round costs: this library against a plain loop over the same work, in turn, in one sitting.

python recipes/benchmark.py

A plain loop is what one would write by hand: a module, `torch.optim.SGD`, a weighted mean. The work: 100 clients of 100
images 3x32x32, 10 clients a round, LeNet of 62,006 weights, batches of 50, one epoch. Each row is the median over the
rounds of all repetitions, as a ratio to the plain loop's: its processor seconds (all threads) and its wall seconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from fedlightning import (
    Callback,
    Classification,
    Examples,
    FedAvg,
    FederatedTrainer,
    Partition,
    SlotStrategy,
    TensorData,
    interpreter,
)
from fedlightning.models import build_model

CLIENTS, EACH, PARTICIPANTS, BATCH, LR = 100, 100, 10, 50, 0.05
Cost = list[tuple[float, float]]  # wall and processor seconds of each round


class Clock(Callback):
    """Notes wall and processor time at the end of each round."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        """Note the time."""
        self.marks.append((time.perf_counter(), time.process_time()))

    def on_round_end(self, trainer: FederatedTrainer, metrics: object) -> None:
        """Note the time."""
        self.mark()

    def rounds(self) -> Cost:
        """Seconds of each round after the first."""
        return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.marks, self.marks[1:], strict=False)]


def examples() -> Examples:
    """Images around one prototype a class."""
    generator = torch.Generator().manual_seed(1)
    prototypes = torch.randn(10, 3, 32, 32, generator=generator)
    targets = torch.randint(0, 10, (CLIENTS * EACH,), generator=generator)
    return Examples(prototypes[targets] * 0.5 + torch.randn(CLIENTS * EACH, 3, 32, 32, generator=generator), targets)


def plain_loop(data: Examples, rounds: int) -> Cost:
    """The work, written by hand."""
    torch.set_num_threads(1)
    model, clock = build_model("lenet", (3, 32, 32), 10), Clock()
    x = [p.detach().clone() for p in model.parameters()]
    for _ in range(rounds):
        mean = [torch.zeros_like(p) for p in x]
        for client in torch.randperm(CLIENTS)[:PARTICIPANTS]:
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), x)
            optimizer = torch.optim.SGD(model.parameters(), lr=LR)
            for index in (torch.randperm(EACH) + client * EACH).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(data.inputs[index]), data.targets[index]).backward()
                optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(mean, list(model.parameters()), alpha=1 / PARTICIPANTS)
        x = [m.clone() for m in mean]
        clock.mark()
    return clock.rounds()


def ours(data: Examples, rounds: int, slots: str) -> Cost:
    """The same by `FederatedTrainer`."""
    clock, clients = Clock(), Partition.of(torch.arange(CLIENTS * EACH).split(EACH))
    module = TensorData(data, clients, batch_size=BATCH, epochs=1)
    strategy = SlotStrategy(slots, cohort_size=1)
    trainer = FederatedTrainer(rounds, PARTICIPANTS, strategy, [clock], logger=False, evaluate_every=0)
    trainer.fit(FedAvg(lr=LR), Classification(build_model("lenet", (3, 32, 32), 10)), module)
    return clock.rounds()


def main() -> None:
    """Run every row in turn, several times, and print the ratios."""
    parser = argparse.ArgumentParser(description="What a round costs, against a plain loop.")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each repetition")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of the whole table, in turn")
    parser.add_argument("--slots", default="1,2", help="numbers of slots, with commas")
    options = parser.parse_args()
    data = examples()
    rows: dict[str, Callable[[], Cost]] = {"plain loop": lambda: plain_loop(data, options.rounds)}
    for slots in options.slots.split(","):
        rows[f"{slots} slot{'s' * (slots != '1')}"] = lambda slots=slots: ours(data, options.rounds, slots)
    costs: dict[str, Cost] = {name: [] for name in rows}
    for _ in range(options.repeat):
        for name, run in rows.items():
            costs[name] += run()
    print(f"{interpreter.description()}; torch {torch.__version__}")
    wall, processor = (statistics.median(cost[i] for cost in costs["plain loop"]) for i in range(2))
    print(f"{'':12} wall s/round  ratio   processor s/round  ratio")
    for name, cost in costs.items():
        own = [statistics.median(c[i] for c in cost) for i in range(2)]
        print(f"{name:12} {own[0]:12.4f} {own[0] / wall:6.2f} {own[1]:19.4f} {own[1] / processor:6.2f}")


if __name__ == "__main__":
    main()
