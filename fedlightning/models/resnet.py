"""Residual networks (He et al., CVPR 2016) for small images: torchvision's, with a 3×3 stem and no max-pooling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fedlightning._checked import COUNT, checked
from fedlightning.errors import ConfigurationError
from fedlightning.models.size import require_size

Norm = Literal["group", "batch"]


@checked(classes=COUNT, channels=COUNT, groups=COUNT)
def resnet6(classes: int, channels: int = 3, norm: Norm = "group", groups: int = 2) -> nn.Module:
    """One block in each stage: 4,928,766 parameters for 1 channel and 62 classes; arguments as `resnet18`'s."""
    return _resnet(BasicBlock, (1, 1, 1, 1), classes, channels, norm, groups)


@checked(classes=COUNT, channels=COUNT, groups=COUNT)
def resnet18(classes: int, channels: int = 3, norm: Norm = "group", groups: int = 2) -> nn.Module:
    """ResNet-18: 11,220,132 parameters for 3 channels and 100 classes.

    Args:
        classes: number of outputs.
        channels: channels of an image, which may have any size.
        norm: "group" keeps no running statistics, so clients can be trained side by side; "batch" keeps them.
        groups: groups of each group norm; must divide 64. FederatedX takes 2 for CIFAR-100 and 32 for the others.

    Raises:
        ConfigurationError: `norm` is unknown, or `groups` does not divide 64.
    """
    return _resnet(BasicBlock, (2, 2, 2, 2), classes, channels, norm, groups)


@checked(classes=COUNT, channels=COUNT, groups=COUNT)
def resnet34(classes: int, channels: int = 3, norm: Norm = "group", groups: int = 2) -> nn.Module:
    """ResNet-34: 21,328,292 parameters for 3 channels and 100 classes; arguments as `resnet18`'s."""
    return _resnet(BasicBlock, (3, 4, 6, 3), classes, channels, norm, groups)


@checked(classes=COUNT, channels=COUNT, groups=COUNT)
def resnet50(classes: int, channels: int = 3, norm: Norm = "group", groups: int = 2) -> nn.Module:
    """ResNet-50: 23,705,252 parameters for 3 channels and 100 classes; arguments as `resnet18`'s."""
    return _resnet(Bottleneck, (3, 4, 6, 3), classes, channels, norm, groups)


@checked(classes=COUNT, channels=COUNT, groups=COUNT)
def resnet101(classes: int, channels: int = 3, norm: Norm = "group", groups: int = 2) -> nn.Module:
    """ResNet-101: 42,697,380 parameters for 3 channels and 100 classes; arguments as `resnet18`'s."""
    return _resnet(Bottleneck, (3, 4, 23, 3), classes, channels, norm, groups)


def _resnet(
    block: type[Any], layers: tuple[int, ...], classes: int, channels: int, norm: Norm, groups: int
) -> nn.Module:
    require_size("A ResNet", 576 * channels + 512 * block.expansion * classes, classes=classes, channels=channels)
    model: nn.Module = ResNet(block, list(layers), num_classes=classes, norm_layer=_norm_layer(norm, groups))
    stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1, model.maxpool = stem, nn.Identity()
    return model


def _norm_layer(norm: Norm, groups: int) -> Callable[..., nn.Module]:
    if 64 % groups:
        raise ConfigurationError(f"`groups` of a ResNet must divide its 64 channels, but is {groups}; use 2 or 32.")
    return nn.BatchNorm2d if norm == "batch" else partial(nn.GroupNorm, groups)
