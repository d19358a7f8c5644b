"""How many examples are evaluated at once: by what one takes of memory, and never so that it changes what is measured."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import fit, quiet_trainer
from torch import Tensor, nn

from fedlightning import (
    IID,
    Batching,
    Callback,
    Classification,
    Examples,
    FedAvg,
    FederatedTask,
    FederatedTrainer,
    NextToken,
    TensorData,
)
from fedlightning.baselines.centralised import fit_centralised
from fedlightning.evaluation import footprint, pooled
from fedlightning.evaluation.footprint import examples_at_once
from fedlightning.evaluation.pooled import EvaluationGivenUp, Scored, evaluate_chunk
from fedlightning.models import build_model

MIB = 2**20


def held(size: int, constant: int = 0) -> Callable[[int], object]:
    """Takes so many bytes for each example, and so many in all."""
    return lambda count: (torch.empty(count, size, dtype=torch.uint8), torch.empty(constant, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("size", "most"),
    [(0, 1000), (1, 1000), (268_435, 1000), (268_436, 500), (536_870, 500), (536_871, 250), (2 * MIB, 125), (3 * MIB, 62), (128 * MIB, 1), (2**40, 1)],
)  # fmt: skip
def test_the_most_examples_that_have_room(size: int, most: int) -> None:
    assert most == 1 or most * size <= footprint.ROOM
    with torch.device("meta"):
        assert examples_at_once(held(size)) == most
        assert examples_at_once(held(size, constant=2**40)) == most


def test_what_is_let_go_of_makes_room() -> None:
    """Of ten layers two results are alive at a time, and the input."""

    def evaluate(count: int) -> Tensor:
        x = torch.zeros(count, MIB // 4)
        hidden = x
        for _ in range(10):
            hidden = hidden + 1
        return hidden

    one, two = (footprint.memory(evaluate, count) for count in (1, 2))
    assert max(one) == 3 * MIB
    assert max(two) == 6 * MIB
    assert examples_at_once(evaluate) == 62


def test_views_and_results_in_place_take_nothing() -> None:
    def evaluate(count: int) -> Tensor:
        return torch.zeros(count, 1024).add_(1).view(-1).relu_()[::2]

    assert max(footprint.memory(evaluate, 2)) == 8192


@pytest.mark.parametrize("attention", [True, False])
def test_attention_in_one_piece_is_counted_with_its_scores(attention: bool) -> None:
    """Of 4 heads and 256 tokens a megabyte, twice; the layer's results are 16 KiB."""
    layer = nn.TransformerEncoderLayer(16, 4, 16, 0.0, batch_first=True).eval()
    inputs = torch.zeros(2, 256, 16)

    def evaluate(count: int) -> Tensor:
        tokens = inputs[:count]
        with torch.no_grad():
            return layer.self_attn(tokens, tokens, tokens)[0] if attention else layer(tokens)

    one, two = (max(footprint.memory(evaluate, count)) for count in (1, 2))
    assert 2 * MIB < two - one < 3 * MIB


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_of_this_size_are_evaluated_a_thousand_at_once(dtype: torch.dtype) -> None:
    sizes = {}
    for name, shape in (("logistic", (1, 28, 28)), ("mlp", (1, 28, 28)), ("lenet", (3, 32, 32)), ("fedavg-cnn", (1, 28, 28)), ("resnet18", (3, 32, 32))):  # fmt: skip
        model = build_model(name, shape, 10).to(dtype).eval()
        inputs = torch.zeros(3, *shape, dtype=dtype)
        with torch.no_grad():
            sizes[name] = examples_at_once(lambda count, model=model, inputs=inputs: model(inputs[:count]))
    wide = dtype == torch.float64
    assert sizes == {"logistic": 1000, "mlp": 1000, "lenet": 1000, "fedavg-cnn": 500 if wide else 1000, "resnet18": sizes["resnet18"]}  # fmt: skip
    assert sizes["resnet18"] <= (125 if wide else 250)


class Words(nn.Module):
    """The next of 500 words, from the last one alone."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.embedding, self.layers, self.out = nn.Embedding(500, 8), nn.Sequential(*layers), nn.Linear(8, 500)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.out(self.layers(self.embedding(ids)))
        return logits


def words(test: int = 60) -> TensorData:
    ids = torch.randint(0, 500, (60, 16), generator=torch.Generator().manual_seed(0))
    examples, owners = Examples(ids, ids.roll(-1, 1)), IID(3).split(torch.zeros(60), 0)
    return TensorData(examples, owners, Examples(*(t[:test] for t in examples)), batching=Batching(10, steps=1))


def task(*layers: nn.Module) -> FederatedTask:
    torch.manual_seed(0)
    return NextToken(Words(*layers).double(), 500)


class Sizes:
    """Notes how many examples are evaluated at once, and what the tasks' modes are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        monkeypatch.setattr(pooled, "evaluate_chunk", self)

    def __call__(self, replica, data, split, chunk, x, buffers) -> Scored:  # type: ignore[no-untyped-def]
        self.sizes.append(min(chunk[1], len(split.clients.indices)) - chunk[0])
        scored = evaluate_chunk(replica, data, split, chunk, x, buffers)
        assert replica.task.training
        return scored


def evaluated(model: FederatedTask, data: TensorData, **options: Any) -> dict[str, float]:
    """What is measured on the test set, before a round and after it."""
    metrics = fit(FedAvg(), model, data, 1, evaluate_every=1, **options).metrics
    return {name: value for name, value in metrics.items() if name.startswith("test")}


@pytest.mark.parametrize("slots", [1, 3])
def test_an_evaluation_takes_what_has_room_and_gives_the_same_numbers(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of 16 words are 62.5 KiB, and their logarithms as much: 15 examples at once have room in 2 MiB."""
    seen = Sizes(monkeypatch)
    whole = evaluated(task(), words(), slots=slots)
    assert seen.sizes == [2, 3, 60, 60]  # what one takes is measured once, before the first evaluation
    monkeypatch.setattr(footprint, "ROOM", 2 * MIB)
    seen.sizes.clear()
    assert evaluated(task(), words(), slots=slots) == pytest.approx(whole, abs=1e-12)
    assert seen.sizes[:2] == [2, 3]
    assert sorted(seen.sizes[2:]) == [15] * 8


def test_what_the_metrics_take_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(NextToken):
        def update_metrics(self, metrics, outputs, targets) -> None:  # type: ignore[no-untyped-def]
            torch.zeros(len(targets), MIB // 4)
            super().update_metrics(metrics, outputs, targets)

    monkeypatch.setattr(footprint, "ROOM", 4 * MIB)
    seen = Sizes(monkeypatch)
    evaluated(Greedy(Words().double(), 500), words())
    assert max(seen.sizes[2:]) == 3


def test_measuring_leaves_random_numbers_and_modes_alone() -> None:
    def evaluate(count: int) -> Tensor:
        return torch.rand(count)

    before = torch.get_rng_state()
    assert examples_at_once(evaluate) == 1000
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_fails_in_evaluation_fails_with_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise RuntimeError("of the user's own")
            return x

    with pytest.raises(RuntimeError, match="of the user's own"):
        evaluated(task(Fails()), words())


def test_a_number_that_depends_on_the_batch_is_taken_at_its_worst() -> None:
    """Three examples take another way through the model than two, and all that three take is counted."""

    def evaluate(count: int) -> list[Tensor]:
        return [torch.empty(MIB, dtype=torch.uint8) for _ in range(4 * count)]

    assert examples_at_once(evaluate) == 15


def test_a_transformer_whose_single_examples_take_another_way_is_measured_by_several() -> None:
    """Of one example views are views where several are copied."""
    model, inputs = build_model("vitsmall", (3, 32, 32), 10).eval(), torch.zeros(3, 3, 32, 32)
    with torch.no_grad():
        one, two, three = (footprint.memory(lambda count: model(inputs[:count]), count) for count in (1, 2, 3))
        assert len(one) < len(two) == len(three)
        assert examples_at_once(lambda count: model(inputs[:count])) == 31


@pytest.mark.parametrize("count", [1, 2])
def test_few_examples_are_evaluated(count: int) -> None:
    assert evaluated(task(), words(test=count))


def test_results_wait_in_a_window_however_slow_the_trainers_thread_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "ROOM", MIB // 8)
    seen, ahead = Sizes(monkeypatch), list[int]()

    class Slow(Classification):
        def update_metrics(self, metrics, outputs, targets) -> None:  # type: ignore[no-untyped-def]
            ahead.append(len(seen.sizes) - len(ahead))
            time.sleep(0.002)
            super().update_metrics(metrics, outputs, targets)

    inputs, targets = torch.zeros(400, 1000), torch.zeros(400, dtype=torch.int64)
    data = TensorData(Examples(inputs, targets), IID(2).split(targets, 0), batching=Batching(1, steps=1))
    evaluated(Slow(nn.Linear(1000, 3)), data, slots=2)
    assert len(ahead) > 20
    assert max(ahead) <= 2 * 2 + 1


def test_an_evaluation_that_is_given_up_begins_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "ROOM", MIB // 8)
    seen = Sizes(monkeypatch)
    ended: list[int] = []

    class Ends(Callback):
        def on_fit_start(self, trainer: FederatedTrainer) -> None:
            x, buffers = trainer.state.server.x, trainer.state.buffers
            with pytest.raises(EvaluationGivenUp):
                pooled.GlobalEvaluator(trainer.strategy, task, data, ("test",)).score(
                    x, buffers, lambda done, total: False
                )
            list(trainer.strategy.map([lambda worker: None]))
            ended.append(len(seen.sizes))

    inputs, targets = torch.zeros(400, 1000), torch.zeros(400, dtype=torch.int64)
    data = TensorData(Examples(inputs, targets), IID(2).split(targets, 0), batching=Batching(1, steps=1))
    task = Classification(nn.Linear(1000, 3))
    fit(FedAvg(), task, data, 1, callbacks=[Ends()])
    assert ended[0] <= 2 + 3  # two to measure, and a window


def test_one_who_is_interrupted_in_an_evaluation_waits_for_a_batch_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second Ctrl-C comes in the trainer's thread, while slots have forty batches before them."""
    monkeypatch.setattr(footprint, "ROOM", MIB // 8)
    seen = Sizes(monkeypatch)

    class Stopped(Classification):
        def update_metrics(self, metrics, outputs, targets) -> None:  # type: ignore[no-untyped-def]
            if len(seen.sizes) > 2:
                raise KeyboardInterrupt

    inputs, targets = torch.zeros(400, 1000), torch.zeros(400, dtype=torch.int64)
    data = TensorData(Examples(inputs, targets), IID(2).split(targets, 0), batching=Batching(1, steps=1))
    with pytest.raises(KeyboardInterrupt):
        evaluated(Stopped(nn.Linear(1000, 3)), data)
    assert len(seen.sizes) <= 2 + 3


def test_the_centralised_baseline_evaluates_as_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Notes(NextToken):
        def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
            if len(targets) > 3:  # else it is measured what an example takes
                sizes.append(len(targets))
            return super().scores(outputs, targets)

    for room, expected in ((256 * MIB, [60]), (2 * MIB, [15] * 4)):
        monkeypatch.setattr(footprint, "ROOM", room)
        sizes.clear()
        fit_centralised(quiet_trainer(1), FedAvg(lr=0.1), Notes(Words().double(), 500), words(), [], tmp_path)
        assert sizes == expected * 2
