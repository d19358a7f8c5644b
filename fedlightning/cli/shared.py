"""The flags that recipes share, each said once: a field here is a flag, and its line under "Args:" is its help.

`RunFlags` are those of every recipe, `ImageFlags` those of every recipe of images. A recipe takes the latter by a parameter
of that type; a dataclass of its own, in its own file, does the same. Nothing here imports torch, since a mistyped flag is found
before that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fedlightning.cli.flags import Repeated

if TYPE_CHECKING:
    from fedlightning.cli.run import Run
    from fedlightning.datasets.vision import ImageData


@dataclass(frozen=True)
class RunFlags:
    """How a run trains, where it is kept, and what it goes on from.

    Args:
        method: a method's name, or package.module:Class for one of your own.
        rounds: rounds in all.
        clients_per_round: a number of clients, or with a decimal point a fraction of them.
        batch_size: examples of a local step; null for all that a client has.
        local_epochs: passes over a client's examples in a round; 1, unless local_steps is given.
        local_steps: local steps of every client in a round, in place of local_epochs.
        drop_last: leave out the last batch of an epoch where it is not full; batch norm may need that.
        stragglers: fraction of a round's clients that do less work than asked.
        drop_stragglers: leave the stragglers out instead of taking what they did.
        evaluate_every: rounds between evaluations; 0 for none.
        evaluate_train: evaluate on all clients' training examples, too.
        seed: of the start model, the clients of a round, the stragglers and the batches.
        partition_seed: of who owns what, and of data that are drawn; null for the seed.
        data_dir: the folder of the data sets, to which some are downloaded.
        slots: auto, a number, or names such as cpu/0,cpu/1 or cuda:0/0,cuda:0/1.
        runner: what takes the local steps; auto decides before the first round, and says why.
        cohort_size: clients that are trained at once under vmap, or auto.
        precision: 32-true, tf32 (products on a GPU), or bf16-mixed (products and convolutions in bfloat16).
        preset: the setting in configs/<recipe>/<name>.yaml, e.g. A0d01C100, or such a file's path.
        config: YAML, e.g. a run's config.yaml; may be repeated: later ones win, and flags over them.
        name: name of the run's folder instead of version_N.
        label: the partition's name in the run's folder.
        resume: 'last', or the path of a checkpoint.
        centralised: train on the pooled data under lightning.Trainer, as many steps a round as its clients take together.
        background: go on without the terminal, output to output.txt.
    """

    method: str = "fedavg"
    rounds: int = 200
    clients_per_round: int | float = 10
    batch_size: int | None = 32
    local_epochs: int | None = None
    local_steps: int | None = None
    drop_last: bool = False
    stragglers: float = 0.0
    drop_stragglers: bool = False
    evaluate_every: int = 1
    evaluate_train: bool = False
    seed: int = 0
    partition_seed: int | None = None
    data_dir: str = "data"
    slots: str = "auto"
    runner: Literal["auto", "loop", "vmap", "traced", "compiled", "cuda_graph"] = "auto"
    cohort_size: Literal["auto"] | int = "auto"
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "32-true"
    preset: str | None = None
    config: Repeated = field(default_factory=list)
    name: str | None = None
    label: str | None = None
    resume: str | None = None
    centralised: bool = False
    background: bool = False


@dataclass(frozen=True)
class ImageFlags:
    """Whose images a recipe trains on, and the details of its models.

    Args:
        partition: who owns what; A0d10C100 is Dirichlet(0.10) over 100 clients.
        groups: groups of each group norm of a ResNet, or of the first of cnn; null for the recipe's own.
        positions: whether a vision transformer has position embeddings; null for yes, false as in FederatedX.
        validation: fraction of each client's images that is set aside to rank checkpoints by; at 0 the test set ranks them.
        data: real, or fake for images made on the spot; fake is named in the run's folder.
    """

    partition: str = "A0d10C100"
    groups: int | None = None
    positions: bool | None = None
    validation: float = 0.0
    data: Literal["real", "fake"] = "real"

    @property
    def details(self) -> dict[str, Any]:
        """What `build_model` is told besides the model's name: groups and positions."""
        return {"groups": self.groups, "positions": self.positions}

    def load(self, images: type[ImageData], run: Run, **options: Any) -> ImageData:
        """The images of a data set, divided among the clients of the partition.

        That is `images(partition, root=…, batching=…, seed=…, validation=…, **options)`, with the numbers of the run.

        Args:
            images: the data set's class, e.g. `CIFAR100`; for `--data fake` made-up images of its shape and classes are taken.
            run: the recipe's run.
            **options: more of the class's arguments.
        """
        from fedlightning.datasets import FakeImages  # imports torch

        ours: dict[str, Any] = {"batching": run.batching, "seed": run.partition_seed, "validation": self.validation}
        if self.data == "fake":
            return FakeImages(self.partition, shape=images.shape, classes=images.classes, **ours, **options)
        return images(self.partition, root=run.data_dir, **ours, **options)
