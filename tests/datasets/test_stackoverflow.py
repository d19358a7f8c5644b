"""Stack Overflow's sentences, their task and their models, on a few lines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import fit
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedlightning import Batching, ConfigurationError, Examples, FedProx, Natural, TensorData
from fedlightning.datasets import NextWord, StackOverflow
from fedlightning.datasets.stackoverflow import encode
from fedlightning.layout import Layout
from fedlightning.models import GRULayer, WordRNN

TRAIN = {
    "7": ["how do i sort a list", "sort it", "a b c d e f"],
    "12": ["sort a list", "what is a list"],
    "3": ["i do not know"],
    "empty": [],
}
TEST = {"99": ["sort the list", "what"], "7": ["do i"]}


def write(root: Path, train: object = TRAIN, test: object = TEST) -> Path:
    folder = root / "stackoverflow"
    folder.mkdir(parents=True, exist_ok=True)
    for name, users in (("train", train), ("test", test)):
        lines = [json.dumps({"user": user, "sentences": sentences}) for user, sentences in users.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def read(root: Path, **options: object) -> StackOverflow:
    data = StackOverflow(root=root, **{"vocabulary": 6, "length": 4, **options})
    data.setup()
    return data


# -- the data ---------------------------------------------------------------------------------------------------------
def test_sentences_become_tokens():
    ids = {"sort": 1, "a": 2, "list": 3}
    found = encode(["sort a list", "sort that list quickly a", "", " a  a a a "], ids, 4)
    assert found.dtype == np.int16
    assert found.tolist() == [
        [5, 1, 2, 3, 6],  # start, words, end
        [5, 1, 4, 3, 4],  # unknown words, and no end after the last word that fits
        [5, 6, 0, 0, 0],
        [5, 2, 2, 2, 2],
    ]


def test_the_vocabulary_is_what_most_users_say(tmp_path):
    write(tmp_path)
    data = read(tmp_path)
    # a, do, i, list and sort are said by two users, the others by one; ties in alphabetical order
    assert data.words == ["a", "do", "i", "list", "sort", "b"]
    assert data.vocab_size == 10
    assert read(tmp_path, vocabulary=100).vocab_size == 4 + len(
        {w for s in TRAIN.values() for x in s for w in x.split()}
    )


def test_word_counts_are_taken_where_they_lie(tmp_path):
    folder = write(tmp_path)
    (folder / "stackoverflow.word_count").write_text("the 90\nlist 80\nsort 7\nwhat 5\n")
    assert read(tmp_path, vocabulary=3).words == ["the", "list", "sort"]
    (folder / "stackoverflow.word_count").write_text("what 90\nlist\nsort 7\n")
    with pytest.raises(ConfigurationError, match="must hold another word and its number"):
        read(tmp_path, vocabulary=3)


def test_users_are_clients_and_those_of_the_test_part_their_own(tmp_path):
    write(tmp_path)
    data = read(tmp_path)
    assert data.users == ["7", "12", "3"]
    assert data.clients.sizes.tolist() == [3, 2, 1]
    assert data.test_clients.sizes.tolist() == [2, 1]
    inputs, targets = data.batch(data.train, data.clients.client(1))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.tolist() == [[8, 5, 1, 4], [8, 7, 7, 1]]
    assert targets.tolist() == [[5, 1, 4, 9], [7, 7, 1, 4]]
    assert data.batch(data.test, torch.tensor([1]))[1].tolist() == [[7, 9, 0, 0]]


def test_a_users_first_sentences_are_taken(tmp_path):
    write(tmp_path)
    assert read(tmp_path, max_sentences=1).clients.sizes.tolist() == [1, 1, 1]
    assert read(tmp_path, max_sentences=None).clients.sizes.tolist() == [3, 2, 1]
    assert read(tmp_path, max_sentences=2).train.inputs[1].tolist() == [8, 5, 7, 9]


def test_what_is_kept_follows_the_options_and_the_files(tmp_path):
    folder = write(tmp_path)
    first = read(tmp_path)
    assert torch.equal(read(tmp_path).train.inputs, first.train.inputs)
    assert len(list((folder / "prepared").iterdir())) == 1
    assert read(tmp_path, length=3).train.inputs.shape == (6, 3)
    write(tmp_path, test={"99": ["sort"]})
    assert read(tmp_path).test_clients.sizes.tolist() == [1]


def test_leaf_json_will_do(tmp_path):
    write(tmp_path)
    wanted = read(tmp_path)
    for part, users in (("train", TRAIN), ("test", TEST)):
        (tmp_path / f"stackoverflow/{part}.jsonl").unlink()
        (tmp_path / f"stackoverflow/{part}").mkdir()
        named = {user: {"x": sentences, "y": [0] * len(sentences)} for user, sentences in users.items()}
        content = {"users": list(users), "num_samples": [len(s) for s in users.values()], "user_data": named}
        (tmp_path / f"stackoverflow/{part}/all.json").write_text(json.dumps(content))
    data = read(tmp_path)
    assert data.users == ["12", "3", "7"]
    assert data.words == wanted.words
    assert torch.equal(data.train.inputs[-3:], wanted.train.inputs[:3])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"user": "7", "sentences": ["a"', r"line 2 of .*train.jsonl must be .* is it cut short\?"),
        ('["a"]', "line 2 of .*train.jsonl must be"),
        ('{"user": "8"}', "line 2 .* but is not .KeyError"),
        ('{"user": 8, "sentences": ["a"]}', "must be a name of one line that comes once, but is 8"),
        ('{"user": "7", "sentences": ["a"]}', "that comes once, but is '7'"),
        ('{"user": "8", "sentences": "a"}', "must be a list of strings, but those of '8' in line 2"),
        ('{"user": "8", "sentences": [["a", "b"]]}', "those of '8' .* join tokens by spaces"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, message):
    folder = write(tmp_path)
    (folder / "train.jsonl").write_text('{"user": "7", "sentences": ["a"]}\n' + line + "\n")
    with pytest.raises(ConfigurationError, match=message):
        read(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"train part of Stack Overflow must lie in .*train.jsonl.*tff-datasets"
    ):
        read(tmp_path)
    folder = write(tmp_path)
    (folder / "test.jsonl").unlink()
    with pytest.raises(ConfigurationError, match="test part of Stack Overflow"):
        read(tmp_path)
    write(tmp_path, test={"9": []})
    with pytest.raises(ConfigurationError, match=r"test.jsonl must hold a user with a sentence"):
        read(tmp_path)
    write(tmp_path, train={"9": [" "]})
    with pytest.raises(ConfigurationError, match=r"train.jsonl must hold a word"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 0}, r"`vocabulary` of StackOverflow must be in \[1, 32763\], but is 0"),
        ({"vocabulary": 32764}, "`vocabulary` of StackOverflow"),
        ({"length": 0}, "`length` of StackOverflow"),
        ({"max_sentences": 0}, "`max_sentences` of StackOverflow"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigurationError, match=message):
        StackOverflow(**options)


# -- the task ---------------------------------------------------------------------------------------------------------
def outputs_and_targets() -> tuple[Tensor, Tensor]:
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4, 10)))
    return outputs, torch.tensor([[5, 7, 3, 9], [2, 9, 0, 0], [7, 9, 0, 0]])  # V = 6: 7 is unknown, 9 the end


def test_padding_has_no_loss():
    outputs, targets = outputs_and_targets()
    found = NextWord(WordRNN(10, hidden=4), 10).criterion(outputs, targets)
    expected = []
    for logits, tokens in zip(outputs.tolist(), targets.tolist(), strict=True):
        losses = [
            math.log(sum(math.exp(x) for x in row)) - row[token]
            for row, token in zip(logits, tokens, strict=True)
            if token != 0
        ]
        expected.append(sum(losses) / len(losses))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_accuracy_counts_known_words_alone():
    outputs, targets = outputs_and_targets()
    outputs[0, 0, 5] = outputs[1, 0, 2] = outputs[0, 1, 7] = outputs[0, 3, 9] = outputs[1, 2, 0] = 99.0
    outputs[0, 2, 4] = 99.0
    task = NextWord(WordRNN(10, hidden=4), 10)
    assert task.scores(outputs, targets)["accuracy"].tolist() == [0.5, 1.0, 0.0]
    task.update_metrics(task.metrics, outputs, targets)
    task.update_metrics(task.metrics, outputs[2:], targets[2:])
    assert float(task.metrics["accuracy"].compute()) == pytest.approx(2 / 3)


# -- the models -------------------------------------------------------------------------------------------------------
def words(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(0, 11, size=shape))


def noisy(model: nn.Module) -> nn.Module:
    rng = np.random.default_rng(1)
    for parameter in model.double().parameters():
        parameter.data += 0.3 * torch.from_numpy(rng.normal(size=tuple(parameter.shape)))
    return model


def transformed(model: nn.Module, inputs: Tensor) -> Tensor:
    return vmap(lambda _: model(inputs))(torch.zeros(1))[0]


def test_parameter_counts():
    assert Layout.of(WordRNN()).size == 4_050_748  # as TensorFlow Federated's
    embedding, projection, head = 10_004 * 96, 671 * 96, 97 * 10_004
    assert Layout.of(WordRNN(cell="gru")).size == embedding + 3 * 670 * (96 + 670) + 4 * 670 + projection + head
    assert Layout.of(WordRNN(20, embedding=3, hidden=5, layers=2)).size == 60 + 180 + 220 + 18 + 80


def reference(layer: GRULayer) -> nn.GRU:
    gru = nn.GRU(layer.weight_ih.shape[1], layer.weight_hh.shape[1]).double()
    with torch.no_grad():
        gru.weight_ih_l0.copy_(layer.weight_ih)
        gru.weight_hh_l0.copy_(layer.weight_hh)
        gru.bias_ih_l0.copy_(layer.bias)
        gru.bias_hh_l0.zero_()[-len(layer.inner_bias) :] = layer.inner_bias
    return gru


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("how", ["eager", "transformed"])
def test_the_gru_and_its_gradients_are_torchs(how, steps):
    layer = noisy(GRULayer(4, 5, np.random.default_rng(0)))
    gru = reference(layer)
    rng = np.random.default_rng(4)
    sequence = torch.from_numpy(rng.normal(size=(steps, 3, 4)))
    weight = torch.from_numpy(rng.normal(size=(steps, 3, 5)))
    states, _ = gru(sequence)
    wanted = torch.autograd.grad((states * weight).sum(), list(gru.parameters()))
    if how == "eager":
        torch.testing.assert_close(layer(sequence), states, rtol=0, atol=1e-13)
        found = torch.autograd.grad((layer(sequence) * weight).sum(), list(layer.parameters()))
    else:
        torch.testing.assert_close(transformed(layer, sequence), states, rtol=0, atol=1e-13)
        loss = lambda p: (functional_call(layer, p, (sequence,)) * weight).sum()  # noqa: E731
        found = list(grad(loss)(dict(layer.named_parameters())).values())
    for one, other in zip(found, [*wanted[:3], wanted[3][-5:]], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_it_is_native_when_nothing_looks_on(monkeypatch):
    calls, gru = [], torch.gru
    monkeypatch.setattr(torch, "gru", lambda *a, **k: (calls.append(1), gru(*a, **k))[1])
    layer = GRULayer(2, 3, np.random.default_rng(0))
    layer(torch.ones(4, 1, 2))
    assert len(calls) == 1
    vmap(layer)(torch.ones(1, 4, 1, 2))
    assert len(calls) == 1


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_word_knows_those_before_it_and_none_after(cell):
    model, tokens = noisy(WordRNN(11, cell, embedding=3, hidden=4, layers=2)), words(2, 6)
    logits = model(tokens)
    assert logits.shape == (2, 6, 11)
    changed = tokens.clone()
    changed[0, 3] = (tokens[0, 3] + 1) % 11
    moved = (model(changed) - logits).abs().amax(2) > 1e-9
    assert moved.tolist() == [[False] * 3 + [True] * 3, [False] * 6]


def test_the_start_depends_on_the_seed_alone():
    before = torch.get_rng_state()
    starts = [Layout.of(m).read(m) for m in (WordRNN(30, "gru", hidden=4, seed=s) for s in (0, 0, 1))]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WordRNN(cell="rnn"), "`cell` of WordRNN must be 'lstm' or 'gru', but is 'rnn'"),
        (lambda: WordRNN(hidden=0), "`hidden` of WordRNN must be at least 1, but is 0"),
        (lambda: WordRNN(layers=0), "`layers` of WordRNN"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()


# -- trained ----------------------------------------------------------------------------------------------------------
def padded_run(task: NextWord, cohort_size: int) -> Tensor:
    """Two rounds over clients of 1 to 8 sequences, some of which are padded."""
    owners = torch.arange(4).repeat_interleave(torch.tensor([1, 3, 8, 5]))
    tokens = words(17, 6)
    tokens[:, 4:] *= (torch.arange(17) % 3 > 0)[:, None]  # some are padded
    data = TensorData(
        Examples(tokens[:, :-1], tokens[:, 1:]), Natural(owners).split(owners, seed=0), batching=Batching(3, epochs=2)
    )
    return fit(FedProx(lr=0.5, mu=0.1), task, data, cohort_size=cohort_size).state.server.x


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_cohort_gives_the_loops_numbers(cell):
    task = NextWord(noisy(WordRNN(11, cell, embedding=3, hidden=4)), 11)
    loop = padded_run(task, 1)
    assert float((loop - Layout.of(task).read(task)).abs().max()) > 1e-3
    torch.testing.assert_close(padded_run(task, 3), loop, rtol=0, atol=1e-12)
