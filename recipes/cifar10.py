"""CIFAR-10 (Krizhevsky, 2009) over Dirichlet clients: 60,000 colour images of 32 x 32 pixels, ten kinds of animals and vehicles.

python recipes/cifar10.py --method fedprox --mu 0.01

Its files are downloaded to `--data-dir`, unless they, or those of its binary version, are there; `--data fake` needs none.
FederatedX (Lei et al., 2025) trains larger models on windows of 24 pixels, in residual networks with 32 groups of channels
in each group norm; its settings lie in configs/cifar10:

python recipes/cifar10.py --model resnet18 --crop 24 --batch-size 512 --local-epochs 3 --clients-per-round 0.1
python recipes/cifar10.py --preset A0d10C1000 --method fedlesam
"""

from fedlightning import Classification
from fedlightning.cli.recipe import ImageFlags, Run, run_recipe
from fedlightning.data import TFFCifar
from fedlightning.datasets import CIFAR10
from fedlightning.models import build_model


def main(run: Run, images: ImageFlags, *, model: str = "lenet", augment: bool = True, crop: int | None = None) -> None:
    """CIFAR-10 over clients whose classes follow a Dirichlet distribution.

    Args:
        model: logistic, lenet (62 thousand weights), cnn (550 thousand), mlp, fedavg-cnn (2.2 million), resnet18 (11 million),
            resnet34 (21 million), resnet50, resnet101 (43 million), vitsmall (11 million) or vitbase (86 million).
        augment: random crops and flips.
        crop: train on turned windows of this size and test on the centre, each standardised by itself; 24 in FederatedX.
    """
    transform = None if crop is None else TFFCifar(crop)
    clients = images.load(CIFAR10, run, augment=augment, transform=transform)
    groups = 32 if images.groups is None and model.startswith("resnet") else images.groups
    network = build_model(model, clients.shape, clients.classes, run.seed, groups=groups, positions=images.positions)
    run.fit(Classification(network, clients.classes), clients)


if __name__ == "__main__":
    run_recipe(main, rounds=200, batch_size=50, evaluate_every=5, lr=0.1, clip_norm=10.0)
