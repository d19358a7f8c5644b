"""Two claims of Lei et al., arXiv:2511.00469, on quadratics whose closed forms are known, in float64.

python -m recipes.reproductions.client_optima

1. The distance between the clients' optima raises the floor of the global loss: with f_i(x) = ½ (x − b_i)ᵀ A_i (x − b_i)
   and x* = (Σ p_i A_i)⁻¹ Σ p_i A_i b_i the floor is F(x*) = Σ p_i f_i(x*), which grows with the square of the distance.
   Measured where SCAFFOLD ends, which converges to x*; FedAvg ends at another fixed point, a little higher.
2. In its last phase FedAvg oscillates where not all clients take part: with A_i = a I, and m of N clients drawn uniformly in
   each round, M = 1 − (1 − η a)^K and σ_S² = (σ_b² / m) (N − m) / (N − 1), the stationary variance is M σ_S² / (2 − M).
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedlightning.cli.recipe import run_program  # first: it looks at the command line before torch is imported

# isort: split

import torch
from torch import Tensor

from fedlightning import Callback, FedAvg, FederatedTrainer, FedMethod, Scaffold, SlotStrategy
from fedlightning.analysis import ClientOptima
from fedlightning.analysis.figures import new_figure, require_matplotlib, write_figure
from fedlightning.compare.diary import check_folder
from fedlightning.errors import require_within
from fedlightning.randomness import torch_stream
from fedlightning.testing import Quadratics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLIENTS, DIMENSIONS = 10, 6
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)
FLOOR_LR, FLOOR_STEPS = 0.2, 10
LR, LOCAL_STEPS, PARTICIPANTS = 0.2, (1, 5), (1, 2, 5, 10)


class Floor(NamedTuple):
    """The loss where a method ends, for one distance of the clients' optima.

    Attributes:
        method: its name.
        distance: mean of ‖x_i* − x‖ at its last x; measured.
        measured, predicted: F(x).
    """

    method: str
    distance: float
    measured: float
    predicted: float


class Oscillation(NamedTuple):
    """The variance of FedAvg's last phase, summed over the coordinates.

    Attributes:
        steps: K.
        participants: m.
        measured: mean of ‖x_t − b̄‖².
        error: its standard error, from 20 stretches of the run.
        predicted: M σ_S² / (2 − M).
    """

    steps: int
    participants: int
    measured: float
    error: float
    predicted: float


class Distance(Callback):
    """‖x_t − centre‖² after each round."""

    def __init__(self, centre: Tensor) -> None:
        self.centre, self.squares = centre, list[float]()

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Look at the global model."""
        self.squares.append(float((trainer.state.server.x - self.centre).square().sum()))


def fit(
    method: FedMethod, data: Quadratics, start: Tensor, rounds: int, look: Callback, count: int = CLIENTS, seed: int = 0
) -> FederatedTrainer:
    """Run a method without loggers or evaluation."""
    strategy = SlotStrategy(1, runner="vmap", cohort_size=count) if count > 2 else SlotStrategy(1, runner="loop")
    trainer = FederatedTrainer(rounds, count, strategy, [look], logger=False, evaluate_every=0, seed=seed)
    trainer.fit(method, Quadratics.task(start.tolist()), data)
    return trainer


# -- claim 1 ------------------------------------------------------------------------------------------------------------
def problem(scale: float, seed: int) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Curvatures with eigenvalues in about 0.2…4, optima whose distance is in proportion to `scale`, and sizes."""
    generator = torch_stream(seed, "client-optima")
    roots = torch.randn(CLIENTS, DIMENSIONS, DIMENSIONS, generator=generator, dtype=torch.float64)
    curvatures = [0.2 * torch.eye(DIMENSIONS, dtype=torch.float64) + root @ root.T / 6 for root in roots]
    optima = scale * torch.randn(CLIENTS, DIMENSIONS, generator=generator, dtype=torch.float64)
    return curvatures, list(optima), [10 + 2 * i for i in range(CLIENTS)]


def limit(maps: Sequence[Tensor], optima: Sequence[Tensor], shares: Tensor) -> Tensor:
    """The fixed point (Σ p_i M_i)⁻¹ Σ p_i M_i b_i; with M_i = A_i it is the minimiser x*."""
    both = list(zip(shares, maps, optima, strict=True))
    pull: Tensor = sum(p * m @ b for p, m, b in both)  # type: ignore[assignment]
    whole: Tensor = sum(p * m for p, m, _ in both)  # type: ignore[assignment]
    return torch.linalg.solve(whole, pull)


def floors(scale: float, rounds: int, seed: int) -> list[Floor]:
    """Where SCAFFOLD and FedAvg end, measured by `ClientOptima` and by the closed forms."""
    curvatures, optima, sizes = problem(scale, seed)
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    unit = torch.eye(DIMENSIONS, dtype=torch.float64)
    steps = [unit - torch.linalg.matrix_power(unit - FLOOR_LR * a, FLOOR_STEPS) for a in curvatures]
    found = []
    for method, maps in ((Scaffold(lr=FLOOR_LR, weighting="examples"), curvatures), (FedAvg(lr=FLOOR_LR), steps)):
        x = limit(maps, optima, shares)
        losses = [p * (x - b) @ a @ (x - b) / 2 for p, a, b in zip(shares, curvatures, optima, strict=True)]
        data = Quadratics(curvatures, optima, sizes, FLOOR_STEPS)
        metrics = fit(method, data, torch.ones(DIMENSIONS), rounds, ClientOptima(tolerance=1e-10)).metrics
        measured = metrics["optima/gap"] + metrics["optima/local_loss"]
        found.append(Floor(type(method).__name__, metrics["optima/distance_mean"], measured, float(sum(losses))))
    return found


# -- claim 2 ------------------------------------------------------------------------------------------------------------
def oscillating(seed: int) -> Tensor:
    """The clients' optima [N, d] of the second claim."""
    return torch.randn(CLIENTS, DIMENSIONS, generator=torch_stream(seed, "client-optima", 2), dtype=torch.float64)


def predicted_variance(optima: Tensor, steps: int, participants: float) -> float:
    """M σ_S² / (2 − M), summed over the coordinates; a = 1."""
    clients = len(optima)
    spread = float(optima.var(0, correction=0).sum())
    sampling = spread / participants * (clients - participants) / (clients - 1)
    moved = 1 - (1 - LR) ** steps
    return moved * sampling / (2 - moved)


def oscillation(steps: int, participants: int, rounds: int, seed: int) -> Oscillation:
    """Run FedAvg from the stationary mean, leave the first tenth out, and compare; 50 rounds where nothing oscillates."""
    rounds = rounds if participants < CLIENTS else min(rounds, 50)
    optima = oscillating(seed)
    curvatures = [torch.eye(DIMENSIONS, dtype=torch.float64)] * CLIENTS
    data = Quadratics(curvatures, list(optima), [DIMENSIONS] * CLIENTS, steps)
    look = Distance(optima.mean(0))
    fit(FedAvg(lr=LR), data, look.centre, rounds, look, count=participants, seed=seed)
    squares = torch.tensor(look.squares[len(look.squares) // 10 :], dtype=torch.float64)
    stretches = torch.stack([part.mean() for part in squares.tensor_split(min(20, len(squares)))])
    error = float(stretches.std() / len(stretches) ** 0.5) if len(stretches) > 1 else float("nan")
    return Oscillation(
        steps, participants, float(squares.mean()), error, predicted_variance(optima, steps, participants)
    )


# -- what is shown --------------------------------------------------------------------------------------------------------
def table(lower: Sequence[Floor], later: Sequence[Oscillation]) -> str:
    """Measured beside predicted."""
    lines = ["1. the loss floor", f"{'method':10}{'distance':>10}{'measured':>16}{'predicted':>16}{'difference':>12}"]
    lines += [
        f"{f.method:10}{f.distance:10.4f}{f.measured:16.12f}{f.predicted:16.12f}{f.measured - f.predicted:12.1e}"
        for f in lower
    ]
    lines += ["", "2. the stationary variance of FedAvg"]
    lines += [f"{'K':>3}{'m':>4}{'measured':>12}{'+-':>10}{'predicted':>12}{'ratio':>8}"]
    for o in later:
        ratio = f"{o.measured / o.predicted:8.3f}" if o.predicted else f"{'':>8}"
        lines.append(f"{o.steps:3}{o.participants:4}{o.measured:12.5f}{o.error:10.5f}{o.predicted:12.5f}{ratio}")
    return "\n".join(lines)


def draw(lower: Sequence[Floor], later: Sequence[Oscillation], stem: Path, seed: int) -> list[Path]:
    """Two panels as `<stem>.pdf` and `<stem>.png`."""
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    _draw_floors(left, lower)
    optima = oscillating(seed)
    sizes = torch.linspace(1, CLIENTS, 91).tolist()
    for steps, colour in zip(LOCAL_STEPS, ("tab:green", "tab:purple"), strict=True):
        curve = [predicted_variance(optima, steps, m) for m in sizes]
        right.plot(sizes, curve, color=colour, label=f"predicted, K = {steps}")
        points = [o for o in later if o.steps == steps]
        right.errorbar(
            [o.participants for o in points], [o.measured for o in points], [2 * o.error for o in points],
            fmt="o", color=colour, capsize=4, label=f"measured, K = {steps} (two standard errors)",
        )  # fmt: skip
    right.set_xlabel(f"participants m of {CLIENTS} clients")
    right.set_ylabel("stationary variance of x [squared parameter norm]")
    right.set_title("2. FedAvg oscillates under partial participation")
    right.set_ylim(bottom=0)
    right.legend(fontsize=9)
    return write_figure(figure, stem, dpi=110)


def _draw_floors(axes: "Axes", lower: Sequence[Floor]) -> None:
    looks = {"Scaffold": ("F(x*)", "tab:blue", "o", "-"), "FedAvg": ("F where FedAvg ends", "tab:red", "s", "--")}
    for method, (name, colour, mark, style) in looks.items():
        found = [floor for floor in lower if floor.method == method]
        last = found[-1]
        share = torch.linspace(0, 1, 50)
        axes.plot(
            (share * last.distance).tolist(), (share**2 * last.predicted).tolist(), style, color=colour,
            label=f"{name}, predicted",
        )  # fmt: skip
        axes.plot(
            [f.distance for f in found], [f.measured for f in found], mark, color=colour, mfc="none", ms=8,
            label=f"{name}, measured ({method})",
        )  # fmt: skip
    axes.set_xlabel("mean distance of the clients' optima from x [parameter norm]")
    axes.set_ylabel("global loss F(x)")
    axes.set_title("1. distinct client optima raise the loss floor")
    axes.legend(fontsize=9)


def main(
    *, rounds: int = 1000, floor_rounds: int = 60, seed: int = 0, out: str = "logs/client_optima"
) -> tuple[list[Floor], list[Oscillation], list[Path]]:
    """Two claims of arXiv:2511.00469.

    Args:
        rounds: of each run of the second claim.
        floor_rounds: of each run of the first claim.
        seed: of the quadratics and of who takes part.
        out: the folder of the figure.
    """
    require_matplotlib("client_optima")
    for flag, value in (("--rounds", rounds), ("--floor-rounds", floor_rounds)):
        require_within(value, "[1, 1000000000]", f"`{flag}`", "leave it out for the usual number")
    check_folder(Path(out), "`--out`")
    lower = [floor for scale in SCALES for floor in floors(scale, floor_rounds, seed)]
    later = [oscillation(k, m, rounds, seed) for k in LOCAL_STEPS for m in PARTICIPANTS]
    print(table(lower, later))
    paths = draw(lower, later, Path(out, "client_optima"), seed)
    print(*paths, sep="\n")
    return lower, later, paths


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    run_program(main)
