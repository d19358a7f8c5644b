"""Its commands, strings that change a configuration for a run."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlightning.errors import ConfigurationError, nearest


@dataclass
class TheirCommand:
    """A command of FederatedX, read.

    Attributes:
        name: the run's name.
        values: section, key and value of each assignment, in order.
        notes: what to know about it.
    """

    name: str
    values: list[tuple[str, str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def parse_command(text: str, config: Mapping[str, Any]) -> TheirCommand:
    """Read a command such as `.FedADAM -fedopt --method adam .MPX -hyerparams --fedmpx .0.2`.

    `.TEXT` is a part of the name, `-NAME` selects a section of `config`, wherever it is nested, and `--KEY VALUE` sets a
    key in it. A dot before NAME, KEY or VALUE adds it to the name.

    Raises:
        ConfigurationError: a section does not exist, a key stands before any section, or has no value.
    """
    command, section, words = TheirCommand(""), "", iter(text.split())
    for word in words:
        if word.startswith("."):
            command.name += word
        elif word.startswith("--"):
            key, value = word[2:], next(words, None)
            if not section or value is None:
                wants = "a section before it, e.g. `-fedopt`" if not section else "a value"
                raise ConfigurationError(f"`{word}` in the command needs {wants}, but has none: {text!r}.")
            if re.fullmatch(r"\.\d+", value):
                command.notes.append(
                    f"command: `{value}` is read as {value[1:]}, as there; 0{value} or .0{value} is meant?"
                )
            shown, (key, value) = [part for part in (key, value) if part.startswith(".")], (_strip(key), _strip(value))
            command.name += "".join(shown)
            command.values.append((section, key, _value(value)))
        elif word.startswith("-"):
            command.name += word[1:] if word[1:2] == "." else ""
            section = _strip(word[1:])
            find_section(config, section)
        else:
            raise ConfigurationError(
                f"A word of a command must begin with '.', '-' or '--', but {word!r} does not: {text!r}."
            )
    for flag in ("mpx", "nao"):
        if f".{flag.upper()}" in text:
            command.values.append(("fedopt", flag, True))
    command.name = command.name.removeprefix(".")
    return command


def _strip(word: str) -> str:
    return word.removeprefix(".")


def _value(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def find_section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The dictionary with this name in a dictionary of dictionaries, the least nested one.

    Raises:
        ConfigurationError: there is none.
    """
    level: list[Mapping[str, Any]] = [config]
    known: list[str] = []
    while level:
        inner = [(key, value) for values in level for key, value in values.items() if isinstance(value, dict)]
        for key, value in inner:
            if key == name:
                return value
        known += [str(key) for key, _ in inner]
        level = [value for _, value in inner]
    raise ConfigurationError(f"`-{name}` in the command must be a section. {nearest(name, known)}")
