"""Methods, sweeps and grids as they are typed."""

from typing import Any

import pytest

from fedlightning import ConfigurationError
from fedlightning.cli.flags import Flag, Gathered, as_words, parse
from fedlightning.compare.settings import GRIDS
from fedlightning.compare.specs import Spec, lists
from fedlightning.compare.sweeps import grids, points, with_alpha
from fedlightning.methods import method_named

FLAGS = [Flag("tune", Gathered, [])]

pytestmark = pytest.mark.quick


def typed(words: str) -> list[str]:
    """The words of a flag as it is typed."""
    return list(parse(words.split(), FLAGS, AssertionError).get("tune", []))  # type: ignore[arg-type]


def specs(*texts: str) -> list[Spec]:
    return [Spec.parse(text) for text in texts]


@pytest.mark.parametrize(
    "words",
    [
        "--tune lr=0.01,0.1 mu=0,1", "--tune lr=0.01 0.1 mu=0 1", "--tune lr=0.01, 0.1 --tune mu=0,1", "--tune lr=0.01,0.1,mu=0,1",
        "--tune=lr=0.01,0.1 mu=0 --tune 1", "--tune [lr=0.01,0.1,mu=0,1]",
    ],
)  # fmt: skip
def test_lists_are_written_with_commas_or_spaces(words: str) -> None:
    assert lists(typed(words), "--tune") == [("lr", ["0.01", "0.1"]), ("mu", ["0", "1"])]
    assert as_words({"tune": typed(words)}, FLAGS) == ["--tune", "lr=0.01", "0.1", "mu=0", "1"]


def test_commas_in_brackets_part_nothing() -> None:
    assert lists(typed("--tune stages=[[1,0.1,0.9,0.5]],[]"), "--tune") == [("stages", ["[[1,0.1,0.9,0.5]]", "[]"])]


def test_whose_learning_rate_it_is() -> None:
    def lr(text: str, **given: float) -> float:
        return Spec.parse(text).build({"lr": 0.1, "clip_norm": 10.0}, given).lr

    assert (lr("fedavg"), lr("fedavg", lr=0.3), lr("fedavg lr=1e-2", lr=0.3)) == (0.1, 0.3, 0.01)
    own = method_named("deltasgd")().lr
    assert own != 0.1
    assert (lr("deltasgd"), lr("deltasgd", lr=0.3)) == (own, 0.3)
    assert Spec.parse("scaffold option=I clip_norm=null").build({"clip_norm": 10.0}, {}).clip_norm is None


def test_the_points_of_a_sweep() -> None:
    values = {"partition": "A0d10C100M2", "local_steps": 10, "local_epochs": None, "batch_size": 32}
    found = points(typed("--tune alpha=0.01,1 mu=0.1,1 local-epochs=2"), values, specs("fedavg", "fedprox"))
    assert [point.name for point in found] == [
        f"alpha={alpha}_mu={mu}_local_epochs=2" for alpha in (0.01, 1) for mu in (0.1, 1)
    ]
    assert [point.values["partition"] for point in found] == ["A0d01C100M2"] * 2 + ["A1d00C100M2"] * 2
    assert {(point.values["local_steps"], point.values["local_epochs"]) for point in found} == {(None, 2)}
    assert [spec.text for spec in found[1].specs] == ["fedavg", "fedprox mu=1"]
    assert found[1].specs[1].fields == {"mu": 1}
    assert found[0].place == found[1].place == "alpha=0.01_local_epochs=2"
    (single,) = points([], values, specs("fedavg", "fedprox"))
    assert (single.name, single.place, single.values) == ("", "", values)
    assert with_alpha("H0d10C20", 0.5) == "H0d50C20"
    assert with_alpha("Q0d10C20", 2) == "Q2d00C20"


USUAL = {"lr": (0.1, 0.2), "fedadam": {"lr": (0.3,), "server_lr": (0.01, 0.1)}}


@pytest.mark.parametrize(
    ("words", "fedavg", "fedadam", "fedprox"),
    [
        ("lr=0.1,1", {"lr": [0.1, 1]}, {"lr": [0.1, 1]}, {"lr": [0.1, 1]}),
        ("mu=0,1", {}, {}, {}),
        ("server-lr=1 fedavg:lr=2", {"server_lr": [1], "lr": [2]}, {"server_lr": [1]}, {"server_lr": [1]}),
        ("usual", {"lr": [0.1, 0.2]}, {"lr": [0.3], "server_lr": [0.01, 0.1]}, {"lr": [0.1, 0.2]}),
        ("usual lr=1", {"lr": [1]}, {"lr": [1], "server_lr": [0.01, 0.1]}, {"lr": [1]}),
        ("lr=1 usual fedadam:lr=2,3", {"lr": [1]}, {"lr": [2, 3], "server_lr": [0.01, 0.1]}, {"lr": [1]}),
    ],
)
def test_whose_grid_it_is(words: str, fedavg: Any, fedadam: Any, fedprox: Any) -> None:
    """The method's own list, or that of all methods, or the usual ones; `fedprox mu=0.5` sets its own mu."""
    chosen = specs("fedavg", "fedadam", "fedprox mu=0.5", "fedprox")
    given = grids(typed(f"--tune {words}"), chosen, USUAL)
    assert given[:3] == [fedavg, fedadam, fedprox]
    assert given[3] == {**fedprox, **({"mu": [0, 1]} if words.startswith("mu") else {})}


def test_a_value_of_a_grid_has_its_fields_type() -> None:
    (grid,) = grids(["stages=[[1, 0.1, 0.9, 0.5]]", "weighting=uniform"], specs("fedgm"), {})
    assert grid == {"stages": [((1, 0.1, 0.9, 0.5),)], "weighting": ["uniform"]}


@pytest.mark.parametrize("dataset", GRIDS)
def test_every_point_of_every_usual_grid_is_a_method(dataset: str) -> None:
    thirteen = "fedavg fedavgm deltasgd dualprox fedexp fedgm fedinit fedlesam fednar fedprox scaffold scaffnew fedadam"
    chosen = specs(*thirteen.split())
    for spec, grid in zip(chosen, grids(["usual"], chosen, GRIDS[dataset]), strict=True):
        assert "lr" in grid
        for field, values in grid.items():
            for value in values:
                method_named(spec.method)(**{field: value})


def test_a_list_needs_a_name() -> None:
    for words in (["0.1"], ["lr="], ["=0.1"], ["0.1", "lr=1"]):
        with pytest.raises(ConfigurationError, match=r"`--tune` must be like lr=0\.01,0\.1"):
            lists(words, "--tune")
