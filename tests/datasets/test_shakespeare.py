import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlightning import Batching, Classification, FedAvg, FederatedTrainer, SlotStrategy
from fedlightning.datasets._leaf_split import contiguous_split, count_train, random_split, take_clients
from fedlightning.datasets.shakespeare import ALPHABET, Shakespeare, parse_roles, tokenise
from fedlightning.errors import ConfigurationError
from fedlightning.models.recurrent import CharLSTM

ROOT = Path(os.environ.get("FEDLIGHTNING_DATA", "data"), "shakespeare")
AUTHOR = "by William Shakespeare"
SONNETS = [
    "1609",
    "",
    "THE SONNETS",
    "",
    AUTHOR,
    "",
    "  ROSE. no role",
    "    no role",
    "    no role",
    "  LILY. nor this",
    "",
]


def works(*plays):
    return "\n".join([*SONNETS, *(line for play in plays for line in play)]) + "\n"


def play(title, *lines):
    return ["1600", "", title, "", AUTHOR, "", *lines]


def speech(name, *lines):
    return [f"  {name}. {lines[0]}", *(f"    {line}" for line in lines[1:])]


# -- the rules of parsing -----------------------------------------------------------------------------------------------
def test_roles_of_a_play_by_hand():
    text = works(
        play(
            "A PLAY?! IN PROSE",
            "    before anyone speaks",
            "  Anna. One two. Three",
            "    four  five  ",
            "  Enter BOB, who says nothing",
            " three spaces are too few",
            "",
            "    six",
            "  BOB. b1",
            "      deeper",
            "  BOB2. no name has a digit",
            "  SIR TOBY. only",
            "    two lines",
            "  ANNA. seven",
            "    . eight",
            "  BOB. b4",
        )
    )
    assert parse_roles(text) == {
        "A_PLAY__IN_PROSE_ANNA": "One two. Three\nfour  five  \nsix\nseven\n. eight\n",
        "A_PLAY__IN_PROSE_BOB": "b1\n  deeper\nb4\n",
    }


def test_the_comedy_of_errors_has_no_indentation():
    text = works(
        play(
            "THE COMEDY OF ERRORS",
            "ANNA. one",
            "two",
            "  three",
            "",
            "<<a notice",
            "not spoken",
            "BOB. b1",
            "b2",
            "ACT II. SCENE 1. is no role",
            "not spoken",
            "nor this",
            "BOB. b3",
        )
    )
    assert parse_roles(text) == {
        "THE_COMEDY_OF_ERRORS_ANNA": "one\ntwo\n  three\n\n",
        "THE_COMEDY_OF_ERRORS_BOB": "b1\nb2\nb3\n",
    }


def test_plays_with_one_role_are_left_out_and_a_role_ends_with_its_play():
    alone = play("ALONE", *speech("ANNA", "1", "2", "3"))
    both = play("BOTH", "    not ANNA's", *speech("ANNA", "a", "b", "c"), *speech("BOB", "x"))
    assert parse_roles(works(alone, both)) == {"BOTH_ANNA": "a\nb\nc\n"}


@pytest.mark.parametrize("above", range(2, 8))
def test_the_title_is_the_nearest_line_from_the_second_above(above):
    lines = ["TOO FAR", "TITLE", *[" "] * (above - 2), "too near", AUTHOR]
    text = works([*lines, *speech("ANNA", "a", "b", "c"), "  BOB. x"])
    assert list(parse_roles(text)) == ["TITLE_ANNA"]


def test_a_play_without_a_title_is_refused():
    with pytest.raises(ConfigurationError, match=r"title 2 to 7 lines above .* at line 20 "):
        parse_roles(works(["TITLE", *[""] * 7, AUTHOR, *speech("ANNA", "a", "b", "c")]))


def test_a_text_without_plays_is_refused():
    with pytest.raises(ConfigurationError, match=r"must hold a play.*\(1 such lines\)"):
        parse_roles("\n".join(SONNETS))


def test_the_plays_end_at_their_last_line():
    lines = works(play("BOTH", *speech("ANNA", "a", "b", "c"), "  BOB. x", "  ANNA. d")).split("\n")
    start = lines.index("  ANNA. a")
    filled = [*lines[: start + 1], *[""] * (124_195 - len(lines) + 1), *lines[start + 1 :]]
    assert filled[124_194] == "  ANNA. d"
    assert parse_roles("\n".join(filled)) == {"BOTH_ANNA": "a\nb\nc\nd\n"}
    assert parse_roles("\n" + "\n".join(filled)) == {"BOTH_ANNA": "a\nb\nc\n"}


# -- tokens -------------------------------------------------------------------------------------------------------------
def test_the_alphabet():
    assert len(ALPHABET) == len(set(ALPHABET)) == Shakespeare.classes == Shakespeare.vocab_size == 80
    assert [ALPHABET.index(c) for c in "\n !\"&'(),-.09:;>?AZ[]az}"] == [
        *range(12), 20, 21, 22, 23, 24, 25, 50, 51, 52, 53, 78, 79
    ]  # fmt: skip


def test_line_ends_and_runs_of_spaces_become_one_space():
    tokens = tokenise("a  b\n c   \nd.\n", "ROLE")
    assert tokens.dtype == np.uint8
    assert "".join(ALPHABET[token] for token in tokens) == "a b c d. "


def test_an_unknown_character():
    with pytest.raises(ConfigurationError, match=r"HAMLET says '_'; .*unknown='drop'"):
        tokenise("a _b_ * c\n", "HAMLET")
    assert "".join(ALPHABET[token] for token in tokenise("a _b_ * é c\n", "HAMLET", "drop")) == "a b c "


# -- which roles --------------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.floats(0.3, 1), st.integers(0, 5), st.integers(0, 99))
def test_whole_clients_are_taken_until_the_share_is_reached(sizes, fraction, min_samples, seed):
    sizes = np.array([*sizes, 60])
    wanted = int(fraction * sizes.sum())
    try:
        unfiltered = take_clients(sizes, fraction, 0, seed, "X")
        taken = take_clients(sizes, fraction, min_samples, seed, "X")
    except ConfigurationError:
        assert wanted < 60
        return
    assert wanted - unfiltered.sum() <= len(sizes)  # clients with a single sample are dropped
    assert ((unfiltered > 0) & (unfiltered < sizes)).sum() <= 1
    assert (unfiltered <= sizes).all()
    assert np.array_equal(taken, np.where(unfiltered > min_samples, unfiltered, 0))


def test_the_choice_is_random_and_has_an_address():
    sizes = np.full(50, 10)
    taken = [take_clients(sizes, 0.21, 0, seed, "X") for seed in (0, 0, 1)]
    assert [int(t.sum()) for t in taken] == [105] * 3
    assert [sorted(t[t > 0].tolist()) for t in taken] == [[5] + [10] * 10] * 3
    assert np.array_equal(taken[0], taken[1])
    assert not np.array_equal(taken[0], taken[2])
    assert set(np.flatnonzero(taken[0])) != set(range(11))
    share = np.mean([take_clients(sizes, 0.2, 0, seed, "X") > 0 for seed in range(400)], axis=0)
    assert (abs(share - 0.2) < 0.1).all()  # 0.2 ± five standard deviations of 400 draws


def test_clients_of_exactly_the_minimum_are_dropped():
    assert take_clients(np.array([30, 31]), 1.0, 30, 0, "X").tolist() == [0, 31]
    assert take_clients(np.array([1, 2]), 1.0, 0, 0, "X").tolist() == [0, 2]
    with pytest.raises(ConfigurationError, match=r"X must have a client with more than 31 samples.* has 31; lower"):
        take_clients(np.array([30, 31]), 1.0, 31, 0, "X")


@pytest.mark.parametrize(("size", "train"), [(2, 1), (3, 2), (4, 3), (5, 4), (9, 7), (10, 8)])
def test_splits_of_small_clients(size, train):
    assert count_train(size, 0.8) == train
    assert count_train(size, 0.1) == 1
    first, second = random_split(size, 0.8, 0, 3)
    assert (len(first), sorted([*first, *second])) == (train, list(range(size)))
    assert (first.tolist(), second.tolist()) == (sorted(first), sorted(second))
    first, second = contiguous_split(size, 0.8, 1)
    assert (first.tolist(), second.tolist()) == (list(range(train)), list(range(train + 1, size)))


def test_the_random_split_differs_between_clients_and_seeds():
    one, same, other, seeded = (random_split(100, 0.8, *a)[1].tolist() for a in ((0, 0), (0, 0), (0, 1), (1, 0)))
    assert one == same
    assert one not in (other, seeded)
    assert other != seeded


# -- windows ------------------------------------------------------------------------------------------------------------
TEXT = "abcdefghij klmnopqrst uvwxyzABCDEF"  # 34 characters, and a space for the line end


def small(tmp_path, **options):
    folder = tmp_path / "shakespeare"
    folder.mkdir(exist_ok=True)
    short = speech("ABE", "a", "b", "c")
    text = works(
        play("BOTH", *speech("BOB", "one", "two", "three four"), *speech("ANNA", *TEXT.split()), *short),
    )
    (folder / "small.txt").write_text(text)
    options = {"fraction": 1.0, "length": 6, "file": "small.txt", **options}
    data = Shakespeare(root=tmp_path, **options)
    data.setup()
    return data


def words(tokens):
    return "".join(ALPHABET[token] for token in tokens.tolist())


def window(data, examples, partition, client):
    inputs, targets = data.batch(examples, partition.client(client))
    assert inputs.dtype is targets.dtype is torch.int64
    return [(words(i), words(t[None])) for i, t in zip(inputs, targets, strict=True)]


def test_windows_by_hand(tmp_path):
    data = small(tmp_path)
    assert data.users == ["BOTH_ANNA", "BOTH_BOB"]  # "a b c " has six characters and no window
    text = TEXT + " "
    windows = [(text[s : s + 6], text[s + 6]) for s in range(29)]
    assert window(data, data.train, data.clients, 0) == windows[:23]  # int(0.8 · 29)
    assert window(data, data.test, data.test_clients, 0) == windows[28:]  # 23 + 5
    text = "one two three four "
    windows = [(text[s : s + 6], text[s + 6]) for s in range(13)]
    assert window(data, data.train, data.clients, 1) == windows[:10]
    assert window(data, data.test, data.test_clients, 1) == []


def test_no_test_input_overlaps_a_training_input(tmp_path):
    data = small(tmp_path, length=3, min_samples=3)
    for client in range(data.clients.num_clients):
        seen, tested = (
            {int(s) + i for s in examples.inputs[partition.client(client)] for i in range(3)}
            for examples, partition in ((data.train, data.clients), (data.test, data.test_clients))
        )
        assert tested
        assert not seen & tested
        assert min(tested) == max(seen) + 1


def test_the_random_split_takes_every_window_once(tmp_path):
    data = small(tmp_path, split="random")
    text = TEXT + " "
    train, test = window(data, data.train, data.clients, 0), window(data, data.test, data.test_clients, 0)
    assert (len(train), len(test)) == (23, 6)
    assert sorted(train + test) == sorted((text[s : s + 6], text[s + 6]) for s in range(29))
    assert train != [(text[s : s + 6], text[s + 6]) for s in range(23)]
    other = small(tmp_path, split="random", seed=1)
    assert window(other, other.train, other.clients, 0) != train


def test_a_cut_role_keeps_its_beginning(tmp_path):
    for seed in range(8):
        data = small(tmp_path, fraction=0.5, seed=seed)  # 21 of 42 windows; BOB first, then 8 of ANNA, or 21 of ANNA
        assert data.users in (["BOTH_ANNA"], ["BOTH_ANNA", "BOTH_BOB"])
        count = 21 if len(data.users) == 1 else 8
        assert data.train.inputs[data.clients.client(0)].tolist() == list(range(6, 6 + int(0.8 * count)))


def test_everything_in_memory_is_small(tmp_path):
    data = small(tmp_path)
    assert data.train.inputs.shape == data.train.targets.shape == (33,)
    assert data.train.inputs.element_size() + data.train.targets.element_size() == 5


def test_defaults_and_names(tmp_path):
    data = Shakespeare(root=tmp_path)
    assert data.batching == Batching(10, epochs=20)
    assert (data.name, data.shape, data.classes) == ("shakespeare_0.2", (80,), 80)
    assert Shakespeare(1.0, "random").name == "shakespeare_1_random"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "`fraction` of Shakespeare must be in"),
        ({"fraction": 1.1}, "`fraction` of Shakespeare must be in"),
        ({"train_fraction": 1.0}, "`train_fraction` of Shakespeare must be in"),
        ({"min_samples": -1}, "`min_samples` of Shakespeare must be at least 0"),
        ({"length": 0}, "`length` of Shakespeare must be at least 1"),
        ({"split": "contigous"}, "Did you mean 'contiguous'"),
        ({"unknown": "skip"}, "`unknown` of Shakespeare must be 'error' or 'drop', but is 'skip'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Shakespeare(**options)


def test_absent_and_other_files_are_reported(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"works of Shakespeare must lie in .*t8\.shakespeare\.txt.*it comes from"
    ):
        Shakespeare(root=tmp_path).setup()
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare/t8.shakespeare.txt").write_text(works(play("X", *speech("A", "1", "2", "3"))))
    with pytest.raises(ConfigurationError, match="must have 5,458,199 bytes"):
        Shakespeare(root=tmp_path).setup()
    (tmp_path / "shakespeare/t8.shakespeare.txt").write_bytes(b"x" * 5_458_199)
    with pytest.raises(ConfigurationError, match="sha256"):
        Shakespeare(root=tmp_path).setup()


def test_the_text_is_prepared_once(tmp_path, said):
    first = small(tmp_path)
    assert len(said()) == 1  # where it is kept
    assert len(list((tmp_path / "shakespeare/prepared").iterdir())) == 1
    again = Shakespeare(1.0, length=6, file="small.txt", root=tmp_path)
    again.setup()
    assert not said()
    assert again.users == first.users
    assert torch.equal(again.batch(again.train, torch.arange(33))[0], first.batch(first.train, torch.arange(33))[0])


def test_a_round_and_the_pooled_loaders(tmp_path):
    data = small(tmp_path, batching=Batching(4))
    inputs, targets = next(iter(data.test_dataloader()))
    assert (inputs.shape, targets.shape) == ((1, 6), (1,))
    inputs, targets = next(iter(data.train_dataloader()))
    assert (inputs.shape, targets.shape) == ((4, 6), (4,))
    model = CharLSTM(hidden=4, layers=1)
    trainer = FederatedTrainer(
        max_rounds=1, clients_per_round=2, strategy=SlotStrategy(["cpu/0"]), logger=False, evaluate_on=("test", "train")
    )
    trainer.fit(FedAvg(lr=0.1), Classification(model), data)
    assert {"test/loss", "train_all/loss", "test/accuracy"} <= set(trainer.metrics)


# -- the real file ------------------------------------------------------------------------------------------------------
@pytest.fixture
def real(tmp_path):
    if not (ROOT / "t8.shakespeare.txt").exists():
        pytest.skip(f"t8.shakespeare.txt is not in {ROOT} (FEDLIGHTNING_DATA)")
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare/t8.shakespeare.txt").symlink_to((ROOT / "t8.shakespeare.txt").absolute())
    return tmp_path


def test_the_roles_are_leafs(real):
    if not (ROOT / "by_role.json").exists():
        pytest.skip(f"by_role.json is not in {ROOT} (FEDLIGHTNING_DATA)")
    roles = parse_roles((real / "shakespeare/t8.shakespeare.txt").read_text())
    expected = json.loads((ROOT / "by_role.json").read_text())
    assert len(roles) == 1145
    assert roles == expected


def test_real_windows(real):
    data = Shakespeare(1.0, "random", root=real)
    data.setup()
    sizes = data.clients.sizes + data.test_clients.sizes
    assert (len(sizes), int(sizes.sum())) == (1130, 4_226_206)  # counted in by_role.json
    hamlet = data.users.index("THE_TRAGEDY_OF_HAMLET__PRINCE_OF_DENMARK_HAM")
    halves = ((data.train, data.clients), (data.test, data.test_clients))
    first, examples = min(
        ((clients.client(hamlet)[each.inputs[clients.client(hamlet)].argmin()], each) for each, clients in halves),
        key=lambda found: int(found[1].inputs[found[0]]),
    )
    assert words(data.batch(examples, first[None])[0][0, :36]) == "[aside] A little more than kin, and "
    by_default = Shakespeare(root=real)
    by_default.setup()
    sizes = by_default.clients.sizes
    assert int(sizes.sum()) == pytest.approx(0.8 * 845_241, rel=1e-3)
    assert 190 <= len(sizes) <= 260
    assert (
        sum(t.nbytes for t in (*by_default.train, *by_default.test)) < 4.5e6
    )  # beside the text, which has a byte a character
