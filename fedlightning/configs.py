"""Configuration files: YAML whose keys are flags, and the rule by which a partition's name finds its own.

`recipes/configs/<recipe>/<partition>.yaml` is read when `--partition` names it. Its keys are the recipe's flags with
underscores, and besides

    methods:        fields of methods by name; those of the chosen method count, before the same keys at the top
    slots:          as the flag, or how many on each device, e.g. `{"cuda:0": 4, cpu: 2}`
    partition:      what the file's name stands for, if that is no partition itself

Layers, of which a later one wins: the recipe's defaults, the partition's file, each `--config`, the command line.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from fedlightning.errors import ConfigurationError
from fedlightning.method import FedMethod, field_names
from fedlightning.methods import method_named, method_names

EXCLUSIVE = ("local_epochs", "local_steps")
"""Flags of which one at most has a value: a layer that sets one clears the other."""


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
            node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigurationError(f"File does not exist or cannot be read: {path} ({error.strerror}).") from error
        except (yaml.YAMLError, ValueError) as error:  # a date that cannot be is the latter
            raise ConfigurationError(f"{path} must be YAML, but is not: {' '.join(str(error).split())}.") from error
        if not isinstance(values, dict):
            raise ConfigurationError(f"{path} must hold flags as `key: value`, but holds {type(values).__name__}.")
        lines: dict[str, int] = {}
        _number(path, node, "", lines)
        return cls(path, values, lines)

    def where(self, key: str) -> str:
        """The file and the key's line, as compilers write it."""
        return f"{self.path}:{self.lines.get(key, 1)}"

    def settings(self, method: type[FedMethod], flags: Iterable[str]) -> dict[str, Any]:
        """The values of the flags that the file sets for this method.

        Args:
            method: the chosen method.
            flags: all flags there are, its fields among them.

        Raises:
            ConfigurationError: a key is no flag, a method does not exist, or has no such field.
        """
        known = set(flags)
        own = self._methods().get(method.__name__.lower(), {})
        top = {key: value for key, value in self.values.items() if key != "methods"}
        for key in top:
            if key not in known:
                raise ConfigurationError(f"{self.where(key)}: there is no flag `{key}` here; {hint(key, known)}")
        return top | own

    def _methods(self) -> dict[str, dict[str, Any]]:
        """The fields that the file gives to methods, checked."""
        methods = self.values.get("methods") or {}
        if not isinstance(methods, dict):
            raise ConfigurationError(
                f"{self.where('methods')}: `methods` must map names to fields, but is {methods!r}."
            )
        for name, fields in methods.items():
            where = self.where(f"methods.{name}")
            if name not in method_names():
                raise ConfigurationError(f"{where}: there is no method `{name}`; {hint(str(name), method_names())}")
            if not isinstance(fields, dict):
                raise ConfigurationError(f"{where}: `{name}` must map fields to values, but is {fields!r}.")
            known = field_names(method_named(name))
            for key in fields:
                if key not in known:
                    at = self.where(f"methods.{name}.{key}")
                    raise ConfigurationError(f"{at}: {name} has no field `{key}`; {hint(str(key), known)}")
        return methods


def _number(path: Path, node: yaml.Node | None, prefix: str, lines: dict[str, int]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name in lines:
            raise ConfigurationError(f"{path}:{key.start_mark.line + 1}: `{name}` stands there twice; leave one out.")
        lines[name] = key.start_mark.line + 1
        _number(path, value, f"{name}.", lines)


def hint(name: str, known: Iterable[str]) -> str:
    """What to do about a name that is not known: the nearest ones, also among the fields of methods."""
    here = set(known)
    owners: dict[str, list[str]] = {key: [] for key in here} | field_owners()
    near = difflib.get_close_matches(str(name), owners, n=2)
    words = [word if word in here else f"{word} (of --method {', '.join(owners[word])})" for word in near]
    return f"did you mean {' or '.join(words)}?" if near else f"known are {', '.join(sorted(here))}."


def field_owners() -> dict[str, list[str]]:
    """The methods that have a field, by the field's name."""
    owners: dict[str, list[str]] = {}
    for name in method_names():
        for key in field_names(method_named(name)):
            owners.setdefault(key, []).append(name)
    return owners


def partition_file(recipe: Path, partition: Any) -> Path | None:
    """The file that belongs to a partition of a recipe, `configs/<recipe>/<partition>.yaml` beside it, if there is one.

    Raises:
        ConfigurationError: a file gives a partition that is no name.
    """
    if not isinstance(partition, str | None):
        raise ConfigurationError(f"`partition` must be a name such as A0d10C100, but is {partition!r}.")
    if partition is None or Path(partition).name != partition:
        return None
    path = recipe.parent / "configs" / recipe.stem / f"{partition}.yaml"
    return path if path.is_file() else None


def merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The layers as one, of which a later one wins."""
    result: dict[str, Any] = {}
    for layer in layers:
        if any(layer.get(key) is not None for key in EXCLUSIVE):
            result = {key: value for key, value in result.items() if key not in EXCLUSIVE}
        result |= layer
    return result


def as_flag(key: str, value: Any) -> str:
    """The flag that gives a value as a file does."""
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=2**20)
    return f"--{key}={text.strip().removesuffix('...').strip()}"


def fit_slots(wish: Any, gpus: int | None = None, cores: int | None = None) -> tuple[str, str | None]:
    """What a file asks for in slots, mapped onto this machine; results do not depend on it.

    Slots on GPUs that are not there are left out, and so are those of a CPU with fewer cores; if none is left it is "auto".

    Args:
        wish: the flag's value, a list of names, or numbers by device.
        gpus: how many there are; None counts them.
        cores: the same for the CPU's cores.

    Returns:
        The flag's value, and a line that says what was changed, or None.

    Raises:
        ConfigurationError: a device has no whole number of slots.
    """
    if isinstance(wish, Mapping):
        if not all(isinstance(number, int) and number > 0 for number in wish.values()):
            raise ConfigurationError(
                f"`slots` must have a whole number for each device, as in {{cpu: 2}}, but is {wish!r}."
            )
        wish = [f"{device}/{i}" for device, number in wish.items() for i in range(int(number))]
    text = ",".join(map(str, wish)) if isinstance(wish, (list, tuple)) else str(wish)
    if text == "auto" or text.lstrip("-").isdecimal():
        return text, None
    gpus = torch.cuda.device_count() if gpus is None else gpus
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
