"""The methods, one file a paper."""

from fedlightning.errors import ConfigurationError, nearest
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
