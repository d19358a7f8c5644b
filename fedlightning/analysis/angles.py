"""How well the participants of a round stand for the whole population."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from fedlightning._checked import COUNT, checked
from fedlightning.analysis.figures import (
    log_figure,
    new_figure,
    require_matplotlib,
    save_figure,
    whole_numbers,
)
from fedlightning.callbacks.base import Callback, CohortResult
from fedlightning.errors import MethodError
from fedlightning.layout import Layout
from fedlightning.method import FedMethod, Round, weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedlightning.trainer import FederatedTrainer


class UpdateAngles(Callback):
    """Logs the angle between the participants' update and the whole population's, and between single clients' updates.

    In the rounds 0, k, 2k, … all clients are trained, too, from the round's global model, and what they do is thrown away
    (`FederatedTrainer.trial`). With the updates Δ_i that the method uploads (its entry `delta`; y_i − x for most) and its
    weights w_i there are, over the participants S and over all N clients,

        Δ_S = Σ_S w_i Δ_i / Σ_S w_i        Δ = Σ w_i Δ_i / Σ w_i

        cos(Δ_S, Δ)                        as `angles/cosine`, and the angle in degrees as `angles/degrees`
        ‖Δ_S‖ / ‖Δ‖                        as `angles/norm_ratio`
        mean of cos(Δ_i, Δ_j), i ≠ j       as `angles/pairwise_participants` and `angles/pairwise_all`

    with the number of the round that ends, and the same without the norms for each layer (a module's own parameters) as
    `angles_layers/<layer>/…`. Cosines are clamped to [−1, 1]; the angle is 2 atan2(‖a − b‖, ‖a + b‖) of the unit vectors
    (Kahan), which is exact where the arccosine loses half of the digits. What is not defined is a NaN: the angle to a zero
    vector, and a pair where there is one client; clients that do not move at all are in no pair.

    At the end `angles.png` in the run's folder shows degrees and pairwise cosines over the rounds, also in TensorBoard; it
    is `figure`, too.

    The cost is a local training of all N clients in every k-th round: rounds of m clients become (1 + N / (m k)) times as
    long. Memory is six vectors [P] in float64, for any number of clients. The run's own numbers are left alone; these here
    have the same bits for any number of slots.

    Args:
        every: k, rounds between measurements.
        layers: whether layers are logged.

    Raises:
        ConfigurationError: `every` is not positive, or matplotlib is missing.
        MethodError: the method uploads no `delta`.
    """

    figure: Figure | None = None
    logs = ("angles/*", "angles_layers/*")

    @checked(every=COUNT)
    def __init__(self, every: int = 10, layers: bool = True) -> None:
        self.every, self.layers = every, layers
        self._history: list[dict[str, float]] = []
        self._population: UpdateSums | None = None
        self._participants: UpdateSums | None = None
        self._seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What was measured, for the figure."""
        return {"history": self._history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was measured before the run was stopped."""
        self._history = list(state["history"])

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Tell the cost."""
        require_matplotlib("UpdateAngles")
        self._history, self.figure = self._history if trainer.round else [], None
        rank_zero_info(
            f"angles: all {trainer.num_clients:,} clients are trained, beside the round's {trainer.clients_per_round:,}, in "
            f"every {f'{self.every} rounds' if self.every > 1 else 'round'}"
        )

    def on_round_start(self, trainer: FederatedTrainer, round: Round) -> None:
        """Train all clients, if it is the round's turn."""
        self._population = self._participants = None
        if round.index % self.every:
            return
        began, layout = perf_counter(), trainer.layout
        slices = layer_slices(layout) if self.layers else {}
        population, self._participants = UpdateSums(layout.size, slices), UpdateSums(layout.size, slices)
        trainer.trial(range(trainer.num_clients), lambda cohort: _add(population, trainer.method, cohort))
        self._population, self._seconds = population, perf_counter() - began

    def on_cohort_end(self, trainer: FederatedTrainer, cohort: CohortResult) -> None:
        """Take the participants' updates."""
        if self._participants is not None:
            _add(self._participants, trainer.method, cohort)

    def on_round_end(self, trainer: FederatedTrainer, metrics: Mapping[str, float]) -> None:
        """Log the angles."""
        if self._participants is None or self._population is None:
            return
        found = compare(self._participants, self._population)
        trainer.log({**found, "angles/seconds": self._seconds})
        self._history.append({"round": float(trainer.round), **found})
        self._population = self._participants = None

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        """Draw the angles over the rounds."""
        if self._history and trainer.round > trainer.start_round:
            self.figure = draw(self._history)
            save_figure(trainer, "angles", self.figure)
            log_figure(trainer, "angles", self.figure)


class UpdateSums:
    """Sums over clients i with updates u_i [P] and weights w_i, in float64 on the host; memory does not grow with them.

    Args:
        parameters: P.
        layers: the place of each layer in a vector [P].

    Attributes:
        total: Σ w_i u_i [P]; only its direction and its length relative to Σ w_i matter.
        weight: Σ w_i.
        units: Σ u_i / ‖u_i‖ [P], and `layer_units` the same with each layer scaled by its own norm.
        counts: how many u_i are not zero: in all ("") and in each layer.
    """

    def __init__(self, parameters: int, layers: Mapping[str, slice]) -> None:
        self.layers = layers
        self.total, self.units, self.layer_units = torch.zeros(3, parameters, dtype=torch.float64).unbind()
        self.weight, self.counts = 0.0, dict.fromkeys(["", *layers], 0)

    def add(self, update: Tensor, weight: float) -> None:
        """Add a client by its update [P] (float64)."""
        self.total.add_(update, alpha=weight)
        self.weight += weight
        self._add_unit("", update, self.units)
        for name, place in self.layers.items():
            self._add_unit(name, update[place], self.layer_units[place])

    def pairwise(self, layer: str = "") -> float:
        """The mean cosine of two different clients, (‖Σ u_i / ‖u_i‖‖² − n) / (n (n − 1)); a NaN for fewer than two."""
        units, n = self.layer_units[self.layers[layer]] if layer else self.units, self.counts[layer]
        return clamp((float(units.dot(units)) - n) / (n * (n - 1))) if n > 1 else math.nan

    def _add_unit(self, name: str, update: Tensor, units: Tensor) -> None:
        norm = float(update.norm())
        if norm != 0:
            units.add_(update, alpha=1 / norm)
            self.counts[name] += 1


def layer_slices(layout: Layout) -> dict[str, slice]:
    """The place in w of each layer: the neighbouring parameters of one module, by the module's name in the model."""
    groups = groupby(layout.slices().items(), key=lambda item: item[0].rpartition(".")[0].removeprefix("model."))
    found: dict[str, slice] = {}
    for name, members in groups:
        places = [place for _, place in members]
        name = name or "model"
        found[name if name not in found else f"{name}_{len(found)}"] = slice(places[0].start, places[-1].stop)
    return found


def clamp(cosine: float) -> float:
    """A cosine without what rounding adds; a NaN stays."""
    return cosine if math.isnan(cosine) else min(1.0, max(-1.0, cosine))


def angle(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Cosine and angle in degrees between two vectors; NaN if one is zero."""
    lengths = float(a.norm()), float(b.norm())
    if 0 in lengths:
        return math.nan, math.nan
    a, b = a / lengths[0], b / lengths[1]
    return clamp(float(a.dot(b))), math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))


def compare(participants: UpdateSums, population: UpdateSums) -> dict[str, float]:
    """What is logged, by name."""
    cosine, degrees = angle(participants.total, population.total)
    norms = [float(sums.total.norm()) / sums.weight for sums in (participants, population)]
    found = {
        "angles/cosine": cosine,
        "angles/degrees": degrees,
        "angles/norm_ratio": norms[0] / norms[1] if norms[1] else math.nan,
        "angles/pairwise_participants": participants.pairwise(),
        "angles/pairwise_all": population.pairwise(),
    }
    for name, place in population.layers.items():
        cosine, degrees = angle(participants.total[place], population.total[place])
        values = (cosine, degrees, participants.pairwise(name), population.pairwise(name))
        keys = ("cosine", "degrees", "pairwise_participants", "pairwise_all")
        found.update({f"angles_layers/{name}/{key}": value for key, value in zip(keys, values, strict=True)})
    return found


def draw(history: Sequence[Mapping[str, float]]) -> Figure:
    """Angles and pairwise cosines over the rounds; the layers as thin lines."""
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    rounds = [entry["round"] for entry in history]
    layers = [
        name.split("/")[1] for name in history[-1] if name.startswith("angles_layers/") and name.endswith("/degrees")
    ]
    layers = layers if len(layers) > 1 else []  # one alone is the whole model
    for ax, key in ((left, "degrees"), (right, "pairwise_all")):
        ax.plot(
            rounds, [entry[f"angles/{key}"] for entry in history], "ko-", lw=2.5, ms=4, label="whole model", zorder=3
        )
        for layer in layers:
            values = [entry.get(f"angles_layers/{layer}/{key}", math.nan) for entry in history]
            ax.plot(rounds, values, ".-", lw=1, label=layer)
        ax.set_xlabel("round")
        whole_numbers(ax.xaxis)
    left.set_ylabel("angle [degrees]")
    left.set_title("participants' update against the population's")
    right.set_ylabel("mean cosine of two clients' updates")
    right.set_title("how much the clients agree")
    if 0 < len(layers) <= 12:
        right.legend(fontsize=8)
    return figure


def _add(sums: UpdateSums, method: FedMethod, cohort: CohortResult) -> None:
    if "delta" not in cohort.upload:
        raise MethodError(
            f"`{type(method).__name__}` must upload `delta` for UpdateAngles, but uploads {', '.join(cohort.upload)}; add the "
            "client's update to what `on_client_end` returns, or leave UpdateAngles out."
        )
    rows = cohort.upload.delta.to("cpu", torch.float64)
    for row, weight in zip(rows, weights(method, cohort.num_examples.to(torch.float64)).tolist(), strict=True):
        sums.add(row, weight)
