"""The methods, one file a paper."""

from fedlightning.errors import ConfigurationError, nearest
from fedlightning.method import FedMethod
from fedlightning.methods.fedavg import FedAvg
from fedlightning.methods.fedprox import FedProx
from fedlightning.methods.scaffold import Scaffold

__all__ = ["FedAvg", "FedProx", "Scaffold", "method_named", "method_names"]

_METHODS: dict[str, type[FedMethod]] = {cls.__name__.lower(): cls for cls in (FedAvg, FedProx, Scaffold)}


def method_named(name: str) -> type[FedMethod]:
    """The class of a method by its name on the command line, e.g. "fedprox".

    Raises:
        ConfigurationError: there is no such method.
    """
    try:
        return _METHODS[name.lower()]
    except KeyError:
        raise ConfigurationError(
            f"`method` must be the name of a method, but is {name!r}. {nearest(name, _METHODS)}"
        ) from None


def method_names() -> list[str]:
    """The names that `method_named` knows."""
    return sorted(_METHODS)
