"""An autoencoder of EMNIST (Cohen et al., 2017) over Dirichlet clients: digits and letters of 28 x 28 pixels, reconstructed.
The target of an image is the image itself; its label only says who owns it.

python recipes/emnist_autoencoder.py --method fedprox --mu 0.01

FederatedX (Lei et al., 2025) runs it over a thousand clients:

python recipes/emnist_autoencoder.py --partition A0d05C1000 --batch-size 512 --local-epochs 10
python recipes/emnist_autoencoder.py --preset A0d05C1000
python recipes/emnist_autoencoder.py --model autoencoder
"""

from typing import Literal

from fedlightning import Reconstruction
from fedlightning.cli.recipe import ImageFlags, Run, run_recipe
from fedlightning.datasets import EMNIST
from fedlightning.models import build_model

Autoencoder = Literal["cnnautoencoder", "autoencoder"]


def main(run: Run, images: ImageFlags, *, model: Autoencoder = "cnnautoencoder", augment: bool = False) -> None:
    """An autoencoder over clients whose classes follow a Dirichlet distribution.

    Args:
        model: cnnautoencoder of two convolutions (38 thousand weights), or autoencoder of linear layers (1.1 million).
        augment: random crops by up to 2 pixels.
    """
    clients = images.load(EMNIST, run, augment=augment, target="image")
    network = build_model(model, clients.shape, clients.classes, run.seed, **images.details)
    run.fit(Reconstruction(network), clients, monitor="loss", mode="min")


if __name__ == "__main__":
    run_recipe(main, rounds=200, batch_size=50, evaluate_every=5, lr=0.1, clip_norm=10.0)
