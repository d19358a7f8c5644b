import hashlib

import numpy as np
import pytest
import torch

from fedlightning import Batching
from fedlightning.datasets import Synthetic, generate
from fedlightning.errors import ConfigurationError

pytestmark = pytest.mark.quick

SETS = {"iid": (0.0, 0.0, True), "0_0": (0.0, 0.0, False), "0.5": (0.5, 0.5, False), "1_1": (1.0, 1.0, False)}

# The first 16 digits of the SHA-256 of the inputs and of the labels, and how often each label occurs.
ORACLE = {
    ("iid", 0): "4f5b7e87dd2a3893 7bda750953663235 295 1082 2831 3868 418 1393 807 3841 3478 4336",
    ("iid", 1): "cd3eb6c97437906b 0d7ee2294a5c5d5e 68 1684 726 855 484 1448 310 1730 746 627",
    ("0_0", 0): "96cfae0e3b2ab32f 932cc04ab47c2940 1219 1062 988 6868 984 1836 6292 1579 1078 443",
    ("0_0", 1): "edc7dd081f7d86c0 0cf06c8ca1a6449d 754 801 1290 1945 515 359 1181 1240 92 501",
    ("0.5", 0): "1446b492b44ba5b8 5ce18c03bf5c68e0 1382 771 1747 5817 835 7193 2969 819 358 458",
    ("0.5", 1): "86fa21f0dacd0913 77fbde80712a6d20 494 716 2779 580 149 404 1125 1398 450 583",
    ("1_1", 0): "de0456d3b9ffd7dd 13fd20c172100e93 789 1322 1791 2169 1905 10749 2514 598 149 363",
    ("1_1", 1): "2698df225feefa8d 35dbe1c0a3c8c33b 245 563 3148 313 143 454 910 1353 767 782",
}
SIZES = {0: (1909, 22349, 20101, 2248), 1: (1456, 8678, 7799, 879), 2: (73, 9912, 8908, 1004)}


def sha(arrays, dtype):
    return hashlib.sha256(np.concatenate(arrays).astype(dtype).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(("name", "seed"), ORACLE)
def test_the_data_are_bit_identical(name, seed):
    inputs, labels = zip(*generate(*SETS[name], "argmax", seed), strict=True)
    histogram = " ".join(map(str, np.bincount(np.concatenate(labels), minlength=10)))
    assert f"{sha(inputs, '<f8')} {sha(labels, '<i8')} {histogram}" == ORACLE[name, seed]


@pytest.mark.parametrize("seed", SIZES)
def test_sizes_depend_on_the_seed_alone(seed):
    first, total, train, test = SIZES[seed]
    for alpha, beta, iid in SETS.values():
        sizes = [len(labels) for _, labels in generate(alpha, beta, iid, "argmax", seed)]
        assert (sizes[0], sum(sizes), len(sizes)) == (first, total, 30)
    data = Synthetic(seed=seed)
    data.setup()
    assert (len(data.train.targets), len(data.test.targets)) == (train, test)


def test_inputs_are_those_of_numpys_multivariate_normal():
    """The order of the draws, by NumPy's own functions."""
    rng = np.random.RandomState(3)
    sizes = rng.lognormal(4, 2, 30).astype(int) + 50
    u, spread = rng.normal(0, 0.5, 30), rng.normal(0, 2.0, 30)
    centres = [rng.normal(b, 1, 60) for b in spread]
    covariance = np.diag([float(j) ** -1.2 for j in range(1, 61)])
    for k, (inputs, labels) in enumerate(generate(0.5, 2.0, False, "argmax", 3)):
        weight, bias = rng.normal(u[k], 1, (60, 10)), rng.normal(u[k], 1, 10)
        expected = rng.multivariate_normal(centres[k], covariance, sizes[k])
        np.testing.assert_allclose(inputs, expected, rtol=0, atol=1e-12)
        assert (labels == (expected @ weight + bias).argmax(1)).all()


def test_sampled_labels_leave_the_inputs_alone_and_follow_the_softmax():
    plain, sampled = generate(1.0, 1.0, False, "argmax", 1), generate(1.0, 1.0, False, "sample", 1)
    assert all((one[0] == other[0]).all() for one, other in zip(plain, sampled, strict=True))
    agree = np.concatenate([one[1] == other[1] for one, other in zip(plain, sampled, strict=True)]).mean()
    assert 0.8 < agree < 0.99
    again = generate(1.0, 1.0, False, "sample", 1)
    assert all((one[1] == other[1]).all() for one, other in zip(sampled, again, strict=True))
    rng = np.random.RandomState(0)
    rng.lognormal(4, 2, 30)
    weight, bias = rng.normal(0, 1, (60, 10)), rng.normal(0, 1, 10)
    inputs, labels = (np.concatenate(part) for part in zip(*generate(0.0, 0.0, True, "sample", 0), strict=True))
    likely = np.exp(inputs @ weight + bias)
    likely /= likely.sum(1, keepdims=True)
    assert np.bincount(labels) / len(labels) == pytest.approx(likely.mean(0), abs=0.012)
    assert likely[np.arange(len(labels)), labels].mean() == pytest.approx((likely**2).sum(1).mean(), abs=0.01)


def test_alpha_changes_no_distribution_but_beta_spreads_the_inputs():
    def spread(beta):
        return np.std([inputs.mean() for inputs, _ in generate(0.0, beta, False, "argmax", 0)])

    assert spread(0.0) < 0.3 < 2.0 < spread(3.0)


def test_the_module_holds_the_shuffled_split():
    data = Synthetic(1.0, 1.0, seed=1)
    data.setup()
    raw = generate(1.0, 1.0, False, "argmax", 1)
    assert data.train.inputs.dtype is torch.float32
    assert data.train.targets.dtype is torch.int64
    assert data.clients.num_clients == data.test_clients.num_clients == 30
    data.clients.check(len(data.train.targets))
    data.test_clients.check(len(data.test.targets))
    for k, (inputs, labels) in enumerate(raw):
        train, test = data.clients.client(k), data.test_clients.client(k)
        assert (len(train), len(test)) == (int(0.9 * len(labels)), len(labels) - int(0.9 * len(labels)))
        whole = torch.cat([data.train.inputs[train], data.test.inputs[test]]).numpy()
        targets = torch.cat([data.train.targets[train], data.test.targets[test]]).numpy()
        rows = sorted(map(tuple, np.column_stack([whole, targets]).tolist()))
        assert rows == sorted(map(tuple, np.column_stack([inputs.astype(np.float32), labels]).tolist()))
        assert not (whole == inputs.astype(np.float32)).all()


def test_a_device_is_shuffled_as_pairs_are():
    """The first training example of the first device, found by shuffling pairs as the authors' program does."""
    import random

    inputs, labels = generate(1.0, 1.0, False, "argmax", 0)[0]
    pairs = list(zip(inputs.tolist(), labels.tolist(), strict=True))
    random.Random(0).shuffle(pairs)
    data = Synthetic(seed=0)
    data.setup()
    assert torch.equal(data.train.inputs[0], torch.tensor(pairs[0][0]))
    assert int(data.train.targets[0]) == pairs[0][1]


def test_names_and_defaults():
    assert Synthetic().name == "synthetic_1_1"
    assert Synthetic(0.5, 0.5).name == "synthetic_0.5_0.5"
    assert Synthetic(iid=True).name == "synthetic_iid"
    assert Synthetic(0, 0, labels="sample").name == "synthetic_0_0_sample"
    assert Synthetic().batching == Batching(10, epochs=20)
    assert Synthetic(batching=Batching(steps=5)).batching == Batching(32, steps=5)
    assert (Synthetic.classes, Synthetic.shape) == (10, (60,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, "`alpha` of Synthetic"),
        ({"beta": -0.1}, "`beta` of Synthetic"),
        ({"labels": "noisy"}, "'argmax' or 'sample'"),
        ({"seed": -1}, "`seed` of Synthetic"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Synthetic(**arguments)
