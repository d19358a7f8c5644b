import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlightning.datasets.leaf import LeafData, read_leaf
from fedlightning.errors import ConfigurationError

ROOT = Path(os.environ.get("FEDLIGHTNING_DATA", "data"))


def samples(name, count, width=3):
    """x and y of a user; every x is another one, and y tells which."""
    start = 100 * (sum(name.encode()) % 50)
    return {
        "x": [[float(start + i), *[0.5] * (width - 1)] for i in range(count)],
        "y": [float((start + i) % 7) for i in range(count)],
    }


def content(sizes, hierarchies=None, **width):
    found = {
        "users": list(sizes),
        "num_samples": list(sizes.values()),
        "user_data": {name: samples(name, size, **width) for name, size in sizes.items()},
    }
    return {**found, "hierarchies": hierarchies} if hierarchies else found


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def setup(*arguments, **options):
    data = LeafData(*arguments, **options)
    data.setup()
    return data


def firsts(data, device):
    """The numbers of the device's samples, for training and for testing."""
    parts = (data.train, data.clients), (data.test, data.test_clients)
    return [examples.inputs[clients.client(device)].flatten(1)[:, 0].tolist() for examples, clients in parts]


# -- a training and a test part -----------------------------------------------------------------------------------------
def test_folders_of_training_and_test_files_are_read(tmp_path):
    write(tmp_path / "train/b.json", content({"zoe": 3, "bob": 2}, ["A", "B"]))
    write(tmp_path / "train/a.json", content({"mia": 4}))
    (tmp_path / "train/notes.txt").write_text("not JSON")
    write(tmp_path / "test/t.json", content({"bob": 5, "zoe": 1, "mia": 2}))
    data = setup(tmp_path / "train", str(tmp_path / "test"))
    assert data.users == ["bob", "mia", "zoe"]
    assert data.hierarchies == ["B", None, "A"]
    assert data.clients.sizes.tolist() == [2, 4, 3]
    assert data.test_clients.sizes.tolist() == [5, 2, 1]
    for device, name in enumerate(data.users):
        for examples, clients in ((data.train, data.clients), (data.test, data.test_clients)):
            owned = clients.client(device)
            wanted = samples(name, len(owned))
            assert examples.inputs[owned].tolist() == wanted["x"]
            assert examples.targets[owned].tolist() == wanted["y"]
    assert data.train.inputs.dtype is torch.float32
    assert data.train.targets.dtype is torch.int64
    assert data.name == "leaf_train"


def test_a_user_without_training_samples_is_left_out_and_one_without_test_samples_is_not(tmp_path):
    train = write(tmp_path / "train.json", content({"a": 1, "b": 0, "c": 2}))
    test = write(tmp_path / "test.json", content({"b": 4, "c": 3}))
    data = setup(train, test)
    assert data.users == ["a", "c"]
    assert data.clients.sizes.tolist() == [1, 2]
    assert data.test_clients.sizes.tolist() == [0, 3]


def test_users_of_the_test_part_must_train(tmp_path):
    train = write(tmp_path / "train.json", content({"a": 1}))
    test = write(tmp_path / "test.json", content({"a": 1, "eve": 4}))
    with pytest.raises(ConfigurationError, match=r"1 of .*test.json are not, e.g. 'eve'; divide the data by sample"):
        setup(train, test)


def test_nobody_is_left(tmp_path):
    empty = write(tmp_path / "train.json", content({"a": 0}))
    with pytest.raises(ConfigurationError, match=r"must have a training sample, but none has in .*train.json"):
        setup(empty, empty)


# -- one set, divided here ----------------------------------------------------------------------------------------------
def test_one_set_is_divided_by_sample(tmp_path):
    sizes = {"a": 10, "b": 2, "c": 1, "d": 7, "e": 0, "f": 11}
    data = setup(write(tmp_path / "all_data.json", content(sizes)), seed=1)
    assert data.users == ["a", "b", "d", "f"]
    assert data.clients.sizes.tolist() == [8, 1, 5, 8]
    assert data.test_clients.sizes.tolist() == [2, 1, 2, 3]
    for device, name in enumerate(data.users):
        train, test = firsts(data, device)
        assert train == sorted(train)
        assert test == sorted(test)
        assert sorted(train + test) == [x[0] for x in samples(name, sizes[name])["x"]]
        targets = data.train.targets[data.clients.client(device)]
        assert targets.tolist() == [number % 7 for number in train]
    assert firsts(data, 0)[0] != [x[0] for x in samples("a", 8)["x"]]


def test_the_division_depends_on_the_seed_and_not_on_the_order_of_the_file(tmp_path):
    sizes = {"a": 30, "b": 30, "c": 30}
    path = write(tmp_path / "one.json", content(sizes))
    turned = write(tmp_path / "two.json", content(dict(reversed(sizes.items()))))
    splits = [[firsts(setup(where, seed=s), k) for k in range(3)] for where, s in ((path, 0), (turned, 0), (path, 1))]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]
    a, b, _ = [[number % 100 for number in train] for train, _ in splits[0]]
    assert a != b


def test_the_fraction_of_training_samples(tmp_path):
    data = setup(write(tmp_path / "all.json", content({"a": 10, "b": 3})), train_fraction=0.3)
    assert data.clients.sizes.tolist() == [3, 1]


def test_min_samples_is_strictly_exceeded(tmp_path):
    path = write(tmp_path / "all.json", content({"a": 10, "b": 9, "c": 11, "d": 2}))
    assert setup(path, min_samples=9).users == ["a", "c"]
    assert setup(path, min_samples=10).users == ["c"]
    with pytest.raises(ConfigurationError, match="LeafData must have a client with more than 11 samples"):
        setup(path, min_samples=11)


def test_a_fraction_takes_whole_users_in_random_order_and_cuts_the_last(tmp_path):
    sizes = {f"user{i:02}": 10 + i for i in range(20)}
    path = write(tmp_path / "all.json", content(sizes))
    chosen = []
    for seed in range(4):
        data = setup(path, fraction=0.31, seed=seed)
        found = (data.clients.sizes + data.test_clients.sizes).tolist()
        assert sum(found) == int(0.31 * sum(sizes.values()))
        short = [name for name, size in zip(data.users, found, strict=True) if size != sizes[name]]
        assert len(short) <= 1
        for name in short:
            train, test = firsts(data, data.users.index(name))
            assert sorted(train + test) == [x[0] for x in samples(name, len(train + test))["x"]]
        chosen.append(tuple(data.users))
    assert len(set(chosen)) == 4


# -- tensors ------------------------------------------------------------------------------------------------------------
def test_inputs_take_a_shape(tmp_path):
    path = write(tmp_path / "all.json", content({"a": 5, "b": 4}, width=12))
    data = setup(path, shape=(1, 3, 4))
    assert data.train.inputs.shape == (7, 1, 3, 4)
    assert torch.equal(data.train.inputs.flatten(1), setup(path).train.inputs)
    with pytest.raises(ConfigurationError, match=r"is \(2, 5\), and the inputs of 'a' have 12 numbers"):
        setup(path, shape=(2, 5))


def test_targets_that_are_not_whole_stay_real(tmp_path):
    found = content({"a": 4, "b": 4})
    found["user_data"]["b"]["y"][2] = 0.5
    data = setup(write(tmp_path / "all.json", found))
    assert data.train.targets.dtype is data.test.targets.dtype is torch.float32


def test_text_goes_through_the_encoders(tmp_path):
    words = {"x": ["abc", "bca", "cab", "aaa", "bbb"], "y": ["yes", "no", "yes", "no", "no"]}
    path = write(tmp_path / "all.json", {"users": ["u"], "num_samples": [5], "user_data": {"u": words}})
    data = setup(
        path,
        encode_inputs=lambda lines: torch.tensor([[ord(letter) - 97 for letter in line] for line in lines]),
        encode_targets=lambda answers: torch.tensor([float(answer == "yes") for answer in answers]),
    )
    assert data.train.inputs.dtype is torch.int64
    assert data.train.targets.dtype is torch.float32  # what an encoder gives stays
    pairs = {
        tuple(x): y for part in (data.train, data.test) for x, y in zip(*map(torch.Tensor.tolist, part), strict=True)
    }
    assert pairs == {(0, 1, 2): 1, (1, 2, 0): 0, (2, 0, 1): 1, (0, 0, 0): 0, (1, 1, 1): 0}
    for part, hook in (("x", "encode_inputs"), ("y", "encode_targets")):
        other = {"encode_inputs", "encode_targets"} - {hook}
        with pytest.raises(ConfigurationError, match=f"'{part}' of 'u' must become a tensor, .* give a `{hook}`"):
            setup(path, **{name: lambda values: torch.zeros(len(values)) for name in other})


def test_an_encoder_gives_one_entry_for_each_sample(tmp_path):
    path = write(tmp_path / "all.json", content({"a": 5}))
    with pytest.raises(ConfigurationError, match=r"`encode_inputs` .* gives 2 for the 4 of 'a'"):
        setup(path, encode_inputs=lambda values: torch.zeros(2, 3))


def test_ragged_inputs_are_refused(tmp_path):
    found = content({"a": 5, "b": 5})
    found["user_data"]["b"]["x"][1].append(1.0)
    with pytest.raises(ConfigurationError, match="'x' of 'b' must become a tensor, but does not"):
        setup(write(tmp_path / "all.json", found))
    found = content({"a": 5, "b": 5})
    found["user_data"]["b"] = samples("b", 5, width=4)
    with pytest.raises(ConfigurationError, match=r"those of 'a' are \[3\] and those of 'b' \[4\]"):
        setup(write(tmp_path / "all.json", found))


# -- files that are not as they should be -------------------------------------------------------------------------------
def without(key):
    found = content({"a": 2, "b": 3})
    del found[key]
    return found


def changed(**changes):
    return {**content({"a": 2, "b": 3}, ["A", "B"]), **changes}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (without("users"), "must have 'users', a list, but .* has none; it needs users, num_samples, user_data"),
        (without("num_samples"), "must have 'num_samples', a list, but .* has none"),
        (without("user_data"), "must have 'user_data', a dict, but .* has none"),
        (changed(users="ab"), "must have 'users', a list, but .* has a str"),
        ([1, 2], "must have 'users', a list, but .* has none"),
        (changed(num_samples=[2]), "there are 2 users, 1 numbers and 2 hierarchies"),
        (changed(hierarchies=["A"]), "there are 2 users, 2 numbers and 1 hierarchies"),
        (changed(hierarchies=7), "2 numbers and no list of hierarchies"),
        (changed(num_samples=[2, 4]), "is 4 for 'b', who has 3 and 3 in"),
        (changed(users=["a", "c"]), "of each user, but 'c' is absent in"),
        (changed(users=["a", ["b"]]), r"of each user, but \['b'\] is absent in"),
        (changed(user_data={"a": samples("a", 2), "b": {"x": []}}), "but 'b' has no such lists"),
        (changed(user_data={"a": samples("a", 2), "b": {"x": [[1]] * 3, "y": [0] * 2}}), "'b', who has 3 and 2"),
        (changed(users=["a", "a"], num_samples=[2, 2]), "listed once, but 'a' comes again"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, found, message):
    path = write(tmp_path / "all.json", found)
    with pytest.raises(ConfigurationError, match=message) as error:
        setup(path)
    assert "all.json" in str(error.value)


def test_users_that_are_not_listed_are_left_out(tmp_path):
    found = content({"a": 2, "b": 3})
    found["users"], found["num_samples"] = ["b"], [3]
    assert [user.name for user in read_leaf(write(tmp_path / "all.json", found))] == ["b"]


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = write(tmp_path / "all.json", content({"a": 2}))
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ConfigurationError, match=r"all.json must be JSON, but is not \(.*\); is it cut short"):
        setup(path)


def test_absent_files_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nothing.json is not there; LEAF's preprocess.sh"):
        setup(tmp_path / "nothing.json")
    with pytest.raises(ConfigurationError, match="a folder without one"):
        setup(tmp_path)


def test_a_user_of_two_files_is_refused(tmp_path):
    write(tmp_path / "all/one.json", content({"a": 2}))
    write(tmp_path / "all/two.json", content({"a": 3}))
    with pytest.raises(ConfigurationError, match=r"'a' comes again in .*two.json"):
        setup(tmp_path / "all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "`fraction` of LeafData"),
        ({"fraction": 1.1}, "`fraction` of LeafData"),
        ({"min_samples": -1}, "`min_samples` of LeafData"),
        ({"train_fraction": 1.0}, "`train_fraction` of LeafData"),
        ({"test": "test", "fraction": 0.5}, r"`test` is given \(test\); leave them out"),
        ({"test": "test", "min_samples": 3}, "`test` is given"),
        ({"test": "test", "train_fraction": 0.9}, "`test` is given"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ConfigurationError, match=message):
        LeafData("train", **options)


def test_a_real_file():
    """The test part of LEAF's Shakespeare: 109 roles, windows of 80 characters and the next one."""
    path = ROOT / "shakespeare/leaf_all_data_niid_2_keep_100_test_8.json"
    if not path.exists():
        pytest.skip(f"LEAF's Shakespeare is not in {ROOT} (FEDLIGHTNING_DATA)")

    def encode(lines):
        return torch.from_numpy(np.array([list(line.encode("latin-1")) for line in lines]))

    data = setup(path, encode_inputs=encode, encode_targets=lambda letters: encode(letters)[:, 0], min_samples=100)
    users = {user.name: user for user in read_leaf(path)}
    assert len(users) == 109
    assert sum(len(user.targets) for user in users.values()) == 16507
    assert data.users == sorted(name for name, user in users.items() if len(user.targets) > 100)
    assert data.hierarchies[data.users.index("THE_TRAGEDY_OF_KING_LEAR_LORD")] == "THE TRAGEDY OF KING LEAR"
    assert data.train.inputs.shape[1:] == (80,)
    device = data.users.index("THE_TRAGEDY_OF_KING_LEAR_LORD")
    found = {
        bytes(x.tolist()).decode("latin-1"): chr(int(y))
        for examples, clients in ((data.train, data.clients), (data.test, data.test_clients))
        for x, y in zip(examples.inputs[clients.client(device)], examples.targets[clients.client(device)], strict=True)
    }
    user = users["THE_TRAGEDY_OF_KING_LEAR_LORD"]
    assert found == dict(zip(user.inputs, user.targets, strict=True))
    assert int(data.clients.size(device)) == int(0.8 * len(user.targets))
