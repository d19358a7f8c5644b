"""Fashion-MNIST (Xiao et al., 2017) over Dirichlet clients: 70,000 grey images of 28 x 28 pixels, ten kinds of clothes.

python recipes/fashion_mnist.py --method fedprox --mu 0.01

A run of FederatedX (Lei et al., 2025):

python recipes/fashion_mnist.py --method fedlesam --rho 0.01 --batch-size 512 --local-epochs 5 --lr 0.01
"""

from fedlightning import Classification
from fedlightning.cli.recipe import ImageFlags, Run, run_recipe
from fedlightning.datasets import FashionMNIST
from fedlightning.models import build_model


def main(run: Run, images: ImageFlags, *, model: str = "cnn", augment: bool = False) -> None:
    """Fashion-MNIST over clients whose classes follow a Dirichlet distribution.

    Args:
        model: lenet, cnn, fedavg-cnn, mlp, logistic, resnet18, resnet34, resnet50, resnet101, vitsmall, vitbase, …
        augment: random crops by up to 2 pixels, and flips.
    """
    clients = images.load(FashionMNIST, run, augment=augment)
    groups = 32 if images.groups is None and model.startswith("resnet") else images.groups
    network = build_model(model, clients.shape, clients.classes, run.seed, groups=groups, positions=images.positions)
    run.fit(Classification(network, clients.classes), clients)


if __name__ == "__main__":
    run_recipe(main, rounds=200, batch_size=50, evaluate_every=5, lr=0.1, clip_norm=10.0)
