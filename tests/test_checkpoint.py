"""Checkpoints are whole or not there, plain, and refuse a run they do not belong to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedlightning import (
    ConfigurationError,
    FedAvg,
    FederatedTrainer,
    FedMethod,
    FedProx,
    Regression,
    RoundState,
    Scaffold,
    State,
)
from fedlightning.checkpoint import load_checkpoint, save_checkpoint
from fedlightning.memory import ClientMemory
from fedlightning.testing import Quadratics

EYE = torch.eye(2)


def clients(num: int = 3) -> Quadratics:
    return Quadratics([EYE] * num, [EYE[0]] * num, [2] * num)


def trained(path: Path, method: FedMethod, **settings: object) -> FederatedTrainer:
    trainer = FederatedTrainer(2, callbacks=[], logger=False, **settings)  # type: ignore[arg-type]
    trainer.fit(method, Quadratics.task([0.0, 0.0]), clients())
    trainer.save_checkpoint(path)
    return trainer


def test_a_checkpoint_holds_the_whole_state_and_loads_without_code(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "a.ckpt", Scaffold())
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert set(content) == {"meta", "server", "clients", "memory", "buffers"}
    state, meta = load_checkpoint(tmp_path / "a.ckpt")
    assert state.round == 2
    assert meta["identity"]["method"] == "Scaffold"
    assert set(meta["versions"]) == {"fedlightning", "torch", "lightning"}
    assert torch.equal(state.server.c, trainer.state.server.c)
    assert torch.equal(state.memory.rows()[1].c, trainer.state.memory.rows()[1].c)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, RoundState(1, State(x=EYE)), {}, {})

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, RoundState(2, State(x=EYE)), {}, {})
    assert load_checkpoint(path)[0].round == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no file .*none\.ckpt"):
        load_checkpoint(tmp_path / "none.ckpt")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"hello" * 99])
def test_a_corrupt_file_is_refused(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    trained(tmp_path / "a.ckpt", FedAvg())
    (tmp_path / "a.ckpt").write_bytes(damage((tmp_path / "a.ckpt").read_bytes()))
    with pytest.raises(
        ConfigurationError, match=r"must name a whole checkpoint of fedlightning, but .* cannot be read"
    ):
        load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (FedProx(), {}, r"`(hyperparameters|method)` is .* in .*a\.ckpt and .* now"),
        (FedAvg(lr=0.2), {}, "`hyperparameters` is .*'lr': 0.1.* and .*'lr': 0.2.* now"),
        (FedAvg(), {"seed": 1}, "`seed` is 0 in .* and 1 now"),
        (FedAvg(), {"clients_per_round": 2}, "`clients_per_round` is 3 in .* and 2 now"),
    ],
)
def test_another_run_is_refused_and_both_sides_are_named(
    tmp_path: Path, method: FedMethod, settings: dict[str, object], message: str
) -> None:
    trained(tmp_path / "a.ckpt", FedAvg())
    trainer = FederatedTrainer(3, callbacks=[], logger=False, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=message):
        trainer.fit(method, Quadratics.task([0.0, 0.0]), clients(), ckpt_path=tmp_path / "a.ckpt")


def test_another_partition_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "a.ckpt", FedAvg(), clients_per_round=3)
    trainer = FederatedTrainer(3, 3, callbacks=[], logger=False)
    with pytest.raises(ConfigurationError, match="`partition` is"):
        trainer.fit(FedAvg(), Quadratics.task([0.0, 0.0]), clients(4), ckpt_path=tmp_path / "a.ckpt")


class Doubled(Quadratics):
    """The same examples, prepared in another way."""

    def preprocess(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * inputs


class Nothing:
    """An augmentation that changes nothing."""

    def draw(self, rng: object, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        return np.zeros((*shape, 1), dtype=np.int64)

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        return inputs


def test_other_data_another_model_or_precision_are_refused(tmp_path: Path) -> None:
    trained(tmp_path / "a.ckpt", FedAvg())
    moved, doubled = (kind([EYE] * 3, [EYE[1]] * 3, [2] * 3) for kind in (Quadratics, Doubled))
    mirrored = clients()
    mirrored.augmentation = Nothing()
    task = Quadratics.task([0.0, 0.0])
    wider = Regression(torch.nn.Sequential(task.model, torch.nn.Identity()))
    for other, data, name in (
        (task, moved, "training_data"), (task, doubled, "training_data"), (task, mirrored, "training_data"), (wider, clients(), "layout"),
    ):  # fmt: skip
        trainer = FederatedTrainer(3, callbacks=[], logger=False)
        with pytest.raises(ConfigurationError, match=f"`{name}` is"):
            trainer.fit(FedAvg(), other, data, ckpt_path=tmp_path / "a.ckpt")
    meta = load_checkpoint(tmp_path / "a.ckpt")[1]["identity"]
    assert meta["precision"] == "32-true"
    assert len(meta["model"]) == len(meta["training_data"]) == 16


def test_a_memory_is_not_changed_by_its_update() -> None:
    first = ClientMemory({1: State(c=EYE)})
    second = first.updated({1: State(c=2 * EYE), 4: State(c=EYE)})
    assert torch.equal(first.rows()[1].c, EYE)
    assert sorted(second.rows()) == [1, 4]
    assert first.get(4) is None
    assert torch.equal(second.rows()[1].c, 2 * EYE)


def test_a_memory_in_files_takes_disk_only_for_the_rows_that_were_written(tmp_path: Path) -> None:
    memory = ClientMemory(None, tmp_path, num_clients=1_000_000).updated({999_999: State(c=torch.arange(1000.0))})
    assert torch.equal(memory.rows()[999_999].c, torch.arange(1000.0))
    file = (tmp_path / "c.bin").stat()
    assert file.st_size == 4_000_000_000
    assert file.st_blocks * 512 < 1_000_000
