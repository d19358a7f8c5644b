"""The recipes' command line: flags from the classes, one clear error for each mistake, and runs that can be taken up."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from recipe_runner import RECIPES, load, run
from small_runs import SIZES, quiet_trainer, small_task, unequal_clients

from fedlightning import Batching, Callback, Classification, ConfigurationError, FedAvg, FederatedTrainer
from fedlightning._signals import stop_on_signal
from fedlightning.baselines.centralised import fit_centralised, steps_of_a_round
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.datasets import Synthetic
from fedlightning.methods import method_names
from fedlightning.models import LogisticRegression
from fedlightning.server.checkpoint import load_checkpoint

QUICK = ["--local-steps", "2", "--rounds", "3"]


pytestmark = pytest.mark.usefixtures("own_folder")


def synthetic(*argv: str) -> None:
    run("synthetic", *argv)


def folder(method: str = "fedavg", name: str = "version_0") -> Path:
    return Path("logs/synthetic/synthetic_1_1") / method / name


def test_help_lists_the_chosen_methods_own_flags_with_their_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        synthetic("--method", "fedprox", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert (
        "--mu MU weight μ of the proximal term; the paper tries 0.001, 0.01, 0.1, 1. (type: float, default: 1.0)"
        in text
    )
    assert "--lr LR learning rate η of the clients. (type: float, default: 0.01)" in text
    assert "--clients-per-round" in text
    assert "_per_round" not in text


@pytest.mark.parametrize("recipe", ["synthetic", "cifar100"])
@pytest.mark.parametrize("method", method_names())
def test_no_method_shares_a_flag_with_a_recipe(recipe: str, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_recipe(load(recipe).main, argv=["--method", method, "--help"])
    assert caught.value.code == 0
    assert "--lr" in capsys.readouterr().out


def test_help_of_another_method_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        synthetic("--help")
    assert "--mu" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "fedprx"], "package.module:Class for one of your own, but is 'fedprx'. Did you mean 'fedprox'"),
        (["--method", "fedprox", "--mue", "3"], "there is no flag --mue here; did you mean --mu"),
        (["--mu", "3"], "there is no flag --mu here; did you mean --mu (of --method adaptivefedprox, dualprox, "),
        (["--method", "fedprox", "--mu", "-1"], "`mu` of FedProx must be in [0, inf), but is -1.0."),
        (["--lr", "0"], "`lr` of FedAvg must be in (0, inf), but is 0.0."),
        (["--lr", "fast"], "`--lr` must be a number, but is 'fast'; give e.g. `--lr 0.01`, or leave it out."),
        (["--clients-per-round", "0"], "`clients_per_round` must be in 1…30, but is 0; use a number from 1 to 30."),
        (["--clients-per-round", "31"], "`clients_per_round` must be in 1…30, but is 31"),
        (["--clients-per-round", "0.01"], "but is 0.01 (0.3 of 30 clients); use at least 0.0333333."),
        (["--slots", "cuda:77/0"], "Slot 'cuda:77/0' needs device cuda:77"),
        (["--slots", "both"], "A slot must be written like 'cuda:0/1'"),
        (
            ["--cohort-size", "many"],
            "`--cohort-size` must be a whole number or auto, but is 'many'; give e.g. `--cohort-size auto`, or leave it out.",
        ),
        (
            ["--local-steps", "2", "--local-epochs", "2"],
            "Either `epochs` or `steps` of Batching may be given, but both are (2 and 2)",
        ),
        (["--batch-size", "0"], "`size` of Batching must be at least 1, but is 0."),
        (["--resume", "last"], "`--resume last` needs a run with checkpoints/last.ckpt"),
        (["--resume", "no.ckpt"], "there is no file 'no.ckpt'"),
        (["--resume", ""], "`--resume` must be 'last' or a checkpoint's path, but there is no file ''"),
        (["--resume", "ü" * 300], "there is no file 'üüü"),
        (
            ["--config", "no.yaml"],
            "A configuration must be a file that can be read, but 'no.yaml' is not (No such file",
        ),
        (["--config", ""], "A configuration must be a file that can be read, but '.' is not (Is a directory)"),
        (["--config", "c" * 300], "is not (File name too long); give the path of a YAML file"),
        (["--preset", "p" * 300 + ".yaml"], "synthetic has none, so leave it out, or give the path of a YAML file."),
        (["--method", ""], "for one of your own, but is ''"),
        (["--name", "n" * 300], "of 255 bytes at most, but has 300 bytes; give e.g. 'mine'."),
        (["--name", "ä" * 128], "but has 256 bytes"),
        (["--name", "a\nb"], "but is 'a\\nb'"),
        (["--rounds"], "`--rounds` needs a value: a whole number; give e.g. `--rounds 200`, or leave it out."),
        (["--rounds", "3", "4"], "`--rounds` takes one value, but '4' follows '3'"),
        (["--rounds", "1e3"], "`--rounds` must be a whole number, but is '1e3'"),
        (["--labels", "arg"], "`--labels` must be argmax or sample, but is 'arg'; did you mean `--labels argmax`?"),
        (["--iid", "maybe"], "`--iid` must be true or false, but is 'maybe'"),
        (["fedprox"], "'fedprox' must follow a flag, but stands alone"),
        (["-method", "fedprox"], "there is no flag -method here; did you mean --method"),
    ],
)
def test_each_mistake_gets_one_clear_error_and_leaves_nothing_behind(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        synthetic(*argv)
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO: ")]
    assert message in line
    assert not list(Path().iterdir())


@pytest.mark.parametrize("label", ["../../../../x", "a/b", "", ".", "..", "l" * 300, "/tmp/x"])
def test_a_label_stays_in_the_folder_of_runs(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "a" / "b" / "c" / "d" / "e"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(SystemExit) as caught:
        run_recipe(load("cifar100").main, argv=["--data", "fake", "--rounds", "1", "--label", label])
    assert caught.value.code == 2
    assert "`--label` must be that of a folder, without others in it" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if not here.is_relative_to(path)] == []


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ("A0d1", "A0d01C100"),
        ("C100A0d1", "A0d01C100"),
        ("A0d00C100", "`alpha` of Dirichlet must be in (0, inf)"),
        ("A0d10C0", "num_clients"),
        ("A0d10C99999", "99999"),
    ],
)
def test_a_partition_that_cannot_be_is_refused(
    partition: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_recipe(load("cifar100").main, argv=["--data", "fake", "--partition", partition])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_data_are_named_with_two_ways_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(SystemExit):
        run_recipe(load("cifar100").main, argv=["--data-dir", "nowhere"])
    text = capsys.readouterr().err
    assert "nowhere" in text
    assert "cifar-100-python" in text
    assert "--data fake" in text


@pytest.mark.parametrize("recipe", ["cifar100", "mnist", "femnist", "shakespeare", "sent140", "stackoverflow"])
def test_a_data_folder_with_too_long_a_name_is_refused(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_recipe(load(recipe).main, argv=["--data-dir", "d" * 300])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{recipe}: error: ")
    assert not list(Path().iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_log_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("logs").mkdir(mode=0o500)
    with pytest.raises(SystemExit):
        synthetic(*QUICK)
    assert "logs" in capsys.readouterr().err


def test_a_log_folder_that_is_a_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("logs").write_text("")
    with pytest.raises(SystemExit) as caught:
        synthetic(*QUICK)
    assert caught.value.code == 2
    assert "logs" in capsys.readouterr().err


def test_a_run_is_one_folder_and_its_config_reruns_it() -> None:
    synthetic("--method", "fedprox", "--mu", "0.5", "--seed", "3", *QUICK)
    first = folder("fedprox")
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {path.name for path in first.iterdir()}
    assert list(first.glob("events.out.tfevents.*"))
    config = yaml.safe_load((first / "config.yaml").read_text())
    assert config["mu"] == 0.5
    assert config["method"] == "fedprox"
    synthetic("--config", str(first / "config.yaml"))
    one, _ = load_checkpoint(first / "checkpoints" / "last.ckpt")
    other, _ = load_checkpoint(folder("fedprox", "version_1") / "checkpoints" / "last.ckpt")
    assert torch.equal(one.server.x, other.server.x)
    synthetic("--config", str(first / "config.yaml"), "--rounds", "1", "--mu", "0.1")
    later, meta = load_checkpoint(folder("fedprox", "version_2") / "checkpoints" / "last.ckpt")
    assert later.round == 1
    assert meta["identity"]["hyperparameters"]["mu"] == 0.1


def test_a_run_is_resumed_to_the_same_bits_in_the_same_folder() -> None:
    synthetic("--name", "whole", *QUICK)
    synthetic("--name", "halves", "--local-steps", "2", "--rounds", "1")
    synthetic("--name", "halves", "--resume", "last", *QUICK)
    one, _ = load_checkpoint(folder(name="whole") / "checkpoints" / "last.ckpt")
    other, _ = load_checkpoint(folder(name="halves") / "checkpoints" / "last.ckpt")
    assert torch.equal(one.server.x, other.server.x)
    steps = [line.split(",")[2] for line in (folder(name="halves") / "metrics.csv").read_text().splitlines()]
    assert steps == ["step", "0", "1", "2", "3"]
    synthetic(
        "--resume", str(folder(name="halves") / "checkpoints" / "last.ckpt"), "--local-steps", "2", "--rounds", "4"
    )
    assert load_checkpoint(folder() / "checkpoints" / "last.ckpt")[0].round == 4


def test_the_name_of_another_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    synthetic("--name", "mine", *QUICK)
    with pytest.raises(SystemExit):
        synthetic("--name", "mine", *QUICK)
    assert "holds a run; choose another name, or add `--resume last`" in capsys.readouterr().err


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--name", "mine", "--resume", "Last"], "`--resume` must be 'last' or a checkpoint's path, but there is no file 'Last'"),
        (["--name", "mine", "--resume", "last", "--lr", "0.5"], "`lr` is 0.01 in"),
        (["--name", "mine", "--resume", "mine.ckpt", "--lr", "0.5"], "`lr` is 0.01 in"),
        (["--name", "mine", "--slots", "1"], "holds a run"),
        (["--name", "mine", "--slots", "cuda:77"], "Slot 'cuda:77' needs device cuda:77"),
        (["--name", "notes", "--clients-per-round", "31"], "`clients_per_round` must be"),
        *((["--name", name, "--clients-per-round", "31"], "`--name` must be that of a folder, without") for name in ("", ".", "..", "a/b", "/tmp/a")),
    ],
)  # fmt: skip
def test_what_was_there_before_a_mistake_stays_as_it_was(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic("--name", "mine", *QUICK)
    (folder(name="notes")).mkdir()
    (folder(name="notes") / "plan.txt").write_text("mine")
    checkpoint = folder(name="mine") / "checkpoints" / "last.ckpt"
    before = contents(Path("logs"))
    with pytest.raises(SystemExit) as caught:
        synthetic(
            *[str(checkpoint) if word == "mine.ckpt" else word for word in argv], "--local-steps", "2", "--rounds", "6"
        )
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert contents(Path("logs")) == before


def test_a_run_that_was_refused_leaves_no_folder_of_its_own() -> None:
    with pytest.raises(SystemExit):
        synthetic("--name", "new", "--clients-per-round", "31")
    assert not folder(name="new").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.\nmore"), "(Default"),
        (MemoryError(), "(MemoryError)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "(CUDA out of memory. Tried"),
    ],
)
def test_memory_that_runs_out_is_one_line_and_the_run_goes_on_from_the_last_round(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the trainer's own thread, in the second round; what of it runs out in a slot is tried on another."""
    usual = FedAvg.on_aggregate

    def fails(self: FedAvg, server: Any, mean: Any, round: Any) -> Any:
        if round.index == 1:
            raise error
        return usual(self, server, mean, round)

    few = ["--rounds", "3", "--local-steps", "1", "--name", "full"]
    with monkeypatch.context() as patch:
        patch.setattr(FedAvg, "on_aggregate", fails)
        with pytest.raises(SystemExit, match="2"):
            synthetic(*few)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"synthetic: error: Memory ran out {said}")
    assert line.endswith("; what was finished is saved. The run stopped; go on with `--resume last --name full`.")
    synthetic(*few, "--resume", "last")


def test_a_run_that_a_callback_refuses_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    class Refuses(Callback):
        def on_fit_start(self, trainer: FederatedTrainer) -> None:
            raise ConfigurationError("mine must be otherwise")

    def main(run: Run) -> None:
        task = Classification(LogisticRegression.glorot(60, 10, 0))
        run.fit(task, Synthetic(1, 1, batching=run.batching), callbacks=[Refuses()])

    with pytest.raises(SystemExit) as caught:
        run_recipe(main, argv=[])
    assert caught.value.code == 2
    assert "mine must be otherwise" in capsys.readouterr().err
    assert not Path("logs").exists()


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(capsys: pytest.CaptureFixture[str]) -> None:
    synthetic("--name", "whole", *QUICK)
    synthetic("--name", "early", *QUICK)
    shutil.rmtree(folder(name="early") / "checkpoints")
    synthetic("--name", "early", "--resume", "last", *QUICK)
    one, other = (load_checkpoint(folder(name=name) / "checkpoints" / "last.ckpt")[0] for name in ("whole", "early"))
    assert torch.equal(one.server.x, other.server.x)
    rows = (folder(name="early") / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in rows] == ["step", "0", "1", "2", "3"]


def test_fewer_rounds_than_are_over_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    synthetic("--name", "mine", *QUICK)
    before = (folder(name="mine") / "config.yaml").read_bytes()
    with caplog.at_level("INFO"):
        synthetic("--name", "mine", "--resume", "last", "--local-steps", "2", "--rounds", "1")
    assert "Nothing is left to do: 3 rounds are over, and 1 were asked for." in caplog.text
    assert (folder(name="mine") / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("argv", [["--meth", "fedprox"], ["--conf", "c.yaml"], ["--backgr"], ["--pres"]])
def test_a_flag_is_not_abbreviated(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        synthetic(*argv, *QUICK)
    assert f"there is no flag {argv[0]} here; did you mean" in capsys.readouterr().err


OWN = """
from fedlightning import FedMethod
from fedlightning.methods import FedProx

class MyProx(FedProx):
    \"\"\"Mine.

    Args:
        strength: of something.
    \"\"\"

    strength: float = 0.5

class Clashing(FedMethod):
    seed: int = 3

class Demanding(FedMethod):
    strength: float

class NoMethod:
    pass
"""


def test_a_method_of_ones_own_runs_from_a_file_in_the_working_directory(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_methods.py").write_text(OWN)
    argv = ["--method", "my_methods:MyProx", "--strength", "0.25", "--mu", "0.125"]
    synthetic(*argv, *QUICK)
    config = folder("myprox") / "config.yaml"
    kept = yaml.safe_load(config.read_text())
    assert (kept["method"], kept["strength"], kept["mu"], kept["lr"]) == ("my_methods:MyProx", 0.25, 0.125, 0.01)
    synthetic("--config", str(config))
    states = [load_checkpoint(folder("myprox", f"version_{n}") / "checkpoints" / "last.ckpt") for n in (0, 1)]
    assert torch.equal(states[0][0].server.x, states[1][0].server.x)
    assert states[0][1]["identity"]["hyperparameters"]["strength"] == 0.25
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        synthetic(*argv, "--help")
    assert caught.value.code == 0
    assert "of something. (type: float, default: 0.5)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["my_methods:MyProxx"], "`method` must name a subclass of FedMethod in my_methods, but 'MyProxx' is none. Did you mean 'MyProx'"),
        (["my_methods:NoMethod"], "`method` must name a subclass of FedMethod in my_methods, but 'NoMethod' is none."),
        (["my_methods.py:MyProx"], "`method` must be like package.module:Class, but is 'my_methods.py:MyProx'; for a file my.py in the working directory write `my:Class`."),
        (["no_such_module:A"], "but the module no_such_module cannot be imported: ModuleNotFoundError: No module named 'no_such_module'; name one that is installed"),
        (["broken_module:A"], "but the module broken_module cannot be imported: ZeroDivisionError: division by zero;"),
        (["my_methods:"], "'' is none"), ([":A"], "must be like package.module:Class, but is ':A'"),
        (["my_methods:Clashing"], "A field of my_methods:Clashing must not have the name of a flag of synthetic, but `seed` has; rename the field."),
        (["my_methods:Demanding"], "`--strength` must be given: a number"),
        (["my_methods:MyProx", "--strenth", "1"], "there is no flag --strenth here; did you mean --strength"),
        (["my_methods:MyProx", "--strength", "x"], "`--strength` must be a number, but is 'x'; give e.g. `--strength 0.5`"),
    ],
)  # fmt: skip
def test_a_method_of_ones_own_that_cannot_be_is_refused_in_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my_methods.py").write_text(OWN)
    Path("broken_module.py").write_text("1 / 0\n")
    with pytest.raises(SystemExit) as caught:
        synthetic("--method", *argv)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("logs").exists()


def test_a_method_of_ones_own_comes_before_the_programs_beside_the_recipe() -> None:
    """Which are first on the path of a recipe that is run, and one of which is called methods."""
    Path("methods.py").write_text(OWN)
    command = [sys.executable, str(RECIPES / "synthetic.py"), "--method", "methods:MyProx", "--strength", "1", *QUICK]
    done = subprocess.run([*command, "--runner", "loop"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert folder("myprox").is_dir()


def test_fake_data_are_named_in_the_folder() -> None:
    argv = [
        "--data",
        "fake",
        "--rounds",
        "1",
        "--local-steps",
        "1",
        "--clients-per-round",
        "2",
        "--partition",
        "A0d30C10",
    ]
    run_recipe(load("cifar100").main, argv=argv)
    assert next(Path("logs/cifar100").iterdir()).name.startswith("fake")


def test_ctrl_c_saves_the_last_finished_round_and_exits_cleanly() -> None:
    command = [
        sys.executable,
        str(RECIPES / "synthetic.py"),
        "--local-steps",
        "20",
        "--rounds",
        "100000",
        "--runner",
        "loop",
        "--name",
        "long",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=listen)
    last = folder(name="long") / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 60
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with `--resume last --name long`" in errors
    assert "Traceback" not in errors
    assert load_checkpoint(last)[0].round >= 1


# -- stop signals -------------------------------------------------------------------------------------------------------
def last_round(name: str) -> int:
    return load_checkpoint(folder(name=name) / "checkpoints" / "last.ckpt")[0].round


def listen() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would the recipe, were these tests one of them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(*argv: str, name: str = "long") -> subprocess.Popen[str]:
    """The recipe in a process of its own, once it has finished a round."""
    command = [sys.executable, str(RECIPES / "synthetic.py"), "--rounds", "100000", "--local-steps", "2", "--runner"]
    command += ["loop", "--name", name, *argv]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=listen)
    deadline = time.monotonic() + 60
    while not (folder(name=name) / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def test_sigterm_ends_the_run_after_the_round_and_it_goes_on_to_the_same_bits() -> None:
    process = started()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: stopping after this round" in errors
    assert "synthetic: stopped; go on with `--resume last --name long`." in errors
    assert "Traceback" not in errors
    round = last_round("long")
    assert f"stopped after round {round}: SIGTERM" in output
    rest = ["--rounds", str(round + 2), "--local-steps", "2", "--runner", "loop"]
    synthetic("--name", "long", "--resume", "last", *rest)
    synthetic("--name", "whole", *rest)
    one, _ = load_checkpoint(folder(name="long") / "checkpoints" / "last.ckpt")
    other, _ = load_checkpoint(folder(name="whole") / "checkpoints" / "last.ckpt")
    assert one.round == other.round == round + 2
    assert torch.equal(one.server.x, other.server.x)


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """The handlers a program has in the foreground; one started in the background ignores SIGINT."""
    numbers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted(work: Callable[[list[str]], None]) -> tuple[list[str], tuple[object, ...]]:
    """What was done before the interrupt, and its arguments."""
    done: list[str] = []
    try:
        with stop_on_signal(done.append):
            work(done)
    except KeyboardInterrupt as error:
        return done, error.args
    raise AssertionError("not interrupted")


@pytest.mark.usefixtures("usual_signals")
def test_the_first_ctrl_c_waits_for_the_round_and_the_second_does_not() -> None:
    def once(done: list[str]) -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("round")

    def again(done: list[str]) -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        done.append("still here")
        signal.raise_signal(signal.SIGINT)
        done.append("not here")

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert interrupted(once) == (["SIGINT", "round"], (signal.SIGINT,))
    assert interrupted(again) == (["SIGTERM", "still here"], (signal.SIGINT,))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_ones_own_handler_and_ignored_signals_are_left_alone() -> None:
    heard: list[int] = []
    old = (
        signal.signal(signal.SIGTERM, lambda number, _: heard.append(number)),
        signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        with stop_on_signal(lambda name: pytest.fail(name)):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, old[0])
        signal.signal(signal.SIGINT, old[1])
    assert heard == [signal.SIGTERM]


@pytest.mark.usefixtures("usual_signals")
def test_an_error_is_not_hidden_by_a_signal() -> None:
    def fails(_: list[str]) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        interrupted(fails)


def test_other_threads_have_no_signals() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def elsewhere() -> None:
        with stop_on_signal(lambda _: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [handler]


# -- in the background --------------------------------------------------------------------------------------------------
def test_a_run_in_the_background_outlives_its_terminal_and_is_stopped_by_its_number() -> None:
    command = [
        sys.executable,
        str(RECIPES / "synthetic.py"),
        "--background",
        "--rounds",
        "100000",
        "--local-steps",
        "2",
    ]
    done = subprocess.run(
        [*command, "--runner", "loop", "--name", "behind"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"as process (\d+) in (\S+), output in (\S+);", done.stdout)
    assert found
    number, where = int(found[1]), Path(found[2])
    try:
        assert where == folder(name="behind")
        assert os.getsid(number) == number
        deadline = time.monotonic() + 60
        while not (where / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.kill(number, signal.SIGTERM)
    while "go on with" not in (text := (where / "output.txt").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "round 0/100000" in text
    assert "SIGTERM: stopping after this round" in text
    assert last_round("behind") >= 1
    assert "background" not in yaml.safe_load((where / "config.yaml").read_text())


def test_what_is_refused_is_refused_before_it_leaves() -> None:
    command = [sys.executable, str(RECIPES / "synthetic.py"), "--background", "--clients-per-round", "31"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "synthetic: error: " in done.stderr
    assert "background" not in done.stdout
    assert not list(Path().rglob("version_*"))


# -- the centralised baseline -------------------------------------------------------------------------------------------
def rows(path: Path) -> dict[int, dict[str, str]]:
    with open(path / "metrics.csv", newline="") as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


def test_the_centralised_baseline_is_a_run_beside_the_others() -> None:
    argv = ["--rounds", "5", "--local-steps", "3", "--clients-per-round", "4", "--evaluate-every", "2", "--lr", "0.05"]
    synthetic("--centralised", *argv)
    kept = folder("centralised")
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {path.name for path in kept.iterdir()}
    assert list(kept.glob("events.out.tfevents.*"))
    found = rows(kept)
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    assert [step for step in found if found[step]["test/accuracy"]] == [0, 2, 4, 5]
    assert [step for step in found if found[step]["train/loss"]] == [1, 2, 3, 4, 5]
    assert float(found[5]["test/loss"]) < float(found[0]["test/loss"])
    state = torch.load(kept / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 5 * 4 * 3
    config = yaml.safe_load((kept / "config.yaml").read_text())
    assert (config["centralised"], config["method"]) == (True, "fedavg")
    synthetic(*argv)  # the same start model and test set
    assert float(rows(folder())[0]["test/loss"]) == pytest.approx(float(found[0]["test/loss"]), rel=1e-5)
    synthetic("--config", str(kept / "config.yaml"))
    assert rows(folder("centralised", "version_1"))[5]["test/loss"] == found[5]["test/loss"]


def test_the_baseline_takes_as_many_steps_as_all_clients_on_average(said: Callable[[], list[str]]) -> None:
    """Those of one epoch, of clients whose sizes follow a power law."""
    synthetic("--centralised", "--rounds", "2", "--local-epochs", "1", "--clients-per-round", "2")
    data = Synthetic(1, 1, batching=Batching(10, epochs=1))
    data.setup("fit")
    steps = round(2 * sum(-(-data.clients.size(client) // 10) for client in range(30)) / 30)
    state = torch.load(folder("centralised") / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2 * steps
    assert f"centralised: {2 * steps} steps, {steps} a round" in "".join(said())


def test_the_baseline_says_how_far_it_is(capsys: pytest.CaptureFixture[str], said: Callable[[], list[str]]) -> None:
    like, task = quiet_trainer(2, evaluate_every=2), small_task(dtype=torch.float32)
    fit_centralised(like, FedAvg(), task, unequal_clients(torch.float32), [], Path.cwd(), silence=0.0)
    steps = 2 * round(sum(2 * -(-size // 4) for size in SIZES))
    assert f"step {steps // 2 + 1:,} of {steps:,}" in "".join(said()) + capsys.readouterr().out


def test_the_number_of_steps_in_the_readme_is_that_of_the_recipe() -> None:
    data = Synthetic(1, 1, batching=Batching(10, epochs=20))
    data.setup("fit")
    found = steps_of_a_round(FederatedTrainer(2, 10), FedAvg(), data)
    assert f"which are {found:,} with the 20 epochs of `synthetic.py`" in (RECIPES.parent / "README.md").read_text()


def test_the_baseline_takes_the_methods_rate_decay_and_clipping() -> None:
    argv = ["--centralised", "--rounds", "2", "--local-steps", "2", "--clients-per-round", "2"]
    synthetic(*argv, "--lr", "0.1", "--clip-norm", "1e-9", "--name", "clipped")
    synthetic(*argv, "--lr", "0.1", "--weight-decay", "9.0", "--name", "decayed")
    synthetic(*argv, "--lr", "0.1", "--lr-decay", "0.5", "--name", "annealed")
    synthetic(*argv, "--lr", "0.1", "--name", "plain")
    losses = {
        name: float(rows(folder("centralised", name))[2]["test/loss"])
        for name in ("clipped", "decayed", "annealed", "plain")
    }
    assert losses["clipped"] == pytest.approx(float(rows(folder("centralised", "clipped"))[0]["test/loss"]), abs=1e-6)
    assert len(set(losses.values())) == 4
    first = {name: rows(folder("centralised", name))[1]["train/loss"] for name in ("annealed", "plain")}
    assert first["annealed"] == first["plain"]


def test_the_baseline_computes_in_the_runs_precision() -> None:
    argv = ["--rounds", "1", "--local-steps", "2", "--clients-per-round", "2", "--lr", "0.1"]
    for precision in ("32-true", "bf16-mixed"):
        synthetic("--centralised", *argv, "--precision", precision, "--name", precision)
    whole, half = (rows(folder("centralised", name)) for name in ("32-true", "bf16-mixed"))
    for step in (0, 1):
        assert half[step]["test/loss"] != whole[step]["test/loss"]
        assert float(half[step]["test/loss"]) == pytest.approx(float(whole[step]["test/loss"]), rel=2e-2)
    synthetic(*argv, "--precision", "bf16-mixed")
    assert float(rows(folder())[0]["test/loss"]) == pytest.approx(float(half[0]["test/loss"]), rel=1e-5)


def test_the_baseline_is_not_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        synthetic("--centralised", "--resume", "last")
    assert "`--resume` must be left out with `--centralised`" in capsys.readouterr().err


def test_a_recipe_that_trains_by_itself_is_no_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    def main(run: Run) -> None:
        """Nothing."""

    with pytest.raises(SystemExit):
        run_recipe(main, argv=["--centralised"])
    assert "must train by `run.fit(task, data)` for `--centralised`" in capsys.readouterr().err
    assert not list(Path().rglob("version_*"))


@pytest.mark.parametrize(
    "recipe", sorted(path.stem for path in RECIPES.glob("*.py") if "run_recipe(main" in path.read_text())
)
def test_every_recipe_leaves_it_to_the_command_line_how_it_trains(recipe: str) -> None:
    text = (RECIPES / f"{recipe}.py").read_text()
    assert "run.fit(" in text
    assert "trainer.fit(" not in text


@pytest.mark.parametrize(("method", "mu"), [("fedprox", 0.7), ("adaptivefedprox", 0.0)])
def test_a_recipe_has_defaults_for_one_methods_own_fields(method: str, mu: float) -> None:
    argv = ["--method", method, "--rounds", "1", "--local-steps", "1", "--name", "own"]
    run("synthetic", *argv, lr=0.02, fedprox={"mu": 0.7})
    (path,) = Path("logs").rglob("own/config.yaml")
    config = yaml.safe_load(path.read_text())
    assert (config["mu"], config["lr"]) == (mu, 0.02)
