"""Flags of a command line: their kinds, how a value is read from a word, and how a wrong one is told.

A kind is an annotation: `bool`, `int`, `float`, `str`, `Path`, a `Literal`, a list, tuple or dictionary of them, or a union. This
module imports nothing heavy, since a mistyped flag is found before torch is imported (see `fedlightning.cli.early`).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from fedlightning.errors import ConfigurationError

Repeated = Annotated[list[str], "repeated"]
"""The kind of a flag that is given once for each of its values."""

Gathered = Annotated[list[str], "gathered"]
"""The kind of a flag that takes a list, and more of it where it is given again."""


class Required:
    """The default of a flag that has none."""

    def __repr__(self) -> str:
        return "none, it must be given"


REQUIRED = Required()


@dataclass(frozen=True)
class Flag:
    """A flag.

    Attributes:
        name: with underscores; on the command line it has dashes.
        kind: the annotation of its value.
        default: its value where it is not given, or `REQUIRED`.
        help: what it is.
        group: the heading under which `--help` shows it.
    """

    name: str
    kind: Any
    default: Any = None
    help: str = ""
    group: str = ""

    @property
    def dashed(self) -> str:
        """As it is typed."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_switch(self) -> bool:
        """Whether it is true where no value follows."""
        return [kind for kind in members(self.kind) if kind is not type(None)] == [bool]

    @property
    def several(self) -> bool:
        """Whether it takes all words up to the next flag."""
        return self.kind != Repeated and any(typing.get_origin(kind) is list for kind in members(self.kind))

    @property
    def adds(self) -> bool:
        """Whether it adds to its values where it is given again, or else replaces them."""
        return self.kind in (Repeated, Gathered)

    def read(self, words: Sequence[str]) -> Any:
        """The value of the words that follow the flag.

        Raises:
            ConfigurationError: their number or their kind is another.
        """
        if not words and self.is_switch:
            return True
        if not words:
            raise ConfigurationError(f"`{self.dashed}` needs a value: {wording(self.kind)}; {self._example()}.")
        if len(words) > 1 and not self.several:
            raise ConfigurationError(
                f"`{self.dashed}` takes one value, but {shortened(words[1])} follows {shortened(words[0])}; put a value with "
                "spaces in quotes, or leave one out."
            )
        try:
            if self.kind == Repeated:
                return [read(words[0], str)]
            return read(words[0], self.kind) if len(words) == 1 else _join(words, self.kind)
        except ValueError:
            raise self.refused(" ".join(words)) from None

    def read_yaml(self, value: Any) -> Any:
        """The value that a YAML file has for it.

        Raises:
            ConfigurationError: it is of another kind.
        """
        try:
            return conform(value, self.kind)
        except ValueError:
            raise self.refused(_text(value)) from None

    def refused(self, word: str) -> ConfigurationError:
        """What to say of a value of another kind."""
        words = [str(value) for kind in members(self.kind) if _is_literal(kind) for value in typing.get_args(kind)]
        near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.5)
        remedy = f"did you mean `{self.dashed} {near[0]}`?" if near else f"{self._example()}."
        return ConfigurationError(f"`{self.dashed}` must be {wording(self.kind)}, but is {shortened(word)}; {remedy}")

    def _example(self) -> str:
        default = self.default
        if isinstance(default, bool | Required) or default is None or default == []:
            default = _example(self.kind)
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        give = f"give e.g. `{self.dashed} {shown}`" if shown else "give another"
        return give if self.default is REQUIRED else f"{give}, or leave it out"


# -- kinds -------------------------------------------------------------------------------------------------------------
def members(kind: Any) -> list[Any]:
    """The kinds of a union, in the order in which they are tried; one that is no union alone."""
    if typing.get_origin(kind) is Annotated:
        return members(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return sorted((inner for one in typing.get_args(kind) for inner in members(one)), key=_rank)
    return [kind]


def _rank(kind: Any) -> int:
    base = typing.get_origin(kind) or kind
    return list(_READERS).index(base) if base in _READERS else len(_READERS)


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal


def wording(kind: Any) -> str:
    """A kind in plain English, to be read after "must be"."""
    parts = list(dict.fromkeys(part for one in members(kind) for part in _worded(one)))
    if "a number" in parts and "a whole number" in parts:
        parts.remove("a whole number")
    parts.sort(key=lambda part: part == "null")
    return " or ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


_WORDED = {int: "a whole number", float: "a number", str: "text", Path: "a path", type(None): "null"}
_SEVERAL = {"a whole number": "whole numbers", "a number": "numbers", "text": "words", "a path": "paths"}


def _worded(kind: Any) -> list[str]:
    if kind is bool:
        return ["true", "false"]
    if _is_literal(kind):
        return [str(value) for value in typing.get_args(kind)]
    if typing.get_origin(kind) is list:
        inner = wording(typing.get_args(kind)[0])
        return [_SEVERAL.get(inner, f"one or more of {inner}")]
    return [_WORDED.get(kind) or f"a {shown_kind(kind)} in YAML"]


def shown_kind(kind: Any) -> str:
    """A kind as `--help` shows it."""
    texts = [_kind_text(one) for one in members(kind)]
    return " | ".join(sorted(texts, key=lambda text: text == "null"))


def _kind_text(kind: Any) -> str:
    if kind is type(None):
        return "null"
    if _is_literal(kind):
        return " | ".join(str(value) for value in typing.get_args(kind))
    if typing.get_args(kind):
        return str(kind).replace("typing.", "")
    return getattr(kind, "__name__", str(kind))


def _example(kind: Any) -> str:
    first = next(one for one in members(kind) if one is not type(None))
    if _is_literal(first):
        return str(typing.get_args(first)[0])
    if typing.get_origin(first) is list:
        return _example(typing.get_args(first)[0])
    return {bool: "true", int: "10", float: "0.1"}.get(first, "")


def shortened(word: str) -> str:
    """A word in quotes, cut where it is long."""
    return repr(word) if len(word) <= 60 else f"{word[:50]!r}… ({len(word):,} characters)"


# -- values ------------------------------------------------------------------------------------------------------------
def read(word: str, kind: Any) -> Any:
    """A word's value.

    Raises:
        ValueError: it is of another kind.
    """
    for one in members(kind):
        try:
            return _READERS.get(typing.get_origin(one) or one, _read_yaml)(word, one)
        except ValueError:
            continue
    raise ValueError(word)


def conform(value: Any, kind: Any) -> Any:
    """The value that YAML has, as one of a kind.

    Raises:
        ValueError: it is of another kind.
    """
    if not isinstance(value, (dict, list, tuple)):
        return read(_text(value), kind)
    for one in members(kind):
        try:
            return _FITS[typing.get_origin(one) or one](value, typing.get_args(one))
        except (KeyError, ValueError):
            continue
    raise ValueError(_text(value))


def _text(value: Any) -> str:
    """As it is typed."""
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else str(value)
    )


def _join(words: Sequence[str], kind: Any) -> list[Any]:
    found = [read(word, kind) for word in words]
    return [item for items in found for item in items]


def _read_null(word: str, kind: Any) -> None:
    if word != "null":
        raise ValueError(word)


_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _read_bool(word: str, kind: Any) -> bool:
    if word.lower() not in _BOOLS:
        raise ValueError(word)
    return _BOOLS[word.lower()]


def _read_int(word: str, kind: Any) -> int:
    if not re.fullmatch(r"[+-]?\d+", word, re.ASCII):
        raise ValueError(word)
    return int(word)


def _read_float(word: str, kind: Any) -> float:
    if re.fullmatch(r"[+-]?\.(inf|nan)", word, re.IGNORECASE):  # as YAML writes them
        word = word.replace(".", "")
    return float(word)


def _read_literal(word: str, kind: Any) -> Any:
    for value in typing.get_args(kind):
        if str(value) == word:
            return value
    raise ValueError(word)


def _read_text(word: str, kind: Any) -> Any:
    word.encode()  # bytes that are no text give a UnicodeEncodeError, which is a ValueError
    if "\0" in word:
        raise ValueError(word)
    return kind(word)


def _read_list(word: str, kind: Any) -> list[Any]:
    """Several with commas, or YAML's [a, b]; commas in brackets part nothing."""
    if word.lstrip().startswith("["):
        return list(_read_yaml(word, kind))
    (item,) = typing.get_args(kind)
    parts, depth = [""], 0
    for letter in word:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    if not word.strip(", "):
        raise ValueError(word)
    return [read(part.strip(), item) for part in parts if part.strip()]


def _read_yaml(word: str, kind: Any) -> Any:
    try:
        value = yaml.safe_load(word)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(word) from error
    if kind is Any:
        return value
    if not isinstance(value, (dict, list)):
        raise ValueError(word)
    return conform(value, kind)


_READERS: dict[Any, Callable[[str, Any], Any]] = {
    type(None): _read_null, bool: _read_bool, int: _read_int, float: _read_float, Literal: _read_literal,
    list: _read_list, tuple: _read_yaml, dict: _read_yaml, Path: _read_text, Any: _read_yaml, str: _read_text,
}  # fmt: skip
"""How a word is read, by kind; of the kinds of a union the first that can is taken."""


def _fit_list(value: Any, inner: tuple[Any, ...]) -> list[Any]:
    if isinstance(value, dict):
        raise ValueError
    return [conform(item, inner[0] if inner else Any) for item in value]


def _fit_tuple(value: Any, inner: tuple[Any, ...]) -> tuple[Any, ...]:
    if inner[1:] == (...,) or not inner:
        return tuple(_fit_list(value, inner))
    if isinstance(value, dict) or len(value) != len(inner):
        raise ValueError
    return tuple(map(conform, value, inner))


def _fit_dict(value: Any, inner: tuple[Any, ...]) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError
    of_key, of_item = inner or (Any, Any)
    return {conform(key, of_key): conform(item, of_item) for key, item in value.items()}


_FITS: dict[Any, Callable[[Any, tuple[Any, ...]], Any]] = {
    list: _fit_list, tuple: _fit_tuple, dict: _fit_dict, Any: lambda value, inner: value,
}  # fmt: skip


# -- the command line --------------------------------------------------------------------------------------------------
def name_of(word: str) -> str:
    """The name in `--some-flag` or `--some-flag=value`."""
    return word.split("=")[0].removeprefix("--").replace("-", "_")


def assignments(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag as it is typed, with the words that are its values; the first may be no flag, if one begins with none."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--") or not found:
            flag, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
            found.append((flag, [value] if equals else []))
        else:
            found[-1][1].append(word)
    return iter(found)


def parse(words: Sequence[str], flags: Sequence[Flag], unknown: Callable[[str], ConfigurationError]) -> dict[str, Any]:
    """The values of the flags that are given; of a flag that is given twice the last counts, or all do where it `adds`.

    Args:
        words: of the command line.
        flags: that there are.
        unknown: what to raise for a word that is none of them.

    Raises:
        ConfigurationError: a flag does not exist, or its value is of another kind.
    """
    known, values = {flag.name: flag for flag in flags}, dict[str, Any]()
    for word, given in assignments(words):
        flag = known.get(name_of(word)) if word.startswith("--") else None
        if flag is None:
            raise unknown(word)
        value = flag.read(given)
        values[flag.name] = values.get(flag.name, []) + value if flag.adds else value
    return values


def completed(values: dict[str, Any], flags: Sequence[Flag]) -> dict[str, Any]:
    """All flags' values, in their order: what is given, or the default.

    Raises:
        ConfigurationError: a flag without a default is not given.
    """
    for flag in flags:
        if flag.default is REQUIRED and flag.name not in values:
            raise ConfigurationError(f"`{flag.dashed}` must be given: {wording(flag.kind)}.")
    return {flag.name: values.get(flag.name, flag.default) for flag in flags}


def as_words(values: Mapping[str, Any], flags: Sequence[Flag]) -> list[str]:
    """The words that `parse` reads as these values; what is a default is left out."""
    words: list[str] = []
    for flag in flags:
        value = values[flag.name]
        if value == flag.default:
            continue
        if flag.kind == Repeated:
            words += [part for one in value for part in (flag.dashed, str(one))]
        else:
            words += [flag.dashed, *([_text(one) for one in value] if isinstance(value, list) else [_text(value)])]
    return words


def no_such_flag(word: str, known: Collection[str], elsewhere: Mapping[str, Sequence[str]]) -> ConfigurationError:
    """What to say of a flag that there is not.

    Args:
        word: what was typed.
        known: the flags' names, with underscores.
        elsewhere: the flags of other methods, with the methods' names.
    """
    if not word.startswith("-"):
        return ConfigurationError(f"{shortened(word)} must follow a flag, but stands alone; `--help` lists the flags.")
    names = [f"--{name.replace('_', '-')}" for name in (*known, *elsewhere)]
    near = difflib.get_close_matches(f"--{word.lstrip('-')}", names, n=2)
    owners = {name: elsewhere.get(name_of(name)) for name in near}
    shown = [f"{name} (of --method {', '.join(of)})" if (of := owners[name]) else name for name in near]
    hint = f"did you mean {' or '.join(shown)}?" if near else "`--help` lists them."
    return ConfigurationError(f"there is no flag {word if len(word) < 60 else shortened(word)} here; {hint}")


def wants_help(words: Sequence[str]) -> bool:
    """Whether the flags are to be listed."""
    return "--help" in words or "-h" in words


def show_help(program: str, summary: str, flags: Sequence[Flag]) -> str:
    """What `--help` prints."""
    usage = "%(prog)s [--flag value] …"  # what is all listed below
    parser = argparse.ArgumentParser(prog=program, usage=usage, description=summary, add_help=False)
    parser.add_argument("-h", "--help", action="help", help="show this help and end")
    groups: dict[str, Any] = {"": parser}
    for flag in flags:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        about = f"{flag.help} (type: {shown_kind(flag.kind)}, default: {_text(flag.default)})"
        shape: dict[str, Any] = {"nargs": "?"} if flag.is_switch else {"nargs": "+"} if flag.several else {}
        if flag.is_switch or _is_literal(flag.kind):
            shape["choices"] = ["true", "false"] if flag.is_switch else typing.get_args(flag.kind)
        groups[flag.group].add_argument(flag.dashed, help=about.replace("%", "%%"), **shape)
    return parser.format_help()


# -- where flags come from ---------------------------------------------------------------------------------------------
def described(doc: str | None) -> tuple[str, dict[str, str]]:
    """The first line of a docstring, and what its section "Args:" says of each name."""
    text = inspect.cleandoc(doc or "")
    helps: dict[str, str] = {}
    name, inside = "", False
    for line in text.splitlines():
        if re.match(r"\S", line):
            inside = line == "Args:"
        elif inside and (found := re.fullmatch(r"    (\w+): (.*)", line)):
            name, helps[found[1]] = found[1], found[2]
        elif inside and name and line.strip():
            helps[name] += f" {line.strip()}"
    return text.split("\n")[0], helps


def of_function(function: Callable[..., Any]) -> list[Flag]:
    """The keyword-only parameters of a function, described in its docstring, and the fields of parameters of a dataclass."""
    hints, (_, helps) = _hints(function), described(function.__doc__)
    flags: list[Flag] = []
    for name, one in inspect.signature(function).parameters.items():
        kind = hints.get(name, Any)
        if dataclasses.is_dataclass(kind):
            flags += of_dataclass(typing.cast(type, kind))
        elif one.kind is one.KEYWORD_ONLY:
            flags.append(Flag(name, kind, REQUIRED if one.default is one.empty else one.default, helps.get(name, "")))
    return flags


def arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a function, from the values of the flags that `of_function` finds in it."""
    hints, rest, made = _hints(function), dict(values), {}
    for name in inspect.signature(function).parameters:
        kind = hints.get(name, Any)
        if dataclasses.is_dataclass(kind):
            fields = {field.name: rest.pop(field.name) for field in dataclasses.fields(kind)}
            made[name] = typing.cast(type, kind)(**fields)
    return {**made, **rest}


def of_dataclass(cls: type[Any]) -> list[Flag]:
    """The fields of a dataclass, described in its docstring or in those of its bases."""
    hints, docs = _hints(cls), [described(vars(base).get("__doc__")) for base in cls.__mro__]
    helps = {name: text for _, found in reversed(docs) for name, text in found.items()}
    flags = []
    for field in dataclasses.fields(cls):
        default = field.default
        if default is dataclasses.MISSING:
            made = field.default_factory
            default = REQUIRED if made is dataclasses.MISSING else made()
        flags.append(Flag(field.name, hints.get(field.name, Any), default, helps.get(field.name, ""), docs[0][0]))
    return flags


def _hints(owner: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"The annotations of {owner.__name__} must be names that its file imports, but {error.name!r} is none; import it "
            "outside `if TYPE_CHECKING`."
        ) from error
