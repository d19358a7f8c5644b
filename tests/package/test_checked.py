"""Arguments checked by their annotations: what fits, what it becomes, and how a misfit is worded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedlightning import ConfigurationError, Examples, FedMethod, SlotStrategy, Stragglers, hyper
from fedlightning._checked import COUNT, MISFIT, checked, fitted
from fedlightning.data import IID, Partitioner


@pytest.mark.parametrize(
    ("value", "hint", "found"),
    [
        (np.int32(3), int, 3),
        (np.float32(0.5), float, 0.5),
        (np.int64(3), float, 3),
        (Fraction(1, 4), float, 0.25),
        (3, float, 3),
        (np.bool_(True), bool, True),
        (np.int64(2), Literal[1, 2], 2),
        (np.str_("a"), str, "a"),
        ([1, np.int64(2)], tuple[int, ...], (1, 2)),
        ([[1, 2], (3,)], tuple[tuple[int, ...], ...], ((1, 2), (3,))),
        ([1, 0.5], tuple[int, float], (1, 0.5)),
        (None, int | None, None),
        ("auto", Literal["auto"] | int, "auto"),
        (Path("x"), str | Path, Path("x")),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
        (len, Callable[[Any], int], len),
        (IID(2), Partitioner, IID(2)),
    ],
)
def test_what_fits_becomes_a_plain_value(value: Any, hint: Any, found: Any) -> None:
    assert fitted(value, hint) == found
    assert type(fitted(value, hint)) is type(found)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int), (True, float), (1.0, int), ("1", int), (None, int), (1, bool), (np.nan, int), (torch.tensor(1), int),
        (True, Literal[1, 2]), (["a"], Literal["a"]), ("abc", Sequence[str]), ((1, "2"), Sequence[int]), ([1], tuple[int, float]),
        ({1: 1}, Mapping[str, int]), (3, Callable[[], int]), (IID, Partitioner), (IID, IID), (np.zeros(3), Tensor), (b"x", str),
        (torch.zeros(3), Partitioner), (10**400, float),
    ],
)  # fmt: skip
def test_what_does_not_fit(value: Any, hint: Any) -> None:
    assert fitted(value, hint) is MISFIT


class Thing:
    @checked(count=COUNT, share="[0, 1)")
    def __init__(self, count: int = 1, share: float | None = None, kind: Literal["one", "other"] = "one") -> None:
        self.given = count, share, kind

    @checked()
    def use(
        self, strategy: SlotStrategy | None = None, parts: Sequence[Thing] = (), data: Tensor | None = None
    ) -> None: ...

    @checked()
    def slow(
        self, stragglers: Stragglers | None = None, train: Examples | None = None, where: str | Path = ""
    ) -> None: ...


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Thing(0), "`count` of Thing must be at least 1, but is 0."),
        (lambda: Thing(10.0), "`count` of Thing must be a whole number of at least 1, but is 10.0."),
        (lambda: Thing(10**30), f"`count` of Thing must be below 2⁶³, but is {10**30}."),
        (lambda: Thing(share=1), "`share` of Thing must be in [0, 1), but is 1."),
        (lambda: Thing(share=np.nan), "`share` of Thing must be in [0, 1), but is nan."),
        (lambda: Thing(share="1"), "`share` of Thing must be a number in [0, 1) or None, but is '1'."),
        (lambda: Thing(kind="othr"), "`kind` of Thing must be 'one' or 'other', but is 'othr'. Did you mean 'other'?"),
        (lambda: Thing().use("cpu/0"), "`strategy` of Thing.use must be a SlotStrategy or None, but is 'cpu/0'; use `SlotStrategy('cpu/0')`."),
        (lambda: Thing().use(SlotStrategy), "`strategy` of Thing.use must be a SlotStrategy or None, but is the class SlotStrategy; give an instance of it, `SlotStrategy(…)`."),
        (lambda: Thing().use(parts=Thing()), "`parts` of Thing.use must be a sequence of Things, but is a Thing; put it into a list, `[…]`."),
        (lambda: Thing().use(parts=[1]), "`parts` of Thing.use must be a sequence of Things, but holds 1."),
        (lambda: Thing().use(data=np.zeros(3)), "`data` of Thing.use must be a tensor or None, but is a ndarray of float64[3]; use `torch.from_numpy`."),
        (lambda: Thing().use(data=nn.Linear(2, 2)), "`data` of Thing.use must be a tensor or None, but is a Linear."),
        (lambda: Thing().slow(0.5), "`stragglers` of Thing.slow must be a Stragglers or None, but is 0.5; use `Stragglers(0.5)`."),
        (lambda: Thing().slow(train=torch.zeros(2)), "`train` of Thing.slow must be an Examples or None, but is a Tensor of float32[2]; give `Examples(inputs, targets)`."),
        (lambda: Thing().slow(where=3), "`where` of Thing.slow must be a path, but is 3."),
    ],
)  # fmt: skip
def test_a_misfit_is_worded_in_a_line_with_what_to_do(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert str(caught.value) == message


def test_plain_values_arrive_and_python_words_what_is_no_argument() -> None:
    assert Thing(np.int64(4), np.float64(0.5)).given == (4, 0.5, "one")
    assert [type(value) for value in Thing(np.int64(4), np.float64(0.5)).given] == [int, float, str]
    with pytest.raises(TypeError, match=r"Thing.__init__\(\) got an unexpected keyword argument 'counts'"):
        Thing(counts=1)  # type: ignore[call-arg]


class Own(FedMethod):
    plain: float = 1.0
    count: int = 3
    flag: bool = False
    pair: tuple[int, float] = (1, 0.5)
    unknown: Nowhere = "anything"  # type: ignore[name-defined]  # noqa: F821
    implied: float = None  # type: ignore[assignment]
    bounded: Any = hyper(0.5, "[0, 1]")
    word: str = hyper("a", ("a", "b"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"plain": "1"}, {"plain": True}, {"plain": None}, {"plain": float("nan")}, {"count": 1.5}, {"count": True}, {"flag": 1}, {"pair": (1,)},
        {"pair": 1}, {"implied": "1"}, {"bounded": "1"}, {"bounded": 2}, {"word": ["a"]}, {"word": "c"}, {"lr": "0.1"}, {"lr": True},
        {"weighting": ["examples"]}, {"clip_norm": "1"},
    ],
)  # fmt: skip
def test_fields_of_a_method_are_checked_by_their_annotations(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"`{next(iter(wrong))}` of Own must be .*, but is "):
        Own(**wrong)


def test_fields_of_a_method_become_plain_and_what_cannot_be_resolved_is_left_alone() -> None:
    own = Own(plain=np.float32(0.5), count=np.int64(2), pair=[1, 2], unknown={"a": 1}, lr=np.float64(0.25))  # type: ignore[arg-type]
    assert (own.plain, own.count, own.pair, own.lr) == (0.5, 2, (1, 2), 0.25)
    assert [type(value) for value in (own.plain, own.count, own.lr)] == [float, int, float]
    assert own.implied is None


@pytest.mark.parametrize("within", ["abc", "[0, 1", "[1, 0]", "[a, b]", 3, ["a"], [1]])
def test_what_is_no_interval_is_refused(within: Any) -> None:
    if within == ["a"]:
        assert hyper("a", within).metadata["within"] == ("a",)
        return
    with pytest.raises(ConfigurationError, match=r"`within` of `?hyper`? must be"):
        hyper(0.5, within)
