"""The models in PyTorch, the same modules for every framework that takes them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.benchmarks.workloads import Data, Workload


class LeNet(nn.Module):
    """Two convolutions and three linear layers: 62,006 weights for 32x32x3 and 10 classes."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 5), nn.Conv2d(6, 16, 5)
        self.linear1 = nn.Linear(16 * (((size - 4) // 2 - 4) // 2) ** 2, 120)
        self.linear2, self.linear3 = nn.Linear(120, 84), nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        maps = F.max_pool2d(F.relu(self.conv1(images)), 2)
        maps = F.max_pool2d(F.relu(self.conv2(maps)), 2)
        hidden = F.relu(self.linear2(F.relu(self.linear1(maps.flatten(1)))))
        logits: Tensor = self.linear3(hidden)
        return logits


class Logistic(nn.Module):
    """One linear layer."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, classes] of inputs [B, features]."""
        logits: Tensor = self.linear(inputs)
        return logits


def network(work: Workload) -> nn.Module:
    """The workload's model, at its start."""
    if work.model == "lenet":
        model: nn.Module = LeNet(work.shape[0], work.shape[-1], work.classes)
    else:
        model = Logistic(math.prod(work.shape), work.classes)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in work.start().items()})
    return model


def standardised(pixels: Tensor) -> Tensor:
    """Floats from uint8 pixels, as training sees them but for the crop and the flip."""
    return pixels.to(torch.float32).mul_(4 / 255).sub_(2)


@torch.no_grad()
def mean_loss(model: nn.Module, data: Data) -> float:
    """The mean cross-entropy over all distinct examples, in pieces that take no memory."""
    total, count = 0.0, len(data.targets)
    for start in range(0, count, 500):
        inputs, targets = (torch.from_numpy(array[start : start + 500]) for array in (data.inputs, data.targets))
        inputs = standardised(inputs) if inputs.dtype == torch.uint8 else inputs
        total += float(F.cross_entropy(model(inputs), targets, reduction="sum"))
    return total / count
