"""Every preset runs a round, on made-up images, as a user would start it."""

from functools import partial
from pathlib import Path

import pytest
from recipe_runner import RECIPES, run

from fedlightning import Callback, datasets
from fedlightning.cli.configs import ConfigFile
from fedlightning.data import parse_partition
from fedlightning.datasets import FakeImages

FILES = sorted((RECIPES / "configs").glob("*/*.yaml"))
SMALL = "--data fake --rounds 1 --local-steps 1 --batch-size 1 --clients-per-round 1".split()


def case(path: Path) -> object:
    """A ViT of 86 million parameters takes half a minute."""
    heavy = [pytest.mark.slow] if ConfigFile.read(path).values.get("model") == "vitbase" else []
    return pytest.param(path, id=f"{path.parent.name}/{path.stem}", marks=heavy)


@pytest.mark.parametrize("path", [case(path) for path in FILES])
def test_a_round_of_every_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model, its method fields and its partition, on this machine's slots."""
    monkeypatch.chdir(tmp_path)
    file = ConfigFile.read(path)
    images = 3 * parse_partition(file.values.get("partition", path.stem)).num_clients  # type: ignore[attr-defined]
    monkeypatch.setattr(datasets, "FakeImages", partial(FakeImages, num_train=max(images, 200), num_test=4))
    monkeypatch.setattr("fedlightning.cli.run.ModelCheckpoint", lambda **_: Callback())  # up to a gigabyte for a ViT
    methods = file.values.get("methods") or {}
    name = next((name for name in ("fedprox", "fedlesam", "fedadam") if name in methods), "fedavg")
    run(path.parent.name, "--preset", path.stem, "--method", name, *SMALL)
    (table,) = tmp_path.rglob("metrics.csv")
    assert len(table.read_text().splitlines()) >= 3
