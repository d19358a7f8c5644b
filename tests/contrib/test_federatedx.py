"""The importer of FederatedX's configurations: each section, the commands, and what is never done with a file."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_runner import run

from fedlightning import ConfigurationError
from fedlightning.contrib.federatedx import parse_command, read, translate
from fedlightning.contrib.federatedx.__main__ import main
from fedlightning.contrib.federatedx.tables import READ
from fedlightning.methods import method_named, method_names

pytestmark = pytest.mark.quick

CONFIG: dict[str, Any] = {
    "workconfig": {"root_path": "./workspace/", "exname": "CIFAR100", "libs": "libs.CIFAR100.", "net_name": "resnet18"},
    "client_trainer_arguments": {"epoch": 10, "lr": 1e-3, "batch_size": 64, "minibatch": True},
    "server_arguments": {
        "commu_times": 5000, "participation_rate_or_num": 10, "test_batch_size": 1024, "server_lr": 1e-3, "test_interval": 30,
    },
    "cuda_argments": {"devices": ["cuda:0", "cuda:0", "cuda:1"]},
    "fedopt": {"method": "adam", "weight_decay": 0.1, "momentum": 0.9, "ams": False, "mpx": False, "nao": False},
    "hyerparams": {
        "fedmpx": 1, "fednao": 0.9, "prox": 0.01, "fednar": 0.1, "dualprox": 0.2, "fedlesam": 0.05, "fedgm": (0.8, 0.7),
        "fedinit": 0.1, "ours_grad_decay": 0.1, "deltasgd": 1.0, "fedavgm": 0.3,
    },
}  # fmt: skip


def changed(section: str, **values: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    config[section].update(values)
    return config


def test_all_sections_become_settings() -> None:
    result = translate(CONFIG, partition="A0d01C100")
    settings = copy.deepcopy(result.settings)
    methods = settings.pop("methods")
    assert settings == {
        "partition": "A0d01C100", "model": "resnet18", "local_steps": 11, "weighting": "uniform", "lr": 1e-3,
        "batch_size": 64, "rounds": 5000, "clients_per_round": 10, "evaluate_every": 30,
        "slots": {"cuda:0": 2, "cuda:1": 1},
    }  # fmt: skip
    assert methods["fedprox"] == {"mu": 0.01}
    assert methods["dualprox"] == {"mu": 0.01, "lam": 0.2}
    assert methods["fednar"] == {"weight_decay": 0.1}
    assert methods["fedlesam"] == {"rho": 0.05}
    assert methods["fedgm"] == {"beta": 0.8, "nu": 0.7}
    assert methods["fedinit"] == {"beta": 0.1}
    assert methods["deltasgd"] == {"gamma": 1.0}
    assert methods["fedcm"] == {"beta": 0.3}
    assert methods["fedavgm"] == {"beta": 0.9}
    adam = {"server_lr": 1e-3, "beta2": 0.999, "tau": 1e-8, "v_init": 0.0, "bias_correction": True}
    assert methods["fedadam"] == methods["fedams"] == adam
    assert methods["fedmpx"] == adam | {"mpx": 1}
    assert methods["fedadagrad"] == {"server_lr": 1e-3, "tau": 1e-10, "v_init": 0.0}
    for name, fields in methods.items():
        method_named(name)(**fields)
    assert result.recipe == "cifar100"


def test_each_key_is_accounted_for() -> None:
    notes = "\n".join(translate(CONFIG).notes)
    for section, values in CONFIG.items():
        for key in values:
            assert f"{section}.{key} = " in notes


@pytest.mark.parametrize(("section", "key"), [(section, key) for section, keys in READ.items() for key in keys])
@pytest.mark.parametrize("empty", [False, True])
def test_a_key_alone_is_accounted_for(section: str, key: str, empty: bool) -> None:
    value = {"alpha": 0.1, "fedgm": (0.8, 0.7), "betas": (0.9, 0.99), "devices": "cpu"}.get(key, 1)
    (note,) = translate({section: {key: None if empty else value}}).notes
    assert note.startswith(f"{section}.{key} = {None if empty else ''}")


@pytest.mark.parametrize(("wish", "count"), [(-1, 1.0), (1, 1), (1.0, 1), (62, 62), (0.1, 0.1), (0.01, 0.01)])
def test_participation_one_is_one_client_and_minus_one_all(wish: float, count: float) -> None:
    found = translate(changed("server_arguments", participation_rate_or_num=wish)).settings["clients_per_round"]
    assert (found, type(found)) == (count, type(count))


@pytest.mark.parametrize("wish", [0, -0.5, True, "many", float("nan"), float("inf")])
def test_other_participations_are_refused(wish: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"`participation_rate_or_num` must be -1 or positive, but is .*; write"
    ):
        translate(changed("server_arguments", participation_rate_or_num=wish))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        *(("workconfig", {"alpha": wrong}, "`alpha` must be a positive number")
          for wrong in ("x", 0, -0.1, float("nan"), float("inf"), 10**400, True, [0.1])),
        *(("workconfig", {"clients_num": wrong}, "`clients_num` must be a whole number from 1 on")
          for wrong in ("many", 0, -5, 1.5, float("inf"), True)),
        *(("client_trainer_arguments", {"minibatch": steps, "epoch": "5"}, "`epoch` must be a whole number from")
          for steps in (True, False)),
        *(("fedopt", {"betas": wrong}, r"`betas` must be two numbers in \[0, 1\)")
          for wrong in (0.9, [0.9], [], "(0.9, 0.99)", ["a", "b"], (0.9, 1))),
        *(("cuda_argments", {"devices": wrong}, "`devices` must be 'auto' or names of devices")
          for wrong in ("tpu", [], -1, True, ["auto", "cpu"])),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(section: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}.*, but is .*; write e.g. "):
        translate({section: values})


def test_without_minibatch_epochs_are_epochs() -> None:
    settings = translate(changed("client_trainer_arguments", minibatch=False)).settings
    assert settings["local_epochs"] == 10
    assert {"local_steps", "weighting"}.isdisjoint(settings)


def test_closed_weights_are_uniform_ones() -> None:
    config = changed("workconfig", close_weight_by_samle_nums=True)
    config["client_trainer_arguments"]["minibatch"] = False
    assert translate(config).settings["weighting"] == "uniform"


@pytest.mark.parametrize(
    ("alpha", "name"),
    [(0.01, "A0d01C62"), (1, "A1d00C62"), (0.001, "A0d001C62"), (10.0, "A10d00C62"), ("1e-2", "A0d01C62"),
     (1e-12, "A0d000000000001C62")],
)  # fmt: skip
def test_alpha_and_clients_are_a_partition(alpha: float, name: str) -> None:
    assert translate(changed("workconfig", alpha=alpha, clients_num=62)).settings["partition"] == name


@pytest.mark.parametrize(
    ("given", "command", "partition", "note"),
    [
        ({}, "", "A0d01C100", "folder: `partition: A0d01C100`"),
        ({"alpha": 0.5, "clients_num": 30}, "", "A0d50C30", "folder: its name says A0d01C100; left out beside alpha and clients_num"),
        ({}, "-workconfig --alpha 0.5 --clients_num 10", "A0d50C10", "folder: its name says A0d01C100"),
        ({"alpha": 0.5}, "", None, "folder: its name says A0d01C100; left out beside alpha"),
        ({"alpha": 0.01, "clients_num": 100}, "", "A0d01C100", None),
    ],
)  # fmt: skip
def test_the_folder_names_the_partition_where_nothing_else_does(
    tmp_path: Path, given: dict[str, Any], command: str, partition: str | None, note: str | None
) -> None:
    (tmp_path / "A0d01C100").mkdir()
    (tmp_path / "A0d01C100" / "config.yaml").write_text(yaml.safe_dump({"workconfig": given}))
    main([str(tmp_path / "A0d01C100" / "config.yaml"), "--command", f".x {command}", "--out", str(tmp_path / "ours")])
    text = (tmp_path / "ours").read_text()
    assert (yaml.safe_load(text) or {}).get("partition") == partition
    assert f"# {note}" in text if note else "# folder" not in text


@pytest.mark.parametrize(
    ("devices", "slots"),
    [("auto", "auto"), (["auto"], "auto"), (0, {"cuda:0": 1}), (["cuda", 0, "cpu:0"], {"cpu": 1, "cuda:0": 2})],
)
def test_devices_are_slots(devices: Any, slots: Any) -> None:
    assert translate({"cuda_argments": {"devices": devices}}).settings["slots"] == slots


def test_clients_other_optimisers_are_said_to_be_left_out() -> None:
    (note,) = [note for note in translate(changed("client_trainer_arguments", opt="adam")).notes if ".opt " in note]
    assert "left out: clients run SGD" in note


def test_betas_go_to_the_adaptive_servers() -> None:
    methods = translate(changed("fedopt", betas=(0.5, 0.25))).settings["methods"]
    assert (methods["fedyogi"]["beta1"], methods["fedyogi"]["beta2"]) == (0.5, 0.25)
    assert "beta2" not in methods["fedadagrad"]


def test_unknown_keys_and_sections_get_the_nearest() -> None:
    config = changed("client_trainer_arguments", epochs=3) | {"hyperparams": {}}
    notes = "\n".join(translate(config).notes)
    assert "client_trainer_arguments.epochs = 3: unknown, left out. Did you mean 'epoch'" in notes
    assert "hyperparams: there is no such section; left out. Did you mean 'hyerparams'" in notes


def test_a_sections_name_must_be_text() -> None:
    with pytest.raises(ConfigurationError, match="A section's name must be text, but is 1; use one of workconfig"):
        translate({1: {}})  # type: ignore[dict-item]


def test_a_section_must_be_a_dictionary() -> None:
    with pytest.raises(ConfigurationError, match="`fedopt` must be a dictionary, but is 'adam'"):
        translate(CONFIG | {"fedopt": "adam"})


# -- commands -----------------------------------------------------------------------------------------------------------
def test_a_command_is_read_as_there() -> None:
    command = parse_command(".FedADAM -fedopt --method adam .MPX -hyerparams --fedmpx .0.2", CONFIG)
    assert command.name == "FedADAM.MPX.0.2"
    assert command.values == [("fedopt", "method", "adam"), ("hyerparams", "fedmpx", 0.2), ("fedopt", "mpx", True)]
    result = translate(CONFIG, command=".FedADAM -fedopt --method adam .MPX -hyerparams --fedmpx .0.2")
    assert result.settings["method"] == "fedmpx"
    assert result.settings["methods"]["fedmpx"]["mpx"] == 0.2


def test_dots_before_keys_and_sections_are_part_of_the_name() -> None:
    command = parse_command("-.hyerparams --.ours_grad_decay .0.99 --fedgm (.1,.2)", CONFIG)
    assert command.name == "hyerparams.ours_grad_decay.0.99"
    assert command.values == [("hyerparams", "ours_grad_decay", 0.99), ("hyerparams", "fedgm", (0.1, 0.2))]


def test_values_are_literals_and_never_run(tmp_path: Path) -> None:
    code = f"__import__('pathlib').Path('{tmp_path / 'ran'}').touch()"
    assert parse_command(f"-fedopt --method {code}", CONFIG).values == [("fedopt", "method", code)]
    assert not (tmp_path / "ran").exists()


def test_the_pitfall_of_a_bare_fraction_is_reported() -> None:
    command = parse_command("-hyerparams --prox .5", CONFIG)
    assert (command.name, command.values) == ("5", [("hyerparams", "prox", 5)])
    assert "`.5` is read as 5" in command.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--lr 1", "`--lr` in the command needs a section before it"),
        ("-fedopt --method", "`--method` in the command needs a value"),
        ("-hyperparams --prox 1", "must be a section. Did you mean 'hyerparams'"),
        ("FedADAM", "must begin with"),
    ],
)
def test_a_command_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_command(text, CONFIG)


def test_a_section_is_found_where_it_is_nested_the_least_nested_first() -> None:
    config = {"a": {"deep": {"x": 1}, "fedopt": {"inner": 1}}, "fedopt": {"outer": 1}}
    assert parse_command("-deep --x 2", config).values == [("deep", "x", 2)]
    result = translate(
        CONFIG | {"workconfig": {"hyerparams": {"prox": 1}, "net_name": "cnn"}}, command="-hyerparams --prox 3"
    )
    assert result.settings["methods"]["fedprox"] == {"mu": 3}


@pytest.mark.parametrize(
    ("name", "command", "method"),
    [
        ("FedAVG", "", "fedavg"), ("FedPROX", "", "fedprox"), ("SCAFFOLD", "", "scaffold"), ("FedAVGM", "", "fedcm"),
        ("FedSGDM", "", "fedavgm"), ("FedADAM", "", "fedadam"), ("FedAMS", "-fedopt --method adam", "fedams"),
        ("FedADAM", "-fedopt --method yogi", "fedyogi"), ("FedOPT", "", "fedadam"),
        ("FedOPT", "-fedopt --method adagrad", "fedadagrad"), ("FedOPT", "-fedopt --method sgd", "fedavg"),
        ("FedMPX", "", "fedmpx"), ("Ours", "", None), ("FedOPT", "-fedopt --method lamb", None),
    ],
)  # fmt: skip
def test_servers_are_methods(name: str, command: str, method: str | None) -> None:
    assert translate(CONFIG, command=f".{name} {command}").settings.get("method") == method
    assert translate(CONFIG, command=command or ".x", server=name).settings.get("method") == method
    assert method is None or method in method_names()


def test_adam_on_top_of_a_plain_server_is_left_out_and_said() -> None:
    result = translate(CONFIG, command=".FedPROX -fedopt --method adam")
    assert result.settings["method"] == "fedprox"
    assert any("left out; there it gives FedPROX a server's rate of 1" in note for note in result.notes)


# -- files ----------------------------------------------------------------------------------------------------------------
SOURCE = """
import torch
from pathlib import Path
Path("ran").touch()
OTHER = {"a": 1}
CONFIG = {
    'workconfig': {'net_name': 'cnn', 'exname': 'FashionMNIST'},
    'client_trainer_arguments': {'lr': 1e-2, 'opt': torch.optim.Adam, 'epoch': 5},
    **{'cuda_argments': {'devices': ['cuda:0'] * 2 + ['cpu']}},
}
LATER = {"b": 1}
"""


def test_a_python_file_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(SOURCE)
    config, notes = read(tmp_path / "config.py")
    assert config["cuda_argments"]["devices"] == ["cuda:0", "cuda:0", "cpu"]
    assert config["client_trainer_arguments"] == {"lr": 1e-2, "epoch": 5}
    assert notes == ["line 8: `'opt': torch.optim.Adam` is code, which is not run"]
    assert not Path("ran").exists()


def test_the_command_line_writes_a_file_that_says_what_became_of_each_key(tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "FashionMNIST" / "A0d10C300"
    folder.mkdir(parents=True)
    (folder / "config.py").write_text(SOURCE)
    main([str(folder / "config.py"), "--command", ".FedAVG", "--out", str(tmp_path / "ours" / "a.yaml")])
    text = (tmp_path / "ours" / "a.yaml").read_text()
    assert yaml.safe_load(text) == {
        "method": "fedavg", "partition": "A0d10C300", "model": "cnn", "local_epochs": 5, "lr": 0.01,
        "slots": {"cpu": 1, "cuda:0": 2},
    }  # fmt: skip
    assert "# line 8: `'opt': torch.optim.Adam` is code" in text
    assert "# workconfig.exname = 'FashionMNIST': recipes/fashion_mnist.py" in text


def test_yaml_is_read_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("server_arguments: {commu_times: 3, participation_rate_or_num: -1}\n")
    main([str(tmp_path / "config.yaml")])
    assert yaml.safe_load(capsys.readouterr().out) == {"clients_per_round": 1.0, "rounds": 3}


@pytest.mark.parametrize(
    ("name", "text"), [("a.py", "x = 1"), ("a.py", "x = ("), ("a.yaml", "- 1"), ("a.yaml", "a: ["), ("b", None),
     ("a.yaml", "a: 2024-13-01")],
)  # fmt: skip
def test_files_without_a_dictionary_are_refused(
    tmp_path: Path, name: str, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / name)])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("federatedx: error: ")


@pytest.mark.parametrize("words", [[], ["--wrong"], ["a.yaml", "--out"], ["a.yaml", "b.yaml"]])
def test_a_mistake_on_the_command_line_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("federatedx: error: ")
    assert line.endswith("; `--help` lists what there is.")


@pytest.mark.parametrize("out", ["", "config.yaml/ours.yaml"])
def test_a_file_that_cannot_be_written_is_said(tmp_path: Path, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("fedopt: {}\n")
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "config.yaml"), "--out", str(tmp_path / out)])
    assert caught.value.code == 2
    message = r"federatedx: error: `--out` must be a file that can be written, but is .*; name another\.\n"
    assert re.fullmatch(message, capsys.readouterr().err)


def test_what_was_written_is_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The command in its first line runs it, with the partition of the folder's name."""
    folder = tmp_path / "experiments" / "FashionMNIST" / "A0d10C30"
    folder.mkdir(parents=True)
    (folder / "config.py").write_text(SOURCE)
    out = tmp_path / "ours" / "a.yaml"
    main([str(folder / "config.py"), "--command", ".FedAVG", "--out", str(out)])
    first = out.read_text().splitlines()[0].removeprefix("# ")
    assert first == f"python recipes/fashion_mnist.py --preset {out}"
    monkeypatch.chdir(tmp_path)
    words = [*first.split()[2:], "--rounds", "1", "--local-steps", "1", "--clients-per-round", "1", "--data", "fake"]
    with caplog.at_level("INFO", "lightning.pytorch"):
        run("fashion_mnist", *words)
    assert f"preset {out} sets partition A0d10C30, method fedavg, slots cpu/0, model cnn, lr 0.01\n" in caplog.text
    assert (tmp_path / "logs" / "fashion_mnist" / "fake-a" / "fedavg" / "version_0" / "metrics.csv").is_file()
