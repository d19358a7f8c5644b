"""FedLESAM-S and FedLESAM-D."""

from __future__ import annotations

from fedlightning.methods.feddyn import FedDyn
from fedlightning.methods.fedlesam import FedLESAM
from fedlightning.methods.scaffold import Scaffold


class FedLESAMScaffold(FedLESAM, Scaffold):
    """FedLESAM-S: the perturbation of `FedLESAM` on `Scaffold`. Travels: 2 models down, 2 up. Remembered: as both."""


class FedLESAMDyn(FedLESAM, FedDyn):
    """FedLESAM-D: the perturbation of `FedLESAM` on `FedDyn`. Travels: 1 model down, 1 up. Remembered: as both."""
