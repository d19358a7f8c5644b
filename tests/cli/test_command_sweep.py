"""Wrong values for every flag of every recipe: each is a legal value, or is refused in one line before the first round."""

import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from recipe_runner import load, path_of, programs

from fedlightning import ConfigurationError, FederatedTrainer, datasets
from fedlightning.cli.command import RUN, Command
from fedlightning.cli.early import Sources, read_program
from fedlightning.cli.flags import Flag, members
from fedlightning.cli.recipe import call_program, run_recipe
from fedlightning.cli.run import Run
from fedlightning.datasets import FakeImages

VALUES = (
    "", "-1", "0", "-0", "1.5", "-0.5", "nan", "inf", "1e400", "99999999999999999999", "wrong", "null", "true", "[1, 2]",
    "{a: 1}", "\udcff", "a\nb", "ü" * 300, "../x",
)  # fmt: skip


def flags_of(name: str, method: str = "fedavg") -> list[Flag]:
    program = read_program(path_of(name))
    assert program
    return Command(program, ["--method", method], Sources()).flags if program.runs_a_method else list(program.flags)


def is_one_line_with_a_remedy(text: str) -> bool:
    return "\n" not in text and "<class" not in text and any(word in text for word in ("; ", "Did you mean", "Known: "))


@pytest.mark.parametrize("name", programs())
def test_every_flag_reads_a_value_or_says_in_one_line_what_it_must_be(name: str) -> None:
    for flag in flags_of(name):
        for value in VALUES:
            said = refusal(flag, value)
            assert said is None or said.startswith(f"`{flag.dashed}` must be "), (flag.name, value)
            assert said is None or is_one_line_with_a_remedy(said), (flag.name, value, said)


def refusal(flag: Flag, value: str) -> str | None:
    try:
        flag.read([value])
    except ConfigurationError as error:
        return str(error)
    return None


# -- up to the first round ----------------------------------------------------------------------------------------------
class Reached(BaseException):
    """The first round begins."""


@pytest.fixture
def _no_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Runs end where their first round would begin, and a value that hangs is a failure."""

    def begin(*_: Any) -> None:
        raise Reached

    def late(*_: Any) -> None:
        raise TimeoutError("a value that takes so long is a wrong one")

    monkeypatch.setattr(Run, "_begin", begin)
    monkeypatch.setattr("fedlightning.cli.run.fit_centralised", begin)
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(main: Any, words: list[str], capsys: pytest.CaptureFixture[str], **defaults: Any) -> str | None:
    """What is said of a command line; None if its first round would begin."""
    capsys.readouterr()
    signal.alarm(60)
    try:
        run_recipe(main, argv=words, **defaults)
    except Reached:
        shutil.rmtree("logs")
        return None
    except SystemExit as error:
        status = error.code
    finally:
        signal.alarm(0)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO: ")]
    assert (status, len(lines), os.listdir()) == (2, 1, []), (words, lines)
    return lines[0]


LEGAL = {
    "name": {"-1", "0", "-0", "1.5", "-0.5", "nan", "inf", "1e400", "99999999999999999999", "wrong", "null", "true", "[1, 2]", "{a: 1}"},
    "preset": {"null"}, "resume": {"null"}, "clip_norm": {"1.5", "99999999999999999999", "null"},
    "evaluate_every": {"0", "-0"},
    "seed": {"0", "-0"}, "stragglers": {"0", "-0"}, "local_steps": {"null"}, "local_epochs": {"null"},
    "weight_decay": {"0", "-0", "1.5", "99999999999999999999"}, "lr": {"1.5", "99999999999999999999"},
    "server_lr": {"1.5", "99999999999999999999"}, "lr_decay": {"1.5"},
    "data_alpha": {"0", "-0", "1.5", "99999999999999999999"}, "data_beta": {"0", "-0", "1.5", "99999999999999999999"},
    "iid": {"true"}, "drop_stragglers": {"true"}, "dissimilarity": {"true"}, "centralised": {"true"},
    "batch_size": {"null"}, "drop_last": {"true"}, "evaluate_train": {"true"}, "partition_seed": {"0", "-0", "null"},
    "data_dir": {*VALUES} - {"\udcff"},  # nothing is read
}  # fmt: skip
"""The values above that a flag of synthetic.py may have."""
WHOLE = [flag.name for flag in flags_of("synthetic") if flag.name != "background"]


@pytest.mark.usefixtures("_no_rounds")
@pytest.mark.parametrize("name", WHOLE)
def test_what_a_flag_of_synthetic_cannot_be_is_refused_before_the_first_round(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main, flag = load("synthetic").main, name.replace("_", "-")
    usual = [] if name == "runner" else ["--runner", "loop"]
    legal = {value for value in VALUES if refused(main, [*usual, f"--{flag}={value}"], capsys) is None}
    assert legal == LEGAL.get(name, set())


IMAGES = {
    "label": LEGAL["name"], "data": set(), "augment": {"true"}, "partition": set(), "model": set(), "groups": {"null"},
    "positions": {"null"}, "crop": {"null"}, "validation": {"0", "-0"},
    "data_dir": {"", *VALUES} - {"\udcff"},  # made-up images need none
}  # fmt: skip


@pytest.mark.usefixtures("_no_rounds")
@pytest.mark.parametrize("name", sorted(IMAGES))
@pytest.mark.parametrize("recipe", ["cifar10", "emnist"])
def test_what_a_flag_of_a_recipe_of_images_cannot_be_is_refused_before_the_first_round(
    recipe: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in {flag.name for flag in flags_of(recipe)}:
        pytest.skip(f"{recipe} has no {name}")
    module = load(recipe)
    monkeypatch.setattr(datasets, "FakeImages", partial(FakeImages, num_train=200, num_test=20))
    usual = [
        "--data",
        "fake",
        "--partition",
        "IIDC10",
        "--clients-per-round",
        "1",
        "--model",
        "cnn",
        "--runner",
        "loop",
    ]
    flag = name.replace("_", "-")
    legal = {value for value in VALUES if refused(module.main, [*usual, f"--{flag}={value}"], capsys) is None}
    assert legal == IMAGES[name]


@pytest.mark.usefixtures("_no_rounds")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--groups 0", "`groups` of build_model must be at least 1, but is 0"), ("--groups 5", "`groups` of CNN must divide its 32 channels, but is 5; use"),
        ("--model resnet18 --groups 0", "`groups` of build_model must be at least 1, but is 0"), ("--crop 1000", "`size` of TFFCifar must be in [1, 32]"),
        ("--model lenet --crop 10", "`size` of LeNet must be"), ("--model lenet --groups 2", "`groups` must be left out for model 'lenet'"),
        ("--clients-per-round 0", "`clients_per_round` must be in 1…10, but is 0; use a number from 1 to 10."),
        ("--partition IIDC999", "999"), ("--local-steps 0", "`steps` of Batching must be in [1, 1000000], but is 0"),
        ("--local-steps 2 --local-epochs 2", "Either `epochs` or `steps` of Batching may be given"),
        ("--model mlp --positions true", "`positions` must be left out for model 'mlp'"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_one_another_are_refused_before_the_first_round(
    words: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("cifar10")
    monkeypatch.setattr(datasets, "FakeImages", partial(FakeImages, num_train=200, num_test=20))
    usual = "--data fake --partition IIDC10 --clients-per-round 1 --model cnn --runner loop".split()
    said = refused(module.main, [*usual, *words.split()], capsys)
    assert said
    assert message in said


def test_every_recipe_has_the_flags_of_a_run_after_its_own() -> None:
    names = [flag.name for flag in RUN]
    for name in programs():
        program = read_program(path_of(name))
        assert program
        if program.runs_a_method:
            own, found = len(program.flags), [flag.name for flag in flags_of(name)]
            assert found[:own] == [flag.name for flag in program.flags]
            divided = "partition" in found
            there = [flag for flag in names if flag != "label" or divided]
            assert found[own : own + len(there)] == there


BASES = {
    "compare": "--methods fedavg", "reproductions.client_optima": "", "reproductions.fedprox": "--figure 2",
}  # fmt: skip
TAKEN = {
    "clients": {"null"}, "rounds": {"null"}, "local_steps": {"null"}, "local_epochs": {"null"}, "batch_size": {"null"},
    "clients_per_round": {"null"}, "evaluate_every": {"null"}, "lr": {"1.5", "99999999999999999999", "null"},
}  # fmt: skip
"""Values of numbers that these programs take, and of no other flag of such a name."""


@pytest.mark.parametrize(
    ("name", "flag"),
    [(name, flag) for name in BASES for flag in flags_of(name)],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_what_a_flag_of_a_program_cannot_be_is_refused_before_its_first_run(
    name: str, flag: Flag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: Any) -> None:
        raise Reached

    monkeypatch.setattr(FederatedTrainer, "_run", begin)
    main, taken = load(name).main, set()
    for number, value in enumerate(VALUES):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        words = [*BASES[name].split(), f"{flag.dashed}={value}"]
        with pytest.raises((ConfigurationError, Reached)) as caught:
            call_program(main, words)
        if caught.type is Reached:
            taken.add(value)
        else:
            assert os.listdir() == [], words
            assert "\n" not in str(caught.value), words
    if flag.name in {*TAKEN, "slots", "floor_rounds", "tune_rounds", "last", "checkpoint_every"}:
        optional = type(None) in members(flag.kind)
        assert taken - {"[1, 2]"} - ({"null"} if optional else set()) == TAKEN.get(flag.name, set()) - {"null"}
