"""Flags: what a word is read as, how a wrong one is told, and that sources say what the functions and classes do."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from recipe_runner import RECIPES, load, path_of, programs

from fedlightning.cli.configs import Methods
from fedlightning.cli.early import Sources, read_program, refuse_mistakes
from fedlightning.cli.flags import (
    REQUIRED,
    Flag,
    Repeated,
    as_words,
    completed,
    conform,
    described,
    of_dataclass,
    of_function,
    parse,
    read,
    wording,
)
from fedlightning.errors import ConfigurationError
from fedlightning.methods import method_named, method_names

pytestmark = pytest.mark.quick

COMPILE = bool | Literal["auto", "trace"]
STAGES = tuple[tuple[int, float], ...] | None


@pytest.mark.parametrize(
    ("word", "kind", "value"),
    [
        ("10", int, 10), ("-3", int, -3), ("10", int | float, 10), ("0.1", int | float, 0.1), ("1e-3", float, 1e-3),
        ("10", float, 10.0), ("-.inf", float, float("-inf")), ("inf", float, float("inf")),
        ("null", int | None, None), ("null", str | None, None), ("auto", int | str, "auto"), ("4", int | str, 4),
        ("on", bool, True), ("No", bool, False), ("on", COMPILE, True), ("trace", COMPILE, "trace"),
        ("II", Literal["I", "II"], "II"), ("2", Literal[1, 2], 2), ("10", str, "10"), ("a/b", Path, Path("a/b")),
        ("0,1", list[int], [0, 1]), ("[0, 1]", list[int], [0, 1]), ("fedgm stages=[[1,2]],fedavg", list[str], ["fedgm stages=[[1,2]]", "fedavg"]),
        ("[[1, 0.1], [2, 1]]", STAGES, ((1, 0.1), (2, 1.0))), ("{a: 1}", dict[str, float], {"a": 1.0}), ("[1]", Any, [1]),
    ],
)  # fmt: skip
def test_a_word_is_read_as_its_kind(word: str, kind: Any, value: Any) -> None:
    found = read(word, kind)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("1.5", int), ("1e3", int), ("true", int), ("", int), ("9" * 5000, int), ("x", float), ("", float), ("true", float),
        ("1", bool), ("", bool), ("aut", COMPILE), ("3", Literal[1, 2]), ("a,1", list[int]), ("", list[str]), (",", list[int]),
        ("[[1]]", STAGES), ("3", STAGES), ("[" * 3000, STAGES), ("{a: b}", dict[str, float]), ("\udcff", str), ("a\0b", str),
        ("3", object),
    ],
)  # fmt: skip
def test_another_word_is_refused_in_one_line_with_the_flag_and_a_remedy(word: str, kind: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Flag("some_flag", kind).read([word])
    text = str(caught.value)
    assert text.startswith("`--some-flag` must be ")
    assert "; give " in text or "; did you mean " in text
    assert "\n" not in text
    assert len(text) < 250
    assert "<class" not in text


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int, "a whole number"), (float | None, "a number or null"), (int | float, "a number"), (bool, "true or false"),
        (COMPILE, "true, false, auto or trace"), (list[int], "whole numbers"), (list[Literal["a", "b"]], "one or more of a or b"),
        (STAGES, "a tuple[tuple[int, float], ...] in YAML or null"),
    ],
)  # fmt: skip
def test_a_kind_in_plain_english(kind: Any, text: str) -> None:
    assert wording(kind) == text


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        (True, bool, True), (3, float, 3.0), ("1e-3", float, 1e-3), (None, int | None, None), ([0, 1], list[int], [0, 1]),
        ("0,1", list[int], [0, 1]), (True, COMPILE, True), ([[1, 2]], STAGES, ((1, 2.0),)), (12, str, "12"),
    ],
)  # fmt: skip
def test_yamls_values_are_taken(value: Any, kind: Any, result: Any) -> None:
    assert conform(value, kind) == result


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, float), (1.5, int), ([1], int), ({"a": 1}, str), (None, int), ({1: 2}, STAGES), ([], bool)],
)
def test_yamls_other_values_are_refused(value: Any, kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="`--some-flag` must be "):
        Flag("some_flag", kind).read_yaml(value)


FLAGS = [Flag("seeds", list[int], [0]), Flag("on", bool, False), Flag("sweep", Repeated, []), Flag("mu", float, 0.1)]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("--seeds 0 1", {"seeds": [0, 1]}), ("--seeds 0,1", {"seeds": [0, 1]}), ("--seeds=0,1 2", {"seeds": [0, 1, 2]}),
        ("--seeds 0 --seeds 3", {"seeds": [3]}), ("--on --mu -1", {"on": True, "mu": -1.0}), ("--on no", {"on": False}),
        ("--sweep a=1,2 --sweep b=3", {"sweep": ["a=1,2", "b=3"]}), ("--mu=2 --mu 3", {"mu": 3.0}), ("", {}),
    ],
)  # fmt: skip
def test_a_command_line_is_read(words: str, values: dict[str, Any]) -> None:
    assert parse(words.split(), FLAGS, AssertionError) == values  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mu", "`--mu` needs a value: a number; give e.g. `--mu 0.1`"), ("--mu --on", "`--mu` needs a value"),
        ("--seeds", "`--seeds` needs a value: whole numbers"), ("--mu 1 2", "`--mu` takes one value, but '2' follows '1'"),
        ("--mu=1 2", "`--mu` takes one value"), ("--on yes no", "`--on` takes one value"), ("--sweep a b", "`--sweep` takes one"),
        ("--sweep", "`--sweep` needs a value"),
    ],
)  # fmt: skip
def test_a_command_line_with_too_few_or_too_many_words_is_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(words.split(), FLAGS, AssertionError)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize("words", ["--seeds 0 1 --on true --sweep a=1,2 --sweep b=3 --mu -1.5", "", "--seeds 3"])
def test_values_are_written_as_they_are_read(words: str) -> None:
    values = completed(parse(words.split(), FLAGS, AssertionError), FLAGS)  # type: ignore[arg-type]
    assert as_words(values, FLAGS) == words.split()


def test_a_docstring_is_read() -> None:
    text = """What it is.

    More of it.

    Args:
        one: the first,
            in two lines.
        two: the second.

    Raises:
        three: no argument.
    """
    assert described(text) == ("What it is.", {"one": "the first, in two lines.", "two": "the second."})


# -- sources ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", programs())
def test_a_recipes_source_says_what_its_function_does(name: str) -> None:
    program = read_program(path_of(name))
    assert program
    main = load(name).main
    assert list(program.flags) == of_function(main)
    assert program.summary == described(main.__doc__)[0]


@pytest.mark.parametrize("name", programs())
def test_no_program_writes_to_the_repository_by_default(name: str) -> None:
    program = read_program(path_of(name))
    assert program
    defaults = {flag.name: flag.default for flag in program.flags}
    assert str(defaults.get("out", "logs")).split("/")[0] in ("logs", "None", str(REQUIRED))


def test_the_sources_of_the_methods_say_what_their_classes_do() -> None:
    sources: Methods = Sources()
    assert sources.names() == method_names()
    for name in method_names():
        assert list(sources.fields(name)) == of_dataclass(method_named(name)), name


@pytest.mark.parametrize("words", ["--metod x", "--rounds x"])
@pytest.mark.parametrize("name", programs())
def test_a_mistake_is_told_without_torch(name: str, words: str, tmp_path: Path) -> None:
    """With a package that cannot import torch."""
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')")
    program = ["-m", f"recipes.{name}"] if "." in name else [str(path_of(name))]
    command, path = [sys.executable, *program, *words.split()], f"{tmp_path}:{RECIPES.parent}"
    done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{name.split('.')[-1]}: error: ")


SOURCES = [
    "from fedlightning.cli.recipe import run_recipe\nfrom elsewhere import main\nif __name__ == '__main__':\n    run_recipe(main)\n",
    "def main(*, a: Mine = 3): ...\nif __name__ == '__main__':\n    run_recipe(main)\n",
    "def main(*, a: int = THREE): ...\nif __name__ == '__main__':\n    run_recipe(main)\n",
    "def main(*, a: int = 3): ...\nif __name__ == '__main__':\n    run_recipe(main, argv=['--a', '4'])\n",
    "def main(*, a: int = 3): ...\nrun_recipe(main)\n",
    "run_recipe(",
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_is_not_clear_is_left_to_the_program(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.py"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(path), raising=False)
    monkeypatch.setattr(sys, "argv", [str(path), "--wrong"])
    path.write_text(source)
    refuse_mistakes()
    path.write_text("def main(*, a: int = 3): ...\nif __name__ == '__main__':\n    run_recipe(main)\n")
    with pytest.raises(SystemExit):
        refuse_mistakes()


def test_a_flag_without_a_default_must_be_given() -> None:
    def main(*, out: str, seed: int = 0) -> None:
        """Nothing."""

    assert of_function(main)[0].default is REQUIRED
