"""Its nested dictionaries as our settings."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from fedlightning.contrib.federatedx.checks import require_betas, require_count, require_positive
from fedlightning.contrib.federatedx.command import TheirCommand, find_section, parse_command
from fedlightning.contrib.federatedx.tables import (
    ADAPTIVE,
    HYPER,
    LEFT_OUT,
    PLAIN,
    READ,
    RECIPES,
    SAME,
    SECTIONS,
    TORCH,
)
from fedlightning.data import Dirichlet, parse_partition
from fedlightning.errors import ConfigurationError, nearest


@dataclass
class Translation:
    """Our settings, and what became of each key.

    Attributes:
        settings: what a configuration file holds.
        notes: a line for each key.
        recipe: the recipe that it belongs to, if it is known.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    recipe: str | None = None

    def yaml(self) -> str:
        """The file: notes as comments, then the settings."""
        notes = "".join(f"# {line}\n" for note in self.notes for line in note.splitlines())
        return notes + yaml.safe_dump(self.settings, sort_keys=False, default_flow_style=None, width=120)

    def method(self, name: str, **fields: Any) -> None:
        """Set fields of a method."""
        self.settings.setdefault("methods", {}).setdefault(name, {}).update(fields)


def translate(
    config: Mapping[str, Any], *, command: str = "", server: str | None = None, partition: str | None = None
) -> Translation:
    """Our settings for a configuration of FederatedX.

    Args:
        config: its nested dictionary.
        command: one of its commands, whose name gives the method if `server` does not.
        server: the name of its server's class, or of its pair of server and client.
        partition: such as A0d01C100, its folder's name; it counts where neither `alpha` nor `clients_num` is given.

    Raises:
        ConfigurationError: a value or the command cannot be.
    """
    _check(config)
    config, result, read = (
        copy.deepcopy({name: {} for name in SECTIONS} | dict(config)),
        Translation(),
        TheirCommand(""),
    )
    if command:
        read = parse_command(command, config)
        for section, key, value in read.values:
            find_section(config, section)[key] = value
    unknown = [name for name in config if name not in SECTIONS]
    result.notes += [f"{name}: there is no such section; left out. {nearest(name, SECTIONS)}" for name in unknown]
    sections = {name: dict(config[name]) for name in SECTIONS}
    _leave_out_empty(sections, result)
    _workconfig(sections["workconfig"], result)
    _partition(sections["workconfig"], partition, result)
    _client(sections["client_trainer_arguments"], result)
    _participation(sections["server_arguments"], result)
    _server(sections["server_arguments"], sections["fedopt"], result)
    _devices(sections["cuda_argments"], result)
    _hyper(sections["hyerparams"], result)
    for name in SECTIONS:
        for key, value in sections[name].items():
            _rest(name, key, value, result)
    result.notes += read.notes
    method = _method(server or read.name.split(".")[0], config["fedopt"], read, result)
    if method:
        result.settings = {"method": method, **result.settings}
    return result


def _check(config: Mapping[Any, Any]) -> None:
    if wrong := [name for name in SECTIONS if not isinstance(config.get(name, {}), dict)]:
        raise ConfigurationError(f"`{wrong[0]}` must be a dictionary, but is {config[wrong[0]]!r}.")
    if odd := [name for name in config if not isinstance(name, str)]:
        raise ConfigurationError(f"A section's name must be text, but is {odd[0]!r}; use one of {', '.join(SECTIONS)}.")


def _became(section: str, key: str, value: Any, what: str, result: Translation) -> None:
    result.notes.append(f"{section}.{key} = {value!r}: {what}")


def _leave_out_empty(sections: dict[str, dict[str, Any]], result: Translation) -> None:
    """Leave out the keys whose value is None; one that only changes its name may switch something off by it."""
    for section, values in sections.items():
        for key in [key for key in READ[section] if key not in SAME and values.get(key, key) is None]:
            _became(section, key, values.pop(key), "left out: it has no value", result)


def _rest(section: str, key: str, value: Any, result: Translation) -> None:
    """A key that the function of its section has left: one that only changes its name, is left out, or is unknown."""
    if key in SAME and key in READ[section]:
        result.settings[SAME[key]] = value
        _became(section, key, value, f"`{SAME[key]}`", result)
    elif key in LEFT_OUT.get(section, {}):
        _became(section, key, value, f"left out: {LEFT_OUT[section][key]}", result)
    else:
        known = [*READ[section], *LEFT_OUT.get(section, {})]
        _became(section, key, value, f"unknown, left out. {nearest(str(key), known)}", result)


def _workconfig(values: dict[str, Any], result: Translation) -> None:
    section = "workconfig"
    if (name := values.pop("exname", None)) is not None:
        result.recipe = RECIPES.get(str(name).lower())
        what = f"recipes/{result.recipe}.py" if result.recipe else "no recipe of ours"
        _became(section, "exname", name, what, result)
    if values.get("net_name") == "resnet12":
        values["net_name"] = "resnet18"
        result.notes.append("workconfig.net_name = 'resnet12': it is resnet18")
    if (closed := values.pop("close_weight_by_samle_nums", None)) is not None:
        what = "`weighting: uniform`; there the models are added up, here averaged" if closed else "the default"
        result.settings |= {"weighting": "uniform"} if closed else {}
        _became(section, "close_weight_by_samle_nums", closed, what, result)


def _partition(values: dict[str, Any], folder: str | None, result: Translation) -> None:
    """The partition: of `alpha` and `clients_num`, else of the folder's name."""
    checks = {"alpha": require_positive, "clients_num": require_count}
    given = {key: check(key, values[key]) for key, check in checks.items() if key in values}
    what = "left out: a partition needs `alpha` and `clients_num`; give the other, too"
    name = None
    if len(given) == len(checks):
        name = Dirichlet(given["alpha"], int(given["clients_num"])).name
        what = f"`partition: {name}`, whose clients own no example twice"
    for key in given:
        _became("workconfig", key, values.pop(key), what, result)
    if folder and not given:
        name = parse_partition(folder).name
        result.notes.append(f"folder: `partition: {name}`, whose clients own no example twice")
    elif folder and folder != name:
        result.notes.append(f"folder: its name says {folder}; left out beside {' and '.join(given)}")
    if name:
        result.settings = {"partition": name, **result.settings}


def _client(values: dict[str, Any], result: Translation) -> None:
    section, epoch, minibatch = "client_trainer_arguments", values.pop("epoch", None), values.pop("minibatch", None)
    what = "left out: it says what `epoch` counts, which is not there"
    if epoch is not None and minibatch:
        result.settings |= {"local_steps": require_count("epoch", epoch, least=0) + 1, "weighting": "uniform"}
        steps = f"`local_steps: {result.settings['local_steps']}`; there it takes one step more than it says"
        _became(section, "epoch", epoch, steps, result)
        what = "`weighting: uniform`; there `epoch` counts steps, and the models are added up, here averaged"
    elif epoch is not None:
        result.settings["local_epochs"] = require_count("epoch", epoch)
        _became(section, "epoch", epoch, "`local_epochs`", result)
        what = "`epoch` counts epochs, the default"
    if minibatch is not None:
        _became(section, "minibatch", minibatch, what, result)
    if (opt := values.pop("opt", None)) is not None:
        what = "the default" if opt == "sgd" else "left out: clients run SGD, for which `lr` wants tuning"
        _became(section, "opt", opt, what, result)


def _participation(values: dict[str, Any], result: Translation) -> None:
    key = "participation_rate_or_num"
    if (wish := values.pop(key, None)) is None:
        return
    if isinstance(wish, bool) or not isinstance(wish, (int, float)) or not (0 < wish < math.inf or wish == -1):
        raise ConfigurationError(
            f"`{key}` must be -1 or positive, but is {wish!r}; write e.g. `{key}: 0.1`, or -1 for all clients."
        )
    count = 1.0 if wish == -1 else int(wish) if wish >= 1 else float(wish)
    meaning = "all" if wish == -1 else f"{count} of them" if wish >= 1 else f"{count:.4%} of them, at least one"
    result.settings["clients_per_round"] = count
    _became("server_arguments", key, wish, f"`clients_per_round: {count}`, {meaning}", result)


def _server(values: dict[str, Any], fedopt: dict[str, Any], result: Translation) -> None:
    """The server's optimiser."""
    rate, betas, momentum = values.pop("server_lr", None), fedopt.pop("betas", None), fedopt.pop("momentum", None)
    beta1, beta2 = (None, 0.999) if betas is None else require_betas("betas", betas)
    if rate is not None or betas is not None:
        for name, (eps, v) in TORCH.items():
            own = {key: value for key, value in (("server_lr", rate), ("beta1", beta1)) if value is not None}
            result.method(name, **own, beta2=beta2, tau=eps, v_init=v, bias_correction=True)
    if rate is not None:
        result.method("fedadagrad", server_lr=rate, tau=1e-10, v_init=0.0)
        what = f"`server_lr` of {', '.join(TORCH)}, fedadagrad, with the other numbers of torch's optimisers"
        _became("server_arguments", "server_lr", rate, f"{what}; the others have 1 there, too", result)
    if betas is not None:
        _became("fedopt", "betas", betas, f"`beta1` and `beta2` of {', '.join(TORCH)}", result)
    if momentum is not None:
        result.method("fedavgm", beta=momentum)
        _became("fedopt", "momentum", momentum, "`beta` of fedavgm, which is FedSGDM there", result)
    for flag in ("method", "ams", "mpx"):
        if (value := fedopt.pop(flag, None)) is not None:
            _became("fedopt", flag, value, "counts where the command or `--server` names a server's class", result)


def _devices(values: dict[str, Any], result: Translation) -> None:
    devices = values.pop("devices", None)
    if devices is None:
        return
    names = [f"cuda:{device}" if isinstance(device, int) else str(device) for device in _listed(devices)]
    names = [{"cuda": "cuda:0", "cpu:0": "cpu"}.get(name, name) for name in names]
    if names == ["auto"]:
        result.settings["slots"], what = "auto", "`slots`"
    elif names and all(re.fullmatch(r"cpu|cuda:[0-9]+", name) for name in names):
        result.settings["slots"] = {name: names.count(name) for name in sorted(set(names))}
        what = "`slots`, as many on each device"
    else:
        raise ConfigurationError(
            f"`devices` must be 'auto' or names of devices, but is {devices!r}; write e.g. `devices: ['cuda:0', 'cpu']`."
        )
    _became("cuda_argments", "devices", result.settings["slots"], what, result)


def _hyper(values: dict[str, Any], result: Translation) -> None:
    for key in [key for key in values if key in HYPER]:
        value, targets = values.pop(key), HYPER[key]
        parts = _listed(value) if key == "fedgm" else [value] * len(targets)
        if len(parts) != len(targets):
            raise ConfigurationError(f"`hyerparams.{key}` must be {len(targets)} numbers, but is {value!r}.")
        for (method, name), part in zip(targets, parts, strict=True):
            result.method(method, **{name: part})
        _became("hyerparams", key, value, " and ".join(f"`{name}` of {method}" for method, name in targets), result)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _method(server: str, fedopt: Mapping[str, Any], command: TheirCommand, result: Translation) -> str | None:
    """Our method for a server's class."""
    key, said = server.lower(), {name: value for section, name, value in command.values if section == "fedopt"}
    asked = said.get("method", fedopt.get("method") if key == "fedopt" else None)
    if key in PLAIN and asked:
        result.notes.append(
            f"fedopt.method = {asked!r}: left out; there it gives {server} a server's rate of 1 under it"
        )
    method = PLAIN.get(key) or (_optimiser(str(asked), fedopt) if asked else ADAPTIVE.get(key))
    if key in ADAPTIVE and method in ("fedadam", "fedams"):  # the class sets `ams` and `mpx` itself
        method = ADAPTIVE[key]
    if method is None or not (key in PLAIN or key in ADAPTIVE or key == "fedopt"):
        if server:
            result.notes.append(f"{server}: no method of ours; give `--method`")
        return None
    if fedopt.get("mpx") and method in ("fedadam", "fedmpx"):
        method = "fedmpx"
    elif fedopt.get("mpx") and method != "fedavg":
        result.notes.append(f"fedopt.mpx: left out; write `class A(MPX, {method})` for it")
    result.notes.append(f"{server}: `method: {method}`")
    return method


def _optimiser(name: str, fedopt: Mapping[str, Any]) -> str | None:
    """Our method for the server's optimiser, which is found there by a part of its name."""
    if "grad" in name:
        return "fedadagrad"
    if "adam" in name:
        return "fedams" if fedopt.get("ams") else "fedadam"
    if "yogi" in name:
        return "fedyogi"
    return None if "lamb" in name else "fedavg"
