"""Data, labels, outputs and models that do not fit each other: refused in one line before the first round, or trained right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import fit
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassF1Score

from fedlightning import (
    Batching,
    Callback,
    Classification,
    ClientError,
    ConfigurationError,
    EarlyStopping,
    Examples,
    FedAvg,
    FederatedDataModule,
    FederatedTask,
    FederatedTrainer,
    FedLightningError,
    NextToken,
    Partition,
    Reconstruction,
    Regression,
    RoundState,
    SlotStrategy,
    State,
    TensorData,
)
from fedlightning.compare import compare
from fedlightning.data import RandomCropFlip, RandomCropRotate
from fedlightning.datasets import LeafData, read_leaf
from fedlightning.datasets._files import visible_files

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 4, generator=GENERATOR), torch.arange(24) % 3
OWNERS = Partition.of_sizes(torch.tensor([5, 6, 6, 7]))


class Rounds(Callback):
    """Counts the rounds that begin."""

    begun = 0

    def on_round_start(self, trainer: Any, round: Any) -> None:
        self.begun += 1


def trained(task: FederatedTask, data: FederatedDataModule, **options: Any) -> Tensor:
    """The model after two rounds of FedAvg."""
    return fit(FedAvg(), task, data, **options).state.server.x


def tensors(inputs: Tensor = X, targets: Tensor = Y, **options: Any) -> TensorData:
    return TensorData(Examples(inputs, targets), OWNERS, **{"batching": Batching(4), **options})


def model(outputs: int = 3) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(4, outputs)


def refused(task: FederatedTask, data: FederatedDataModule, **options: Any) -> str:
    """The one line with which a run is refused, without evaluation and before the first round."""
    rounds = Rounds()
    with pytest.raises(ConfigurationError) as caught:
        trained(task, data, callbacks=[rounds], **options)
    assert rounds.begun == 0
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- examples ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((X, Y), "must be an Examples, but is a tuple; give `Examples(inputs, targets)`."),
        (torch.utils.data.TensorDataset(X, Y), "must be an Examples, but is a TensorDataset; give `Examples(inputs, targets)`."),
        (Examples(X.numpy(), Y), "must hold a tensor of inputs [n, …], but holds a ndarray of float32[24, 4]; use `torch.from_numpy`."),
        (Examples(X, Y.numpy()), "must hold a tensor of targets [n, …], but holds a ndarray of int64[24]; use `torch.from_numpy`."),
        (Examples(X, Y.tolist()), "must hold a tensor of targets [n, …], but holds a list."),
        (Examples(X, Y[0]), "must hold a tensor of targets [n, …], but holds a Tensor of int64[]."),
        (Examples(X.to("meta"), Y), "must hold a tensor of inputs [n, …], but holds a Tensor of float32[24, 4]."),
        (Examples(X[1:], Y), "must hold as many inputs as targets, but holds 23 inputs and 24 targets."),
    ],
)  # fmt: skip
def test_examples_are_two_tensors_with_as_many_inputs_as_targets(train: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        TensorData(train, OWNERS)
    assert str(caught.value) == f"`train` of TensorData {message}"
    if isinstance(train, Examples):
        with pytest.raises(ConfigurationError, match="`test` of TensorData must hold"):
            TensorData(Examples(X, Y), OWNERS, train)


class Own(FederatedDataModule):
    """A data module of one's own."""

    given: tuple[Any, ...]

    def load(self) -> Any:
        return self.given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (Examples(X[1:], Y), OWNERS, Examples(X, Y), OWNERS),
            "training set of Own must hold as many inputs as targets",
        ),
        ((Examples(X, Y), OWNERS, Examples(X, Y[1:]), OWNERS), "test set of Own must hold as many inputs as targets"),
        ((Examples(X.numpy(), Y), OWNERS, Examples(X, Y), OWNERS), "training set of Own must hold a tensor of inputs"),
    ],
)
def test_what_a_module_of_ones_own_loads_is_checked_too(given: Any, message: str) -> None:
    module = Own()
    module.given = given
    assert message in refused(Classification(model()), module)


def test_what_a_subclass_must_define_is_named() -> None:
    assert refused(Classification(model()), FederatedDataModule()).startswith(
        "FederatedDataModule must define `load()`"
    )
    assert "must define `criterion(outputs, targets)`" in refused(FederatedTask(model()), tensors())


def test_a_test_set_without_examples_is_refused_where_it_is_evaluated() -> None:
    nothing = Examples(X[:0], Y[:0])
    task = Classification(model())
    assert "must hold an example for `evaluate_on=('val', 'test')`" in refused(
        task, TensorData(Examples(X, Y), OWNERS, nothing), evaluate_every=1
    )
    trained(task, TensorData(Examples(X, Y), OWNERS, nothing))
    for parts in ((), ("train",)):
        trained(task, TensorData(Examples(X, Y), OWNERS, nothing), evaluate_every=1, evaluate_on=parts)


@pytest.mark.parametrize("parts", ["test", ("tests",), ("test", "test"), ("test", None), 3, {"test": 1}])
def test_what_is_evaluated_is_a_sequence_of_known_words(parts: Any) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"`evaluate_on` of FederatedTrainer must (be a sequence of 'val', 'test' or 'train'|name each split once)",
    ):
        FederatedTrainer(evaluate_on=parts)


def test_nothing_is_evaluated_with_the_default_callbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained(Classification(model()), tensors(), callbacks=None, evaluate_every=1, evaluate_on=())
    with pytest.raises(ConfigurationError, match="`monitor` of EarlyStopping must be"):
        trained(
            Classification(model()), tensors(), callbacks=[EarlyStopping("test/loss")], evaluate_every=1, evaluate_on=()
        )


@pytest.mark.parametrize("strategy", [{"runner": "loop"}, {"runner": "vmap", "cohort_size": 2}, {"runner": "traced"}])
def test_a_batch_that_no_client_fills_is_its_whole_data_and_costs_no_more(strategy: Any) -> None:
    whole, huge = (
        trained(
            Classification(model()), tensors(batching=Batching(size, epochs=2)), strategy=SlotStrategy(1, **strategy)
        )
        for size in (None, 10**12)
    )
    assert torch.equal(whole, huge)


# -- labels and outputs ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_whole_numbers_train_to_the_same_bits(dtype: torch.dtype) -> None:
    task = Classification(model())
    assert torch.equal(
        trained(task, tensors(), evaluate_every=1), trained(task, tensors(targets=Y.to(dtype)), evaluate_every=1)
    )
    words = NextToken(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3)), 3)
    texts = Y[:, None].expand(24, 5).contiguous()
    bits = [
        trained(words, tensors(Y[:, None].expand(24, 5), texts.to(kind)), evaluate_every=1)
        for kind in (dtype, torch.int64)
    ]
    assert torch.equal(*bits)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (Y[:, None], "must be one for each example [n], but are [24, 1]; use `targets.squeeze(1)`."),
        (Y.reshape(24, 1).expand(24, 2), "must be one for each example [n], but are [24, 2]; use `NextToken`, or define `criterion`."),
        (F.one_hot(Y, 3).float(), "but the data hold float32 values [24, 3]; use `targets.argmax(1)` if they are classes, else `Regression`."),
        (Y.float(), "but the data hold float32 values [24]; use `targets.to(torch.int64)` if they are classes, else `Regression`."),
        (torch.where(Y > 0, Y, -100), "values in -100…2; leave out what has no label (`targets >= 0`)."),
        (Y + 2, "values in 2…4; set `classes=5` or relabel."),
    ],
)  # fmt: skip
def test_labels_are_one_class_for_each_example(targets: Tensor, message: str) -> None:
    assert message in refused(Classification(model()), tensors(targets=targets))


def test_the_outputs_of_the_model_are_as_many_as_the_task_takes() -> None:
    assert refused(Classification(model(5), classes=3), tensors()) == (
        "Outputs of Classification must be logits, [4, 3], but are [4, 5]; set `classes` to the model's outputs, or change its "
        "last layer."
    )
    assert "[4, 5, 3], but are [4, 5, 4]" in refused(
        NextToken(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4)), 3),
        tensors(Y[:, None].expand(24, 5), Y[:, None].expand(24, 5)),
    )
    two = Regression(model(1))
    assert "must be as the targets are, [4, 2], but are [4, 1]" in refused(two, tensors(targets=X[:, :2]))
    assert "must be as the targets are, [4, 1], but are [4, 2]" in refused(
        Regression(model(2)), tensors(targets=X[:, :1])
    )
    assert "as many entries as the targets" in refused(Reconstruction(model(2)), tensors(targets=X))


class Pair(nn.Module):
    """Gives its outputs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.inner(inputs)
        return outputs, outputs


class First(Classification):
    """Says itself what becomes of the outputs."""

    def criterion(self, outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0], targets, reduction="none")


def test_a_task_of_ones_own_says_what_its_outputs_are() -> None:
    assert "must be logits, [4, 3], but are a tuple" in refused(Classification(Pair(), 3), tensors())
    assert torch.equal(trained(First(Pair(), 3), tensors()), trained(Classification(model(), 3), tensors()))


# -- models ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: Classification(model().requires_grad_(False)), "but all of its 2 are frozen; set `requires_grad=True`"),
        (lambda: Classification(nn.Flatten(), 3), "must have a trainable parameter, but it has none"),
        (lambda: Classification(nn.LazyLinear(3)), "'model.weight' is made by its first batch; run one through the model before: `model(inputs[:1])`."),
        (lambda: Classification(model().to("meta"), 3), "'model.weight' is made on no device: use `model.to_empty(device='cpu')`."),
        (lambda: Classification(nn.Sequential(model(), nn.Linear(3, 3).double())), "2 dtypes (torch.float32, torch.float64)"),
    ],
)  # fmt: skip
def test_a_model_has_parameters_to_train(task: Callable[[], FederatedTask], message: str) -> None:
    assert message in refused(task(), tensors())


def test_numbers_of_another_precision_are_refused_with_what_to_write() -> None:
    assert "float64[4, 4] and int64[4]" in (text := refused(Classification(model()), tensors(X.double())))
    assert text.endswith("; use `inputs.to(torch.float32)`, or `model.to(torch.float64)`.")
    trained(Classification(model().double()), tensors(X.double()))


def test_parameters_of_another_model_are_refused() -> None:
    task = Classification(model())
    assert torch.equal(task.with_parameters(torch.arange(15.0)).model.weight, torch.arange(12.0).reshape(3, 4))
    for wrong in (
        torch.zeros(3),
        torch.zeros(1, 15),
        torch.zeros(15, dtype=torch.int64),
        torch.zeros(15, device="meta"),
    ):
        with pytest.raises(
            ConfigurationError,
            match=r"`x` of Classification.with_parameters must be the model's parameters, float32\[15\]",
        ):
            task.with_parameters(wrong)


# -- where things lie --------------------------------------------------------------------------------------------------
def test_a_folder_for_the_clients_memory_that_cannot_be_written_is_refused() -> None:
    strategy = SlotStrategy(1, memory_dir="/proc/nowhere")
    assert "`memory_dir` of SlotStrategy must be writable, but /proc/nowhere is not" in refused(
        Classification(model()), tensors(), strategy=strategy
    )


def leaf(path: Path, users: dict[str, int]) -> Path:
    content = {"users": list(users), "num_samples": list(users.values())}
    content["user_data"] = {name: {"x": [[0.5, 1.0]] * n, "y": [0, 1] * (n // 2)} for name, n in users.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_hidden_files_and_folders_beside_leafs_are_passed_over(tmp_path: Path) -> None:
    leaf(tmp_path / "data.json", {"ann": 4, "bob": 2})
    (tmp_path / "._data.json").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    (tmp_path / ".DS_Store").write_bytes(b"\x00")
    (tmp_path / "more.json").mkdir()
    assert [user.name for user in read_leaf(tmp_path)] == ["ann", "bob"]
    data = LeafData(tmp_path, min_samples=0)
    data.setup()
    assert data.users == ["ann", "bob"]
    assert visible_files(tmp_path, "*") == [tmp_path / "data.json"]


@pytest.mark.parametrize("junk", [b"\x00\x05\x16\x07", b"", b"[]", b"{}", b'{"users": "ann"}', "é".encode("latin-1")])
def test_a_file_beside_leafs_that_is_none_is_named(tmp_path: Path, junk: bytes) -> None:
    leaf(tmp_path / "a.json", {"ann": 4})
    (tmp_path / "b.json").write_bytes(junk)
    with pytest.raises(ConfigurationError, match=r"b\.json") as caught:
        read_leaf(tmp_path)
    assert "\n" not in str(caught.value)


def test_only_hidden_files_are_no_data(tmp_path: Path) -> None:
    shutil.move(leaf(tmp_path / "a.json", {"ann": 4}), tmp_path / "._a.json")
    with pytest.raises(ConfigurationError, match="a folder without one"):
        read_leaf(tmp_path)


def test_inputs_that_are_no_numbers_fail_in_the_round_with_one_line() -> None:
    spoilt = X.clone()
    spoilt[7] = np.nan
    with pytest.raises(ClientError, match=r"the loss of client 1 at local step . is nan") as caught:
        trained(Classification(model()), tensors(spoilt))
    assert isinstance(caught.value, FedLightningError)


# -- from all sides ----------------------------------------------------------------------------------------------------
def evaluated(inputs: Tensor, targets: Tensor) -> TensorData:
    return TensorData(Examples(X, Y), OWNERS, Examples(inputs, targets), batching=Batching(4))


def run(data: TensorData | None = None, task: FederatedTask | None = None, **options: Any) -> Tensor:
    return trained(task or Classification(model()), data or tensors(), evaluate_every=1, **options)


def compared(**changed: Any) -> Any:
    given = {
        "methods": [FedAvg()],
        "task": Classification(model()),
        "data": tensors(),
        "seeds": (0,),
        "trainer": {"max_rounds": 1},
    }
    return compare(**{**given, **changed})


F1 = MulticlassF1Score(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(evaluated(torch.randn(8, 5), Y[:8])), "fails on examples that are evaluated as `test/…`, which is float32[8, 5]"),
        (lambda: run(evaluated(torch.randn(8, 4).double(), Y[:8])), "; use `inputs.to(torch.float32)`, or `model.to(torch.float64)`."),
        (lambda: run(evaluated(torch.randn(8, 4), Y[:8] + 3)), "values in 3…5; set `classes=6` or relabel."),
        (lambda: run(tensors(X.to_sparse())), "holds a Tensor of float32[24, 4]; use `to_dense()`."),
        (lambda: run(tensors(augmentation=RandomCropFlip(1))), "Images for RandomCropFlip must be [B, C, H, W], but are [4, 4]."),
        (lambda: run(tensors(X[:, None], augmentation=RandomCropRotate(2, 4))), "Images for RandomCropRotate must be [B, C, H, W]"),
        (lambda: run(strategy=SlotStrategy(memory_dir="a\0b")), "`memory_dir` of SlotStrategy must be a path or None, but is 'a\\x00b'."),
        (lambda: run(task=Classification(model(), metrics={"a": 3})), "must be a dictionary from strings to Metrics or None, but holds 'a': 3."),
        (lambda: run(task=Classification(model(), metrics={"a.b": F1})), "must have names without a dot, none of them 'loss', but one is 'a.b'."),
        (lambda: run(task=Classification(model(), metrics={"loss": F1})), "none of them 'loss', but one is 'loss'."),
        (lambda: run(task=Classification(model(1))), "must have an output for each class, but its last linear layer has 1"),
        (lambda: Classification(model(1), 1), "`classes` of Classification must be at least 2, but is 1."),
        (lambda: Classification(model()).with_state(None), "`state` of Classification.with_state must be a RoundState, but is None."),  # type: ignore[arg-type]
        (lambda: Classification.load_from_checkpoint(3, model=model()), "must be a string or a PathLike, but is 3."),  # type: ignore[arg-type]
        (lambda: FederatedTrainer(1).fit(FedAvg(), Classification(model()), tensors(), RoundState(0, State(y=X))), "with the model `x`, but holds State(y: float32[24, 4])"),
        (lambda: FederatedTrainer(1).save_checkpoint("x"), "`save_checkpoint` must be called in a `fit` or after it"),
        (lambda: compared(foo=1), "`compare` has no argument `foo`"),
        (lambda: compared(task=model()), "must be a FederatedTask, but is a Linear; wrap the module, e.g. `Classification(Linear(…))`."),
        (lambda: compared(task=lambda seed: None), "or a function of the seed that gives one, but gives None."),
        (lambda: compared(data=lambda seed: X), "or a function of the seed that gives one, but gives a Tensor of float32[24, 4]."),
        (lambda: compared(trainer=lambda: 3), "must be a function that takes seed, logger, callbacks, but the function <lambda> does not"),
        (lambda: compared(trainer=lambda **own: 3), "must give a FederatedTrainer, but the function <lambda> gives 3."),
        (lambda: compared(methods={1: FedAvg()}), "must hold instances such as FedAvg(lr=0.1), but holds a tuple."),
    ],
)  # fmt: skip
def test_odd_things_are_refused_in_one_line(
    call: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
