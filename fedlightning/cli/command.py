"""The command line of a recipe: its flags, what files say of them, and what is typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedlightning.cli.configs import (
    EXCLUSIVE,
    ConfigFile,
    Methods,
    field_owners,
    fit_slots,
    hint,
    merged,
    preset_file,
)
from fedlightning.cli.flags import (
    REQUIRED,
    Flag,
    assignments,
    completed,
    name_of,
    no_such_flag,
    of_dataclass,
    parse,
    show_help,
)
from fedlightning.cli.shared import RunFlags
from fedlightning.errors import ConfigurationError

RUN = of_dataclass(RunFlags)
"""The flags of every recipe."""
TYPED = ("preset", "config", "background")
"""The flags that no file may set."""


def program_name(path: Path) -> str:
    """The name of a file without its ending; that of the folder for a folder's `__main__.py`."""
    return path.parent.name if path.stem == "__main__" else path.stem


@dataclass(frozen=True)
class Program:
    """What a recipe's source says of its command line.

    Attributes:
        path: its file.
        summary: the first line of its docstring.
        flags: its own.
        runs_a_method: whether it is a recipe, which has the flags of every recipe and those of the chosen method.
        defaults: for flags of every recipe, for fields of all methods, and by a method's name for those of one.
    """

    path: Path
    summary: str
    flags: Sequence[Flag]
    runs_a_method: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As it is called in messages and in the runs' folder."""
        return program_name(self.path)


@dataclass(frozen=True)
class Parsed:
    """What a command line asks for.

    Attributes:
        values: of all flags.
        notes: lines to be shown.
    """

    values: dict[str, Any]
    notes: list[str]


class Command:
    """The flags of a recipe with a chosen method, and the files below the command line.

    Args:
        program: the recipe.
        words: the command line.
        methods: all methods.

    Raises:
        ConfigurationError: a file cannot be read, there is no such method or preset, or two flags have one name.
    """

    def __init__(self, program: Program, words: Sequence[str], methods: Methods) -> None:
        self.program, self.words, self.methods = program, words, methods
        first = _first(words)
        self.background: bool = first["background"]
        configs = [ConfigFile.read(Path(path)) for path in first["config"]]
        wish = first["preset"]
        self.preset = None if wish is None else ConfigFile.read(preset_file(program.path, wish))
        self.files = [self.preset, *configs] if self.preset else configs
        last = {key: value for file in self.files for key, value in file.values.items()}
        usual = last.get("method", program.defaults.get("method", "fedavg"))
        wanted = str(usual if first["method"] is None else first["method"])
        self.method = wanted if ":" in wanted else wanted.lower()
        self.flags = self._flags()

    def _flags(self) -> list[Flag]:
        """All flags: those of this recipe, of every recipe, and of the method."""
        name, usual = self.program.name, {**self.program.defaults, "method": self.method}
        own = _headed(self.program.flags, f"flags of {name}", usual)
        divided = any(flag.name == "partition" for flag in own)
        run = _headed([flag for flag in RUN if flag.name != "label" or divided], "flags of every recipe", usual)
        flags = [*own, *run, *self._fields()]
        self._check_names([flag.name for flag in own], [flag.name for flag in flags[len(own) + len(run) :]])
        return flags

    def _check_names(self, own: Sequence[str], fields: Sequence[str]) -> None:
        """Check that no two flags have one name, and that the recipe's defaults are of flags that there are."""
        name, run = self.program.name, [flag.name for flag in RUN]
        for clash in set(own) & set(run):
            raise ConfigurationError(
                f"A parameter of {name} must not have the name of a flag of every recipe, but `{clash}` has; take "
                f"`run.flags.{clash}`."
            )
        for clash in set(fields) & {*own, *run}:
            raise ConfigurationError(
                f"A field of {self.method} must not have the name of a flag of {name}, but `{clash}` has; rename the field."
            )
        known = [*own, *run, *fields, *field_owners(self.methods), *self.methods.names(), self.method]
        for given in self.program.defaults:
            if given not in known:
                raise ConfigurationError(
                    f"run_recipe of {name} must name flags, but `{given}` is none; {hint(given, known, {})}"
                )

    def _fields(self) -> list[Flag]:
        """The method's fields with the recipe's defaults.

        A paper's default is stronger than a recipe's for all methods, and weaker than a recipe's for this one.
        """
        usual = {flag.name: flag.default for flag in self.methods.fields("fedavg")}
        general, own = self.program.defaults, self.program.defaults.get(self.method, {})
        fields = []
        for flag in self.methods.fields(self.method):
            papers = flag.name not in usual or flag.default != usual[flag.name]
            default = flag.default if papers else general.get(flag.name, flag.default)
            group = f"flags of {self.method} ({flag.group.rstrip('.')})"
            fields.append(replace(flag, group=group, default=own.get(flag.name, default)))
        return fields

    def help(self) -> str:
        """What `--help` prints, with the files' values as defaults."""
        usual = self._above_defaults(self._settings({})[0])
        flags = [replace(flag, default=usual.get(flag.name, REQUIRED)) for flag in self.flags]
        return show_help(self.program.name, self.program.summary, flags)

    def parse(self, gpus: int = 0) -> Parsed:
        """Every flag's value.

        Args:
            gpus: of this machine, which decide what a file's slots are here.

        Raises:
            ConfigurationError: a flag does not exist, or a value is of another kind.
        """
        typed = parse(self.words, self.flags, self._unknown)
        settings, notes = self._settings(typed, gpus)
        values = self._above_defaults({**settings, **typed, "method": self.method})
        return Parsed(completed(values, self.flags), notes)

    def _above_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values that are given, and the defaults of the other flags that have one."""
        usual = {flag.name: flag.default for flag in self.flags if flag.default is not REQUIRED}
        return {**dict.fromkeys(EXCLUSIVE), **merged([usual, given])}

    def _settings(self, typed: Mapping[str, Any], gpus: int = 0) -> tuple[dict[str, Any], list[str]]:
        """What the files set and nothing above them does, and the lines that say so."""
        flags = [flag for flag in self.flags if flag.name not in TYPED]
        layers = [file.settings(self.method, flags, self.methods) for file in self.files]
        if self.preset and "partition" in {flag.name for flag in flags}:
            layers[0] = {"partition": self.preset.path.stem, **layers[0]}
        settings, notes = merged([*layers, typed]), list[str]()
        settings = {key: value for key, value in settings.items() if key not in typed}
        if "slots" in settings:
            settings["slots"], changed = fit_slots(settings["slots"], gpus)
            notes += [changed] if changed else []
        if self.preset:
            above = {key for layer in layers[1:] for key in layer}
            shown = {key: settings[key] for key in layers[0] if key in settings and key not in above}
            if shown.get("partition", self.preset.path.stem) != self.preset.path.stem:
                settings["label"] = settings.get("label") or self.preset.path.stem
            notes.insert(0, f"preset {self.preset.path} sets {_listed(shown)}")
        return settings, notes

    def _unknown(self, word: str) -> ConfigurationError:
        """What to say of a flag that there is not: the nearest ones, also among those of other methods."""
        own = [flag.name for flag in self.flags]
        owners = {key: names for key, names in field_owners(self.methods).items() if key not in own}
        return no_such_flag(word, own, owners)


def _headed(flags: Sequence[Flag], heading: str, usual: Mapping[str, Any]) -> list[Flag]:
    """The flags under a heading of `--help`, with the recipe's defaults."""
    return [replace(flag, group=heading, default=usual.get(flag.name, flag.default)) for flag in flags]


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "nothing that is not set again"


def _first(words: Sequence[str]) -> dict[str, Any]:
    """The flags that decide which others there are, and what they are by default."""
    deciding = {flag.name: flag for flag in RUN if flag.name in (*TYPED, "method")}
    found: dict[str, Any] = {"method": None, "preset": None, "config": [], "background": False}
    for word, given in assignments(words):
        if flag := deciding.get(name_of(word)) if word.startswith("--") else None:
            value = flag.read(given)
            found[flag.name] = found[flag.name] + value if flag.adds else value
    return found
