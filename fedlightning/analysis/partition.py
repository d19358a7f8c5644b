"""What the clients hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedlightning.analysis.figures import (
    log_figure,
    new_figure,
    require_matplotlib,
    save_figure,
    whole_numbers,
)
from fedlightning.callbacks.base import Callback
from fedlightning.method import Round

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedlightning.data.partition import Partition
    from fedlightning.trainer import FederatedTrainer


class PartitionReport(Callback):
    """Logs and draws who owns what: class by client, sizes, and how many classes a client has in effect.

    The effective number of classes of a client is exp(H) with the entropy H = −Σ q_c log q_c of its class shares q: as
    many as it has if they are equally frequent, 1 if there is one. When the run starts it logs

        `partition/effective_classes_mean`, `_min`, `_max`     over clients, and `_pooled` of all examples together
        `partition/size_mean`, `_std`, `_min`, `_max`          training examples of a client
        `partition/clients`, `partition/examples`              N, and all their training examples

    and `partition.png` in the run's folder shows them, also in TensorBoard; it is `figure`, too. The classes are the
    distinct labels of the training set; where the targets are no labels (vectors, real numbers) there are the sizes alone. A
    resumed run draws the file again and logs nothing. The cost is a histogram; the run's own numbers are left alone.

    Raises:
        ConfigurationError: matplotlib is missing.
    """

    figure: Figure | None = None
    logs = ("partition/*",)

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Count, draw, and log at round 0."""
        require_matplotlib("PartitionReport")
        clients = trainer.data.clients
        counts = class_counts(clients, trainer.data.train.targets)
        if trainer.round == 0:
            trainer.log(summarise(clients, counts))
        self.figure = draw(clients, counts)
        save_figure(trainer, "partition", self.figure)

    def on_round_start(self, trainer: FederatedTrainer, round: Round) -> None:
        """Show the figure in the loggers, which the metrics of round 0 have opened by now."""
        if self.figure is not None and round.index == 0:
            log_figure(trainer, "partition", self.figure)


def class_counts(clients: Partition, targets: Tensor) -> Tensor | None:
    """Examples of each class at each client [N, classes]; None where the targets are no labels."""
    if targets.dim() != 1 or targets.is_floating_point():
        return None
    found, ids = torch.unique(targets.cpu(), return_inverse=True)
    return clients.histogram(ids, len(found))


def effective_classes(counts: Tensor) -> Tensor:
    """exp(H) [N] (float64) of the class shares in each row of counts [N, classes]."""
    shares = counts.to(torch.float64) / counts.sum(1, keepdim=True)
    entropies: Tensor = torch.special.entr(shares).sum(1)
    return entropies.exp()


def summarise(clients: Partition, counts: Tensor | None) -> dict[str, float]:
    """What is logged, by name."""
    sizes = clients.sizes.to(torch.float64)
    found = {
        "partition/clients": float(clients.num_clients),
        "partition/examples": float(sizes.sum()),
        "partition/size_mean": float(sizes.mean()),
        "partition/size_std": float(sizes.std(correction=0)),
        "partition/size_min": float(sizes.min()),
        "partition/size_max": float(sizes.max()),
    }
    if counts is not None:
        effective = effective_classes(counts)
        found["partition/effective_classes_mean"] = float(effective.mean())
        found["partition/effective_classes_min"] = float(effective.min())
        found["partition/effective_classes_max"] = float(effective.max())
        found["partition/effective_classes_pooled"] = float(effective_classes(counts.sum(0, keepdim=True)))
    return found


def draw(clients: Partition, counts: Tensor | None) -> Figure:
    """The class shares of each client as a picture, above the effective classes and the sizes."""
    places = range(clients.num_clients)
    if counts is None:
        figure = new_figure(10, 3)
        sizes = figure.subplots()
    else:
        figure = new_figure(10, 7.5)
        picture, effective, sizes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
        shares = (counts / counts.sum(1, keepdim=True)).T.numpy()
        image = picture.imshow(
            shares, aspect="auto", interpolation="nearest", cmap="magma_r", origin="lower", vmin=0, vmax=1
        )
        figure.colorbar(image, ax=picture, label="share of the client's examples")
        picture.set_ylabel("class")
        whole_numbers(picture.yaxis)
        picture.set_title(f"{clients.num_clients:,} clients, {int(clients.sizes.sum()):,} training examples")
        effective.bar(places, effective_classes(counts).tolist(), width=1.0, color="tab:green")
        effective.set_ylabel("effective\nclasses exp(H)")
        effective.set_ylim(0, counts.shape[1])
    sizes.bar(places, clients.sizes.tolist(), width=1.0, color="tab:blue")
    sizes.set_ylabel("training\nexamples")
    sizes.set_xlabel("client")
    sizes.set_xlim(-0.5, clients.num_clients - 0.5)
    whole_numbers(sizes.xaxis)
    return figure
