"""Configuration files: presets, the layers, what is refused with its line, and every file that is there."""

import inspect
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_runner import RECIPES, load

from fedlightning import ConfigurationError, FedAvg, FedMethod, FedProx
from fedlightning.cli.configs import ConfigFile, fit_slots, merged, preset_file
from fedlightning.cli.recipe import Run, run_recipe
from fedlightning.data import parse_partition
from fedlightning.methods import method_named
from fedlightning.models import build_model

FILES = sorted((RECIPES / "configs").rglob("*.yaml"))


class Called(Exception):
    """Ends the recipe where its flags are known."""


def main_of(recipe: Path) -> Any:
    spec: dict[str, Any] = {"__name__": "recipe", "__file__": str(recipe)}
    exec(compile(recipe.read_text(), str(recipe), "exec"), spec)
    return spec["main"]


def flags(recipe: Path, *argv: str) -> tuple[FedMethod, Run, dict[str, Any]]:
    """What a recipe would be called with: the method, the run, and the values of its own and of every recipe's flags."""
    seen: list[Any] = []
    main = main_of(recipe)

    def caught(run: Run, **arguments: Any) -> None:
        own = {key: vars(value) if is_dataclass(value) else {key: value} for key, value in arguments.items()}
        values = {key: value for found in own.values() for key, value in found.items()}
        seen.append((run.method, run, {**vars(run.flags), **values}))
        raise Called

    caught.__code__ = caught.__code__.replace(co_filename=str(recipe))
    caught.__wrapped__, caught.__doc__ = main, main.__doc__  # type: ignore[attr-defined]
    caught.__annotations__ = main.__annotations__
    caught.__signature__ = inspect.signature(main)  # type: ignore[attr-defined]
    with pytest.raises(Called):
        run_recipe(caught, argv=argv)
    return seen[0]


RECIPE = '''
def main(run, *, partition: str = "A0d10C100", model: str = "lenet") -> None:
    """A recipe.

    Args:
        model: which.
    """
'''


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(RECIPE)
    (tmp_path / "configs" / "tiny").mkdir(parents=True)
    return path


def write(recipe: Path, name: str, text: str) -> Path:
    path = recipe.parent / "configs" / "tiny" / f"{name}.yaml"
    path.write_text(text)
    return path


PRESET = """
model: resnet18
rounds: 5000
clients_per_round: 0.1
local_steps: 11
lr: 0.5
methods:
  fedprox: {mu: 0.25}
  deltasgd: {lr: 0.125}
"""


def test_a_preset_is_read_when_it_is_named(recipe: Path) -> None:
    write(recipe, "A0d01C100", PRESET)
    method, run, values = flags(recipe, "--preset", "A0d01C100", "--method", "fedprox")
    assert (values["model"], values["rounds"], values["clients_per_round"], values["local_steps"]) == (
        "resnet18",
        5000,
        0.1,
        11,
    )
    assert values["partition"] == "A0d01C100"
    assert method == FedProx(lr=0.5, mu=0.25)
    kept = yaml.safe_load(run.config)
    assert (kept["rounds"], kept["mu"], kept["partition"]) == (5000, 0.25, "A0d01C100")
    assert {"config", "background", "preset", "name", "resume"}.isdisjoint(kept)


def test_fields_of_the_chosen_method_alone_count_and_before_the_top(recipe: Path) -> None:
    write(recipe, "A0d01C100", PRESET)
    method, _, _ = flags(recipe, "--preset", "A0d01C100", "--method", "deltasgd")
    assert method.lr == 0.125
    assert flags(recipe, "--preset=A0d01C100")[0] == FedAvg(lr=0.5)


@pytest.mark.parametrize("partition", ["A0d01C100", "A0d10C100", "A0d02C100"])
def test_a_partition_is_a_partition_and_nothing_else(recipe: Path, partition: str) -> None:
    """One that has a preset, and the recipe's default, which then changes nothing."""
    write(recipe, "A0d01C100", PRESET)
    write(recipe, "A0d10C100", PRESET)
    method, run, values = flags(recipe, "--partition", partition)
    plain_method, plain_run, plain = flags(recipe)
    assert values == {**plain, "partition": partition}
    assert method == plain_method
    assert (values == plain) == (partition == "A0d10C100") == (run.config == plain_run.config)


@pytest.mark.parametrize("recipe_name", ["cifar10", "cifar100", "emnist", "emnist_autoencoder", "fashion_mnist"])
def test_naming_a_default_changes_nothing(recipe_name: str) -> None:
    path = RECIPES / f"{recipe_name}.py"
    _, run, values = flags(path)
    given = {**values, **{key: getattr(flags(path)[0], key) for key in ("lr", "weighting")}}
    for key, value in given.items():
        if key in ("config", "preset", "background", "name", "resume"):  # which are no settings
            continue
        word = "null" if value is None else str(value)
        assert flags(path, f"--{key.replace('_', '-')}", word)[1].config == run.config, key


def test_a_preset_may_be_named_by_its_path(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(recipe, "A0d01C100", PRESET)
    assert flags(recipe, "--preset", str(path))[2]["rounds"] == 5000
    elsewhere = tmp_path / "H0d30C50.yaml"
    elsewhere.write_text("rounds: 9\n")
    monkeypatch.chdir(tmp_path)
    for word in (str(elsewhere), "H0d30C50.yaml", "./H0d30C50.yaml"):
        _, _, values = flags(recipe, "--preset", word)
        assert (values["partition"], values["rounds"], values["model"]) == ("H0d30C50", 9, "lenet")


def test_presets_of_another_recipe_are_not_found(recipe: Path) -> None:
    write(recipe, "A0d01C100", PRESET)
    (recipe.parent / "configs" / "other").mkdir()
    assert preset_file(recipe, "A0d01C100").is_file()
    with pytest.raises(
        ConfigurationError, match=r"must be the name of a file in .*tiny, .* but is .*; did you mean A0d01C100"
    ):
        preset_file(recipe, "../tiny/A0d01C100")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("A0d01C101", "`--preset` must be the name of a file in"),
        ("A0d01C101", "but is 'A0d01C101'; did you mean A0d01C100?"),
        ("", "but is ''; there are A0d01C100, Mine."),
        ("none.yaml", "but is 'none.yaml'; there are"),
        ("Mine", "Mine.yaml must have the name of a partition, or name one, but 'Mine' is none; add e.g. `partition: "),
    ],
)
def test_a_preset_that_cannot_be_is_refused_in_one_line(
    recipe: Path, word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(recipe, "A0d01C100", PRESET)
    write(recipe, "Mine", "rounds: 3\n")
    with pytest.raises(SystemExit) as caught:
        run_recipe(main_of(recipe), argv=["--preset", word])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_one_line_says_every_value_that_the_preset_sets(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(recipe, "A0d01C100", PRESET)
    with caplog.at_level("INFO", "lightning.pytorch"):
        flags(recipe, "--preset", "A0d01C100", "--method", "fedprox", "--rounds", "3")
    (line,) = [text for text in caplog.text.splitlines() if "preset" in text]
    values = "partition A0d01C100, model resnet18, clients_per_round 0.1, local_steps 11, lr 0.5, mu 0.25"
    assert line.endswith(f"preset {path} sets {values}")  # not the rounds, which the command line sets


def test_preset_then_config_then_config_then_flags(recipe: Path, tmp_path: Path) -> None:
    write(recipe, "A0d01C100", PRESET)
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("rounds: 1\nclients_per_round: 1\nmodel: cnn\nmethods: {fedprox: {mu: 1}}\n")
    two.write_text("rounds: 2\nclients_per_round: 2\nmethod: fedprox\n")
    argv = ("--rounds", "3", "--config", str(one), f"--config={two}", "--preset", "A0d01C100")
    method, _, values = flags(recipe, *argv)
    assert (values["rounds"], values["clients_per_round"], values["model"], values["local_steps"]) == (3, 2, "cnn", 11)
    assert method == FedProx(lr=0.5, mu=1.0)


@pytest.mark.parametrize("give", ["flag", "config"])
def test_another_partition_above_a_preset_counts(recipe: Path, tmp_path: Path, give: str) -> None:
    write(recipe, "Mine", "partition: H0d30C50\nrounds: 9\n")
    (tmp_path / "my.yaml").write_text("partition: IIDC7\n")
    more = ("--partition", "IIDC7") if give == "flag" else ("--config", str(tmp_path / "my.yaml"))
    _, run, values = flags(recipe, "--preset", "Mine", *more)
    assert (values["partition"], values["rounds"], run.flags.label) == ("IIDC7", 9, None)


def test_a_partition_in_a_config_reads_no_preset(recipe: Path, tmp_path: Path) -> None:
    write(recipe, "A0d01C100", PRESET)
    (tmp_path / "my.yaml").write_text("partition: A0d01C100\nrounds: 7\n")
    _, _, values = flags(recipe, "--config", str(tmp_path / "my.yaml"))
    assert (values["partition"], values["rounds"], values["model"]) == ("A0d01C100", 7, "lenet")


@pytest.mark.parametrize("give", ["flag", "config"])
def test_epochs_above_clear_the_steps_below(recipe: Path, tmp_path: Path, give: str) -> None:
    write(recipe, "A0d01C100", PRESET)
    (tmp_path / "my.yaml").write_text("local_epochs: 2\n")
    more = ("--local-epochs", "2") if give == "flag" else ("--config", str(tmp_path / "my.yaml"))
    _, _, values = flags(recipe, "--preset", "A0d01C100", *more)
    assert (values["local_epochs"], values["local_steps"]) == (2, None)


def test_a_name_of_ones_own_may_stand_for_a_partition(recipe: Path, tmp_path: Path) -> None:
    write(recipe, "Mine", "partition: H0d30C50\nrounds: 9\n")
    _, run, values = flags(recipe, "--preset", "Mine")
    assert (values["partition"], values["rounds"], values["label"]) == ("H0d30C50", 9, "Mine")
    (tmp_path / "mine.yaml").write_text(run.config)
    _, again, values = flags(recipe, "--config", str(tmp_path / "mine.yaml"))
    assert (values["partition"], again.flags.label) == ("H0d30C50", "Mine")


def test_the_name_of_ones_own_stands_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("partition: IIDC4\n")
    few = ["--data", "fake", "--rounds", "1", "--local-steps", "1", "--clients-per-round", "1"]
    run_recipe(load("cifar100").main, argv=["--preset", "mine.yaml", *few])
    (folder,) = Path("logs/cifar100").glob("*/fedavg/version_*")
    assert folder == Path("logs/cifar100/fake-mine/fedavg/version_0")
    run_recipe(load("cifar100").main, argv=["--config", str(folder / "config.yaml")])
    assert Path("logs/cifar100/fake-mine/fedavg/version_1").is_dir()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: cnn\nroundz: 3\n", "A0d01C100.yaml:2: there is no flag `roundz` here; did you mean rounds"),
        ("mu: 3\n", "A0d01C100.yaml:1: there is no flag `mu` here; did you mean mu (of --method "),
        ("\n\nmethods:\n  fedprx: {mu: 1}\n", "A0d01C100.yaml:4: there is no method `fedprx`; did you mean fedprox"),
        ("methods:\n  fedprox:\n    mue: 1\n", "A0d01C100.yaml:3: fedprox has no field `mue`; did you mean mu"),
        ("methods: {fedprox: 3}\n", "A0d01C100.yaml:1: `fedprox` must map fields to values"),
        ("model: cnn\nrounds: many\n", "A0d01C100.yaml:2: "),
        ("methods:\n  fedavg:\n    lr: fast\n", "A0d01C100.yaml:3: "),
        ("preset: A0d10C100\n", "A0d01C100.yaml:1: there is no flag `preset` here"),
        (f"rounds: {3000 * '['}{3000 * ']'}\n", "its values lie in one another a thousand times and more"),
        ("rounds: 1\nrounds: 2\n", "A0d01C100.yaml:2: `rounds` stands there twice"),
        ("- a\n", "must hold flags as `key: value`, but holds list"),
        ("a: [\n", "must be YAML, but is not"),
        ("seed: 2024-13-45\n", "must be YAML, but is not"),
        (
            "slots: {cpu: two}\n",
            "`slots` must have a whole number from 1 to 1,000 for each device, as in {cpu: 2}, but is {'cpu': 'two'}",
        ),
        ("slots: {cpu: 1.5}\n", "`slots` must have a whole number from 1 to 1,000 for each device"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(
    recipe: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(recipe, "A0d01C100", text)
    with pytest.raises(SystemExit) as caught:
        run_recipe(main_of(recipe), argv=["--preset", "A0d01C100"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_help_shows_the_values_of_the_file(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(recipe, "A0d01C100", PRESET)
    with pytest.raises(SystemExit):
        run_recipe(main_of(recipe), argv=["--preset", "A0d01C100", "--help"])
    assert "(type: int, default: 5000)" in " ".join(capsys.readouterr().out.split())


FOUR = {f"cuda:{i}": 4 for i in range(4)}


@pytest.mark.parametrize(
    ("wish", "gpus", "cores", "result"),
    [
        (FOUR, 0, 2, "auto"),
        (FOUR, 1, 2, "cuda:0/0,cuda:0/1,cuda:0/2,cuda:0/3"),
        (["cuda:0/0", "cuda:1/0"], 2, 2, "cuda:0/0,cuda:1/0"),
        ({"cpu": 20}, 0, 2, "auto"),
        ({"cpu": 2}, 0, 2, "cpu/0,cpu/1"),
        ({"cuda:0": 1, "cpu": 9}, 1, 8, "cuda:0/0"),
        ("cuda,cpu/0", 0, 8, "cpu/0"),
        ("auto", 0, 1, "auto"),
        (3, 0, 1, "3"),
        ("both", 0, 1, "both"),
    ],
)
def test_slots_of_a_file_are_mapped_onto_the_machine(wish: Any, gpus: int, cores: int, result: str) -> None:
    slots, note = fit_slots(wish, gpus, cores)
    assert slots == result
    asked = ",".join(wish) if isinstance(wish, list) else wish
    changed = (isinstance(wish, dict) and wish != {"cpu": 2}) or asked == "cuda,cpu/0"
    assert (note is not None) == changed
    assert note is None or f"there are {gpus} GPUs and {cores} cores" in note


def test_slots_of_the_command_line_are_left_as_they_are(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(recipe, "A0d01C100", 'slots: {"cuda:70": 2}\n')
    with caplog.at_level("INFO", "lightning.pytorch"):
        assert flags(recipe, "--preset", "A0d01C100", "--slots", "cpu/7")[2]["slots"] == "cpu/7"
    assert "in the place of" not in caplog.text
    with caplog.at_level("INFO", "lightning.pytorch"):
        assert flags(recipe, "--preset", "A0d01C100")[2]["slots"] == "auto"
    assert "slots auto in the place of 2" in caplog.text


def test_layers_merge_and_the_last_wins() -> None:
    assert merged([{"a": 1, "local_steps": 3}, {"b": 2, "local_epochs": None}]) == {
        "a": 1, "b": 2, "local_steps": 3, "local_epochs": None,
    }  # fmt: skip
    assert merged([{"local_steps": 3}, {"local_epochs": 1, "local_steps": None}]) == {
        "local_epochs": 1,
        "local_steps": None,
    }


def test_there_are_the_settings_of_the_table() -> None:
    assert len(FILES) >= 30
    assert {path.parent.name for path in FILES} >= {
        "cifar10",
        "cifar100",
        "fashion_mnist",
        "emnist",
        "emnist_autoencoder",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_is_taken_by_its_recipe_and_its_methods(path: Path) -> None:
    file = ConfigFile.read(path)
    parse_partition(file.values.get("partition", path.stem))
    for name, fields in (file.values.get("methods") or {}).items():
        method_named(name)(**fields)
    recipe = RECIPES / f"{path.parent.name}.py"
    if not recipe.is_file():
        pytest.skip(f"there is no recipe {recipe.name}")
    for name in ("fedavg", *(file.values.get("methods") or {})):
        method, run, values = flags(recipe, "--preset", path.stem, "--method", name)
        own = (file.values.get("methods") or {}).get(name, {})
        assert {key: getattr(method, key) for key in own} == own
        plain = {
            key: value for key, value in file.values.items() if key not in ("methods", "method", "slots", "partition")
        }
        assert {key: values.get(key, getattr(method, key, None)) for key in plain} == plain | {
            key: value for key, value in own.items() if key in plain
        }
        assert run.flags.method == name


def is_known(model: str) -> bool:
    """Whether there is such a model; those of images refuse the shape before anything large is built."""
    try:
        build_model(model, (3, 4, 5), 10)
    except ConfigurationError as error:
        return "must be a known name" not in str(error)
    return True


def test_every_model_of_a_file_is_known() -> None:
    names = {ConfigFile.read(path).values.get("model") for path in FILES} - {None}
    assert [name for name in names if not is_known(name)] == []
    assert not is_known("wrong")
