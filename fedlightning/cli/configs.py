"""Configuration files: YAML whose keys are flags.

Keys are the recipe's flags with underscores, and besides

    methods:        fields of methods by name; those of the chosen method count, before the same keys at the top
    slots:          as the flag, or how many on each device, e.g. `{"cuda:0": 4, cpu: 2}`

A preset is such a file that `--preset` names: `A0d01C100` is `recipes/configs/<recipe>/A0d01C100.yaml`. Its name is its
partition, unless it has the key `partition`.

Layers, of which a later one wins: the recipe's defaults, the preset, each `--config`, the command line.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from fedlightning.cli.flags import Flag, shortened
from fedlightning.errors import ConfigurationError

EXCLUSIVE = ("local_epochs", "local_steps")
"""Flags of which one at most has a value: a layer that sets one clears the other."""


class Methods(Protocol):
    """The methods that a recipe may run, and their fields as flags."""

    def names(self) -> Sequence[str]:
        """The names that `--method` takes, besides those of classes of one's own."""

    def fields(self, name: str) -> Sequence[Flag]:
        """The fields of one; raises `ConfigurationError` if there is none of that name."""


@dataclass(frozen=True)
class ConfigFile:
    """A file's keys with the lines they stand in.

    Attributes:
        path: the file.
        values: the keys at the top.
        lines: line of each key, and of each `methods.<name>` and `methods.<name>.<field>`.
    """

    path: Path
    values: dict[str, Any]
    lines: dict[str, int] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """The file's keys; values are left as they are.

        Raises:
            ConfigurationError: it is not there, is no YAML or no mapping, or holds a key twice.
        """
        try:
            text = path.read_text(encoding="utf-8")
            node, values = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text) or {}
        except OSError as error:
            raise ConfigurationError(
                f"A configuration must be a file that can be read, but {shortened(str(path))} is not ({error.strerror}); give "
                "the path of a YAML file, e.g. of a run's config.yaml."
            ) from error
        except (yaml.YAMLError, ValueError) as error:  # a date that cannot be is the latter
            raise ConfigurationError(f"{path} must be YAML, but is not: {' '.join(str(error).split())}.") from error
        except RecursionError as error:
            raise ConfigurationError(
                f"{path} must hold flags as `key: value`, but its values lie in one another a thousand times and more; "
                "write each flag at the top."
            ) from error
        if not isinstance(values, dict):
            raise ConfigurationError(f"{path} must hold flags as `key: value`, but holds {type(values).__name__}.")
        lines: dict[str, int] = {}
        _number(path, node, "", lines)
        return cls(path, values, lines)

    def where(self, key: str) -> str:
        """The file and the key's line, as compilers write it."""
        return f"{self.path}:{self.lines.get(key, 1)}"

    def settings(self, method: str, flags: Sequence[Flag], methods: Methods) -> dict[str, Any]:
        """The values of the flags that the file sets for a method; `slots` is left as it is.

        Args:
            method: the chosen method.
            flags: all flags that a file may set, the method's fields among them.
            methods: all methods.

        Raises:
            ConfigurationError: a key is no flag, a value is of another kind, a method does not exist, or has no such field.
        """
        known, owners = {flag.name: flag for flag in flags}, field_owners(methods)
        own = self._methods(method, methods).get(method, {})
        top = {key: value for key, value in self.values.items() if key != "methods"}
        for key in top:
            if key not in known:
                raise ConfigurationError(
                    f"{self.where(key)}: there is no flag `{key}` here; {hint(key, known, owners)}"
                )
        taken = {}
        for key, value in (top | own).items():
            where = self.where(f"methods.{method}.{key}" if key in own else key)
            taken[key] = value if key == "slots" else _taken(where, known[key], value)
        return taken

    def _methods(self, method: str, methods: Methods) -> dict[str, dict[str, Any]]:
        """The fields that the file gives to methods, checked."""
        given = self.values.get("methods") or {}
        if not isinstance(given, dict):
            raise ConfigurationError(f"{self.where('methods')}: `methods` must map names to fields, but is {given!r}.")
        names = {*methods.names(), method}
        for name, fields in given.items():
            where = self.where(f"methods.{name}")
            if name not in names:
                raise ConfigurationError(f"{where}: there is no method `{name}`; {hint(str(name), names, {})}")
            if not isinstance(fields, dict):
                raise ConfigurationError(f"{where}: `{name}` must map fields to values, but is {fields!r}.")
            known = [flag.name for flag in methods.fields(name)]
            for key in fields:
                if key not in known:
                    at = self.where(f"methods.{name}.{key}")
                    raise ConfigurationError(
                        f"{at}: {name} has no field `{key}`; {hint(str(key), known, field_owners(methods))}"
                    )
        return given


def _taken(where: str, flag: Flag, value: Any) -> Any:
    try:
        return flag.read_yaml(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _number(path: Path, node: yaml.Node | None, prefix: str, lines: dict[str, int]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name in lines:
            raise ConfigurationError(f"{path}:{key.start_mark.line + 1}: `{name}` stands there twice; leave one out.")
        lines[name] = key.start_mark.line + 1
        _number(path, value, f"{name}.", lines)


def hint(name: str, known: Iterable[str], owners: Mapping[str, Sequence[str]]) -> str:
    """What to do about a name that is not known: the nearest ones, also among the fields of methods."""
    here = set(known)
    near = difflib.get_close_matches(str(name), [*here, *(key for key in owners if key not in here)], n=2)
    words = [word if word in here else f"{word} (of --method {', '.join(owners[word])})" for word in near]
    return f"did you mean {' or '.join(words)}?" if near else f"known are {', '.join(sorted(here))}."


def field_owners(methods: Methods) -> dict[str, list[str]]:
    """The methods that have a field, by the field's name."""
    owners: dict[str, list[str]] = {}
    for name in methods.names():
        for flag in methods.fields(name):
            owners.setdefault(flag.name, []).append(name)
    return owners


def preset_file(recipe: Path, wish: str) -> Path:
    """The preset of a recipe with this name, `configs/<recipe>/<name>.yaml` beside it, or this path.

    Raises:
        ConfigurationError: there is none.
    """
    folder, path = recipe.parent / "configs" / recipe.stem, Path(wish)
    there = sorted(file.stem for file in folder.glob("*.yaml"))
    if wish in there:
        return folder / f"{wish}.yaml"
    if path.suffix in (".yaml", ".yml") and os.path.isfile(path):
        return path
    near = difflib.get_close_matches(wish, there, n=2)
    remedy = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(there)}." if there else (
        f"{recipe.stem} has none, so leave it out, or give the path of a YAML file."
    )  # fmt: skip
    raise ConfigurationError(
        f"`--preset` must be the name of a file in {folder}, or the path of one, but is {shortened(wish)}; {remedy}"
    )


def merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The layers as one, of which a later one wins."""
    result: dict[str, Any] = {}
    for layer in layers:
        if any(layer.get(key) is not None for key in EXCLUSIVE):
            result = {key: value for key, value in result.items() if key not in EXCLUSIVE}
        result |= layer
    return result


def fit_slots(wish: Any, gpus: int, cores: int | None = None) -> tuple[str, str | None]:
    """What a file asks for in slots, mapped onto this machine; results do not depend on it.

    Slots on GPUs that are not there are left out, and so are those of a CPU with fewer cores; if none is left it is "auto".

    Args:
        wish: the flag's value, a list of names, or numbers by device.
        gpus: how many there are.
        cores: the same for the CPU's cores; None counts them.

    Returns:
        The flag's value, and a line that says what was changed, or None.

    Raises:
        ConfigurationError: a device has no whole number of slots.
    """
    if isinstance(wish, Mapping):
        if not all(type(number) is int and 0 < number <= 1000 for number in wish.values()):
            raise ConfigurationError(
                f"`slots` must have a whole number from 1 to 1,000 for each device, as in {{cpu: 2}}, but is {wish!r}."
            )
        wish = [f"{device}/{i}" for device, number in wish.items() for i in range(int(number))]
    text = ",".join(map(str, wish)) if isinstance(wish, (list, tuple)) else str(wish)
    if text == "auto" or text.lstrip("-").isdecimal():
        return text, None
    cores = _cores() if cores is None else cores
    slots = text.split(",")
    kept = [slot for slot in slots if not (found := re.match(r"cuda(?::(\d+))?", slot)) or int(found[1] or 0) < gpus]
    if sum(slot.startswith("cpu") for slot in slots) > cores:
        kept = [slot for slot in kept if not slot.startswith("cpu")]
    if len(kept) == len(slots):
        return text, None
    result = ",".join(kept) or "auto"
    asked = f"{len(slots)} ({slots[0]} … {slots[-1]})"
    return result, f"slots {result} in the place of {asked}: there are {gpus} GPUs and {cores} cores"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
