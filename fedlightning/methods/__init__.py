"""The methods, one file a paper."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedlightning._checked import checked
from fedlightning.errors import ConfigurationError, nearest, no_such_method
from fedlightning.method import FedMethod
from fedlightning.methods.adaptive_fedprox import AdaptiveFedProx
from fedlightning.methods.deltasgd import DeltaSGD
from fedlightning.methods.dualprox import DualProx
from fedlightning.methods.fedadagrad import FedAdagrad
from fedlightning.methods.fedadam import FedAdam
from fedlightning.methods.fedams import FedAMS
from fedlightning.methods.fedavg import FedAvg
from fedlightning.methods.fedavgm import FedAvgM
from fedlightning.methods.fedcm import FedCM
from fedlightning.methods.feddane import FedDane
from fedlightning.methods.feddyn import FedDyn
from fedlightning.methods.fedexp import FedExP
from fedlightning.methods.fedgm import FedGM
from fedlightning.methods.fedinit import FedInit
from fedlightning.methods.fedlesam import FedLESAM
from fedlightning.methods.fedlesam_variants import FedLESAMDyn, FedLESAMScaffold
from fedlightning.methods.fedmpx import MPX, FedMPX
from fedlightning.methods.fednar import FedNAR
from fedlightning.methods.fednova import FedNova
from fedlightning.methods.fedprox import FedProx
from fedlightning.methods.fedred import FedRed
from fedlightning.methods.fedsam import FedSAM
from fedlightning.methods.fedyogi import FedYogi
from fedlightning.methods.scaffnew import Scaffnew
from fedlightning.methods.scaffold import Scaffold

__all__ = [
    "MPX", "AdaptiveFedProx", "DeltaSGD", "DualProx", "FedAMS", "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedCM", "FedDane",
    "FedDyn", "FedExP", "FedGM", "FedInit", "FedLESAM", "FedLESAMDyn", "FedLESAMScaffold", "FedMPX", "FedNAR", "FedNova",
    "FedProx", "FedRed", "FedSAM", "FedYogi", "Scaffnew", "Scaffold", "method_named", "method_names",
]  # fmt: skip

_ALL: tuple[type[FedMethod], ...] = (
    AdaptiveFedProx, DeltaSGD, DualProx, FedAdagrad, FedAdam, FedAMS, FedAvg, FedAvgM, FedCM, FedDane, FedDyn, FedExP, FedGM,
    FedInit, FedLESAM, FedLESAMDyn, FedLESAMScaffold, FedMPX, FedNAR, FedNova, FedProx, FedRed, FedSAM, FedYogi, Scaffnew,
    Scaffold,
)  # fmt: skip
_METHODS = {cls.__name__.lower(): cls for cls in _ALL}


@checked()
def method_named(name: str) -> type[FedMethod]:
    """The class of a method by its name on the command line.

    Args:
        name: e.g. "fedprox", or "package.module:Class" for one of your own; its module may be a file in the working directory.

    Raises:
        ConfigurationError: there is no such method, or its module cannot be imported.
    """
    if ":" in name:
        return _imported(name)
    if name.lower() not in _METHODS:
        raise no_such_method(name, _METHODS)
    return _METHODS[name.lower()]


def _imported(name: str) -> type[FedMethod]:
    """A method of one's own."""
    where, _, wanted = name.partition(":")
    if not all(part.isidentifier() for part in where.split(".")) or where.endswith(".py"):
        raise ConfigurationError(
            f"`method` must be like package.module:Class, but is {name!r}; for a file my.py in the working directory write "
            "`my:Class`."
        )
    try:
        with working_directory():
            module = importlib.import_module(where)
    except Exception as error:
        raise ConfigurationError(
            f"`method` is {name!r}, but the module {where} cannot be imported: {type(error).__name__}: "
            f"{' '.join(str(error).split())}; name one that is installed, or that lies in the working directory."
        ) from error
    found = getattr(module, wanted, None)
    if not (isinstance(found, type) and issubclass(found, FedMethod)):
        there = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, FedMethod)]
        raise ConfigurationError(
            f"`method` must name a subclass of FedMethod in {where}, but {wanted!r} is none. {nearest(wanted, there)}"
        )
    return found


@contextmanager
def working_directory() -> Iterator[None]:
    """Modules in the working directory can be imported inside; a recipe's own folder comes after it."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def method_names() -> list[str]:
    """The names that `method_named` knows."""
    return sorted(_METHODS)
