"""A recipe's run: what its flags ask for, its folder, what it goes on from, and how it is trained."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info

from fedlightning._locks import locked
from fedlightning.baselines.centralised import fit_centralised
from fedlightning.callbacks import ModelCheckpoint, RoundProgress, Throughput
from fedlightning.callbacks.base import Callback
from fedlightning.callbacks.monitor import Mode
from fedlightning.callbacks.story import clock, closing, read_course, rounds_to_go
from fedlightning.cli.background import Detach, detach
from fedlightning.cli.flags import shortened
from fedlightning.cli.shared import RunFlags
from fedlightning.data.batching import Batching
from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError
from fedlightning.execution.strategy import SlotStrategy
from fedlightning.loggers import check_writable, latest_run, run_loggers
from fedlightning.method import FedMethod
from fedlightning.participation.batching_policy import BatchingPolicy
from fedlightning.participation.samplers import ClientSampler
from fedlightning.participation.stragglers import Stragglers
from fedlightning.task import FederatedTask
from fedlightning.trainer import FederatedTrainer


class Run:
    """What a recipe is given: the numbers that its flags ask for, and `fit`, which trains.

    It is kept in `logs/<recipe>/<data>/<method>/version_N`.

    Args:
        recipe: the recipe's file.
        flags: those of every recipe.
        method: the chosen method.
        config: the whole configuration as YAML; written to the run's folder, where `--config` takes it up.
        root: the folder of all runs.

    Attributes:
        batching: how the examples of a client become the batches of a round.
        seed: of the start model, the clients of a round and their batches.
        partition_seed: of who owns what, and of data that are drawn.
        data_dir: the folder of the data sets.

    Raises:
        ConfigurationError: a flag cannot be.
    """

    def __init__(
        self, recipe: Path, flags: RunFlags, method: FedMethod, config: str, root: Path = Path("logs")
    ) -> None:
        self.recipe, self.flags, self.method, self.config, self.root = recipe, flags, method, config, root
        self.batching = Batching(flags.batch_size, flags.local_epochs, flags.local_steps, flags.drop_last)
        self.seed, self.data_dir = flags.seed, flags.data_dir
        self.partition_seed = flags.seed if flags.partition_seed is None else flags.partition_seed
        self._made: Path | None = None
        self._missing: list[Path] = []
        self._loggers: list[Logger] = []
        self._opened = ExitStack()
        self._check_flags()

    def fit(
        self,
        task: FederatedTask,
        data: FederatedDataModule,
        *,
        sampler: ClientSampler | None = None,
        stragglers: type[Stragglers] = Stragglers,
        batching_policy: BatchingPolicy | None = None,
        callbacks: Sequence[Callback] = (),
        monitor: str | None = "accuracy",
        mode: Mode = "max",
        folder: str | None = None,
    ) -> FederatedTrainer:
        """Train as the flags say, from a checkpoint where `--resume` is given, or the baseline where `--centralised` is.

        Args:
            task: the model and its loss.
            data: whose data it is trained on.
            sampler: who takes part in a round; None draws clients uniformly.
            stragglers: the rule by which `--stragglers` draws those who do less.
            batching_policy: which examples are in their batches; None leaves it to the data.
            callbacks: besides those of every recipe, which show progress, log the throughput and keep checkpoints.
            monitor: the metric by which checkpoints are ranked: of the validation set where there is one, else of the test set.
                None keeps the latest.
            mode: whether a smaller ("min") or a larger ("max") metric is better.
            folder: what stands for the data in the run's folder; None for the data's name.

        Returns:
            The trainer of the run that has ended.

        Raises:
            ConfigurationError: the folder cannot be written or named so, another run writes to it, there is nothing to resume,
                or something does not fit; see `FederatedTrainer.fit`.
        """
        data.prepare_data()
        data.setup("fit")
        split = "test" if data.val is None else "val"
        watched = f"{split}/{monitor}" if monitor and self.flags.evaluate_every else None
        checkpoint = self._open(self._labelled(folder or data.name or type(data).__name__, data))
        with self._opened:
            trainer = self._trainer(
                [
                    *callbacks,
                    RoundProgress(goes_on=self._again),
                    Throughput(),
                    ModelCheckpoint(monitor=watched, mode=mode),
                ],
                self._loggers,
                sampler=sampler,
                stragglers=self._straggling(stragglers),
                batching_policy=batching_policy,
            )
            if self.flags.centralised:
                self._fit_centralised(trainer, task, data, watched, mode)
            else:
                trainer.callbacks.append(_Begins(self))  # after all that may refuse the run
                if Detach.wanted():
                    trainer.callbacks.insert(0, Detach())
                trainer.fit(self.method, task, data, ckpt_path=checkpoint)
        return trainer

    def _straggling(self, rule: type[Stragglers]) -> Stragglers | None:
        flags = self.flags
        return rule(flags.stragglers, partial=not flags.drop_stragglers) if flags.stragglers else None

    def _check_flags(self) -> None:
        """Refuse what cannot be, before the recipe reads its data."""
        self._trainer([], logger=False, stragglers=self._straggling(Stragglers))
        for flag, name in (("--name", self.flags.name), ("--label", self.flags.label)):
            _check_name(flag, name)
        if self.flags.resume is None:
            return
        if self.flags.centralised:
            raise ConfigurationError(
                "`--resume` must be left out with `--centralised`, which does not go on; run it again."
            )
        if self.flags.resume != "last" and not _is_file(Path(self.flags.resume)):
            raise ConfigurationError(
                f"`--resume` must be 'last' or a checkpoint's path, but there is no file {shortened(self.flags.resume)}."
            )

    def _trainer(self, callbacks: Sequence[Callback], logger: bool | Sequence[Logger], **more: Any) -> FederatedTrainer:
        """The trainer that the flags ask for."""
        asked = self.flags
        return FederatedTrainer(
            max_rounds=asked.rounds,
            clients_per_round=asked.clients_per_round,
            strategy=SlotStrategy(
                asked.slots, runner=asked.runner, cohort_size=asked.cohort_size, precision=asked.precision
            ),
            callbacks=callbacks,
            logger=logger,
            evaluate_every=asked.evaluate_every,
            evaluate_on=("val", "test", "train") if asked.evaluate_train else ("val", "test"),
            seed=asked.seed,
            **more,
        )

    def _fit_centralised(
        self, like: FederatedTrainer, task: FederatedTask, data: FederatedDataModule, metric: str | None, mode: Mode
    ) -> None:
        if Detach.wanted():
            detach(self.folder)
        self._write_config()
        began = perf_counter()
        fit_centralised(like, self.method, task, data, self._loggers, self.folder)
        course = read_course(self.folder, metric, mode) if metric else None
        print(*closing(clock(perf_counter() - began), course, self.folder, draws=True, command=None), sep="\n")  # noqa: T201

    # -- the folder -----------------------------------------------------------------------------------------------------
    def _labelled(self, name: str, data: FederatedDataModule) -> str:
        """The data's name in the run's folder, in which `--label` replaces the partition's."""
        partition = getattr(data, "partition", None)  # of data that a partitioner divides
        return name.replace(partition.name, self.flags.label) if self.flags.label and partition else name

    def _open(self, part: str) -> Path | None:
        """Make the run's folder and its loggers; the checkpoint that it goes on from, if any."""
        kept = "centralised" if self.flags.centralised else type(self.method).__name__.lower()
        parent = self.root / self.recipe.stem / part / kept
        self._missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        check_writable(parent)
        checkpoint, name = self._checkpoint(parent)
        new = name is None or not (parent / name).exists()
        self._loggers = run_loggers(parent, name)
        self._opened.enter_context(locked(self.folder))
        if self.flags.resume is None:
            self._checkpoint(parent)  # another run of this name may have begun since, and ended
        if new:
            self._made = self.folder
            self._write_config()
        return checkpoint

    @property
    def folder(self) -> Path:
        """The run's folder, once it is open."""
        return Path(str(self._loggers[0].log_dir))

    @property
    def stopped(self) -> str:
        """What to say when it was stopped."""
        if self.flags.centralised or not self._loggers:
            return "stopped."
        return f"stopped; go on with `--resume last --name {self.folder.name}`."

    def _checkpoint(self, parent: Path) -> tuple[Path | None, str | None]:
        """What to go on from, and the name of the run's folder."""
        name, resume = self.flags.name, self.flags.resume
        given = None if resume in (None, "last") else Path(str(resume))
        if resume == "last":
            return self._last(parent)
        own = name and given and (parent / name).resolve() in given.resolve().parents
        if name and not own and (parent / name / "config.yaml").is_file():
            remedy = "" if self.flags.centralised else ", or add `--resume last`"
            raise ConfigurationError(
                f"`--name` must be new or resumed, but {parent / name} holds a run; choose another name{remedy}."
            )
        return given, name

    def _last(self, parent: Path) -> tuple[Path | None, str]:
        """The last checkpoint of the run of this name, or of the newest; none of a run that ended before its first one."""
        folder = parent / self.flags.name if self.flags.name else latest_run(parent)
        if folder and (folder / "checkpoints" / "last.ckpt").is_file():
            return folder / "checkpoints" / "last.ckpt", folder.name
        if folder and (folder / "config.yaml").is_file():
            rank_zero_info(f"{folder} has no checkpoint yet, so its run begins again.")
            return None, folder.name
        raise ConfigurationError(
            f"`--resume last` needs a run with checkpoints/last.ckpt in {folder or parent}, but there is none; leave `--resume` "
            "out to begin one."
        )

    def _again(self, trainer: FederatedTrainer) -> str:
        """The command that goes on with the run."""
        near = os.path.relpath(self.recipe)
        words = ["python", str(self.recipe) if near.startswith("..") else near]
        words += ["--config", str(self.folder / "config.yaml"), "--rounds", str(rounds_to_go(trainer))]
        return shlex.join([*words, "--resume", "last", "--name", self.folder.name])

    def _write_config(self) -> None:
        (self.folder / "config.yaml").write_text(self.config, encoding="utf-8")

    def _begin(self, trainer: FederatedTrainer) -> None:
        """From now on the folder is that of a run, which is told if there is something left to do."""
        self._made, self._missing = None, []
        if self.flags.resume is not None and trainer.round > 0:
            rank_zero_info(f"{self.folder} goes on after round {trainer.round} of {trainer.max_rounds}.")
        if trainer.round < trainer.max_rounds:
            self._write_config()

    def check(self) -> None:
        """Check at its end that a recipe has trained where it was to train the baseline.

        Raises:
            ConfigurationError: it has not.
        """
        if self.flags.centralised and not self._loggers:
            raise ConfigurationError(
                "A recipe must train by `run.fit(task, data)` for `--centralised`; this one does not."
            )

    def discard(self) -> None:
        """Remove the folders that a run made which was refused before its first round."""
        self._opened.close()
        if self._made:
            shutil.rmtree(self._made)
        for folder in self._missing:
            with suppress(OSError):  # another run is in it, or it was never made
                folder.rmdir()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # e.g. a name that is too long
        return False


def _check_name(flag: str, name: str | None) -> None:
    """Check that a name is one folder's, so that what is in it stays in `logs`.

    Raises:
        ConfigurationError: it is not.
    """
    if name is None:
        return
    length = len(os.fsencode(name))
    if name in ("", ".", "..") or Path(name).name != name or not name.isprintable() or length > 255:
        given = f"has {length:,} bytes" if length > 255 else f"is {name!r}"
        raise ConfigurationError(
            f"`{flag}` must be that of a folder, without others in it and of 255 bytes at most, but {given}; give e.g. 'mine'."
        )


class _Begins(Callback):
    """Tells a run that nothing was refused.

    Args:
        run: which.
    """

    logs = ()

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """The first round begins, unless all were taken."""
        self._run._begin(trainer)
