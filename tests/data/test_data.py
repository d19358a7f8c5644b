import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlightning import Batching
from fedlightning.data import IID, Dirichlet, Examples, Partition, RandomCropFlip, TensorData
from fedlightning.data.module import Schedule
from fedlightning.datasets import CIFAR10, CIFAR100, MNIST, FakeImages, FashionMNIST
from fedlightning.errors import ConfigurationError
from fedlightning.randomness import stream

ROOT = Path(os.environ.get("FEDLIGHTNING_DATA", "data"))


def examples(count, classes=3):
    return Examples(torch.arange(count, dtype=torch.float32)[:, None], torch.arange(count) % classes)


def tensor_data(sizes, **batching):
    data = TensorData(
        examples(sum(sizes)), Partition.of(list(torch.arange(sum(sizes)).split(sizes))), batching=Batching(**batching)
    )
    data.setup()
    return data


# -- the schedule -------------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 23), min_size=1, max_size=4), st.one_of(st.none(), st.integers(1, 9)), st.integers(1, 4))
def test_each_epoch_visits_each_example_once(sizes, batch_size, epochs):
    data = tensor_data(sizes, size=batch_size, epochs=epochs)
    for client, size in enumerate(sizes):
        steps = data.num_steps(client)
        per_epoch = -(-size // (batch_size or size))
        assert steps == epochs * per_epoch
        index = data.schedule(client, 0, 0, steps).index
        assert index.shape == (steps, batch_size or size)
        for epoch in index.split(per_epoch):
            assert sorted(epoch[epoch >= 0].tolist()) == data.clients.client(client).tolist()
            assert (epoch[:-1] >= 0).all()


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(1, 23), st.integers(1, 9)), min_size=2, max_size=4),
    st.one_of(st.none(), st.integers(1, 9)),
)
def test_clients_together_have_the_batches_of_each(clients, batch_size):
    sizes, steps = zip(*clients, strict=True)
    data, chosen = tensor_data(list(sizes), size=batch_size), range(len(sizes))
    (together,) = data.schedules(chosen, 3, 7, steps)
    for c, index in zip(chosen, together.index.split(steps), strict=True):
        alone = data.schedule(c, 3, 7, steps[c]).index
        assert torch.equal(index[:, : alone.shape[1]], alone)
        assert (index[:, alone.shape[1] :] == -1).all()


def test_a_schedule_of_ones_own_is_asked_for_each_client():
    class Backwards(TensorData):
        def schedule(self, client, round, seed, num_steps):
            index, draws = super().schedule(client, round, seed, num_steps)
            return Schedule(index.flip(0), draws)

    clients = Partition.of(list(torch.arange(12).split(6)))
    own, usual = (kind(examples(12), clients, batching=Batching(3)) for kind in (Backwards, TensorData))
    for data in (own, usual):
        data.setup()
    for c, schedule in enumerate(own.schedules((0, 1), 0, 0, (2, 2))):
        assert torch.equal(schedule.index.flip(0), usual.schedule(c, 0, 0, 2).index)


def test_steps_cut_the_last_epoch_short():
    data = tensor_data([7], size=3, steps=5)
    assert data.num_steps(0) == 5
    assert data.num_steps(0, steps=2) == 2
    index = data.schedule(0, 0, 0, 5).index
    assert (index >= 0).sum(1).tolist() == [3, 3, 1, 3, 3]
    assert sorted(index[:3][index[:3] >= 0].tolist()) == list(range(7))


def test_a_schedule_has_an_address_and_no_history():
    data = tensor_data([12, 12], size=4, epochs=2)
    index = data.schedule(0, 1, 0, 6).index
    assert torch.equal(index, data.schedule(0, 1, 0, 6).index)
    assert not torch.equal(index[:3], index[3:])
    assert not torch.equal(index, data.schedule(0, 2, 0, 6).index)
    assert not torch.equal(index, data.schedule(0, 1, 1, 6).index)
    assert not torch.equal(index, data.schedule(1, 1, 0, 6).index - 12)


def test_augmentation_has_its_own_numbers():
    data = TensorData(
        Examples(torch.zeros(8, 1, 6, 6, dtype=torch.uint8), torch.arange(8)),
        IID(2).split(torch.arange(8), 0),
        batching=Batching(3),
        augmentation=RandomCropFlip(2),
    )
    data.setup()
    schedule = data.schedule(0, 0, 0, 2)
    assert schedule.draws.shape == (2, 3, 3)
    assert torch.equal(schedule.draws, data.schedule(0, 0, 0, 2).draws)
    assert not torch.equal(schedule.draws, data.schedule(0, 1, 0, 2).draws)
    data.augmentation = None
    assert data.schedule(0, 0, 0, 2).draws is None
    assert torch.equal(schedule.index, data.schedule(0, 0, 0, 2).index)


@pytest.mark.parametrize(
    ("batching", "message"),
    [
        ({"size": 0}, "`size` of Batching must be at least 1, but is 0"),
        ({"size": 2.5}, "`size` of Batching must be a whole number .* or None, but is 2.5"),
        ({"epochs": -1}, r"`epochs` of Batching must be in \[1, 1000000\], but is -1"),
        ({"steps": 0}, r"`steps` of Batching must be in \[1, 1000000\], but is 0"),
        ({"steps": 1_000_001}, "`steps` of Batching .* but is 1000001"),
        ({"epochs": 2, "steps": 3}, r"Either `epochs` or `steps` of Batching may be given, but both are \(2 and 3\)"),
    ],
)
def test_batching_is_checked(batching, message):
    with pytest.raises(ConfigurationError, match=message):
        Batching(**batching)


# -- one's own tensors --------------------------------------------------------------------------------------------------
def test_the_test_set_defaults_to_the_training_set():
    data = tensor_data([4, 2])
    assert data.test is data.train
    assert data.test_clients is data.clients
    assert (data.batching, data.name) == (Batching(32, epochs=1), "tensorsC2")


def test_a_test_set_without_owners_is_shared_out_like_the_training_set():
    train, test = examples(90), examples(30)
    clients = Dirichlet(0.3, 3).split(train.targets, 0)
    data = TensorData(train, clients, test)
    data.setup()
    assert torch.allclose(
        data.test_clients.histogram(test.targets, 3) / 10, clients.histogram(train.targets, 3) / 30, atol=0.11
    )
    regression = TensorData(
        Examples(train.inputs, train.inputs),
        Partition.of([torch.arange(60), torch.arange(60, 90)]),
        Examples(*2 * [test.inputs]),
    )
    regression.setup()
    assert regression.test_clients.sizes.tolist() == [20, 10]
    owned = TensorData(train, clients, test, IID(3).split(test.targets, 0))
    owned.setup()
    assert owned.test_clients.sizes.tolist() == [10, 10, 10]


HALVES = Partition.of([torch.arange(3), torch.arange(3, 6)])


@pytest.mark.parametrize(
    ("clients", "test_clients", "message"),
    [
        (Partition.of([torch.arange(4), torch.arange(3, 6)]), HALVES, "the first: 3, at clients 0 and 1"),
        (HALVES, Partition.of([torch.arange(4), torch.arange(3, 6)]), "test partition, but 1 of its 7 positions"),
        (HALVES, Partition.of([torch.arange(3), torch.arange(4, 6)]), "belong to nobody .the first: position 3"),
        (HALVES, Partition.of([torch.arange(3), torch.arange(3, 7)]), "must be in 0…5, but are in 0…6"),
        (HALVES, Partition.of([torch.arange(6)]), "must be of the 2 clients that train, but is of 1"),
    ],
)
def test_examples_that_belong_to_two_clients_or_to_nobody_are_refused(clients, test_clients, message):
    with pytest.raises(ConfigurationError, match=message):
        TensorData(examples(6), clients, examples(6), test_clients).setup()


def test_a_data_module_may_say_that_clients_share_examples_and_that_others_are_tested():
    data = TensorData(examples(6), Partition.of([torch.arange(4)] * 2), examples(6), Partition.of([torch.arange(6)]))
    data.shared_examples = data.other_test_clients = True
    data.setup()
    assert data.clients.sizes.tolist() == [4, 4]


def test_training_examples_that_belong_to_nobody_are_not_evaluated_either():
    data = TensorData(examples(6), Partition.of([torch.tensor([5]), torch.tensor([0, 3])]))
    data.setup()
    assert data.test_clients is data.clients


def test_tensors_are_checked():
    whole = Partition.of([torch.arange(4)])
    with pytest.raises(ConfigurationError, match="`train` of TensorData must hold as many inputs as targets"):
        TensorData(Examples(torch.zeros(5, 1), torch.zeros(4)), whole)
    with pytest.raises(ConfigurationError, match="`test` of TensorData"):
        TensorData(examples(4), whole, Examples(torch.zeros(5, 1), torch.zeros(4)))
    with pytest.raises(ConfigurationError, match="`test_clients`"):
        TensorData(examples(4), whole, None, whole)
    with pytest.raises(ConfigurationError, match="it has no client"):
        TensorData(examples(4), Partition.of([]), examples(4)).setup()
    with pytest.raises(ConfigurationError, match=r"1 of 2 have none .the first: client 1"):
        TensorData(examples(4), Partition.of([torch.arange(4), torch.arange(0)])).setup()


def test_pooled_loaders_feed_the_centralised_baseline():
    data = tensor_data([5, 6], size=4)
    batches = list(data.train_dataloader())
    assert [len(targets) for _, targets in batches] == [4, 4, 3]
    assert sorted(torch.cat([inputs for inputs, _ in batches]).flatten().tolist()) == list(range(11))
    inputs, targets = next(iter(data.test_dataloader()))
    assert torch.equal(inputs, data.test.inputs)
    assert torch.equal(targets, data.test.targets)


# -- augmentation -------------------------------------------------------------------------------------------------------
def crop_one(image, draw, padding):
    """One image, pixel by pixel."""
    height, width = image.shape[1:]
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            row, column = i + int(draw[0]) - padding, (width - 1 - j if draw[2] else j) + int(draw[1]) - padding
            if 0 <= row < height and 0 <= column < width:
                out[:, i, j] = image[:, row, column]
    return out


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_batched_crop_is_the_crop_of_each_image(padding, dtype):
    images = torch.from_numpy(stream(0, "test").integers(1, 255, (9, 3, 5, 7))).to(dtype)
    augmentation = RandomCropFlip(padding)
    draws = torch.from_numpy(augmentation.draw(stream(1, "test"), (9,)))
    found = augmentation.apply(images, draws)
    assert found.dtype is dtype
    assert torch.equal(found, torch.stack([crop_one(*pair, padding) for pair in zip(images, draws, strict=True)]))


def test_draws_are_uniform_over_windows_and_mirrors():
    draws = RandomCropFlip(2).draw(stream(0, "test"), (100, 50))
    assert draws.shape == (100, 50, 3)
    assert draws.dtype == np.int64
    for column, values in enumerate((5, 5, 2)):
        shares = np.bincount(draws[..., column].ravel(), minlength=values) / 5000
        assert shares == pytest.approx(np.full(values, 1 / values), abs=0.03)
    assert not RandomCropFlip(2, flip=False).draw(stream(0, "test"), (50,))[:, 2].any()
    with pytest.raises(ConfigurationError, match="`padding`"):
        RandomCropFlip(-1)


# -- images -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_preprocessing_standardises_each_channel(lead):
    pixels = torch.from_numpy(stream(0, "test").integers(0, 256, (*lead, 3, 4, 5))).to(torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CIFAR100.mean, CIFAR100.std))
    found = CIFAR100().preprocess(pixels)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, (pixels / 255 - mean) / std, rtol=0, atol=1e-6)


def test_images_take_a_partition_or_its_name():
    assert CIFAR100("A0d01C10").partition == Dirichlet(0.01, 10)
    assert CIFAR100(IID(7)).name == "IIDC7"
    assert isinstance(CIFAR10().augmentation, RandomCropFlip)
    assert CIFAR10(augment=False).augmentation is None
    assert MNIST().augmentation is None
    assert MNIST(augment=True).augmentation.flip is False
    with pytest.raises(ConfigurationError, match="must be like 'A0d10C100'"):
        CIFAR100("A0.1")


def test_fake_images_are_learnable_and_addressed():
    def make(**changes):
        data = FakeImages(
            **{"partition": IID(4), "shape": (3, 8, 9), "classes": 5, "num_train": 203, "num_test": 50, **changes}
        )
        data.setup()
        return data

    data = make()
    assert data.train.inputs.shape == (203, 3, 8, 9)
    assert data.train.inputs.dtype is torch.uint8
    assert set(torch.bincount(data.train.targets).tolist()) == {40, 41}
    assert (data.classes, data.shape, data.name) == (5, (3, 8, 9), "fake_IIDC4")
    assert torch.equal(data.train.inputs, make().train.inputs)
    assert not torch.equal(data.train.inputs, make(seed=1).train.inputs)
    assert not torch.equal(data.train.inputs[:50], data.test.inputs)
    train, test = data.preprocess(data.train.inputs).flatten(1), data.preprocess(data.test.inputs).flatten(1)
    assert 0.5 < float(train.std()) < 1.5
    centres = torch.stack([train[data.train.targets == c].mean(0) for c in range(5)])
    assert (torch.cdist(test, centres).argmin(1) == data.test.targets).float().mean() > 0.95
    with pytest.raises(ConfigurationError, match="`shape` of FakeImages"):
        FakeImages(shape=(3, 0, 4))


# -- torchvision's data sets --------------------------------------------------------------------------------------------
def test_absent_files_are_named_with_the_two_ways_out(tmp_path, monkeypatch):
    from torchvision import datasets

    with pytest.raises(ConfigurationError) as error:
        MNIST(root=tmp_path, download=False).setup()
    for part in (str(tmp_path / "MNIST/raw"), "t10k-labels-idx1-ubyte", "`download` is off", "--data fake"):
        assert part in str(error.value)

    def no_network(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(datasets.CIFAR100, "download", no_network)
    with pytest.raises(ConfigurationError) as error:
        CIFAR100(root=tmp_path).setup()
    for part in (str(tmp_path / "cifar-100-python"), "train, test, meta", "service not known", "--data fake"):
        assert part in str(error.value)


def test_damaged_files_are_reported(tmp_path):
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for name in MNIST.files:
        (tmp_path / "MNIST/raw" / name).write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="is damaged"):
        MNIST(root=tmp_path, download=False).setup()


@pytest.mark.parametrize(
    ("kind", "first", "train", "test"),
    [(CIFAR100, 19, 50_000, 10_000), (MNIST, 5, 60_000, 10_000), (FashionMNIST, 9, 60_000, 10_000)],
)
def test_real_data(kind, first, train, test):
    from torchvision import datasets

    if not (ROOT / kind.folder / kind.files[0]).exists():
        pytest.skip(f"{kind.source} is not in {ROOT} (FEDLIGHTNING_DATA)")
    data = kind("A0d10C100", root=ROOT, download=False)
    data.setup()
    assert data.train.inputs.shape == (train, *kind.shape)
    assert data.test.inputs.shape == (test, *kind.shape)
    assert data.train.inputs.dtype is torch.uint8
    assert data.train.inputs.is_contiguous()
    assert int(data.train.targets[0]) == first
    assert int(data.train.targets.max()) == kind.classes - 1
    image, label = getattr(datasets, kind.source)(ROOT, train=False)[3]
    assert label == int(data.test.targets[3])
    assert np.array_equal(np.asarray(image).reshape(*kind.shape[1:], -1), data.test.inputs[3].permute(1, 2, 0).numpy())
    pixels = data.train.inputs[::5].to(torch.float32) / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(kind.mean), atol=0.01)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(kind.std), atol=0.01)
    assert torch.equal(data.clients.indices.sort().values, torch.arange(train))
    assert torch.equal(data.test_clients.indices.sort().values, torch.arange(test))
    histograms = [
        p.histogram(e.targets, kind.classes).double()
        for p, e in ((data.clients, data.train), (data.test_clients, data.test))
    ]
    assert (histograms[0] / train * test - histograms[1]).abs().max() < 60
