"""Each code block of the README and of the pages in `recipes` runs. What is indented is shown, and not run."""

import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from recipe_runner import load

from fedlightning.cli.early import read_program
from fedlightning.cli.recipe import run_recipe
from fedlightning.methods import method_names

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "recipes").rglob("README.md"))]
BLOCKS = {page: re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL) for page in PAGES}
LINES = [line for page in PAGES for kind, block in BLOCKS[page] if kind == "sh" for line in block.strip().splitlines()]
COMMANDS = list(dict.fromkeys(line.partition(" #")[0].strip() for line in LINES))

SHORT = ("cifar10", "cifar100", "emnist", "emnist_autoencoder", "fashion_mnist", "femnist", "mnist", "stackoverflow")
SMALLER = {recipe: ["--local-steps", "1", "--rounds", "1"] for recipe in SHORT} | {
    "synthetic": ["--local-steps", "1"],
    "shakespeare": [
        "--fraction",
        "0.01",
        "--clients-per-round",
        "2",
        "--local-steps",
        "1",
        "--rounds",
        "1",
        "--evaluate-train",
        "false",
    ],
    "sent140": [
        "--fraction",
        "1.0",
        "--min-samples",
        "4",
        "--glove",
        "glove.6B.*.txt",
        "--local-steps",
        "1",
        "--rounds",
        "1",
    ],
    "compare": ["--rounds", "1"],
    "analyses": [
        "--rounds",
        "2",
        "--local-steps",
        "1",
        "--passes",
        "2",
        "--measured-clients",
        "2",
        "--resolution",
        "2",
    ],
    "client_optima": ["--rounds", "4", "--floor-rounds", "3"],
    "fedprox": ["--rounds", "1", "--seed", "1"],
}
NEEDED = {
    "mnist": "MNIST",
    "femnist": "omniglot-small",
    "shakespeare": "shakespeare",
    "sent140": "sent140",
    "stackoverflow": "stackoverflow",
}
PICTURES = ("figures", "reproductions/figures", "benchmarks/results")


def name_of(page: Path) -> str:
    return str(page.parent.relative_to(ROOT))


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {kind for blocks in BLOCKS.values() for kind, _ in blocks} == {"sh", "python"}


@pytest.mark.parametrize("page", [page for page in PAGES if "python" in dict(BLOCKS[page])], ids=name_of)
def test_python_blocks(page: Path, tmp_path: Path) -> None:
    """One after another, as a reader would type them into one file; in a fresh interpreter, for `typing` needs a module."""
    (tmp_path / "readme.py").write_text("\n".join(block for kind, block in BLOCKS[page] if kind == "python"))
    subprocess.run([sys.executable, "readme.py"], cwd=tmp_path, check=True, timeout=300, capture_output=True)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    return folder


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("python")])
def test_commands(command: str, workplace: Path) -> None:
    """With fewer steps and, where CIFAR-100 is not there, made-up images; the flags that come last win."""
    words = [sys.executable, *shlex.split(command)[1:]]
    program = words[words.index("-m") + 1] if "-m" in words else next(word for word in words if word.endswith(".py"))
    recipe = program.removesuffix(".py").replace("/", ".").rpartition(".")[2]
    folder = Path(os.environ.get("FEDLIGHTNING_DATA", ROOT / "data"))
    if recipe in NEEDED and not (folder / NEEDED[recipe]).exists():
        pytest.skip(f"{recipe} needs {NEEDED[recipe]} in $FEDLIGHTNING_DATA")
    words += [] if "--local-epochs" in words else SMALLER.get(recipe, [])
    if recipe in NEEDED:
        words += ["--data-dir", str(folder)]
    if recipe == "cifar100":
        words += ["--data-dir", str(folder)] if (folder / "cifar-100-python").is_dir() else ["--data", "fake"]
    drawn = {
        path: path.stat().st_mtime_ns for folder in PICTURES for path in (ROOT / "recipes" / folder).rglob("*.png")
    }
    done = subprocess.run(words, cwd=workplace, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn  # the tracked pictures


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("pip")])
def test_the_commands_that_set_up_are_those_of_continuous_integration(command: str) -> None:
    """They made the environment that this test runs in, or would make it."""
    assert command.startswith("pip install -e ")
    assert 'pip install -e ".[test]" && pytest' in (ROOT / ".ci" / "run").read_text()


def test_tensorboard_shows_the_runs(workplace: Path) -> None:
    pytest.importorskip("tensorboard", reason="from Python 3.14 on tensorboard is an extra")
    assert "tensorboard --logdir logs" in COMMANDS
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "logs", "--host", "127.0.0.1", "--port", str(port)]
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, cwd=workplace, stderr=subprocess.PIPE, text=True))
        stack.callback(process.terminate)
        assert process.stderr
        while "http://" not in (line := process.stderr.readline()):
            assert line, "tensorboard ended"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/environment", timeout=30) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "fedlightning").rglob("README.md"))], ids=name_of)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_recipe_and_folder_is_listed() -> None:
    text = (ROOT / "recipes" / "README.md").read_text()
    assert sorted(re.findall(r"^python recipes/(\w+)\.py", text, re.MULTILINE)) == [
        path.stem for path in sorted((ROOT / "recipes").glob("*.py")) if read_program(path)
    ]
    folders = [path.name for path in (ROOT / "recipes").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert sorted(re.findall(r"^\| \[(\w+)\]\(\1", text, re.MULTILINE)) == sorted(folders)


ROWS = re.findall(r"^\| `(--method [^`]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_the_table_names_every_method() -> None:
    assert sorted(row.split()[1] for row in ROWS) == method_names()


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_table_of_methods_runs(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the recipe's own defaults, for two rounds; under this seed the largest client takes 2,420 local steps."""
    monkeypatch.chdir(tmp_path)
    few = ["--rounds", "2", "--seed", "87", "--runner", "loop"]
    run_recipe(load("synthetic").main, argv=[*shlex.split(row), *few], lr=0.01, fedprox={"mu": 1.0})


def test_the_word_vectors_are_those_of_the_recipe() -> None:
    program = read_program(ROOT / "recipes" / "sent140.py")
    assert program
    (default,) = (flag.default for flag in program.flags if flag.name == "glove")
    assert f"`glove/{default}`, or other vectors by `--glove`" in (ROOT / "README.md").read_text()


def test_no_other_command_is_shown() -> None:
    assert [
        line for line in COMMANDS if not line.startswith(("python", "pip install -e ", "tensorboard --logdir"))
    ] == []
