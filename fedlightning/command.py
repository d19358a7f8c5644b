"""The flags of a recipe: what files say of them, and what the command line says."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.utilities import rank_zero_info

from fedlightning.configs import EXCLUSIVE, ConfigFile, as_flag, field_owners, fit_slots, merged, partition_file
from fedlightning.errors import ConfigurationError
from fedlightning.method import FedMethod
from fedlightning.methods import method_named, method_names


def first_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags that decide which others there are, and what they are by default."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--method", "--partition"):
        parser.add_argument(flag)
    parser.add_argument("--config", action="append", default=[])
    for flag in ("--background", "--no-preset"):
        parser.add_argument(flag, nargs="?", const=True, default=False, type=_is_true)
    return parser.parse_known_args(arguments)[0]


def _is_true(word: str) -> bool:
    """Whether YAML, which the other flags are read as, takes a word for true; what is no bool is refused with them."""
    try:
        return yaml.safe_load(word) is True
    except yaml.YAMLError:
        return False


class Command:
    """What the files say, below the command line.

    Args:
        main: the recipe.
        recipe: its file.
        given: what `first_flags` found.
        method: the recipe's default.
        defaults: the recipe's defaults for fields of all methods, and by a method's name for those of one.
    """

    def __init__(
        self, main: Callable[..., Any], recipe: Path, given: argparse.Namespace, method: str, defaults: dict[str, Any]
    ) -> None:
        self.files = [ConfigFile.read(Path(path)) for path in given.config]
        last: dict[str, Any] = {key: value for file in self.files for key, value in file.values.items()}
        self.partition = given.partition or last.get("partition")
        named = "partition" in inspect.signature(main).parameters and not given.no_preset
        path = partition_file(recipe, self.partition) if named else None
        self.preset = ConfigFile.read(path) if path else None
        if self.preset:
            self.files.insert(0, self.preset)
            last = self.preset.values | last
        self.method = method_named(given.method or str(last.get("method", method)))
        self.parser = _parser(main, self.method, recipe.stem, defaults)

    def parse(self, arguments: list[str]) -> Namespace:
        """Every flag's value.

        Raises:
            ConfigurationError: a flag does not exist, or its value has not its type.
        """
        flags = {action.dest for action in self.parser._actions} - {"help", "config", "background", "no_preset"}
        settings = merged(file.settings(self.method, flags) for file in self.files)
        typed = {word.split("=")[0].strip("-").replace("-", "_") for word in arguments if word.startswith("--")}
        if typed & set(EXCLUSIVE):
            settings = {key: value for key, value in settings.items() if key not in EXCLUSIVE}
        notes = [f"{self.preset.path} gives this partition's defaults"] if self.preset else []
        if "slots" in settings:
            settings["slots"], changed = fit_slots(settings["slots"])
            notes += [changed] if changed and "slots" not in typed else []
        if self.preset and (meant := self.preset.values.get("partition", self.partition)) != self.partition:
            settings["label"] = settings.get("label") or self.partition
            arguments = [*arguments, f"--partition={meant}"]
        self._set_defaults(settings, flags)
        config: Namespace = self.parser.parse_args(arguments)
        for note in notes:
            rank_zero_info(note)
        return config

    def _set_defaults(self, settings: dict[str, Any], flags: set[str]) -> None:
        """Make the files' values the parser's defaults; one that does not parse is named with its line."""
        try:
            parsed = self.parser.parse_args([as_flag(key, value) for key, value in settings.items()])
        except ConfigurationError:
            for file in self.files:
                for key, value in file.settings(self.method, flags).items():
                    self._check(file, key, value)
            raise
        self.parser.set_defaults({key: parsed[key] for key in settings})

    def _check(self, file: ConfigFile, key: str, value: Any) -> None:
        try:
            self.parser.parse_args([as_flag(key, value)])
        except ConfigurationError as error:
            field = f"methods.{self.method.__name__.lower()}.{key}"
            raise ConfigurationError(f"{file.where(field if field in file.lines else key)}: {error}") from error


class _Parser(ArgumentParser):
    """Flags with dashes, and the nearest flag for one that does not exist."""

    def dash(self) -> None:
        """Show every flag with dashes; underscores are taken too."""
        for action in self._actions:
            action.option_strings = [flag.replace("_", "-") for flag in action.option_strings]
            self._option_string_actions.update(dict.fromkeys(action.option_strings, action))
            if getattr(action, "_typehint", None) is bool:
                action.nargs, action.const = "?", True

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line and status 2."""
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flag = unknown.group(1).split("=")[0]
            owners = {f"--{field.replace('_', '-')}": names for field, names in field_owners().items()}
            near = difflib.get_close_matches(flag, {**owners, **self._option_string_actions}, n=2)
            own = self._option_string_actions
            known = [n if n in own else f"{n} (of --method {', '.join(owners[n])})" for n in near]
            hint = f"did you mean {' or '.join(known)}?" if near else "`--help` lists them."
            message = f"there is no flag {flag} here; {hint}"
        raise ConfigurationError(message)


def _parser(main: Callable[..., Any], method: type[FedMethod], recipe: str, defaults: dict[str, Any]) -> _Parser:
    parser = _Parser(
        prog=recipe, allow_abbrev=False, description=main.__doc__.splitlines()[0] if main.__doc__ else None
    )
    parser.add_argument("--method", default=method.__name__.lower(), help=f"one of {', '.join(method_names())}")
    parser.add_argument(
        "--config", action="append", help="YAML, e.g. a run's config.yaml; later ones win, and flags over them"
    )
    parser.add_argument("--name", type=str, default=None, help="name of the run's folder instead of version_N")
    parser.add_argument("--resume", type=str, default=None, help="'last', or the path of a checkpoint")
    parser.add_argument("--centralised", type=bool, default=False,
        help="train on the pooled data under lightning.Trainer, as many steps as all clients together")  # fmt: skip
    parser.add_argument(
        "--background", type=bool, default=False, help="go on without the terminal, output to output.txt"
    )
    parser.add_argument("--no_preset", type=bool, default=False, help="leave configs/<recipe>/<partition>.yaml out")
    if "partition" in inspect.signature(main).parameters:
        parser.add_argument("--label", type=str | None, default=None, help="the partition's name in the run's folder")
    parser.add_function_arguments(main, skip={"method", "run"})
    parser.add_class_arguments(method, nested_key=None)
    own, usual = method.__dataclass_fields__, FedMethod.__dataclass_fields__
    general = {name: value for name, value in defaults.items() if not isinstance(value, dict)}
    # A paper's default is stronger than a recipe's for all methods, and weaker than a recipe's for this one.
    parser.set_defaults({name: value for name, value in general.items() if own[name].default == usual[name].default})
    parser.set_defaults(defaults.get(method.__name__.lower(), {}))
    parser.dash()
    return parser
