import csv
import os
from pathlib import Path

import pytest
import torch

from fedlightning import Batching, Classification, FedAvg, FederatedTrainer, SlotStrategy
from fedlightning.datasets.glove import Glove
from fedlightning.datasets.sent140 import Sent140, Tweet, read_tweets, split_words
from fedlightning.errors import ConfigurationError
from fedlightning.models.recurrent import SentimentLSTM

ROOT = Path(os.environ.get("FEDLIGHTNING_DATA", "data"))
GLOVE = "the 0.5 -1 2\n, 1 2 3\ni 4 5 6\nlove 7 8 9\nnaïve 1e-3 0 0\n"
THE, COMMA, EYE, LOVE, UNKNOWN = 0, 1, 2, 3, 5


def put_glove(root, text=GLOVE, name="glove.6B.3d.txt"):
    (root / "glove").mkdir(exist_ok=True)
    (root / "glove" / name).write_text(text, encoding="utf-8")
    return root


# -- GloVe --------------------------------------------------------------------------------------------------------------
def test_glove_may_be_anywhere_but_has_a_name(tmp_path):
    put_glove(tmp_path)
    elsewhere = (tmp_path / "glove" / "glove.6B.3d.txt").rename(tmp_path / "mine.txt")
    assert Glove.read(tmp_path, str(elsewhere)).unknown == 5
    with pytest.raises(
        ConfigurationError, match=r"A file of GloVe vectors must have a name in .*, but the name is ''; "
    ):
        Glove.read(tmp_path, "")


def test_glove_by_hand(tmp_path):
    glove = Glove.read(put_glove(tmp_path))
    assert glove.vocab == {"the": 0, ",": 1, "i": 2, "love": 3, "naïve": 4}
    assert glove.unknown == 5
    assert glove.vectors.dtype is torch.float32
    expected = [[0.5, -1, 2], [1, 2, 3], [4, 5, 6], [7, 8, 9], [1e-3, 0, 0], [0, 0, 0]]
    assert torch.equal(glove.vectors, torch.tensor(expected))


def test_words_may_hold_what_python_calls_a_line_end(tmp_path):
    glove = Glove.read(put_glove(tmp_path, "a\x85 1\n\u2028 2\n\xa0b 3\n"))
    assert glove.vocab == {"a\x85": 0, "\u2028": 1, "\xa0b": 2}
    (tmp_path / "glove/glove.6B.3d.txt").write_bytes(b"\xff 1\n\xfe 2\n")
    assert len(Glove.read(tmp_path).vocab) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1 2\nb 1\n", r"Line 2 of .* must be a word and 2 numbers, .* has 1 columns after the word 'b'"),
        ("a 1 2\nb 1 2 3\n", r"Line 2 of .* must be a word and 2 numbers, .* has 3 columns"),
        ("a 1 2\n\nb 1 2\n", r"Line 2 of .* has 0 columns after the word ''"),
        ("a\n", r"Line 1 of .* must be a word and some numbers"),
        ("a 1 2\nb 1 2\nc 1 2\nb 3 4\n", r"Line 4 of .* must hold a new word, but 'b' is in line 2, too"),
        ("a 1 2\nb 1 x\n", r"Line 2 of .* must hold numbers .* could not convert string to float: 'x'"),
        ("a 1 nan\n", r"Line 1 of .* must hold finite numbers"),
        ("a 1 2\nb 1e60 2\n", r"Line 2 of .* must hold finite numbers"),
    ],
)
def test_damaged_lines_are_named(tmp_path, text, message):
    with pytest.raises(ConfigurationError, match=message):
        Glove.read(put_glove(tmp_path, text))


def test_absent_and_ambiguous_files_are_reported(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"GloVe vectors must lie in .*glove/glove\.6B\.\*\.txt, .*nlp\.stanford"
    ):
        Glove.read(tmp_path)
    put_glove(put_glove(tmp_path), "the 1\n", "glove.6B.1d.txt")
    with pytest.raises(ConfigurationError, match=r"matches 2 in .*: glove\.6B\.1d\.txt, glove\.6B\.3d\.txt; name one"):
        Glove.read(tmp_path)
    assert Glove.read(tmp_path, "glove.6B.1d.txt").vectors.shape == (2, 1)
    put_glove(tmp_path, "", "glove.6B.0d.txt")
    with pytest.raises(ConfigurationError, match="more than 0 bytes"):
        Glove.read(tmp_path, "glove.6B.0d.txt")


def test_glove_is_prepared_once_for_each_file(tmp_path, said):
    first = Glove.read(put_glove(tmp_path))
    assert len(said()) == 1  # where it is kept
    again = Glove.read(tmp_path)
    assert not said()
    assert again.vocab == first.vocab
    assert torch.equal(again.vectors, first.vectors)
    put_glove(tmp_path, GLOVE + "more 1 2 3\n")
    assert "more" in Glove.read(tmp_path).vocab
    assert len(said()) == 1


# -- the rules ----------------------------------------------------------------------------------------------------------
def test_words_by_hand():
    assert split_words("I'm OK,I_am:) so... ok?! #tag; @you é-b $5") == [
        "I'm", "OK", ",", "I_am", "so", ".", ".", ".", "ok", "?", "!", "tag", ";", "you", "é", "b", "5"
    ]  # fmt: skip


def row(user, text, polarity="0"):
    return [polarity, "1", "Mon", "NO_QUERY", user, text]


def put_tweets(root, training, testing=(), end="\n"):
    (root / "sent140").mkdir(exist_ok=True)
    for name, rows in (("training.few.csv", training), ("testdata.manual.few.csv", testing or [row("x", "y")])):
        with (root / "sent140" / name).open("w", encoding="latin-1", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator=end).writerows(rows)
    return put_glove(root)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_by_hand(tmp_path, end):
    rows = [row("ann", 'say "hi", é', "4"), row("bob", "two\nlines", "2"), row("ann", "", "0")]
    put_tweets(tmp_path, rows, end=end)
    assert read_tweets(tmp_path / "sent140/training.few.csv") == [
        Tweet("ann", 'say "hi", é', 1), Tweet("bob", "two\nlines", 0), Tweet("ann", "", 0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("ann", "x")[1:], r"Row 2 of .*training\.few\.csv must have six columns .* has 5 and begins with '1'"),
        ([*row("ann", "x"), ""], "has 7"),
        (row("ann", "x", "polarity"), "begins with 'polarity'"),
        ([], "has 0 and begins with ''"),
        (row("ann", "x" * 200_000), "must be a CSV file, but at line 2 field larger"),
    ],
)
def test_damaged_rows_are_named(tmp_path, bad, message):
    put_tweets(tmp_path, [row("ann", "x"), bad])
    with pytest.raises(ConfigurationError, match=message):
        Sent140(1.0, 0, root=tmp_path).setup()


def load(root, *args, **options):
    data = Sent140(*args, root=root, **options)
    data.setup()
    return data


def everything(data, client):
    """The device's (words, label), those for training first."""
    pairs = []
    for examples, partition in ((data.train, data.clients), (data.test, data.test_clients)):
        inputs, targets = data.batch(examples, partition.client(client))
        assert inputs.dtype is targets.dtype is torch.int64
        pairs += list(zip(inputs.tolist(), targets.tolist(), strict=True))
    return pairs


def test_words_and_labels_by_hand(tmp_path):
    training = [
        row("bob", "i love the, the", "4"),
        row("Zoe", "one tweet", "4"),
        row("ann", "I LOVE naïve love", "0"),
        row("bob", "i " * 30, "2"),
        row("ann", "the", "4"),
    ]
    put_tweets(tmp_path, training, [row("ann", "love?", "2"), row("cyd", "i", "4")])
    data = load(tmp_path, 1.0, 1, length=6)
    pad = [UNKNOWN] * 6
    assert (data.users, data.vocab_size, data.shape) == (["ann", "bob"], 6, (6,))
    ann = [([UNKNOWN, UNKNOWN, 4, LOVE, *pad[:2]], 0), ([THE, *pad[:5]], 1), ([LOVE, *pad[:5]], 0)]
    bob = [([EYE, LOVE, THE, COMMA, THE, UNKNOWN], 1), ([EYE] * 6, 0)]
    assert (data.clients.sizes.tolist(), data.test_clients.sizes.tolist()) == ([2, 1], [1, 1])
    assert sorted(everything(data, 0)) == sorted(ann)
    assert sorted(everything(data, 1)) == sorted(bob)
    lowered = load(tmp_path, 1.0, 1, True, length=6)
    assert ([EYE, LOVE, 4, LOVE, *pad[:2]], 0) in everything(lowered, 0)
    assert data.name == "sent140_1_1"
    assert lowered.name == "sent140_1_1_lowercase"


def test_the_first_25_words(tmp_path):
    put_tweets(tmp_path, [row("ann", "the " * 24 + "i love"), row("ann", "")])
    rows = sorted(words for words, _ in everything(load(tmp_path, 1.0, 0), 0))
    assert rows == [[THE] * 24 + [EYE], [UNKNOWN] * 25]


def many(count, user="ann"):
    return [row(user, "the " * i) for i in range(count)]


def lengths(data, examples, partition, client=0):
    """How many words each of a device's tweets has, which tells those of `many` apart."""
    return (examples.inputs[partition.client(client)] != UNKNOWN).sum(1).tolist()


def test_more_than_30_tweets_are_needed_by_default(tmp_path):
    put_tweets(tmp_path, [*many(30, "ann"), *many(31, "bob")])
    assert load(tmp_path, 1.0).users == ["bob"]
    with pytest.raises(ConfigurationError, match=r"Sent140 must have a client with more than 40 .* has 31; lower"):
        load(tmp_path, 1.0, 40)


def test_the_split_is_random_by_account_and_seed(tmp_path):
    put_tweets(tmp_path, [*many(20, "ann"), *many(20, "bob")])
    data, again = (load(tmp_path, 1.0, 5) for _ in range(2))
    assert data.users == ["ann", "bob"]
    found = [lengths(data, data.test, data.test_clients, c) for c in (0, 1)]
    assert [len(f) for f in found] == [4, 4]
    assert found[0] != found[1]
    assert sorted(lengths(data, data.train, data.clients) + found[0]) == list(range(20))
    assert found[0] != [16, 17, 18, 19]
    assert found[0] == lengths(again, again.test, again.test_clients)
    other = load(tmp_path, 1.0, 5, seed=1)
    assert found[0] != lengths(other, other.test, other.test_clients)


def test_accounts_are_taken_whole_but_the_last(tmp_path):
    put_tweets(tmp_path, [r for user in "abcdefgh" for r in many(10, user)], many(1, "zz"))
    chosen = []
    for seed in range(6):
        data = load(tmp_path, 0.31, 1, seed=seed)  # 25 of 81
        sizes = (data.clients.sizes + data.test_clients.sizes).tolist()
        assert sorted(sizes) in ([5, 10, 10], [4, 10, 10])
        chosen.append(tuple(data.users))
        cut = sizes.index(min(sizes))
        kept = lengths(data, data.train, data.clients, cut) + lengths(data, data.test, data.test_clients, cut)
        assert sorted(kept) == list(range(min(sizes)))
    assert len(set(chosen)) > 1


def test_prepared_once_for_each_choice(tmp_path, said):
    put_tweets(tmp_path, many(10))
    first = load(tmp_path, 1.0, 5)
    said()
    again = load(tmp_path, 1.0, 5)
    assert again.users == first.users
    assert torch.equal(again.train.inputs, first.train.inputs)
    assert len(load(tmp_path, 1.0, 5, train_fraction=0.5).train.targets) == 5
    assert not said()
    others = ({"fraction": 0.9}, {"min_samples": 4}, {"lowercase": True}, {"length": 3}, {"seed": 1})
    for other in others:
        load(tmp_path, **{"fraction": 1.0, "min_samples": 5, **other})
        assert len(said()) == 1
    put_glove(tmp_path, GLOVE + "more 1 2 3\n")
    load(tmp_path, 1.0, 5)
    assert len(said()) == 2


def test_absent_files_are_reported(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"training file .* lie in .*sent140/training\*\.csv.*cs\.stanford\.edu"
    ):
        load(tmp_path)
    put_tweets(tmp_path, many(3))
    (tmp_path / "sent140/training.more.csv").write_text("x")
    with pytest.raises(ConfigurationError, match=r"matches 2 in .*; leave only one there"):
        load(tmp_path)
    (tmp_path / "sent140/training.more.csv").unlink()
    (tmp_path / "glove/glove.6B.3d.txt").unlink()
    with pytest.raises(ConfigurationError, match="GloVe vectors must lie in"):
        load(tmp_path, 1.0, 0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"fraction": 0}, "fraction"),
        ({"min_samples": -1}, "min_samples"),
        ({"train_fraction": 1}, "train_fraction"),
        ({"length": 0}, "length"),
    ],
)
def test_wrong_options_are_refused(options, name):
    with pytest.raises(ConfigurationError, match=f"`{name}` of Sent140 must be (in|at least) "):
        Sent140(**options)


def test_defaults():
    data = Sent140()
    assert data.batching == Batching(10, epochs=20)
    assert (data.name, data.shape, data.classes) == ("sent140_0.3_30", (25,), 2)


def test_a_round(tmp_path):
    put_tweets(tmp_path, [*many(6, "ann"), *many(7, "bob")])
    data = load(tmp_path, 1.0, 2, batching=Batching(4))
    model = SentimentLSTM(data.glove.vectors, hidden=3, layers=1, dense=2)
    trainer = FederatedTrainer(
        max_rounds=1, clients_per_round=2, strategy=SlotStrategy(["cpu/0"]), logger=False, evaluate_on=("test", "train")
    )
    trainer.fit(FedAvg(lr=0.1), Classification(model, classes=2), data)
    assert {"test/loss", "train_all/loss", "test/accuracy"} <= set(trainer.metrics)


# -- the real files -----------------------------------------------------------------------------------------------------
@pytest.fixture
def real(tmp_path):
    for folder, pattern in (("sent140", "*.csv"), ("glove", "glove.6B.*.txt")):
        files = sorted((ROOT / folder).glob(pattern))
        if not files:
            pytest.skip(f"{pattern} is not in {ROOT / folder} (FEDLIGHTNING_DATA)")
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file.name).symlink_to(file.absolute())
    return tmp_path


def test_real_vectors(real):
    glove = Glove.read(real)
    assert glove.vectors.shape == (len(glove.vocab) + 1, 50)
    assert glove.vocab["the"] == 0
    assert glove.vectors[0, :3].tolist() == pytest.approx([0.418, 0.24968, -0.41242])
    near = torch.nn.functional.normalize(glove.vectors[:-1], dim=1) @ glove.vectors[glove.vocab["king"]]
    best = set(near.topk(8).indices.tolist())
    assert {glove.vocab[word] for word in ("king", "prince", "queen")} <= best


def test_real_tweets(real):
    training, testing = (sorted((real / "sent140").glob(f"{part}*"))[0] for part in ("training", "testdata"))
    if training.resolve().stat().st_size != 3_009_918:
        pytest.skip("these counts are of the 20,000 rows")
    tweets = read_tweets(training)
    assert (len(tweets), len({t.user for t in tweets}), sum(t.label for t in tweets)) == (20_000, 18_105, 10_001)
    tweets = read_tweets(testing)
    assert (len(tweets), sum(t.label for t in tweets)) == (498, 182)
    data = load(real, 1.0, 4)
    sizes = data.clients.sizes + data.test_clients.sizes
    assert (len(sizes), int(sizes.sum()), int(sizes.max())) == (40, 237, 10)
    assert data.users == sorted(data.users)
    assert int(sizes[data.users.index("CaroMcFly")]) == 10
    with pytest.raises(ConfigurationError, match="lower `min_samples`"):
        load(real)
