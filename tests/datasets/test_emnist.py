"""EMNIST and CIFAR-10 from small files in their original formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from emnist_files import letters, write_idx

from fedlightning.datasets import CIFAR10, EMNIST
from fedlightning.errors import ConfigurationError

pytestmark = pytest.mark.quick


def test_images_stand_upright_and_keep_their_labels(tmp_path):
    upright = letters(tmp_path)
    data = EMNIST("IIDC4", root=tmp_path, download=False)
    data.setup()
    assert np.array_equal(data.train.inputs[:, 0].numpy(), upright["train"])
    assert np.array_equal(data.test.inputs[:, 0].numpy(), upright["test"])
    assert data.train.inputs.is_contiguous()
    assert data.train.targets.tolist() == [i % 62 for i in range(124)]
    assert (data.classes, data.shape, data.name) == (62, (1, 28, 28), "IIDC4")


def test_pixels_are_divided_by_255_once(tmp_path):
    upright = letters(tmp_path)
    data = EMNIST("IIDC4", root=tmp_path, download=False)
    data.setup()
    inputs, targets = data.batch(data.train, torch.arange(124))
    np.testing.assert_allclose(inputs[:, 0].numpy(), upright["train"] / 255, atol=1e-6)
    assert (float(inputs.min()), float(inputs.max())) == (0.0, pytest.approx(1.0))
    assert targets.dtype == torch.int64


def test_partitions_are_by_class(tmp_path):
    letters(tmp_path)
    data = EMNIST("S1C62", root=tmp_path, download=False, seed=3)
    data.setup()
    counts = data.clients.histogram(data.train.targets, 62)
    assert (counts > 0).sum(1).tolist() == [1] * 62
    assert torch.equal(data.test_clients.histogram(data.test.targets, 62) > 0, counts > 0)


def test_the_image_can_be_the_target(tmp_path):
    letters(tmp_path)
    data = EMNIST("IIDC4", root=tmp_path, download=False, target="image")
    data.setup()
    inputs, targets = data.batch(data.test, torch.arange(5))
    assert torch.equal(inputs, targets)
    assert targets.shape == (5, 1, 28, 28)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        EMNIST("IIDC4", root=tmp_path, download=False).setup()
    for part in (str(tmp_path / "EMNIST/raw"), "emnist-byclass-test-labels-idx1-ubyte", "`download` is off"):
        assert part in str(caught.value)


def test_damaged_files_are_named(tmp_path):
    letters(tmp_path)
    path = tmp_path / "EMNIST/raw/emnist-byclass-train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match=r"EMNIST must lie in .* or is damaged"):
        EMNIST("IIDC4", root=tmp_path, download=False).setup()


def test_files_of_two_archives_are_refused(tmp_path):
    letters(tmp_path)
    write_idx(tmp_path / "EMNIST/raw/emnist-byclass-train-labels-idx1-ubyte", np.arange(100) % 62)
    with pytest.raises(ConfigurationError, match="124 of 28 × 28 and 100 labels"):
        EMNIST("IIDC4", root=tmp_path, download=False).setup()


# -- CIFAR-10's binary version ----------------------------------------------------------------------------------------
RECORDS = 20


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """Six files of 20 records: labels [6, 20], and images [6, 20, 3, 32, 32] by colour, row and column."""
    monkeypatch.setattr(CIFAR10, "records", RECORDS)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, (6, RECORDS), dtype=np.uint8)
    images = rng.integers(0, 256, (6, RECORDS, 3, 32, 32), dtype=np.uint8)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        records = [bytes([label]) + image.tobytes() for label, image in zip(labels[i], images[i], strict=True)]
        (folder / name).write_bytes(b"".join(records))
    return labels, images


def test_binary_batches_are_read_in_their_order(batches, tmp_path):
    labels, images = batches
    data = CIFAR10("IIDC4", root=tmp_path, download=False)
    data.setup()
    assert np.array_equal(data.train.inputs.numpy(), images[:5].reshape(-1, 3, 32, 32))
    assert data.train.targets.tolist() == labels[:5].flatten().tolist()
    assert np.array_equal(data.test.inputs.numpy(), images[5])
    assert data.test.targets.tolist() == labels[5].tolist()
    assert data.train.targets.dtype == torch.int64


def test_the_usual_size_is_that_of_the_published_files():
    assert CIFAR10.records * 3073 == 30_730_000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            "must have 61,460 bytes, but .*data_batch_3.bin has 61,459",
        ),
        (lambda path: path.unlink(), "data_batch_3.bin, but there is no such file; it comes from www.cs.toronto"),
        (lambda path: path.write_bytes(b"\x0a" + path.read_bytes()[1:]), "label in 0…9, but .* holds a label 10"),
    ],
)
def test_damaged_batches_are_named(batches, tmp_path, damage, message):
    damage(tmp_path / "cifar-10-batches-bin/data_batch_3.bin")
    with pytest.raises(ConfigurationError, match=message):
        CIFAR10("IIDC4", root=tmp_path, download=False).setup()


def test_pickles_are_preferred(batches, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ConfigurationError, match="cifar-10-batches-py, but is not there or is damaged"):
        CIFAR10("IIDC4", root=tmp_path, download=False).setup()
