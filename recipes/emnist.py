"""EMNIST by class (Cohen et al., 2017) over Dirichlet clients: 814,255 digits and letters of 28 x 28 pixels in 62 classes.
Classes 0 to 9 are the digits, 10 to 35 the capital letters, 36 to 61 the small ones.

python recipes/emnist.py --method fedprox --mu 0.01

Its archive, half a gigabyte, is downloaded to `--data-dir`; a first look at the recipe takes made-up images:

python recipes/emnist.py --data fake --rounds 5

FederatedX (Lei et al., 2025) divides it among up to ten thousand clients, and has 16 groups of channels in the first group
norm of its small network, 32 in each of its residual ones. Its settings lie in configs/emnist:

python recipes/emnist.py --partition A0d10C3000 --clients-per-round 0.01 --batch-size 128 --local-epochs 5 --lr 0.001
python recipes/emnist.py --preset A0d30C3400 --method fedadam
"""

from fedlightning import Classification
from fedlightning.cli.recipe import ImageFlags, Run, run_recipe
from fedlightning.datasets import EMNIST
from fedlightning.models import build_model

GROUPS = {"cnn": 16, "resnet6": 32, "resnet18": 32, "resnet34": 32, "resnet50": 32, "resnet101": 32}


def main(run: Run, images: ImageFlags, *, model: str = "cnn", augment: bool = False) -> None:
    """EMNIST over clients whose classes follow a Dirichlet distribution.

    Args:
        model: logistic (49 thousand weights), lenet, fullconnect (120 thousand), mlp, cnn (430 thousand), logical (850 thousand),
            fedavg-cnn (1.7 million), resnet6 (5 million), resnet18 (11 million), resnet34, resnet50 or vitsmall.
        augment: random crops by up to 2 pixels.
    """
    clients = images.load(EMNIST, run, augment=augment)
    groups = GROUPS.get(model) if images.groups is None else images.groups
    network = build_model(model, clients.shape, clients.classes, run.seed, groups=groups, positions=images.positions)
    run.fit(Classification(network, clients.classes), clients)


if __name__ == "__main__":
    run_recipe(main, rounds=200, batch_size=50, evaluate_every=5, lr=0.1, clip_norm=10.0)
