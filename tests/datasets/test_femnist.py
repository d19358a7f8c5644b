import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image  # torchvision's own requirement

from fedlightning import Batching
from fedlightning.datasets import femnist
from fedlightning.datasets._fedprox import split_devices
from fedlightning.datasets.femnist import FEMNIST, OmniglotWriters, deal_classes
from fedlightning.errors import ConfigurationError

ROOT = Path(os.environ.get("FEDLIGHTNING_DATA", "data"))

# By seed and classes per device: the first ten sizes; total, largest, smallest; standard deviation.
ORACLE = {
    (0, 3): ([321, 84, 150, 516, 357, 24, 144, 51, 54, 87], (20253, 594, 9), 108.88367542933146),
    (0, 5): ([320, 85, 150, 515, 355, 25, 145, 50, 50, 85], (20060, 595, 10), 108.94223239864328),
    (1, 3): ([282, 33, 36, 21, 132, 9, 315, 30, 78, 45], (18915, 687, 9), 96.6605109390593),
    (1, 5): ([280, 30, 35, 20, 130, 10, 315, 30, 80, 45], (18715, 685, 10), 96.7914994976315),
    (2, 3): ([39, 54, 9, 285, 12, 27, 93, 18, 21, 24], (22791, 3327, 6), 268.03308186677253),
    (2, 5): ([40, 55, 10, 285, 10, 25, 95, 20, 20, 25], (22580, 3325, 10), 267.9516560874368),
}


def shares(dealt, label):
    return [(u, first, count) for u, taken in enumerate(dealt) for of, first, count in taken if of == label]


# -- the rule -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("repo_bug", [False, True])
@pytest.mark.parametrize(("seed", "classes"), ORACLE)
def test_the_sizes_are_the_oracles(seed, classes, repo_bug):
    dealt = deal_classes([4000] * 10, classes, repo_bug, seed)
    sizes = np.array([sum(count for _, _, count in taken) for taken in dealt])
    first, numbers, deviation = ORACLE[seed, classes]
    assert sizes[:10].tolist() == first
    assert (sizes.sum(), sizes.max(), sizes.min()) == numbers
    assert (len(sizes), sizes.std()) == (200, pytest.approx(deviation, rel=1e-12))


def test_a_device_has_consecutive_classes_and_as_much_of_each():
    for u, taken in enumerate(deal_classes([4000] * 10, 5)):
        assert [label for label, _, _ in taken] == [(u + j) % 10 for j in range(5)]
        assert len({count for _, _, count in taken}) == 1
    assert all(len(taken) == 3 for taken in deal_classes([4000] * 10, 3))


def test_a_class_is_dealt_in_order_and_again_from_its_beginning_when_too_few_are_left():
    size = 700
    dealt = deal_classes([size] * 10)
    assert max(count for taken in dealt for _, _, count in taken) < size
    for label in range(10):
        end, wraps = 0, 0
        for _, first, count in shares(dealt, label):
            fits = end + count <= size
            assert first == (end if fits else 0)
            end, wraps = first + count, wraps + (not fits)
        assert wraps >= 2


def test_a_share_that_ends_with_the_class_still_fits():
    (_, _, one), (_, _, two) = shares(deal_classes([4000] * 10), 0)[:2]
    assert shares(deal_classes([one + two] * 10), 0)[1][1:] == (one, two)
    assert shares(deal_classes([one + two - 1] * 10), 0)[1][1:] == (0, two)


def test_a_class_of_few_examples_gives_all_of_them():
    assert {(first, count) for _, first, count in shares(deal_classes([2] * 10), 0)} == {(0, 2)}


def test_with_the_authors_mistake_all_devices_get_the_same_first_examples():
    dealt = deal_classes([4000] * 10, 3, repo_bug=True)
    assert {first for taken in dealt for _, first, _ in taken} == {0}
    # A share that does not fit begins where the last one ended, and once that is the end nothing is left for anybody.
    first = shares(dealt, 0)[0][2]
    used_up = [share[1:] for share in shares(deal_classes([first] * 10, 3, repo_bug=True), 0)]
    assert used_up[0] == (0, first)
    assert set(used_up[1:]) == {(first, 0)}


# -- NIST's folders -----------------------------------------------------------------------------------------------------
PER_CLASS = 9


def write(path, grey):
    """A PNG of 128 × 128 pixels: paper with a block of this grey, another one for each file."""
    pixels = np.full((128, 128), 255, dtype=np.uint8)
    pixels[32:96, 32:96] = grey
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def nist(tmp_path):
    """Nine images of each letter, whose centre is 10 × class + number; and some that are not to be read."""
    for label, folder in enumerate(f"{ord(letter):x}" for letter in "abcdefghij"):
        for number in range(PER_CLASS):
            write(
                tmp_path / "by_class" / folder / f"train_{folder}" / f"train_{folder}_{number:05}.png",
                10 * label + number,
            )
        write(tmp_path / "by_class" / folder / f"hsf_0/hsf_0_{number:05}.png", 250)
    for folder in ("30", "41", "6b"):
        write(tmp_path / "by_class" / folder / f"train_{folder}/train_{folder}_00000.png", 250)
    return tmp_path


def centre(examples):
    return examples.inputs[:, 14 * 28 + 14].to(torch.int64)


def test_the_images_are_dealt_by_class(nist, capsys):
    data = FEMNIST(root=nist, seed=3)
    data.setup()
    assert data.train.inputs.dtype is torch.uint8
    assert data.train.inputs.shape[1:] == (784,)
    assert (FEMNIST.classes, FEMNIST.shape) == (26, (784,))
    for examples in (data.train, data.test):
        assert (centre(examples) // 10 == examples.targets).all()
        assert set((centre(examples) % 10).tolist()) <= set(range(PER_CLASS))
        assert (examples.inputs[:, :28] == 255).all()
    dealt = deal_classes([PER_CLASS] * 10, 5, seed=3)
    for u in (0, 1, 17, 199):
        train, test = data.clients.client(u), data.test_clients.client(u)
        size = sum(count for _, _, count in dealt[u])
        assert (len(train), len(test)) == (int(0.9 * size), size - int(0.9 * size))
        found = torch.cat([data.train.targets[train], data.test.targets[test]])
        assert torch.bincount(found, minlength=10).tolist() == [
            {label: count for label, _, count in dealt[u]}.get(label, 0) for label in range(10)
        ]
    assert "reading NIST's letters: 90, once" in capsys.readouterr().err
    pixels = data.preprocess(data.train.inputs[:4])
    assert pixels.dtype is torch.float32
    assert torch.equal(pixels, torch.from_numpy((data.train.inputs[:4].numpy() / 255).astype(np.float32)))


def test_a_position_of_a_class_is_the_same_image_at_every_device(nist):
    data = FEMNIST(root=nist, seed=0)
    data.setup()
    positions = [
        np.concatenate([np.arange(first, first + count) + 100 * label for label, first, count in taken])
        for taken in deal_classes([PER_CLASS] * 10, seed=0)
    ]
    seen = {}
    for examples, clients, parts in zip(
        (data.train, data.test), (data.clients, data.test_clients), split_devices(positions, 0), strict=True
    ):
        for device, part in enumerate(map(parts.client, range(parts.num_clients))):
            for position, value in zip(part.tolist(), centre(examples)[clients.client(device)].tolist(), strict=True):
                assert value // 10 == position // 100
                assert seen.setdefault(position, value) == value
    assert len(set(seen.values())) == len(seen) == 10 * PER_CLASS
    assert [seen[position] for position in range(PER_CLASS)] != list(range(PER_CLASS))


def test_the_way_of_dealing_is_passed_on(nist):
    def sizes(repo_bug):
        return [sum(count for _, _, count in taken) for taken in deal_classes([PER_CLASS] * 10, 3, repo_bug, seed=8)]

    data = FEMNIST(root=nist, classes_per_user=3, seed=8)
    data.setup()
    assert (data.clients.sizes + data.test_clients.sizes).tolist() == sizes(False)
    empty = sizes(True).count(0)  # by the authors' mistake, so few images are soon used up
    with pytest.raises(ConfigurationError, match=f"{empty} of 200 have none"):
        FEMNIST(root=nist, classes_per_user=3, repo_bug=True, seed=8).setup()


def test_images_are_shrunk_by_lanczos_without_a_step_between(tmp_path):
    path = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    Image.fromarray(noise).save(path)

    class Silent:
        def track(self, items, description):
            return iter(items)

    (found,) = femnist.read_images([path], Silent(), "")
    wanted = np.asarray(Image.open(path).resize((28, 28), Image.Resampling.LANCZOS))
    assert (found.view(28, 28).numpy() == wanted).all()


def test_the_images_are_read_once_for_each_seed(nist, said):
    one = FEMNIST(root=nist, seed=0)
    one.setup()
    assert len(said()) == 1  # where they are kept
    again = FEMNIST(root=nist, seed=0, classes_per_user=3)
    again.setup()
    assert not said()
    assert set(map(tuple, again.train.inputs.tolist())) <= set(map(tuple, one.train.inputs.tolist())) | set(
        map(tuple, one.test.inputs.tolist())
    )
    write(nist / "by_class/61/train_61/train_61_00003.png", 5)
    FEMNIST(root=nist, seed=0).setup()
    assert len(said()) == 1


class Few(FEMNIST):
    """Four images of each class."""

    most = 4


def test_a_part_of_a_large_class_is_drawn_by_the_seed(nist):
    found = []
    for seed in (0, 0, 1):
        data = Few(root=nist, seed=seed)
        data.setup()
        found.append([set(centre(data.train)[data.train.targets == label].tolist()) for label in range(10)])
        assert all(len(members) <= 4 for members in found[-1])
    assert found[0] == found[1] != found[2]
    assert any(members != set(range(10 * label, 10 * label + 4)) for label, members in enumerate(found[0]))


def test_absent_and_damaged_images_are_named(nist):
    bad = nist / "by_class/63/train_63/train_63_00004.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(ConfigurationError, match=r"train_63_00004.png must be a PNG image, but cannot be read"):
        FEMNIST(root=nist).setup()
    Image.new("L", (128, 100)).save(bad)
    with pytest.raises(ConfigurationError, match=r"must be square, but .*train_63_00004.png has 128 × 100 pixels"):
        FEMNIST(root=nist).setup()
    shutil.rmtree(nist / "by_class/64")
    with pytest.raises(ConfigurationError) as error:
        FEMNIST(root=nist).setup()
    for part in ("images of 'd'", str(nist / "by_class/64/train_64"), "nist.gov", "--data-dir", "OmniglotWriters"):
        assert part in str(error.value)
    assert not (nist / "prepared").exists()


def test_names_defaults_and_intervals():
    data = FEMNIST()
    assert (data.classes_per_user, data.repo_bug, data.batching) == (5, False, Batching(10, epochs=20))
    assert data.name == "femnist_5"
    assert FEMNIST(classes_per_user=3, repo_bug=True).name == "femnist_3_repo_bug"
    for number in (0, 11):
        with pytest.raises(
            ConfigurationError, match=rf"`classes_per_user` of FEMNIST must be in \[1, 10\], but is {number}"
        ):
            FEMNIST(classes_per_user=number)
    for kind in (FEMNIST, OmniglotWriters):
        with pytest.raises(ConfigurationError, match=f"`seed` of {kind.__name__}"):
            kind(seed=2**32)


# -- Omniglot -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def omniglot(tmp_path):
    """Two alphabets of 3 and 2 characters, 2 and 4 writers; one alphabet lies in two folders."""
    serial = 0
    for alphabet, characters, writers, folders in (("Latin", 3, 2, (1, 2)), ("Greek", 2, 4, (2,))):
        for character in range(1, characters + 1):
            serial += 1
            for writer in range(1, writers + 1):
                for folder in folders:
                    where = (
                        tmp_path / f"omniglot-small/images_background_small{folder}/{alphabet}/character{character:02}"
                    )
                    write(where / f"{serial:04}_{writer:02}.png", 10 * serial + writer)
    return tmp_path


def test_the_writers_of_an_alphabet_are_the_devices_and_its_characters_the_classes(omniglot):
    data = OmniglotWriters(root=omniglot)
    data.setup()
    assert data.classes == 5
    assert data.writers == ["Greek/01", "Greek/02", "Greek/03", "Greek/04", "Latin/01", "Latin/02"]
    assert (data.clients.sizes + data.test_clients.sizes).tolist() == [2, 2, 2, 2, 3, 3]
    assert data.test_clients.sizes.tolist() == [1] * 6
    for examples, clients in ((data.train, data.clients), (data.test, data.test_clients)):
        assert torch.equal(centre(examples) // 10, torch.tensor([4, 5, 1, 2, 3])[examples.targets])
        for device, writer in enumerate(data.writers):
            assert (centre(examples)[clients.client(device)] % 10 == int(writer[-2:])).all()


def test_some_alphabets_can_be_chosen(omniglot):
    data = OmniglotWriters(root=omniglot, alphabets=("Greek",))
    data.setup()
    assert (data.classes, len(data.writers)) == (2, 4)
    with pytest.raises(ConfigurationError, match="among Greek, Latin, but Klingon is not"):
        OmniglotWriters(root=omniglot, alphabets=("Greek", "Klingon")).setup()


def test_absent_omniglot_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"omniglot-small or .*omniglot-py, but .*github.com/brendenlake"):
        OmniglotWriters(root=tmp_path).setup()


def test_real_omniglot(tmp_path):
    if not (ROOT / "omniglot-small").exists():
        pytest.skip(f"Omniglot is not in {ROOT} (FEDLIGHTNING_DATA)")
    (tmp_path / "omniglot-small").symlink_to((ROOT / "omniglot-small").absolute())
    data = OmniglotWriters(root=tmp_path)
    data.setup()
    assert (data.classes, data.clients.num_clients) == (242, 160)
    assert len(data.train.targets) + len(data.test.targets) == 4840
    assert torch.bincount(torch.cat([data.train.targets, data.test.targets])).tolist() == [20] * 242
    assert 0.85 < float(data.preprocess(data.train.inputs).mean()) < 0.95  # mostly paper
