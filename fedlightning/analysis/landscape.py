"""The loss around the paths of the server and its clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from fedlightning._checked import checked
from fedlightning.analysis.figures import log_figure, new_figure, require_matplotlib, save_figure
from fedlightning.analysis.gradients import mean_losses
from fedlightning.analysis.plane import Plane, principal_plane
from fedlightning.callbacks.base import Callback, CohortResult
from fedlightning.errors import ConfigurationError
from fedlightning.method import Round
from fedlightning.randomness import stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedlightning.execution.slots import Worker
    from fedlightning.trainer import FederatedTrainer


@dataclass(frozen=True)
class Landscape:
    """The loss on a plane, and the paths on it.

    Attributes:
        plane: where it lies in the space of the parameters.
        a, b: the grid's coordinates along its two directions [G].
        losses: the loss at (a_j, b_i) [G, G].
        server: the global model in each recorded round [T, 2].
        clients: for each line that is drawn, its round, its client, and its two ends [2, 2]: the global model before the
            round, and where the client went from there.
    """

    plane: Plane
    a: Tensor
    b: Tensor
    losses: Tensor
    server: Tensor
    clients: Sequence[tuple[int, int, Tensor]]


class LossLandscape(Callback):
    """Draws the loss on a plane through the final model, with the paths of the server and of clients projected on it.

    The plane's directions are the first two principal components of the server's path (Li et al., NeurIPS 2018, section
    7.2: of its differences to the final model), or two given ones, made orthonormal by Gram and Schmidt; so the
    least-squares coordinates of a model are scalar products. The loss is the mean over a fixed sample of the training
    examples, without augmentation, in evaluation mode. From the global model before a recorded round a line leads to each of
    a few participants of that round, x + Δ_i with the method's upload Δ_i (`delta`, without which there are no lines); which
    ones is drawn from the seed.

    When the run ends `landscape.png` is in the run's folder, and in TensorBoard; `landscape` holds the numbers, and `figure`
    what is drawn. A resumed run's path begins where it was resumed.

    The cost is `resolution`² forward passes over `num_examples` examples, once, and the memory of (2 + `clients`) models
    for each recorded round, on the host; both are told when the run starts. The run's own numbers are left alone; the
    landscape has the same bits for any number of slots.

    Args:
        every: rounds between recorded ones; None records up to 50 of them, evenly.
        clients: participants that are drawn in each recorded round; 0 for none.
        directions: two vectors [P] that span the plane; None takes the principal components.
        resolution: G, points of the grid along each direction.
        num_examples: over which the loss is averaged.
        batch_size: examples of one forward pass.

    Raises:
        ConfigurationError: a number is impossible, the directions span no plane, or matplotlib is missing.
    """

    landscape: Landscape | None = None
    figure: Figure | None = None
    logs = ()

    @checked(
        every="[1, inf)", clients="[0, inf)", resolution="[2, inf)", num_examples="[1, inf)", batch_size="[1, inf)"
    )
    def __init__(
        self,
        every: int | None = None,
        clients: int = 5,
        directions: tuple[Tensor, Tensor] | None = None,
        resolution: int = 25,
        num_examples: int = 1000,
        batch_size: int = 1000,
    ) -> None:
        if resolution > 1000:
            raise ConfigurationError(
                f"`resolution` of LossLandscape must be at most 1,000, for a million forward passes, but is {resolution:,}."
            )
        self.every, self.clients, self.directions = every, clients, directions
        self.resolution, self.num_examples, self.batch_size = resolution, num_examples, batch_size

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Check the directions, choose the examples, tell the cost, and record the start."""
        require_matplotlib("LossLandscape")
        if self.directions is not None:
            Plane.spanned(torch.zeros(trainer.layout.size), *self.directions)
        owned = trainer.data.clients.indices
        chosen = stream(trainer.seed, "landscape").permutation(len(owned))[: self.num_examples]
        self._index = owned[torch.from_numpy(chosen)].sort().values
        self._stride = self.every or -(-(trainer.max_rounds - trainer.round) // 50) or 1
        self._server, self._branches = [_host(trainer.state.server.x)], list[tuple[int, int, Tensor, Tensor]]()
        self._drawn: list[tuple[float, int, Tensor]] = []
        self._recorded = trainer.round
        self._before: Tensor | None = None
        self.landscape = self.figure = None
        points = -(-(trainer.max_rounds - trainer.round) // self._stride)
        size = points * (2 + self.clients) * trainer.layout.size * self._server[0].element_size() / 2**20
        rank_zero_info(
            f"landscape: {self.resolution**2:,} forward passes over {len(self._index):,} examples at the end; recorded "
            f"rounds: {points:,}, at most {size:,.1f} MiB on the host"
        )

    def on_round_start(self, trainer: FederatedTrainer, round: Round) -> None:
        """See whether the round is recorded: those that end at a multiple of the stride, and the last."""
        self._drawn = []
        recorded = (round.index + 1) % self._stride == 0 or round.index + 1 == trainer.max_rounds
        self._before = _host(trainer.state.server.x) if recorded else None

    def on_cohort_end(self, trainer: FederatedTrainer, cohort: CohortResult) -> None:
        """Keep the updates of those participants whose lot is among the smallest."""
        if self._before is None or not self.clients or "delta" not in cohort.upload:
            return
        for client, update in zip(cohort.clients, cohort.upload.delta, strict=True):
            lot = stream(trainer.seed, "landscape", trainer.round, client).random()
            if len(self._drawn) < self.clients or lot < self._drawn[-1][0]:
                self._drawn = sorted([*self._drawn, (lot, client, _host(update))], key=lambda drawn: drawn[0])
                del self._drawn[self.clients :]

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Record the round."""
        if self._before is None:
            return
        self._server.append(_host(trainer.state.server.x))
        self._recorded = trainer.round
        for _, client, update in sorted(self._drawn, key=lambda drawn: drawn[1]):
            self._branches.append((trainer.round, client, self._before, self._before + update))

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        """Find the plane, evaluate the grid, and draw."""
        if self._recorded != trainer.round:  # the run was stopped
            self._server.append(_host(trainer.state.server.x))
        if len(self._server) < 2:
            return
        path = torch.stack(self._server).to(torch.float64)
        given = self.directions
        plane = Plane.spanned(path[-1], *given) if given else principal_plane(path, trainer.seed)
        lines = [(t, client, plane.project(torch.stack([x, y]))) for t, client, x, y in self._branches]
        server = plane.project(path)
        a, b = grid(torch.cat([server, *(ends for *_, ends in lines)]), self.resolution)
        self.landscape = Landscape(plane, a, b, self._losses(trainer, plane, a, b), server, lines)
        self.figure = draw(self.landscape, len(self._index))
        save_figure(trainer, "landscape", self.figure)
        log_figure(trainer, "landscape", self.figure)

    def _losses(self, trainer: FederatedTrainer, plane: Plane, a: Tensor, b: Tensor) -> Tensor:
        """The loss at each point of the grid [G, G], a row at a time on whichever slot is free."""

        def row(height: Tensor) -> Callable[[Worker], list[float]]:
            points = [plane.point(torch.stack([across, height])) for across in a]

            def measure(worker: Worker) -> list[float]:
                examples = worker.examples
                arguments = (worker.replica, trainer.data, examples, self._index, points, trainer.state.buffers)
                return mean_losses(*arguments, self.batch_size)

            return measure

        return torch.tensor(list(trainer.strategy.map([row(height) for height in b])), dtype=torch.float64)


def grid(points: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Coordinates along both directions that hold all points [n, 2], with a margin of a fifth of their extent."""
    low, high = points.min(0).values, points.max(0).values
    extent = high - low
    extent = torch.where(extent > 1e-9 * extent.max(), extent, extent.max().clamp(min=1e-9))
    centre = (low + high) / 2
    a, b = (torch.linspace(-0.7, 0.7, resolution, dtype=torch.float64)[:, None] * extent + centre).T
    return a, b


def draw(landscape: Landscape, num_examples: int) -> Figure:
    """Contours of the loss, the server's path with its start and end, and a thin line to each client."""
    figure = new_figure(8, 6.4)
    ax = figure.subplots()
    _contours(figure, ax, landscape, num_examples)
    for number, (_, _, ends) in enumerate(landscape.clients):
        label = "from the server to a client" if number == 0 else None
        ax.plot(*ends.T.tolist(), "-", color="white", lw=1, alpha=0.8, label=label)
        ax.plot(*ends[1].tolist(), ".", color="white", ms=4)
    ax.plot(*landscape.server.T.tolist(), "o-", color="tab:red", lw=2, ms=4, label="server")
    ax.plot(*landscape.server[0].tolist(), "s", color="tab:red", ms=9, mec="black", label="start")
    ax.plot(*landscape.server[-1].tolist(), "*", color="tab:red", ms=15, mec="black", label="end")
    labels = [
        f"{name} [parameter norm{f'; {share:.0%} of the path' if share is not None else ''}]"
        for name, share in zip("ab", landscape.plane.shares, strict=True)
    ]
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.set_title("training loss around the final model")
    legend = ax.legend(fontsize=9, facecolor="tab:gray")
    legend.get_frame().set_alpha(0.6)
    return figure


def _contours(figure: Figure, ax: Axes, landscape: Landscape, num_examples: int) -> None:
    """Filled contours; levels are even in the logarithm where the loss is positive and spans more than a factor of 2."""
    from matplotlib.colors import LogNorm

    losses = landscape.losses.nan_to_num(nan=float("inf"))
    finite = losses[losses.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    logarithmic = low > 0 and high > 2 * low
    levels = torch.linspace(0, 1, 30, dtype=torch.float64)
    levels = low * (high / low) ** levels if logarithmic else low + max(high - low, 1e-12) * levels
    levels[0], levels[-1] = min(low, float(levels[0])), max(high, float(levels[-1]))
    drawn = ax.contourf(
        landscape.a.numpy(), landscape.b.numpy(), losses.clamp(max=high).numpy(), levels.tolist(),
        cmap="viridis", norm=LogNorm() if logarithmic else None,
    )  # fmt: skip
    bar = figure.colorbar(drawn, ax=ax, label=f"mean loss over {num_examples:,} training examples")
    if logarithmic:
        bar.set_ticks([float(level) for level in levels[::6]])
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        bar.ax.minorticks_off()


def _host(tensor: Tensor) -> Tensor:
    """A copy on the host."""
    return tensor.detach().cpu().clone()
