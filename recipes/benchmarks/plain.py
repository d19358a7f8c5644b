"""The floor: what one would write by hand, a module, `torch.optim.SGD` and a weighted mean."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.benchmarks.meter import Meter, measure
from recipes.benchmarks.networks import mean_loss, network
from recipes.benchmarks.workloads import Workload

Order = Callable[[int, int, int, int], Tensor]
"""The order of a client's examples, from round, client, epoch and how many they are."""


def at_random(round: int, client: int, epoch: int, count: int) -> Tensor:
    """A new order every time."""
    return torch.randperm(count)


class Transformed(Dataset[tuple[Tensor, int]]):
    """A client's images, each cropped, mirrored and standardised by itself, as torchvision's data sets do it.

    Args:
        pixels: uint8 images [n, C, H, W].
        targets: their classes [n].
    """

    def __init__(self, pixels: Tensor, targets: Tensor) -> None:
        from torchvision import transforms

        channels = pixels.shape[1]
        steps = [
            transforms.ToPILImage(), transforms.RandomCrop(pixels.shape[-1], padding=4), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize((0.5,) * channels, (0.25,) * channels),
        ]  # fmt: skip
        self.pixels, self.targets, self.transform = pixels, targets.tolist(), transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), self.targets[index]


class Loop:
    """Clients one after another on one module.

    Args:
        work: what is to be done.
        order: of a client's examples.

    Attributes:
        model: the module; after a round it holds the global model.
        data: the examples.
    """

    def __init__(self, work: Workload, order: Order = at_random) -> None:
        self.work, self._order, self.data, self.model = work, order, work.data(), network(work)
        clients = (self.data.client(number) for number in range(work.clients))
        self._clients = [(torch.from_numpy(inputs), torch.from_numpy(targets)) for inputs, targets in clients]
        if work.pixels:
            sets = [Transformed(*client) for client in self._clients]
            self._loaders = [DataLoader(images, work.batch, shuffle=True) for images in sets]

    def run_round(self, t: int) -> int:
        """Train the clients of a round and take the mean of their models; the local steps that they took."""
        steps, participants = 0, self.work.participants_of(t)
        parameters: list[Tensor] = list(self.model.parameters())
        with torch.no_grad():
            start = [parameter.clone() for parameter in parameters]
            mean = [torch.zeros_like(parameter) for parameter in parameters]
        examples = sum(len(self._clients[client][1]) for client in participants)
        for client in participants:
            with torch.no_grad():
                torch._foreach_copy_(parameters, start)
            steps += self._train(t, client)
            with torch.no_grad():
                torch._foreach_add_(mean, parameters, alpha=len(self._clients[client][1]) / examples)
        with torch.no_grad():
            torch._foreach_copy_(parameters, mean)
        return steps

    def _train(self, t: int, client: int) -> int:
        optimizer, steps = torch.optim.SGD(self.model.parameters(), lr=self.work.lr), 0
        for inputs, targets in self._batches(t, client):
            optimizer.zero_grad()
            F.cross_entropy(self.model(inputs), targets).backward()
            optimizer.step()
            steps += 1
        return steps

    def _batches(self, t: int, client: int) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = self._clients[client]
        for epoch in range(self.work.epochs):
            if self.work.pixels:
                yield from self._loaders[client]
                continue
            for index in self._order(t, client, epoch, len(targets)).split(self.work.batch):
                yield inputs[index], targets[index]


def train(work: Workload, mode: str, meter: Meter) -> float:
    """The loop; there is one mode."""
    torch.set_num_threads(1)
    loop = Loop(work)
    meter.start()
    for t in range(work.rounds):
        meter.mark(loop.run_round(t))
    return mean_loss(loop.model, loop.data)


if __name__ == "__main__":
    measure(train)
