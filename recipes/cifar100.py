"""CIFAR-100 (Krizhevsky, 2009) over Dirichlet clients: 60,000 colour images of 32 x 32 pixels in 100 classes.

python recipes/cifar100.py --method fedprox --mu 0.01
python recipes/cifar100.py --validation 0.1  # ranks checkpoints by a tenth of each client's images

FederatedX (Lei et al., 2025) trains larger models on windows of 24 pixels; its settings lie in configs/cifar100:

python recipes/cifar100.py --model resnet18 --crop 24 --batch-size 64 --local-steps 10 --lr 0.1
python recipes/cifar100.py --preset A0d01C1000 --method scaffold

For other images, copy this file and put your subclass of `ImageData` in the place of CIFAR100; for another model, put
any `nn.Module` in the place of `build_model(…)`. Nothing else need change.
"""

from fedlightning import Classification
from fedlightning.cli.recipe import ImageFlags, Run, run_recipe
from fedlightning.data import TFFCifar
from fedlightning.datasets import CIFAR100
from fedlightning.models import build_model


def main(run: Run, images: ImageFlags, *, model: str = "lenet", augment: bool = True, crop: int | None = None) -> None:
    """CIFAR-100 over clients whose classes follow a Dirichlet distribution.

    Args:
        model: logistic, lenet (70 thousand weights), cnn (560 thousand), mlp, fedavg-cnn (2.2 million), resnet18 (11 million),
            resnet34, resnet50, resnet101, vitsmall (11 million) or vitbase (86 million).
        augment: random crops and flips.
        crop: train on turned windows of this size and test on the centre, each standardised by itself; 24 in FederatedX.
    """
    transform = None if crop is None else TFFCifar(crop)
    clients = images.load(CIFAR100, run, augment=augment, transform=transform)
    network = build_model(model, clients.shape, clients.classes, run.seed, **images.details)
    run.fit(Classification(network, clients.classes), clients)


if __name__ == "__main__":
    run_recipe(main, rounds=200, batch_size=50, evaluate_every=5, lr=0.1, clip_norm=10.0)
