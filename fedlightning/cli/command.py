"""The command line of a recipe: its flags, what files say of them, and what is typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedlightning.cli.configs import ConfigFile, Methods, field_owners, fit_slots, merged, preset_file
from fedlightning.cli.flags import Flag, Repeated, assignments, completed, name_of, no_such_flag, parse, show_help
from fedlightning.errors import ConfigurationError

GENERAL = (
    Flag("method", str, "fedavg", "a method's name, or package.module:Class for one of your own"),
    Flag("preset", str | None, None, "the setting in configs/<recipe>/<name>.yaml, e.g. A0d01C100, or such a file's path"),
    Flag("config", Repeated, [], "YAML, e.g. a run's config.yaml; may be repeated: later ones win, and flags over them"),
    Flag("name", str | None, None, "name of the run's folder instead of version_N"),
    Flag("resume", str | None, None, "'last', or the path of a checkpoint"),
    Flag("centralised", bool, False,
         "train on the pooled data under lightning.Trainer, as many steps as all clients together"),
    Flag("background", bool, False, "go on without the terminal, output to output.txt"),
)  # fmt: skip
"""The flags that every recipe has."""
LABEL = Flag("label", str | None, None, "the partition's name in the run's folder")
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
        method: the default of `--method`; None for a program that runs no single method.
        defaults: for fields of all methods, and by a method's name for those of one.
    """

    path: Path
    summary: str
    flags: Sequence[Flag]
    method: str | None = "fedavg"
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
        ConfigurationError: a file cannot be read, or there is no such method or preset.
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
        wanted = str(first["method"] if first["method"] is not None else last.get("method", program.method))
        self.method = wanted if ":" in wanted else wanted.lower()
        self.flags = self._flags()

    def _flags(self) -> list[Flag]:
        """All flags: those of every recipe, of this one, and of the method."""
        general = [replace(flag, default=self.method) if flag.name == "method" else flag for flag in GENERAL]
        own = {flag.name for flag in self.program.flags}
        general += [LABEL] if "partition" in own else []
        fields = self._fields()
        for name in {flag.name for flag in fields} & (own | {flag.name for flag in general}):
            raise ConfigurationError(
                f"A field of {self.method} must not have the name of a flag of {self.program.name}, but `{name}` has; "
                "rename the field."
            )
        return [*general, *self.program.flags, *fields]

    def _fields(self) -> list[Flag]:
        """The method's fields with the recipe's defaults.

        A paper's default is stronger than a recipe's for all methods, and weaker than a recipe's for this one.
        """
        usual = {flag.name: flag.default for flag in self.methods.fields("fedavg")}
        general = {name: value for name, value in self.program.defaults.items() if not isinstance(value, Mapping)}
        own = self.program.defaults.get(self.method, {})
        fields = []
        for flag in self.methods.fields(self.method):
            papers = flag.name not in usual or flag.default != usual[flag.name]
            default = flag.default if papers else general.get(flag.name, flag.default)
            fields.append(replace(flag, default=own.get(flag.name, default)))
        return fields

    def help(self) -> str:
        """What `--help` prints, with the files' values as defaults."""
        settings, _ = self._settings({})
        flags = [replace(flag, default=settings.get(flag.name, flag.default)) for flag in self.flags]
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
        return Parsed(completed({**settings, **typed, "method": self.method}, self.flags), notes)

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


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "nothing that is not set again"


def _first(words: Sequence[str]) -> dict[str, Any]:
    """The flags that decide which others there are, and what they are by default."""
    deciding = {flag.name: flag for flag in GENERAL if flag.name in (*TYPED, "method")}
    found: dict[str, Any] = {"method": None, "preset": None, "config": [], "background": False}
    for word, given in assignments(words):
        if flag := deciding.get(name_of(word)) if word.startswith("--") else None:
            value = flag.read(given)
            found[flag.name] = found[flag.name] + value if flag.adds else value
    return found
