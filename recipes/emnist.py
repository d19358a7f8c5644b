"""EMNIST by class (Cohen et al., 2017) over Dirichlet clients: 814,255 digits and letters of 28 x 28 pixels in 62 classes.

python recipes/emnist.py --method fedprox --mu 0.01

A run of FederatedX (Lei et al., 2025):

python recipes/emnist.py --partition A0d10C3000 --clients-per-round 0.01 --batch-size 128 --local-epochs 5 --lr 0.001
"""

from fedlightning import Classification
from fedlightning.cli.recipe import ImageFlags, Run, run_recipe
from fedlightning.datasets import EMNIST
from fedlightning.models import build_model


def main(run: Run, images: ImageFlags, *, model: str = "cnn", augment: bool = False) -> None:
    """EMNIST over clients whose classes follow a Dirichlet distribution.

    Args:
        model: lenet, cnn, fedavg-cnn, mlp, fullconnect, logical, logistic, resnet6, resnet18, resnet34, resnet50, vitsmall, …
        augment: random crops by up to 2 pixels.
    """
    clients = images.load(EMNIST, run, augment=augment)
    usual = 16 if model == "cnn" else 32 if model.startswith("resnet") else None
    groups = usual if images.groups is None else images.groups
    network = build_model(model, clients.shape, clients.classes, run.seed, groups=groups, positions=images.positions)
    run.fit(Classification(network, clients.classes), clients)


if __name__ == "__main__":
    run_recipe(main, rounds=200, batch_size=50, evaluate_every=5, lr=0.1, clip_norm=10.0)
