"""Small convolutional networks for square images."""

from __future__ import annotations

from torch import Tensor, nn

from fedlightning._checked import COUNT, checked
from fedlightning.errors import ConfigurationError
from fedlightning.models.size import require_size


class _Convolutional(nn.Module):
    """Convolutions and a head of linear layers on the flattened maps."""

    def __init__(self, features: nn.Sequential, head: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, size, size]."""
        logits: Tensor = self.head(self.features(inputs).flatten(1))
        return logits


class CNN(_Convolutional):
    """Two 3×3 convolutions with group norm, a good default: 421,834 parameters for 28×28×1 and 10 classes.

    Args:
        channels: channels of an image.
        classes: number of outputs.
        size: pixels along each side, at least 4.
        groups: groups of the first norm, a divisor of 32; the second has twice as many. FederatedX takes 8 for
            Fashion-MNIST and 16 for EMNIST.

    Raises:
        ConfigurationError: `size` is too small, or `groups` does not divide 32.
    """

    @checked(channels=COUNT, classes=COUNT, size="[4, inf)")
    def __init__(self, channels: int, classes: int, size: int = 28, groups: int = 8) -> None:
        parameters = channels * 32 * 9 + 64 * (size // 4) ** 2 * 128 + 128 * classes
        require_size("CNN", parameters, channels=channels, classes=classes, size=size)
        if groups < 1 or 32 % groups:
            raise ConfigurationError(f"`groups` of CNN must divide its 32 channels, but is {groups}; use 8 or 16.")
        features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.GroupNorm(groups, 32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.GroupNorm(2 * groups, 64),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        super().__init__(
            features, nn.Sequential(nn.Linear(64 * (size // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, classes))
        )


class FedAvgCNN(_Convolutional):
    """The CNN of McMahan et al., AISTATS 2017: 1,663,370 parameters for 28×28×1 and 10 classes.

    Args:
        channels: channels of an image.
        classes: number of outputs.
        size: pixels along each side, at least 4.
    """

    @checked(channels=COUNT, classes=COUNT, size="[4, inf)")
    def __init__(self, channels: int, classes: int, size: int = 28) -> None:
        parameters = channels * 32 * 25 + 64 * (size // 4) ** 2 * 512 + 512 * classes
        require_size("FedAvgCNN", parameters, channels=channels, classes=classes, size=size)
        features = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        super().__init__(
            features, nn.Sequential(nn.Linear(64 * (size // 4) ** 2, 512), nn.ReLU(), nn.Linear(512, classes))
        )


class LeNet(_Convolutional):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max-pooling: 62,006 parameters for 32×32×3 and 10 classes.

    Args:
        channels: channels of an image.
        classes: number of outputs.
        size: pixels along each side, at least 16.
    """

    @checked(channels=COUNT, classes=COUNT, size="[16, inf)")
    def __init__(self, channels: int, classes: int, size: int = 32) -> None:
        side = ((size - 4) // 2 - 4) // 2
        parameters = channels * 6 * 25 + 16 * side**2 * 120 + 84 * classes
        require_size("LeNet", parameters, channels=channels, classes=classes, size=size)
        features = nn.Sequential(
            nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        head = nn.Sequential(
            nn.Linear(16 * side**2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)
        )
        super().__init__(features, head)
