"""Checkpoints are whole or not there, plain, and refuse a run they do not belong to."""

import json
import resource
import traceback
from contextlib import suppress
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
from fedlightning.errors import SaveError
from fedlightning.server.checkpoint import load_checkpoint, save_checkpoint
from fedlightning.server.client_memory import ClientMemory
from fedlightning.testing import Quadratics

pytestmark = pytest.mark.quick

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
        (FedAvg(lr=0.2), {}, "`lr` is 0.1 in .* and 0.2 now"),
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


# -- what damage does -------------------------------------------------------------------------------------------------
def contents(path: Path) -> dict[str, Any]:
    """Everything that a checkpoint says, by name."""
    state, meta = load_checkpoint(path)
    rows = {f"{client}.{name}": row[name] for client, row in state.memory.rows().items() for name in row}
    return {"meta": meta, "round": state.round, "buffers": state.buffers, **dict(state.server), **rows}


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = [name for name, value in one.items() if isinstance(value, torch.Tensor)]
    rest = one.keys() - set(tensors)
    return (
        one.keys() == other.keys()
        and all(torch.equal(one[name], other[name]) for name in tensors)
        and all(one[name] == other[name] for name in rest)
    )


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    trained(tmp_path / "whole.ckpt", Scaffold())
    whole, expected = (tmp_path / "whole.ckpt").read_bytes(), contents(tmp_path / "whole.ckpt")
    chosen = np.random.default_rng(0).choice(8 * len(whole), 200, replace=False)
    tail = range(8 * (len(whole) - 120), 8 * len(whole), 7)  # the hash, and the archive's own last record
    loaded = 0
    for bit in [*chosen.tolist(), *tail]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "damaged.ckpt").write_bytes(damaged)
        with suppress(ConfigurationError):
            assert equal(contents(tmp_path / "damaged.ckpt"), expected), bit
            loaded += 1
    assert loaded < 60  # those of the mark of the hash, without which the archive's own checksums are looked at


@pytest.mark.parametrize("cut", [1, 20, 64, 80, 84, 85, 86, 100])
def test_a_file_whose_end_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    trained(tmp_path / "a.ckpt", Scaffold())
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:-cut])
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_a_file_without_our_hash_is_read_by_the_archives_checksums(tmp_path: Path) -> None:
    """As one that was read and written again by hand is."""
    trained(tmp_path / "a.ckpt", Scaffold())
    expected = contents(tmp_path / "a.ckpt")
    torch.save(torch.load(tmp_path / "a.ckpt", weights_only=True), tmp_path / "b.ckpt")
    assert equal(contents(tmp_path / "b.ckpt"), expected)
    damaged = bytearray((tmp_path / "b.ckpt").read_bytes())
    start = damaged.index(torch.load(tmp_path / "b.ckpt", weights_only=True)["server"]["x"].numpy().tobytes())
    damaged[start] ^= 1
    (tmp_path / "b.ckpt").write_bytes(damaged)
    with pytest.raises(ConfigurationError, match=r"cannot be read .*checksum"):
        load_checkpoint(tmp_path / "b.ckpt")


def without(name: str) -> Any:
    return lambda meta, content: meta.pop(name)


def to(**values: object) -> Any:
    return lambda meta, content: meta.update(values)


def change(part: str, **values: object) -> Any:
    return lambda meta, content: content[part].update(values)


def no_server(meta: dict[str, Any], content: dict[str, Any]) -> None:
    del content["server"]


def no_variate(meta: dict[str, Any], content: dict[str, Any]) -> None:
    del content["server"]["c"]


def halved(meta: dict[str, Any], content: dict[str, Any]) -> None:
    content["memory"]["entries"]["c"] = [part.half() for part in content["memory"]["entries"]["c"]]


def stranger(meta: dict[str, Any], content: dict[str, Any]) -> None:
    content["clients"] = content["clients"] + 7


def twice(meta: dict[str, Any], content: dict[str, Any]) -> None:
    content["clients"][1] = content["clients"][0]


def fewer(meta: dict[str, Any], content: dict[str, Any]) -> None:
    content["memory"]["entries"]["c"] = [part[1:] for part in content["memory"]["entries"]["c"]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (to(format=99), "is of `format` 99 in place of 4"),
        (without("format"), "is of `format` None"),
        (to(round=-1), "has -1 as `round`"),
        (to(round=1.0), "has 1.0 as `round`"),
        (to(round="2"), "has '2' as `round`"),
        (to(round=True), "has True as `round`"),
        (without("round"), "has None as `round`"),
        (without("identity"), "has no dictionary as `identity`"),
        (without("callbacks"), "has no dictionary as `callbacks`"),
        (to(callbacks=[]), "has no dictionary as `callbacks`"),
        (without("tensors"), "cannot be read"),
        (no_server, "lacks `server`"),
        (no_variate, r"has nothing as `server.c`, where torch.float64 \[2\] was written"),
        (change("server", x=torch.zeros(2)), r"has torch.float32 \[2\] as `server.x`, where torch.float64"),
        (change("server", x=torch.zeros(3)), r"has torch.float32 \[3\] as `server.x`"),
        (change("server", y=torch.zeros(3)), "as `server.y`, where nothing was written"),
        (change("server", x=3), "cannot be read"),
        (halved, r"has torch.float16 \[2\] as `memory.c`"),
        (fewer, "cannot be read"),
        (twice, "cannot be read .*client 0 has two rows"),
        (stranger, "has a row of client 9, where there are 3 clients now"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_holds_what_cannot_be_is_refused_before_the_first_round(
    tmp_path: Path, edit: Any, message: str
) -> None:
    trained(tmp_path / "a.ckpt", Scaffold())
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    meta = json.loads(content["meta"])
    edit(meta, content)
    torch.save({**content, "meta": json.dumps(meta)}, tmp_path / "a.ckpt")
    trainer = FederatedTrainer(3, callbacks=[], logger=False)
    with pytest.raises(ConfigurationError, match=message) as found:
        trainer.fit(Scaffold(), Quadratics.task([0.0, 0.0]), clients(), ckpt_path=tmp_path / "a.ckpt")
    assert "\n" not in str(found.value)
    assert trainer.round == 0


def test_a_full_disk_is_one_line_and_leaves_the_older_file(tmp_path: Path) -> None:
    """The kernel takes no more than so many bytes of a file."""
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, RoundState(1, State(x=torch.zeros(9))), {}, {})
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, usual[1]))
    try:
        with pytest.raises(
            SaveError, match=r"a\.ckpt cannot be \(File too large\). Those that were there before are whole"
        ) as found:
            save_checkpoint(path, RoundState(2, State(x=torch.zeros(90_000))), {}, {})
        with pytest.raises(SaveError, match="File too large"):
            save_checkpoint(tmp_path / "b.ckpt", RoundState(2, State(x=torch.zeros(90_000))), {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert isinstance(found.value, OSError)
    assert len(traceback.format_exception(found.value)) < 30
    assert "\n" not in str(found.value)
    assert load_checkpoint(path)[0].round == 1
    assert list(tmp_path.iterdir()) == [path]
