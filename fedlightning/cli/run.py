"""A recipe's run: its folder, what it goes on from, and how it is trained."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info

from fedlightning._locks import locked
from fedlightning.baselines.centralised import fit_centralised
from fedlightning.callbacks.base import Callback
from fedlightning.cli.background import Detach, detach
from fedlightning.cli.ending import again, ending
from fedlightning.cli.flags import shortened
from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError
from fedlightning.loggers import check_writable, latest_run, run_loggers
from fedlightning.method import FedMethod
from fedlightning.task import FederatedTask
from fedlightning.trainer import FederatedTrainer


@dataclass
class Run:
    """Where a run is kept, `logs/<recipe>/<partition>/<method>/version_N`, and how it is trained.

    Attributes:
        recipe: the recipe's file.
        method: the method's name; "centralised" for the baseline.
        config: the whole configuration as YAML; written to the run's folder, where `--config` takes it up.
        name: names the run's folder instead of `version_N`.
        resume: "last", or the path of a checkpoint.
        root: the folder of all runs.
        partition: what the recipe is told.
        label: stands for it in the folder's name.
        centralised: train on the pooled data instead.
    """

    recipe: Path
    method: str
    config: str
    name: str | None = None
    resume: str | None = None
    root: Path = Path("logs")
    partition: str | None = None
    label: str | None = None
    centralised: bool = False
    _made: Path | None = None
    _missing: list[Path] = field(default_factory=list)
    _trained: bool = False
    _loggers: list[Logger] = field(default_factory=list)
    _opened: ExitStack = field(default_factory=ExitStack)

    def open(self, partition: str) -> tuple[list[Logger], Path | None]:
        """The loggers of this run, and the checkpoint that it goes on from, if any.

        Raises:
            ConfigurationError: the folder cannot be written or named so, another run writes to it, or there is nothing to
                resume.
        """
        for flag, name in (("--name", self.name), ("--label", self.label)):
            _check_name(flag, name)
        if self.label and self.partition:
            partition = partition.replace(self.partition, self.label)
        parent = self.root / self.recipe.stem / partition / self.method
        self._missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        check_writable(parent)
        checkpoint, name = self._checkpoint(parent)
        new = name is None or not (parent / name).exists()
        self._loggers = run_loggers(parent, name)
        self._opened.enter_context(locked(self.folder))
        if self.resume is None:
            self._checkpoint(parent)  # another run of this name may have begun since, and ended
        if new:
            self._made = self.folder
            self._write_config()
        return self._loggers, checkpoint

    @property
    def folder(self) -> Path:
        """The run's folder, once it is open."""
        return Path(str(self._loggers[0].log_dir))

    @property
    def stopped(self) -> str:
        """What to say when it was stopped."""
        if self.centralised or not self._loggers:
            return "stopped."
        return f"stopped; go on with `--resume last --name {self.folder.name}`."

    def _checkpoint(self, parent: Path) -> tuple[Path | None, str | None]:
        """What to go on from, and the name of the run's folder."""
        name, given = self.name, None if self.resume in (None, "last") else Path(str(self.resume))
        if self.resume is not None and self.centralised:
            raise ConfigurationError(
                "`--resume` must be left out with `--centralised`, which does not go on; run it again."
            )
        if given and not _is_file(given):
            raise ConfigurationError(
                f"`--resume` must be 'last' or a checkpoint's path, but there is no file {shortened(str(self.resume))}."
            )
        if self.resume == "last":
            return self._last(parent)
        own = name and given and (parent / name).resolve() in given.resolve().parents
        if name and not own and (parent / name / "config.yaml").is_file():
            remedy = "" if self.centralised else ", or add `--resume last`"
            raise ConfigurationError(
                f"`--name` must be new or resumed, but {parent / name} holds a run; choose another name{remedy}."
            )
        return given, name

    def _last(self, parent: Path) -> tuple[Path | None, str]:
        """The last checkpoint of the run of this name, or of the newest; none of a run that ended before its first one."""
        folder = parent / self.name if self.name else latest_run(parent)
        if folder and (folder / "checkpoints" / "last.ckpt").is_file():
            return folder / "checkpoints" / "last.ckpt", folder.name
        if folder and (folder / "config.yaml").is_file():
            rank_zero_info(f"{folder} has no checkpoint yet, so its run begins again.")
            return None, folder.name
        raise ConfigurationError(
            f"`--resume last` needs a run with checkpoints/last.ckpt in {folder or parent}, but there is none; leave `--resume` "
            "out to begin one."
        )

    def _write_config(self) -> None:
        (self.folder / "config.yaml").write_text(self.config, encoding="utf-8")

    def _begin(self, trainer: FederatedTrainer) -> None:
        """From now on the folder is that of a run, which is told if there is something left to do."""
        self._made, self._missing = None, []
        if self.resume is not None and trainer.round > 0:
            rank_zero_info(f"{self.folder} goes on after round {trainer.round} of {trainer.max_rounds}.")
        if trainer.round < trainer.max_rounds:
            self._write_config()

    def fit(
        self,
        trainer: FederatedTrainer,
        method: FedMethod,
        task: FederatedTask,
        data: FederatedDataModule,
        checkpoint: Path | None = None,
    ) -> None:
        """Train as the command line says, and say at the end where the run is and how it went.

        That is `trainer.fit(method, task, data, ckpt_path=checkpoint)`, or the baseline.
        """
        self._trained, began = True, perf_counter()
        with self._opened:
            self._train(trainer, method, task, data, checkpoint)
        goes_on = None if self.centralised else again(self.recipe, self.folder, 2 * trainer.max_rounds)
        print(ending(self.folder, trainer.callbacks, perf_counter() - began, goes_on))  # noqa: T201

    def _train(
        self,
        trainer: FederatedTrainer,
        method: FedMethod,
        task: FederatedTask,
        data: FederatedDataModule,
        checkpoint: Path | None,
    ) -> None:
        if self.centralised:
            if Detach.wanted():
                detach(self.folder)
            self._write_config()
            fit_centralised(trainer, method, task, data, self._loggers, self.folder)
        else:
            trainer.callbacks.append(_Begins(self))  # after all that may refuse the run
            if Detach.wanted():
                trainer.callbacks.insert(0, Detach())
            trainer.fit(method, task, data, ckpt_path=checkpoint)

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
