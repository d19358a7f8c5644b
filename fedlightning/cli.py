"""The command line of the recipes: a function's parameters and the chosen method's fields become flags."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info

from fedlightning.background import Detach, detach, start_in_background
from fedlightning.callback import Callback
from fedlightning.centralised import fit_centralised
from fedlightning.command import Command, first_flags
from fedlightning.data.module import FederatedDataModule
from fedlightning.errors import ConfigurationError, FedLightningError
from fedlightning.loggers import check_writable, latest_run, run_loggers
from fedlightning.method import FedMethod, field_names
from fedlightning.task import FederatedTask
from fedlightning.trainer import FederatedTrainer


@dataclass
class Run:
    """Where a run is kept, `logs/<recipe>/<partition>/<method>/version_N`, and how it is trained.

    Attributes:
        recipe: the recipe's name.
        method: the method's name; "centralised" for the baseline.
        config: the whole configuration as YAML; written to the run's folder, where `--config` takes it up.
        name: names the run's folder instead of `version_N`.
        resume: "last", or the path of a checkpoint.
        root: the folder of all runs.
        partition: what the recipe is told.
        label: stands for it in the folder's name.
        centralised: train on the pooled data instead.
    """

    recipe: str
    method: str
    config: str
    name: str | None = None
    resume: str | None = None
    root: Path = Path("logs")
    partition: str | None = None
    label: str | None = None
    centralised: bool = False
    _made: Path | None = None
    _trained: bool = False
    _loggers: list[Logger] = field(default_factory=list)

    def open(self, partition: str) -> tuple[list[Logger], Path | None]:
        """The loggers of this run, and the checkpoint that it goes on from, if any.

        Raises:
            ConfigurationError: the folder cannot be written, or there is nothing to resume.
        """
        if self.label and self.partition:
            partition = partition.replace(self.partition, self.label)
        parent = self.root / self.recipe / partition / self.method
        check_writable(parent)
        checkpoint, name = self._checkpoint(parent)
        new = name is None or not (parent / name).exists()
        self._loggers = run_loggers(parent, name)
        if new:
            self._made = self.folder
            self._write_config()
        return self._loggers, checkpoint

    @property
    def folder(self) -> Path:
        """The run's folder, once it is open."""
        return Path(str(self._loggers[0].log_dir))

    def _checkpoint(self, parent: Path) -> tuple[Path | None, str | None]:
        """What to go on from, and the name of the run's folder."""
        name, given = self.name, None if self.resume in (None, "last") else Path(str(self.resume))
        if name is not None and (name in ("", ".", "..") or Path(name).name != name):
            raise ConfigurationError(f"`--name` must be that of a folder in {parent}, such as 'mine', but is {name!r}.")
        if self.resume and self.centralised:
            raise ConfigurationError(
                "`--resume` must be left out with `--centralised`, which does not go on; run it again."
            )
        if given and not given.is_file():
            raise ConfigurationError(f"`--resume` must be 'last' or a checkpoint's path, but there is no file {given}.")
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

    def _begin(self, rounds: int) -> None:
        """From now on the folder is that of a run, which is told if there is something left to do."""
        self._made = None
        if rounds > 0:
            self._write_config()

    def fit(
        self,
        trainer: FederatedTrainer,
        method: FedMethod,
        task: FederatedTask,
        data: FederatedDataModule,
        checkpoint: Path | None = None,
    ) -> None:
        """Train as the command line says: `trainer.fit(method, task, data, ckpt_path=checkpoint)`, or the baseline."""
        self._trained = True
        if self.centralised:
            if Detach.wanted():
                detach(self.folder)
            self._write_config()
            fit_centralised(trainer, method, task, data, self._loggers, self.folder)
            return
        trainer.callbacks.insert(0, _Begins(self))
        if Detach.wanted():
            trainer.callbacks.insert(0, Detach())
        trainer.fit(method, task, data, ckpt_path=checkpoint)

    def discard(self) -> None:
        """Remove the folder of a run that was refused before its first round, unless it was there before."""
        if self._made:
            shutil.rmtree(self._made)


class _Begins(Callback):
    """Tells a run that nothing was refused.

    Args:
        run: which.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """The first round begins, unless all were taken."""
        self._run._begin(trainer.max_rounds - trainer.round)


def run_recipe(
    main: Callable[..., Any], *, method: str = "fedavg", argv: Sequence[str] | None = None, **defaults: Any
) -> None:
    """Parse the command line and call `main(method, run, **flags)`.

    The flags are the keyword-only parameters of `main`, described in its docstring, and the fields of the chosen method.
    Their values come from the recipe's defaults, the partition's file (see `fedlightning.configs`), each `--config` and
    the command line; the last of them wins. A mistake of the user's ends the program with one line and status 2, Ctrl-C
    with status 130, SIGTERM with 143.

    Args:
        main: the recipe.
        method: the default of `--method`.
        argv: the command line; the program's own by default.
        **defaults: this recipe's defaults for fields of `FedMethod`, e.g. `lr=0.01`, where a method that sets its own keeps it;
            and for any fields of one method, e.g. `fedprox={"mu": 1.0}`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    recipe = Path(main.__code__.co_filename)
    run = Run(recipe.stem, "", "")
    try:
        given = first_flags(arguments)
        if given.background and not Detach.wanted():
            program = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1] if argv is None else [str(recipe)]
            _leave(recipe.stem, [sys.executable, *program, *arguments])
            return
        command = Command(main, recipe, given, method, defaults)
        config = command.parse(arguments)
        run = _run(recipe.stem, command.method, config)
        _call(main, command.method, run, config)
    except FedLightningError as error:
        if isinstance(error, ConfigurationError):
            run.discard()
        print(f"{recipe.stem}: error: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        goes_on = "" if run.centralised else "; go on with `--resume last`"
        print(f"{recipe.stem}: stopped{goes_on}.", file=sys.stderr)  # noqa: T201
        raise SystemExit(128 + (error.args[0] if error.args else signal.SIGINT)) from None


def _run(recipe: str, method: type[FedMethod], config: Namespace) -> Run:
    """The run that a configuration asks for; what is left in it are the flags of the recipe and of the method."""
    name, resume = config.pop("name"), config.pop("resume")
    for flag in ("config", "background", "no_preset"):
        del config[flag]
    text = yaml.safe_dump(config.as_dict(), sort_keys=False)
    label, centralised = config.pop("label", None), config.pop("centralised")
    kept = "centralised" if centralised else method.__name__.lower()
    del config["method"]
    return Run(
        recipe, kept, text, name, resume, partition=config.get("partition"), label=label, centralised=centralised
    )


def _call(main: Callable[..., Any], method: type[FedMethod], run: Run, config: Namespace) -> None:
    """Call the recipe."""
    fields = {field: config.pop(field) for field in field_names(method)}
    main(method(**fields), run, **config.as_dict())
    if run.centralised and not run._trained:
        raise ConfigurationError(
            "A recipe must train by `run.fit(trainer, method, task, data, checkpoint)` for `--centralised`; this one does not."
        )


def _leave(recipe: str, command: Sequence[str]) -> None:
    """Run a command in the background and say where it is; end with its status if it ended before its first round."""
    number, folder = start_in_background(command)
    if folder is None:
        raise SystemExit(number)
    print(f"{recipe}: runs in the background as process {number} in {folder}, output in {folder / 'output.txt'};")  # noqa: T201
    if any(word.startswith("--centralised") for word in command):
        print(f"`kill {number}` stops it.")  # noqa: T201
        return
    print(f"`kill {number}` stops it after the round, `--resume last` goes on.")  # noqa: T201
