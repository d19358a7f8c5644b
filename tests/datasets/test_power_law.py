import os
import random
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from fedlightning import Batching
from fedlightning.data import Partition
from fedlightning.data.statistics import Statistics, statistics_table
from fedlightning.datasets._fedprox import split_devices
from fedlightning.datasets.power_law import PowerLawMNIST, deal_power_law
from fedlightning.errors import ConfigurationError

ROOT = Path(os.environ.get("FEDLIGHTNING_DATA", "data"))
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLASS_SIZES = [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]

# First ten sizes; total, largest, smallest, for training and for testing; standard deviation.
ORACLE = {
    0: ([153, 13, 25, 28, 91, 20, 37, 14, 23, 47], (69046, 1897, 10, 61673, 7373), 141.9044674561023),
    1: ([160, 12, 20, 35, 37, 24, 65, 36, 124, 11], (69070, 4304, 10, 61690, 7380), 213.13017407209148),
    2: ([11, 133, 14, 29, 19, 27, 10, 11, 28, 228], (69058, 3889, 10, 61664, 7394), 208.62574298489628),
}


def agrees(seed, train, test):
    first, numbers, deviation = ORACLE[seed]
    sizes = np.array(train) + np.array(test)
    assert sizes[:10].tolist() == first
    assert (sizes.sum(), sizes.max(), sizes.min(), sum(train), sum(test)) == numbers
    assert (len(sizes), sizes.std()) == (1000, pytest.approx(deviation, rel=1e-12))


# -- the rule -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", ORACLE)
def test_the_sizes_are_the_oracles(seed):
    dealt = deal_power_law(CLASS_SIZES, seed)
    positions = [np.zeros(sum(count for _, _, count in taken)) for taken in dealt]
    train, test = split_devices(positions, seed)
    agrees(seed, train.sizes.tolist(), test.sizes.tolist())


def test_each_device_has_two_classes_and_each_example_one_device():
    dealt = deal_power_law(CLASS_SIZES, 1)
    ends = [0] * 10
    for j in (0, 1):
        assert all(dealt[u][j] == ((u + j) % 10, dealt[u][j][1], 5) for u in range(1000))
    assert [dealt[u][0][1] for u in (0, 10, 990)] == [0, 10, 990]  # before device 10, device 9 took five of class 0
    assert dealt[9][1] == (0, 5, 5)
    shares = [share for phase in (slice(2), slice(2, 4)) for taken in dealt for share in taken[phase]]
    for label, first, count in shares:
        assert first == ends[label]
        ends[label] += count
    assert all(1000 < end < size for end, size in zip(ends, CLASS_SIZES, strict=True))
    for u, taken in enumerate(dealt):
        assert {label for label, _, _ in taken} == {u % 10, (u + 1) % 10}


def test_a_share_that_reaches_the_end_of_the_class_is_not_taken(monkeypatch):
    class OneShare:
        def __init__(self, seed):
            assert seed == 7

        def lognormal(self, mean, sigma, shape):
            assert (mean, sigma, shape) == (0, 2.0, (10, 100, 2))
            drawn = np.full(shape, 1e-30)
            drawn[:, 3, 0] = 1.0  # devices 30…39 are to have all that is left of their first class
            drawn[4, 3, 0] = drawn[4, 5, 0] = 1.0  # but half of it devices 34 and 54
            return drawn

    monkeypatch.setattr(np.random, "RandomState", OneShare)
    dealt = deal_power_law([1100] * 10, 7)
    sizes = [sum(count for _, _, count in taken) for taken in dealt]
    assert {u: size for u, size in enumerate(sizes) if size != 10} == {34: 60}


@pytest.mark.parametrize("sizes", [[1000] * 9, [999, *[2000] * 9]])
def test_too_few_examples_are_refused(sizes):
    with pytest.raises(ConfigurationError, match="10 classes of at least 1,000 examples, but they have"):
        deal_power_law(sizes)


def test_devices_are_shuffled_as_pairs_are():
    positions = [np.arange(13) + 100, np.arange(20)]
    train, test = split_devices(positions, 4)
    shuffler = random.Random(4)
    for k, (whole, cut) in enumerate(((list(range(100, 113)), 11), (list(range(20)), 18))):
        pairs = list(zip(whole, whole, strict=True))
        shuffler.shuffle(pairs)
        assert train.client(k).tolist() == [x for x, _ in pairs[:cut]]
        assert test.client(k).tolist() == [x for x, _ in pairs[cut:]]


# -- the module, on files of MNIST's form whose first three pixels are the row's number ---------------------------------
@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A folder with such files, the images [70000, 784] and the labels."""
    root = tmp_path_factory.mktemp("mnist")
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(10), CLASS_SIZES)).astype(np.uint8)
    pixels = np.zeros((70_000, 784), dtype=np.uint8)
    pixels[:, 3:40] = rng.integers(0, 256, (70_000, 37))
    pixels[5, 50] = 255
    pixels[:, 60] = 200
    rows = np.arange(70_000)
    pixels[:, 0], pixels[:, 1], pixels[:, 2] = rows % 256, rows // 256 % 256, rows // 65536
    (root / "MNIST/raw").mkdir(parents=True)
    for names, part in ((FILES[:2], slice(60_000)), (FILES[2:], slice(60_000, None))):
        count = np.array([len(labels[part])], dtype=">i4").tobytes()
        side = np.array([28, 28], dtype=">i4").tobytes()
        (root / "MNIST/raw" / names[0]).write_bytes(b"\0\0\x08\x03" + count + side + pixels[part].tobytes())
        (root / "MNIST/raw" / names[1]).write_bytes(b"\0\0\x08\x01" + count + labels[part].tobytes())
    return root, pixels, labels


def test_the_module_deals_the_pooled_images_class_by_class(made_up):
    root, pixels, labels = made_up
    data = PowerLawMNIST(root=root, seed=0, download=False)
    data.setup()
    agrees(0, data.clients.sizes.tolist(), data.test_clients.sizes.tolist())
    dealt, shuffler = deal_power_law(CLASS_SIZES, 0), random.Random(0)
    members = [np.flatnonzero(labels == label) for label in range(10)]  # training rows come first
    for u in range(40):
        rows = [row for label, first, count in dealt[u] for row in members[label][first : first + count].tolist()]
        shuffler.shuffle(rows)
        found = []
        for examples, clients in ((data.train, data.clients), (data.test, data.test_clients)):
            owned = clients.client(u)
            inputs = examples.inputs[owned].to(torch.int64)
            numbers = (inputs[:, 0] + 256 * inputs[:, 1] + 65536 * inputs[:, 2]).tolist()
            assert examples.targets[owned].tolist() == labels[numbers].tolist()
            assert torch.equal(examples.inputs[owned], torch.from_numpy(pixels[numbers]))
            found += numbers
        assert found == rows
    assert data.train.inputs.dtype is torch.uint8
    assert data.train.targets.dtype is torch.int64
    assert len(data.train.inputs) == 61673


def test_each_pixel_is_standardised_over_all_images(made_up):
    root, pixels, _ = made_up
    data = PowerLawMNIST(root=root, seed=0, download=False)
    data.setup()
    whole = pixels.astype(np.float64)
    mean, scale = whole.mean(0), whole.std(0) + 0.001
    assert data.mean.dtype is data.scale.dtype is torch.float32
    np.testing.assert_allclose(data.mean.numpy(), mean, rtol=1e-7)
    np.testing.assert_allclose(data.scale.numpy(), scale, rtol=1e-7)
    rows = torch.from_numpy(pixels[:50])
    found = data.preprocess(rows)
    assert found.dtype is torch.float32
    np.testing.assert_allclose(found.numpy(), (whole[:50] - mean) / scale, rtol=2e-6, atol=2e-6)
    assert (found[:, 60] == 0).all()
    assert (found[:, 700] == 0).all()
    assert float(found[5, 50]) > 200
    elsewhere = data.preprocess(rows.to("meta"))
    assert (elsewhere.device.type, elsewhere.shape) == ("meta", (50, 784))
    assert torch.equal(data.preprocess(rows), found)
    inputs, targets = data.batch(data.test, torch.arange(3))
    assert torch.equal(inputs, data.preprocess(data.test.inputs[:3]))
    assert torch.equal(targets, data.test.targets[:3])


def test_a_file_that_is_cut_short_is_named(made_up, tmp_path):
    root, _, _ = made_up
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for name in FILES:
        content = (root / "MNIST/raw" / name).read_bytes()
        (tmp_path / "MNIST/raw" / name).write_bytes(content[:-1] if name == FILES[2] else content)
    for download in (False, True):
        with pytest.raises(ConfigurationError, match=r"7,840,016 bytes, but .*t10k-images.* has 7,840,015: it is cut"):
            PowerLawMNIST(root=tmp_path, download=download).setup()


def test_files_of_another_kind_are_named(tmp_path):
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for name, size in zip(FILES, (47_040_016, 60_008, 7_840_016, 10_008), strict=True):
        with (tmp_path / "MNIST/raw" / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(ConfigurationError, match=r"must lie in .*raw.*are damaged, and `download` is off"):
        PowerLawMNIST(root=tmp_path, download=False).setup()


def test_absent_files_are_named(tmp_path, monkeypatch):
    from torchvision import datasets

    with pytest.raises(ConfigurationError, match=r"training images of MNIST must lie in .*train-images.*--data-dir"):
        PowerLawMNIST(root=tmp_path, download=False).setup()

    def no_network(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(datasets.MNIST, "download", no_network)
    with pytest.raises(ConfigurationError) as error:
        PowerLawMNIST(root=tmp_path).setup()
    for part in (str(tmp_path / "MNIST/raw"), *FILES, "the download failed", "not known", "--data-dir"):
        assert part in str(error.value)


@pytest.mark.parametrize("seed", ORACLE)
def test_real_data(seed):
    if not (ROOT / "MNIST/raw" / FILES[0]).exists():
        pytest.skip(f"MNIST is not in {ROOT} (FEDLIGHTNING_DATA)")
    data = PowerLawMNIST(root=ROOT, seed=seed, download=False)
    data.setup()
    agrees(seed, data.clients.sizes.tolist(), data.test_clients.sizes.tolist())
    assert float(data.mean.mean()) == pytest.approx(33.386, abs=1e-3)  # of the 70,000; of the training file 33.318
    found = data.preprocess(data.train.inputs)
    assert float(found.mean()) == pytest.approx(0, abs=0.01)
    assert float(found.max()) > 100


def test_defaults_and_the_seed():
    data = PowerLawMNIST()
    assert (data.batching, data.name) == (Batching(10, epochs=20), "mnist_power_law")
    with pytest.raises(ConfigurationError, match="`seed` of PowerLawMNIST"):
        PowerLawMNIST(seed=-1)


# -- the table ----------------------------------------------------------------------------------------------------------
def partition(*sizes):
    return Partition.of(list(torch.arange(sum(sizes)).split(sizes)))


def test_statistics_count_training_and_testing():
    found = Statistics.of(partition(9, 18, 900), partition(1, 2, 100))
    sizes = np.array([10, 20, 1000])
    assert found == Statistics(3, 1030, pytest.approx(sizes.mean()), pytest.approx(sizes.std()))


def test_the_table_has_headings_and_a_row():
    table = statistics_table("A name", partition(9, 18, 900), partition(1, 2, 100))
    assert table.splitlines() == [
        "Dataset  Devices  Samples  Samples/device mean  stdev",
        "A name         3    1,030                343.3  464.4",
    ]
