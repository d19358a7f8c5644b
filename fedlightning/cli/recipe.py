"""The command line of the recipes: a function's parameters and the chosen method's fields become flags."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_info

from fedlightning.cli.background import Detach, start_in_background
from fedlightning.cli.command import TYPED, Command, Program, program_name
from fedlightning.cli.flags import (
    Flag,
    Gathered,
    completed,
    described,
    no_such_flag,
    of_dataclass,
    of_function,
    parse,
    shortened,
    show_help,
    wants_help,
)
from fedlightning.cli.run import Run
from fedlightning.data import parse_partition
from fedlightning.errors import ConfigurationError, FedLightningError, first_line, out_of_memory
from fedlightning.method import field_names
from fedlightning.methods import method_named, method_names

__all__ = ["Gathered", "Run", "call_program", "run_program", "run_recipe", "values_of"]


def run_recipe(
    main: Callable[..., Any], *, method: str = "fedavg", argv: Sequence[str] | None = None, **defaults: Any
) -> None:
    """Parse the command line and call `main(method, run, **flags)`.

    The flags are the keyword-only parameters of `main`, described in its docstring, and the fields of the chosen method.
    Their values come from the recipe's defaults, the preset (see `fedlightning.cli.configs`), each `--config` and the command
    line; the last of them wins. A mistake of the user's ends the program with one line and status 2, Ctrl-C with status 130,
    SIGTERM with 143.

    Args:
        main: the recipe.
        method: the default of `--method`.
        argv: the command line; the program's own by default.
        **defaults: this recipe's defaults for fields of `FedMethod`, e.g. `lr=0.01`, where a method that sets its own keeps it;
            and for any fields of one method, e.g. `fedprox={"mu": 1.0}`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    recipe = Path(main.__code__.co_filename)
    run = Run(recipe, "", "")
    with _ended(recipe.stem, lambda: run.stopped):
        program = Program(recipe, described(main.__doc__)[0], of_function(main, ("method", "run")), method, defaults)
        command = Command(program, words, _Classes())
        if wants_help(words):
            print(command.help(), end="")  # noqa: T201
            raise SystemExit(0)
        if command.background and not Detach.wanted():
            options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1] if argv is None else [str(recipe)]
            _leave(recipe.stem, [sys.executable, *options, *words])
            return
        try:
            run, values = _run(command)
            _call(main, command, run, values)
        except (FedLightningError, OSError):
            run.discard()
            raise


def run_program(main: Callable[..., Any], *, goes_on: bool = False) -> None:
    """Parse the command line and call `main(**flags)`, which runs no single method.

    The program ends as a recipe does.

    Args:
        main: the program; its keyword-only parameters are the flags.
        goes_on: whether the same command goes on where it was stopped.
    """
    name = program_name(Path(main.__code__.co_filename))
    with _ended(name, lambda: "stopped; the same command goes on." if goes_on else "stopped."):
        call_program(main, sys.argv[1:])


def call_program(main: Callable[..., Any], words: Sequence[str]) -> Any:
    """What `main` returns for a command line.

    Raises:
        ConfigurationError: the command line cannot be.
        SystemExit: it asks for help.
    """
    if wants_help(words):
        summary, name = described(main.__doc__)[0], program_name(Path(main.__code__.co_filename))
        print(show_help(name, summary, of_function(main)), end="")  # noqa: T201
        raise SystemExit(0)
    return main(**values_of(main, words))


def values_of(main: Callable[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """The values of all flags of a program.

    Raises:
        ConfigurationError: the command line cannot be.
    """
    flags = of_function(main)
    names = [flag.name for flag in flags]
    return completed(parse(words, flags, lambda word: no_such_flag(word, names, {})), flags)


@contextmanager
def _ended(name: str, stopped: Callable[[], str]) -> Iterator[None]:
    """End a program with a line for a mistake, and quietly where it is stopped."""
    try:
        yield
    except FedLightningError as error:
        _say(f"{name}: error: {error}", *getattr(error, "__notes__", []))
        raise SystemExit(2) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        given = shortened(str(error.filename))
        _say(
            f"{name}: error: A path's names must be as short as the file system wants them, but {given} has a longer one."
        )
        raise SystemExit(2) from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        remedy = "use a smaller model or fewer clients a round; what was finished is saved"
        _say(f"{name}: error: Memory ran out ({first_line(error) or 'MemoryError'}); {remedy}. The run {stopped()}")
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        _say(f"{name}: {stopped()}")
        raise SystemExit(128 + (error.args[0] if error.args else signal.SIGINT)) from None


def _say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr)  # noqa: T201


class _Classes:
    """The methods, from their classes."""

    def names(self) -> list[str]:
        """The names that `--method` takes."""
        return method_names()

    def fields(self, name: str) -> list[Flag]:
        """The fields of one."""
        return of_dataclass(method_named(name))


def _run(command: Command) -> tuple[Run, dict[str, Any]]:
    """The run that a command line asks for, and the flags of the recipe and of the method."""
    parsed = command.parse(torch.cuda.device_count())
    values = {key: value for key, value in parsed.values.items() if key not in TYPED}
    _check_partition(command, values.get("partition"))
    name, resume = values.pop("name"), values.pop("resume")
    config = _as_yaml(values)
    label, centralised, method = values.pop("label", None), values.pop("centralised"), values.pop("method")
    kept = "centralised" if centralised else method_named(method).__name__.lower()
    for note in parsed.notes:
        rank_zero_info(note)
    path, partition = command.program.path, values.get("partition")
    return Run(path, kept, config, name, resume, partition=partition, label=label, centralised=centralised), values


def _check_partition(command: Command, partition: Any) -> None:
    """Check that a preset without a partition has the name of one."""
    if command.preset is None or "partition" in command.preset.values or partition != command.preset.path.stem:
        return
    try:
        parse_partition(partition)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{command.preset.path} must have the name of a partition, or name one, but {partition!r} is none; add e.g. "
            "`partition: A0d10C100`."
        ) from error


def _as_yaml(values: dict[str, Any]) -> str:
    """The configuration as a file holds it."""
    try:
        return yaml.safe_dump({key: str(v) if isinstance(v, Path) else v for key, v in values.items()}, sort_keys=False)
    except yaml.YAMLError as error:
        raise ConfigurationError(
            "All flags must be plain numbers, words, lists and dictionaries, which config.yaml can hold, but one is not: "
            f"{' '.join(str(error).split())}; give such a field in Python, by FederatedTrainer.fit."
        ) from error


def _call(main: Callable[..., Any], command: Command, run: Run, values: dict[str, Any]) -> None:
    """Call the recipe."""
    method = method_named(command.method)
    fields = {field: values.pop(field) for field in field_names(method)}
    main(method(**fields), run, **values)
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
    print(f"`kill {number}` stops it after the round, `--resume last --name {folder.name}` goes on.")  # noqa: T201
