"""The flags that recipes share: each is said once, is a flag of every recipe, and reaches the run."""

import ast
import re
import textwrap
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_runner import RECIPES, run

from fedlightning import Batching, ConfigurationError, Stragglers
from fedlightning.cli.command import RUN, Command, Program
from fedlightning.cli.early import Sources, read_program
from fedlightning.cli.flags import Flag
from fedlightning.cli.recipe import ImageFlags, Run, run_recipe
from fedlightning.cli.shared import RunFlags
from fedlightning.methods import FedAvg
from fedlightning.server.checkpoint import load_checkpoint

NAMES = sorted(path.stem for path in RECIPES.glob("*.py") if "run_recipe(main" in path.read_text())


pytestmark = pytest.mark.usefixtures("own_folder")


def made(**flags: Any) -> Run:
    return Run(Path("mine.py"), RunFlags(**flags), FedAvg(), "")


# -- recipes as stories -------------------------------------------------------------------------------------------------
def test_recipes_share_less_than_a_third_of_their_lines() -> None:
    """A line is shared that four of them have, the closing quotes of a docstring and an import among them."""
    lines = {name: [line.strip() for line in (RECIPES / f"{name}.py").read_text().splitlines()] for name in NAMES}
    lines = {name: [line for line in found if line] for name, found in lines.items()}
    times = Counter(line for found in lines.values() for line in set(found))
    shares = {name: sum(times[line] >= 4 for line in found) / len(found) for name, found in lines.items()}
    assert {name: share for name, share in shares.items() if share >= 1 / 3} == {}
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", [name for name in NAMES if name != "analyses"])
def test_a_recipe_fits_on_a_page(name: str) -> None:
    assert 20 <= sum(map(bool, (RECIPES / f"{name}.py").read_text().splitlines())) <= 45


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_repeats_no_flag_of_every_recipe(name: str) -> None:
    program = read_program(RECIPES / f"{name}.py")
    assert program
    assert not {flag.name for flag in program.flags} & {field.name for field in fields(RunFlags)}
    assert {flag.name for flag in RUN if flag.name != "label"} <= {
        flag.name for flag in Command(program, [], Sources()).flags
    }


@pytest.mark.parametrize("cls", [RunFlags, ImageFlags])
def test_every_shared_flag_is_described(cls: type) -> None:
    assert all(f"        {field.name}: " in str(cls.__doc__) for field in fields(cls))


def test_the_recipe_in_the_readme_is_the_file() -> None:
    text = (
        (RECIPES.parent / "README.md").read_text().split("This is `cifar100.py`")[1].split("For images of your own")[0]
    )
    shown = ast.parse(textwrap.dedent(text.split("\n\n", 1)[1]))
    tree = ast.parse((RECIPES / "cifar100.py").read_text())
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    main.body = main.body[1:]  # without the docstring
    ending = next(node for node in tree.body if isinstance(node, ast.If))
    assert [ast.dump(node) for node in shown.body] == [ast.dump(node) for node in (main, *ending.body)]


# -- what they mean -----------------------------------------------------------------------------------------------------
def test_the_seeds_of_the_partition_and_of_the_training_are_apart() -> None:
    assert (made(seed=3).seed, made(seed=3).partition_seed) == (3, 3)
    assert (made(seed=3, partition_seed=0).seed, made(seed=3, partition_seed=0).partition_seed) == (3, 0)
    few = ["--rounds", "1", "--local-steps", "1"]
    for name, flags in (
        ("a", ["--seed", "1"]),
        ("b", ["--seed", "2", "--partition-seed", "1"]),
        ("c", ["--seed", "2"]),
    ):
        run("synthetic", *few, *flags, "--name", name)
    identities = [
        load_checkpoint(Path(f"logs/synthetic/synthetic_1_1/fedavg/{name}/checkpoints/last.ckpt"))[1]["identity"]
        for name in "abc"
    ]
    assert identities[0]["training_data"] == identities[1]["training_data"] != identities[2]["training_data"]
    assert [identity["seed"] for identity in identities] == [1, 2, 2]


def test_batches_and_stragglers() -> None:
    assert made(batch_size=None, local_steps=3, drop_last=True).batching == Batching(None, steps=3, drop_last=True)
    assert made(batch_size=7).batching == Batching(7, epochs=1)
    assert made().stragglers is None
    assert made(stragglers=0.5).stragglers == Stragglers(0.5)
    assert made(stragglers=0.9, drop_stragglers=True).stragglers == Stragglers(0.9, partial=False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"stragglers": 1.0}, "`fraction` of Stragglers must be in"), ({"rounds": 0}, "`max_rounds` of FederatedTrainer must be"),
        ({"batch_size": 0}, "`size` of Batching must be at least 1"), ({"name": "a/b"}, "`--name` must be that of a folder"),
        ({"resume": "last", "centralised": True}, "`--resume` must be left out"), ({"resume": "none.ckpt"}, "there is no file 'none.ckpt'"),
        ({"slots": "cuda:77"}, "needs device cuda:77"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_a_recipe_reads_its_data(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        made(**flags)


def values(*words: str, **defaults: Any) -> dict[str, Any]:
    return Command(Program(Path("mine.py"), "", [], defaults=defaults), words, Sources()).parse().values


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", (20, None)),
        ("--local-steps 3", (None, 3)),
        ("--local-epochs 2", (2, None)),
        ("--local-epochs null", (None, None)),
    ],
)
def test_steps_take_the_place_of_a_recipes_epochs(words: str, found: tuple[int | None, int | None]) -> None:
    taken = values(*words.split(), local_epochs=20)
    assert (taken["local_epochs"], taken["local_steps"]) == found


def test_a_recipes_defaults_are_of_any_flags() -> None:
    taken = values(rounds=3, method="fedprox", lr=0.5, fedprox={"mu": 7.0}, fedadam={"tau": 1.0})
    assert (taken["rounds"], taken["method"], taken["lr"], taken["mu"]) == (3, "fedprox", 0.5, 7.0)
    with pytest.raises(
        ConfigurationError, match=r"run_recipe of mine must name flags, but `roundz` is none; did you mean rounds"
    ):
        values(roundz=3)


def test_a_parameter_of_a_recipe_must_not_have_the_name_of_a_flag_of_every_recipe() -> None:
    program = Program(Path("mine.py"), "", [Flag("rounds", int, 3)])
    with pytest.raises(ConfigurationError, match=r"but `rounds` has; take `run.flags.rounds`"):
        Command(program, [], Sources())


def test_help_begins_with_the_recipes_own_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("cifar100", "--method", "fedprox", "--help")
    text = capsys.readouterr().out
    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert headings[:3] == ["options", "flags of cifar100", "flags of every recipe"]
    assert headings[3].startswith("flags of fedprox (")
    places = [text.index(f"\n  --{flag} ") for flag in ("partition", "crop", "rounds", "background", "lr", "mu")]
    assert places == sorted(places)
    assert "default: 50)" in text.split("--batch-size")[1].split("--local-epochs")[0]


@dataclass
class Mine:
    """Flags of a recipe's own.

    Args:
        width: of something.
    """

    width: int = 3


def test_a_recipe_may_group_flags_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []

    def main(run: Run, mine: Mine, *, depth: int = 2) -> None:
        seen.append((mine, depth, yaml.safe_load(run.config)["width"]))

    run_recipe(main, argv=["--width", "5"], depth=4)
    assert seen == [(Mine(5), 4, 5)]
    with pytest.raises(SystemExit):
        run_recipe(main, argv=["--help"])
    assert "of something. (type: int, default: 3)" in " ".join(capsys.readouterr().out.split())


# -- validation ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("flags", "split"), [([], "test"), (["--validation", "0.2"], "val")])
def test_checkpoints_are_ranked_by_the_validation_set_where_there_is_one(
    flags: list[str], split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a warning in either case."""
    few = ["--data", "fake", "--partition", "IIDC4", "--rounds", "1", "--local-steps", "1", "--clients-per-round", "1"]
    run("cifar100", *few, *flags)
    (best,) = Path("logs").rglob("round=1-*.ckpt")
    assert best.name.startswith(f"round=1-{split}_accuracy=")
    assert f"Metric  {split}/accuracy " in capsys.readouterr().out


def test_without_evaluations_the_latest_checkpoint_is_kept() -> None:
    run("synthetic", "--rounds", "2", "--local-steps", "1", "--evaluate-every", "0")
    assert [path.name for path in Path("logs").rglob("round=*.ckpt")] == ["round=2.ckpt"]
