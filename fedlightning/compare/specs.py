"""Methods and lists as they are typed: "fedprox mu=0.01", "lr=0.01,0.1"."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from fedlightning.cli.flags import conform, of_dataclass, wording
from fedlightning.compare.names import assigned
from fedlightning.errors import ConfigurationError, nearest
from fedlightning.method import FedMethod, field_names
from fedlightning.methods import method_named

Values = dict[str, Any]


class Spec(NamedTuple):
    """A method as it is typed, "fedprox mu=0.01": its name and its fields."""

    text: str
    method: str
    fields: Values

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read it.

        Raises:
            ConfigurationError: there is no such method, or it has no such field.
        """
        name, *assignments = text.split() or [""]
        known, fields = field_names(method_named(name)), {}
        for assignment in assignments:
            key, _, value = assignment.partition("=")
            if not value or key not in known:
                raise ConfigurationError(
                    f"A method of `--methods` must be like 'fedprox mu=0.01', but is {text!r}, and {key!r} is no field of "
                    f"{name} with a value. {nearest(key, known)}"
                )
            fields[key] = number(value)
        return cls(text, name if ":" in name else name.lower(), fields)

    @property
    def names(self) -> list[str]:
        """The names of all fields that the method has."""
        return field_names(method_named(self.method))

    def swept(self, fields: Values) -> Spec:
        """The same with those of the swept fields that the method has, which are added to its name."""
        own = {key: value for key, value in fields.items() if key in self.names}
        return Spec(" ".join([self.text, *assigned(own)]), self.method, {**self.fields, **own})

    def build(self, usual: Values, given: Values) -> FedMethod:
        """The method, with the data set's fields where the paper has none, and those that flags give.

        Raises:
            ConfigurationError: a field has not its type, or is outside its interval.
        """
        cls = method_named(self.method)
        base, own = FedMethod.__dataclass_fields__, cls.__dataclass_fields__
        weak = {key: value for key, value in usual.items() if own[key].default == base[key].default}
        return cls(**typed(cls, {**weak, **given, **self.fields}))


def typed(cls: type[FedMethod], fields: Mapping[str, Any]) -> Values:
    """A method's fields from a command line, each as its type has it.

    Raises:
        ConfigurationError: one is of another type.
    """
    kinds, found = {flag.name: flag.kind for flag in of_dataclass(cls)}, {}
    for key, value in fields.items():
        try:
            taken = conform(value, kinds[key])
        except ValueError:
            raise ConfigurationError(
                f"`{key}` of {cls.__name__} must be {wording(kinds[key])}, but is {value!r}; give such a value, or leave it out."
            ) from None
        found[key] = value if taken == value else taken  # 1 stays 1 for a float; a list becomes a tuple
    return found


def lists(words: Sequence[str], flag: str) -> list[tuple[str, list[str]]]:
    """The lists of a flag such as `--sweep lr=0.01,0.1 mu=0,1`, by name: a word with "=" begins one, the others go on with it.

    Args:
        words: one for each value, as the flag has them once commas and spaces are taken for the same.
        flag: for the message.

    Raises:
        ConfigurationError: the first word has no name, or a list is empty.
    """
    found: list[tuple[str, list[str]]] = []
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            found.append((name, [value] if value else []))
        elif found:
            found[-1][1].append(word)
        else:
            raise _no_list(flag, word)
    for name, values in found:
        if not name or not values:
            raise _no_list(flag, f"{name}={','.join(values)}")
    return found


def _no_list(flag: str, given: str) -> ConfigurationError:
    return ConfigurationError(
        f"`{flag}` must be like lr=0.01,0.1, each value once, but is {given!r}; give a name and its values."
    )


def number(text: str) -> Any:
    """A value as it is typed: a number, true, false, null or a word, as which all else is taken; 1e-3 is a number."""
    for read in (real, yaml.safe_load):
        with contextlib.suppress(ValueError, yaml.YAMLError):
            return read(text)
    return text


def real(text: str) -> int | float:
    """A number, a whole one where it is typed as one."""
    try:
        return int(text)
    except ValueError:
        return float(text)
