"""How far the clients' optima lie from the global model, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from fedlightning._checked import COUNT, checked
from fedlightning.analysis.dissimilarity import choose_clients
from fedlightning.analysis.figures import log_figure, new_figure, require_matplotlib, save_figure
from fedlightning.analysis.gradients import client_objective
from fedlightning.analysis.lbfgs import Minimum, minimise
from fedlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedlightning.execution.slots import Worker
    from fedlightning.trainer import FederatedTrainer


class ClientOptima(Callback):
    """Logs how far the optima x_i* of the clients' losses f_i lie from the global model x, and from each other.

    Each client's loss over all its training examples is minimised from x by L-BFGS (`lbfgs.minimise`), until the norm of
    its gradient is at most `tolerance`. With p_i = n_i / Σ n_j over the measured clients, their F = Σ p_i f_i, and the 10th,
    50th and 90th percentile over clients or over pairs of them, it logs

        ‖x_i* − x‖                    as `optima/distance_mean`, `optima/distance_p10`, `_p50`, `_p90`
        ‖x_i* − x_j*‖, i < j          as `optima/pairwise_mean`, `optima/pairwise_p10`, `_p50`, `_p90`
        F(x) − Σ p_i f_i(x_i*)        as `optima/gap`: what the clients would gain by going their own ways
        Σ p_i f_i(x_i*)               as `optima/local_loss`
        clients within the tolerance  as `optima/converged`, a fraction

    At a minimiser x* of F the gap is the loss floor that distinct optima cause (arXiv:2511.00469): on quadratics
    ½ Σ p_i (x* − b_i)ᵀ A_i (x* − b_i). A loss without a minimum (cross-entropy of classes that can be separated, which a
    client with few classes has) goes on until `passes` is spent: its distance then means how far that many passes lead, and
    `optima/converged` tells. Where f_i is not convex, x_i* is the local optimum that is found from x. The losses are those
    of `Dissimilarity`: no augmentation, no dropout, the running statistics of the global model.

    `optima.png` in the run's folder shows distances, pairwise distances and gains of the last measurement, also in
    TensorBoard; it is `figure`, too.

    The cost each time is at most `passes` forward and backward passes over all training examples of the measured clients; it
    is told when the run starts, and the time that was taken is logged as `optima/seconds`. Memory is a vector [P] in float64
    for each of them, and some 25 for each slot. The run's own numbers are left alone; these here have the same bits for any
    number of slots.

    Args:
        every: rounds between measurements; None for one, after the last round, whatever ends the run.
        num_clients: measure a sample of so many clients as if there were no others, the same ones all through the run;
            None for all of them.
        tolerance: of the norm of ∇f_i, where a client stops.
        passes: over a client's examples at most.
        batch_size: examples of one forward and backward pass; fewer take less memory.

    Raises:
        ConfigurationError: a number is impossible, there are fewer clients than `num_clients`, or matplotlib is missing.
    """

    figure: Figure | None = None
    logs = ("optima/*",)

    @checked(every=COUNT, num_clients=COUNT, tolerance="(0, inf)", passes=COUNT, batch_size=COUNT)
    def __init__(
        self,
        every: int | None = None,
        num_clients: int | None = None,
        tolerance: float = 1e-4,
        passes: int = 200,
        batch_size: int = 1000,
    ) -> None:
        self.every, self.num_clients, self.tolerance = every, num_clients, tolerance
        self.passes, self.batch_size = passes, batch_size
        self._clients: list[int] = []
        self._measured = 0  # after how many rounds

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Choose the clients and tell the cost."""
        require_matplotlib("ClientOptima")
        self.figure, self._measured = None, trainer.round
        self._clients = choose_clients(trainer, self.num_clients, "ClientOptima")
        count = int(trainer.data.clients.sizes[self._clients].sum())
        often = "every round" if self.every == 1 else f"every {self.every} rounds and after the last"
        when = often if self.every else "the last round"
        rank_zero_info(
            f"optima: at most {self.passes} passes over {count:,} examples of {len(self._clients):,} of "
            f"{trainer.num_clients:,} clients, after {when}"
        )

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Find the optima, if it is the round's turn."""
        if trainer.round == trainer.max_rounds or (self.every and trainer.round % self.every == 0):
            self._measure(trainer)

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        """Measure the last model of a run that was stopped, and show the last measurement in the loggers."""
        if self._measured != trainer.round and trainer.round > trainer.start_round:
            self._measure(trainer)
        if self.figure is not None:
            log_figure(trainer, "optima", self.figure)

    def _measure(self, trainer: FederatedTrainer) -> None:
        began, self._measured = perf_counter(), trainer.round
        x = trainer.method.evaluation_point(trainer.state.server)

        def find(client: int) -> Callable[[Worker], Minimum]:
            return lambda worker: self._find(trainer, worker, client, x)

        minima = list(trainer.strategy.map([find(client) for client in self._clients]))
        sizes = trainer.data.clients.sizes[self._clients].to(torch.float64)
        points = torch.stack([minimum.point for minimum in minima])
        distances = (points - x.to("cpu", torch.float64)).norm(dim=1)
        pairs = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        found = summarise(minima, distances, pairs, sizes / sizes.sum(), self.tolerance)
        trainer.log({**found, "optima/seconds": perf_counter() - began})
        self.figure = draw(self._clients, minima, distances, pairs, trainer.round)
        save_figure(trainer, "optima", self.figure)

    def _find(self, trainer: FederatedTrainer, worker: Worker, client: int, x: Tensor) -> Minimum:
        """A client's optimum, on a slot; the point comes back on the host."""
        replica, buffers = worker.replica, trainer.state.buffers
        examples = trainer.strategy.examples[replica.device]
        rounding = 4 * torch.finfo(replica.layout.dtype).eps
        with client_objective(replica, trainer.data, examples, client, x, buffers, self.batch_size) as objective:
            start = x.to(replica.device, torch.float64)
            found = minimise(objective, start, self.tolerance, self.passes, rounding)
        return Minimum(found.point.cpu(), found.start, found.value, found.gradient_norm, found.passes)


def summarise(
    minima: Sequence[Minimum], distances: Tensor, pairs: Tensor, shares: Tensor, tolerance: float
) -> dict[str, float]:
    """What is logged, by name.

    Args:
        minima: one a client.
        distances: of the optima from the global model [C].
        pairs: of the optima from each other [C, C].
        shares: p_i [C] (float64).
        tolerance: of the gradients' norms.
    """
    upper = torch.triu_indices(len(minima), len(minima), offset=1)
    found: dict[str, float] = {}
    for name, values in (("distance", distances), ("pairwise", pairs[upper[0], upper[1]])):
        if len(values):
            found[f"optima/{name}_mean"] = float(values.mean())
            found.update({f"optima/{name}_p{q}": float(values.quantile(q / 100)) for q in (10, 50, 90)})
    start, value = (torch.tensor([getattr(m, key) for m in minima], dtype=torch.float64) for key in ("start", "value"))
    found["optima/gap"] = float(shares.dot(start - value))
    found["optima/local_loss"] = float(shares.dot(value))
    found["optima/converged"] = sum(m.gradient_norm <= tolerance for m in minima) / len(minima)
    return found


def draw(clients: Sequence[int], minima: Sequence[Minimum], distances: Tensor, pairs: Tensor, round: int) -> Figure:
    """Distances from the global model, distances from each other, and what each client gains, nearest client first."""
    order = distances.argsort(stable=True).tolist()
    figure = new_figure(15, 4.4)
    left, middle, right = figure.subplots(1, 3)
    places = range(len(order))
    left.bar(places, distances[order].tolist(), color="tab:blue")
    left.set_ylabel("distance of x_i* from the global model\n[parameter norm]")
    left.set_title(f"round {round}: how far the clients' optima are")
    image = middle.imshow(pairs[order][:, order].numpy(), cmap="viridis", origin="lower")
    figure.colorbar(image, ax=middle, label="distance of x_i* from x_j* [parameter norm]")
    middle.set_title("from each other")
    right.bar(places, [minima[i].start - minima[i].value for i in order], color="tab:orange")
    right.set_ylabel("f_i(x) - f_i(x_i*) [training loss]")
    right.set_title("what each client gains")
    for ax in (left, middle, right):
        ax.set_xlabel("client, nearest first")
        if len(order) <= 20:
            ax.set_xticks(places, [str(clients[i]) for i in order], rotation=90, fontsize=8)
    if len(order) <= 20:
        middle.set_yticks(places, [str(clients[i]) for i in order], fontsize=8)
    middle.set_ylabel("client, nearest first")
    return figure
