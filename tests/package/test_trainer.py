"""The trainer: what it logs, what it refuses before the first round, and how it ends."""

import csv
import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from fedlightning import (
    Batching,
    Callback,
    Classification,
    ConfigurationError,
    EarlyStopping,
    Examples,
    FedAvg,
    FederatedTrainer,
    FedProx,
    ModelCheckpoint,
    NextToken,
    Partition,
    Regression,
    Scaffold,
    SlotStrategy,
    TensorData,
)
from fedlightning.models import MLP
from fedlightning.server.checkpoint import load_checkpoint

EYE = torch.eye(2)


def clients(num: int = 10) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (
        torch.randn(10 * num, 6, generator=generator),
        torch.randint(0, 3, (10 * num,), generator=generator),
    )
    return TensorData(
        Examples(inputs, targets), Partition.of(torch.arange(10 * num).split(10)), batching=Batching(5, epochs=1)
    )


def task(classes: int = 3) -> Classification:
    torch.manual_seed(0)
    return Classification(MLP(6, classes, (8,)))


class Recorder(Callback):
    """Writes down every hook in the order it is called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.logged: list[dict[str, float]] = []

    def __getattribute__(self, name: str):  # type: ignore[no-untyped-def]
        if name.startswith("on_"):
            object.__getattribute__(self, "calls").append(name)
        return object.__getattribute__(self, name)

    def on_round_end(self, trainer, metrics) -> None:  # type: ignore[no-untyped-def]
        self.logged.append(dict(metrics))


@pytest.mark.quick
def test_hooks_come_in_the_order_drawn_in_the_contract() -> None:
    recorder = Recorder()
    strategy = SlotStrategy(1, cohort_size=2)
    FederatedTrainer(2, 4, strategy, [recorder], logger=False, evaluate_every=2).fit(FedAvg(), task(), clients())
    round_ = ["on_round_start", "on_cohort_end", "on_cohort_end"]
    evaluation = ["on_evaluation_progress", "on_evaluation_end"]
    assert recorder.calls == [
        "on_fit_start", *evaluation, *round_, "on_round_end", *round_, *evaluation, "on_round_end", "on_fit_end",
    ]  # fmt: skip


def test_an_evaluation_says_how_far_it_is_over_all_that_is_evaluated() -> None:
    class Far(Callback):
        seen: ClassVar[list[tuple[int, int]]] = []

        def on_evaluation_progress(self, trainer: FederatedTrainer, done: int, total: int) -> None:
            self.seen.append((done, total))

    trainer = FederatedTrainer(1, 4, SlotStrategy(1), [Far()], logger=False, evaluate_on=("test", "train"))
    trainer.fit(FedAvg(), task(), clients(120))
    assert {total for _, total in Far.seen} == {2400}
    done = [done for done, _ in Far.seen]
    assert done == sorted(set(done)) * 2
    assert {1200, 2400} < set(done)


@pytest.mark.quick
def test_what_is_logged_is_what_happened() -> None:
    recorder, method = Recorder(), Scaffold()
    trainer = FederatedTrainer(1, 4, SlotStrategy(1), [recorder], logger=False)
    trainer.fit(method, task(), clients())
    logged, size = recorder.logged[0], trainer.state.server.x.numel() * 4
    assert logged["communication/up_bytes"] == 4 * 2 * size
    assert logged["communication/down_bytes"] == 4 * 2 * size
    assert logged["train/loss"] == pytest.approx(1.1, abs=0.3)
    for name in ("loss", "accuracy"):
        for part in ("mean", "std", "worst_decile"):
            assert f"test_clients/{name}_{part}" in logged
        assert f"test/{name}" in logged


@pytest.mark.quick
def test_evaluation_is_the_mean_over_examples_and_over_clients() -> None:
    recorder, data, model = Recorder(), clients(), task()
    trainer = FederatedTrainer(1, callbacks=[recorder], logger=False)
    state = trainer.fit(FedAvg(), model, data)
    trained = model.with_parameters(state.server.x)
    with torch.no_grad():
        outputs = trained(data.test.inputs)
    correct = (outputs.argmax(1) == data.test.targets).double()
    losses = nn.functional.cross_entropy(outputs, data.test.targets, reduction="none").double()
    per_client = torch.stack([correct[data.test_clients.client(c)].mean() for c in range(10)])
    worst = max(float(losses[data.test_clients.client(c)].mean()) for c in range(10))
    logged = recorder.logged[0]
    assert logged["test/accuracy"] == pytest.approx(float(correct.mean()), abs=1e-6)
    assert logged["test/loss"] == pytest.approx(float(losses.mean()), abs=1e-6)
    assert logged["test_clients/accuracy_mean"] == pytest.approx(float(per_client.mean()), abs=1e-6)
    assert logged["test_clients/accuracy_std"] == pytest.approx(float(per_client.std(correction=0)), abs=1e-6)
    assert logged["test_clients/accuracy_worst_decile"] == pytest.approx(float(per_client.min()), abs=1e-6)
    assert logged["test_clients/loss_worst_decile"] == pytest.approx(worst, abs=1e-6)


@pytest.mark.parametrize(
    ("participation", "message"),
    [
        (0, r"must be in 1…10, but is 0; use a number from 1 to 10"),
        (11, r"must be in 1…10, but is 11; use a number from 1 to 10"),
        (0.04, r"must be in 1…10, but is 0.04 \(0.4 of 10 clients\); use at least 0.1"),
        (1.5, r"must be in 1…10, but is 1.5 \(15 of 10 clients\)"),
        (-1, r"must be in 1…10, but is -1"),
    ],
)
def test_participation_that_cannot_be_is_refused(participation: float, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FederatedTrainer(1, participation, callbacks=[], logger=False).fit(FedAvg(), task(), clients())


@pytest.mark.parametrize(("participation", "count"), [(1, 1), (1.0, 10), (0.1, 1), (0.3, 3), (10, 10), (0.7, 7)])
def test_a_count_is_a_count_and_a_fraction_a_fraction(participation: float, count: int) -> None:
    trainer = FederatedTrainer(1, participation, callbacks=[], logger=False, evaluate_every=0)
    trainer.fit(FedAvg(), task(), clients())
    assert trainer.clients_per_round == count


@pytest.mark.parametrize("participation", [math.nan, math.inf])
def test_a_participation_that_is_no_number_is_refused(participation: float) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"`clients_per_round` (of FederatedTrainer )?must be .*, but is {participation}"
    ):
        FederatedTrainer(1, participation, callbacks=[], logger=False).fit(FedAvg(), task(), clients())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedProx(mu=-1), r"`mu` of FedProx must be in \[0, inf\), but is -1"),
        (lambda: FedAvg(lr=0), r"`lr` of FedAvg must be in \(0, inf\), but is 0"),
        (lambda: FedAvg(lr=float("nan")), r"`lr` of FedAvg must be in \(0, inf\), but is nan"),
        (lambda: FedAvg(weighting="size"), r"`weighting` of FedAvg must be 'examples' or 'uniform', but is 'size'"),
        (lambda: FederatedTrainer(0), r"`max_rounds` of FederatedTrainer must be at least 1, but is 0"),
        (
            lambda: FederatedTrainer(1.5),
            r"`max_rounds` of FederatedTrainer must be a whole number of at least 1, but is 1.5",
        ),  # type: ignore[arg-type]
        (lambda: FederatedTrainer(1, seed=0.5), r"`seed` of FederatedTrainer must be a whole number, but is 0.5"),  # type: ignore[arg-type]
        (
            lambda: SlotStrategy(1.5),
            r"`slots` of SlotStrategy must be 'auto', a whole number of at least 1, a string .*, but is 1.5",
        ),  # type: ignore[arg-type]
        (
            lambda: SlotStrategy(cohort_size=2.5),
            r"`cohort_size` of SlotStrategy must be 'auto' or a whole number of at least 1, but is 2.5",
        ),  # type: ignore[arg-type]
        (lambda: clients(0), "must own an example|expected a non-empty list|there is none"),
    ],
)
def test_impossible_settings_are_refused_at_once(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ConfigurationError, RuntimeError), match=message):
        make().setup()


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"Labels must be integers in 0…1 for Classification\(classes=2\), but .* 0…2"
    ):
        FederatedTrainer(1, callbacks=[], logger=False).fit(FedAvg(), task(2), clients())


def test_a_client_without_examples_is_refused() -> None:
    data = clients()
    data.setup()
    holed = Partition(data.clients.indices, torch.cat([torch.zeros(2, dtype=torch.int64), data.clients.offsets[2:]]))
    with pytest.raises(ConfigurationError, match=r"must own an example, but 1 of 10 have none \(the first: client 0\)"):
        FederatedTrainer(1, callbacks=[], logger=False).fit(FedAvg(), task(), TensorData(data.train, holed))


def test_parameters_of_several_dtypes_are_refused() -> None:
    mixed = Classification(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3).double()), 3)
    with pytest.raises(ConfigurationError, match=r"one vector of one dtype, but it has 2 dtypes"):
        FederatedTrainer(1, callbacks=[], logger=False).fit(FedAvg(), mixed, clients())


def test_a_method_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="cannot assign to field"):
        FedAvg().lr = 0.5  # type: ignore[misc]


class Breaks(Callback):
    def on_round_end(self, trainer, metrics) -> None:  # type: ignore[no-untyped-def]
        if trainer.round == 2:
            raise OSError("the disk is gone")


def test_an_exception_reaches_on_exception_and_the_last_round_is_saved(tmp_path: Path) -> None:
    recorder = Recorder()
    callbacks = [recorder, ModelCheckpoint(tmp_path, every_n_rounds=100), Breaks()]
    with pytest.raises(OSError, match="the disk is gone"):
        FederatedTrainer(5, callbacks=callbacks, logger=False).fit(FedAvg(), task(), clients())
    assert recorder.calls[-1] == "on_exception"
    assert (tmp_path / "last.ckpt").is_file()


@pytest.mark.parametrize("hook", ["on_evaluation_end", "on_round_end"])
def test_a_round_that_is_checkpointed_is_logged(hook: str, tmp_path: Path) -> None:
    """Also where a callback fails before the round's row is written: a resumed run does not make the row again."""

    class Fails(Callback):
        def failing(self, trainer: FederatedTrainer, metrics: object) -> None:
            if trainer.round == 2:
                raise RuntimeError("on purpose")

    setattr(Fails, hook, Fails.failing)
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer = FederatedTrainer(3, 0.5, callbacks=[Fails(), ModelCheckpoint()], logger=logger)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(FedAvg(), task(), clients())
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows if row["train/loss"]] == ["1", "2"]
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")[0].round == 2


def test_a_run_that_stopped_early_says_why() -> None:
    trainer = FederatedTrainer(50, callbacks=[EarlyStopping("test/loss", min_delta=10.0, patience=2)], logger=False)
    assert trainer.fit(FedAvg(), task(), clients()).round == 3
    assert "test/loss" in trainer.stop_reason


def test_the_task_is_not_changed_and_gives_a_trained_copy() -> None:
    model = task()
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    state = FederatedTrainer(2, callbacks=[], logger=False).fit(FedAvg(), model, clients())
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)
    assert torch.equal(
        nn.utils.parameters_to_vector(model.with_parameters(state.server.x).parameters()), state.server.x
    )


def test_frozen_parameters_stay_out_of_the_vector() -> None:
    model = task()
    first = next(model.parameters())
    first.requires_grad_(False)
    state = FederatedTrainer(1, callbacks=[], logger=False).fit(FedAvg(), model, clients())
    assert state.server.x.numel() == sum(p.numel() for p in model.parameters()) - first.numel()


def test_next_token_takes_one_target_or_one_for_each_position() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 7, (20, 5))
    owners = Partition.of(torch.arange(20).split(5))
    embed = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    every = FederatedTrainer(2, callbacks=[], logger=False)
    every.fit(FedAvg(lr=1.0), NextToken(embed), TensorData(Examples(tokens, tokens.roll(-1, 1)), owners))
    last = FederatedTrainer(2, callbacks=[], logger=False)
    flat = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(20, 7))
    last.fit(FedAvg(lr=1.0), NextToken(flat), TensorData(Examples(tokens, tokens[:, 0]), owners))
    for trainer in (every, last):
        assert 0 <= trainer.metrics["test/accuracy"] <= 1
        assert trainer.metrics["test/loss"] < 2.2


def test_regression_refuses_targets_that_would_broadcast() -> None:
    data = TensorData(Examples(torch.randn(8, 2), torch.randn(8)), Partition.of(torch.arange(8).split(4)))
    with pytest.raises(ConfigurationError, match=r"must be \[n, outputs\], but are \[8\]; use `targets\[:, None\]`"):
        FederatedTrainer(1, callbacks=[], logger=False).fit(FedAvg(), Regression(nn.Linear(2, 1)), data)


def test_the_same_task_and_data_train_centrally_under_lightning(tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(max_epochs=1, limit_val_batches=0, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    model = task()
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    data = clients()
    trainer.fit(model, data)
    assert not torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)
    trainer.test(model, data, verbose=False)
    assert {"test/loss", "test/accuracy"} <= set(trainer.callback_metrics)


def test_a_hook_of_a_callback_that_there_is_not_is_refused() -> None:
    class Misspelt(Callback):
        def on_round_ends(self, trainer: FederatedTrainer, metrics: object) -> None:
            """It would never be called."""

    class Lightnings(Callback):
        def on_train_start(self, trainer: FederatedTrainer) -> None:
            """As Lightning calls it."""

    for callback, says in ((Misspelt(), "Did you mean 'on_round_end'"), (Lightnings(), "would never be called. ")):
        with pytest.raises(ConfigurationError, match=says):
            FederatedTrainer(1, callbacks=[callback], logger=False)
