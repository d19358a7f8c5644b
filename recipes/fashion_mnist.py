"""Fashion-MNIST (Xiao et al., 2017) over Dirichlet clients: 70,000 grey images of 28 x 28 pixels, ten kinds of clothes.

python recipes/fashion_mnist.py --method fedprox --mu 0.01

The test set ranks the checkpoints of a run. Where it must not, set a tenth of each client's images aside for that:

python recipes/fashion_mnist.py --validation 0.1

Thirteen methods, compared on it with LeNet, lie in results/fashion_mnist_compare. A run of FederatedX (Lei et al., 2025), and
one of its settings, which lie in configs/fashion_mnist:

python recipes/fashion_mnist.py --method fedlesam --rho 0.01 --batch-size 512 --local-epochs 5 --lr 0.01
python recipes/fashion_mnist.py --preset A0d01C300 --method dualprox
"""

from fedlightning import Classification
from fedlightning.cli.recipe import ImageFlags, Run, run_recipe
from fedlightning.datasets import FashionMNIST
from fedlightning.models import build_model


def main(run: Run, images: ImageFlags, *, model: str = "cnn", augment: bool = False) -> None:
    """Fashion-MNIST over clients whose classes follow a Dirichlet distribution.

    Args:
        model: logistic (8 thousand weights), lenet (44 thousand), mlp (200 thousand), cnn (420 thousand), fedavg-cnn (1.7
            million), resnet6 (5 million), resnet18 (11 million), resnet34, resnet50, resnet101 or vitsmall.
        augment: random crops by up to 2 pixels, and flips.
    """
    clients = images.load(FashionMNIST, run, augment=augment)
    groups = images.groups
    if groups is None and model.startswith("resnet"):  # FederatedX's
        groups = 32
    network = build_model(model, clients.shape, clients.classes, run.seed, groups=groups, positions=images.positions)
    run.fit(Classification(network, clients.classes), clients)


if __name__ == "__main__":
    run_recipe(main, rounds=200, batch_size=50, evaluate_every=5, lr=0.1, clip_norm=10.0)
