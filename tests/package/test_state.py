"""`State`, `Layout`, the interpreter's report, and how errors are worded."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.func import vmap

from fedlightning import ConfigurationError, MethodError, State
from fedlightning import _interpreter as interpreter
from fedlightning.errors import nearest, require_within
from fedlightning.layout import Layout
from fedlightning.server.aggregation import OrderedMean

pytestmark = pytest.mark.quick


def test_a_state_is_read_by_name_and_never_changed() -> None:
    state = State(w=torch.ones(2), c=torch.zeros(3))
    assert torch.equal(state.w, state["w"])
    assert list(state) == ["w", "c"]
    assert state.nbytes == 20
    with pytest.raises(MethodError, match=r"'w' was assigned to; return `state.replace\(w=…\)`"):
        state.w = torch.zeros(2)
    after = state.replace(w=torch.zeros(2))
    assert float(state.w.sum()) == 2
    assert after.c is state.c
    with pytest.raises(AttributeError, match="has no entry 'v'; it holds w, c"):
        _ = state.v


@pytest.mark.parametrize("name", ["keys", "replace", "items", "nbytes"])
def test_names_of_its_own_attributes_are_refused(name: str) -> None:
    with pytest.raises(MethodError, match="must not be called"):
        State(**{name: torch.ones(1)})


def test_a_state_is_a_pytree_and_can_be_copied() -> None:
    state = State(w=torch.arange(6.0).view(3, 2), s=torch.arange(3.0))
    doubled = vmap(lambda one: one.replace(w=one.w * one.s))(state)
    assert torch.equal(doubled.w, state.w * state.s[:, None])
    for other in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert torch.equal(other.w, state.w)
        assert list(other) == list(state)


def test_a_layout_round_trips_and_is_differentiable() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    layout = Layout.of(module)
    w = layout.read(module).requires_grad_()
    assert layout.size == 24
    parts = layout.unflatten(w)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        n: tuple(p.shape) for n, p in parts.items()
    }
    assert all(torch.equal(part, module.get_parameter(name)) for name, part in parts.items())
    assert all(torch.equal(w[place], parts[name].flatten()) for name, place in layout.slices().items())
    (gradient,) = torch.autograd.grad(sum(part.sum() for part in parts.values()), w)
    assert torch.equal(gradient, torch.ones(24))


def test_the_mean_is_weighted_and_summed_in_order() -> None:
    rows, weights = torch.randn(5, 4), torch.tensor([1.0, 2, 3, 4, 5])
    mean = OrderedMean(torch.device("cpu"))
    mean.add(State(d=rows[:2], s=rows[:2, 0]), weights[:2])
    mean.add(State(d=rows[2:], s=rows[2:, 0]), weights[2:])
    expected = torch.zeros(4, dtype=torch.float64)
    for row, weight in zip(rows, weights, strict=True):
        expected += float(weight) * row.double()
    assert torch.equal(mean.result().d, (expected / 15).float())
    assert mean.result().s.shape == ()


@pytest.mark.parametrize(
    ("value", "interval", "fine"),
    [(0, "[0, 1)", True), (1, "[0, 1)", False), (0, "(0, inf)", False), (1e9, "(0, inf)", True), (None, "(0, 1)", True), (float("nan"), "[0, inf)", False), ("1", "[0, 2]", False), (2, "[0, 2]", True)],
)  # fmt: skip
def test_intervals_are_those_of_papers(value: float, interval: str, fine: bool) -> None:
    if fine:
        require_within(value, interval, "`beta`")
    else:
        with pytest.raises(ConfigurationError, match=r"^`beta` must be in "):
            require_within(value, interval, "`beta`", "see section 3")


def test_the_nearest_names_are_offered() -> None:
    assert nearest("fedavgg", ["fedavg", "scaffold"]) == "Did you mean 'fedavg'? Known: fedavg, scaffold."
    assert nearest("zzz", ["fedavg"]) == "Known: fedavg."


def test_an_import_that_switches_the_gil_on_is_noted_and_other_warnings_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    culprits: list[str] = []
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: 1 if name == "Py_GIL_DISABLED" else None)
    monkeypatch.setattr(interpreter, "gil_enabled", lambda: True)

    def imports() -> None:
        with interpreter.watch_imports(culprits):
            warnings.warn("GIL) has been enabled to load module 'a.b', which", RuntimeWarning, stacklevel=1)
            warnings.warn("another", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="another"):
        imports()
    assert culprits == ["a.b"]
    assert "importing 'a.b' switched it on; start it as `python -Xgil=0 …`" in interpreter.description(culprits)


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        ({"gil": "0"}, {}, "-Xgil=0"),
        ({}, {"PYTHON_GIL": "0"}, "PYTHON_GIL=0"),
        ({"gil": "1"}, {"PYTHON_GIL": "1"}, None),
    ],
)
def test_a_wish_for_no_gil_is_not_ignored_in_silence(
    options: dict[str, str], environment: dict[str, str], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys._xoptions", options)
    monkeypatch.delenv("PYTHON_GIL", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for free in (0, 1):
        monkeypatch.setattr("sysconfig.get_config_var", lambda _, free=free: free)
        line = interpreter.description()
        assert ("has no effect on this Python; start a free-threaded one" in line) == (said is not None and not free)
        assert (f"`{said}` has no effect" in line) == (said is not None and not free)
