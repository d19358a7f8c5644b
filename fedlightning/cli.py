"""The command line of the recipes: a function's parameters and the chosen method's fields become flags."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import Logger

from fedlightning.errors import ConfigurationError, FedLightningError
from fedlightning.loggers import check_writable, latest_run, run_loggers
from fedlightning.method import FedMethod, field_names
from fedlightning.methods import method_named, method_names


@dataclass
class Run:
    """Where a run is kept: `logs/<recipe>/<partition>/<method>/version_N`.

    Attributes:
        recipe: the recipe's name.
        method: the method's name.
        config: the whole configuration as YAML; written to the run's folder, where `--config` takes it up.
        name: names the run's folder instead of `version_N`.
        resume: "last", or the path of a checkpoint.
        root: the folder of all runs.
    """

    recipe: str
    method: str
    config: str
    name: str | None = None
    resume: str | None = None
    root: Path = Path("logs")
    _made: Path | None = None

    def open(self, partition: str) -> tuple[list[Logger], Path | None]:
        """The loggers of this run, and the checkpoint that it goes on from, if any.

        Raises:
            ConfigurationError: the folder cannot be written, or there is nothing to resume.
        """
        parent = self.root / self.recipe / partition / self.method
        check_writable(parent)
        checkpoint, name = None, self.name
        if name and not self.resume and (parent / name / "config.yaml").is_file():
            raise ConfigurationError(
                f"`--name` must be new or resumed, but {parent / name} holds a run; choose another name, or add `--resume last`."
            )
        if self.resume == "last":
            folder = parent / name if name else latest_run(parent)
            if folder is None or not (folder / "checkpoints" / "last.ckpt").is_file():
                raise ConfigurationError(
                    f"`--resume last` needs a run with checkpoints/last.ckpt in {folder or parent}, but there is none; "
                    "leave `--resume` out to begin one."
                )
            checkpoint, name = folder / "checkpoints" / "last.ckpt", folder.name
        elif self.resume:
            checkpoint = Path(self.resume)
        loggers = run_loggers(parent, name)
        folder = Path(str(loggers[0].log_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self._made = None if self.resume == "last" else folder
        (folder / "config.yaml").write_text(self.config, encoding="utf-8")
        return loggers, checkpoint

    def discard(self) -> None:
        """Remove the folder of a run that was refused before its first round."""
        if self._made:
            shutil.rmtree(self._made)


def run_recipe(
    main: Callable[..., Any], *, method: str = "fedavg", argv: Sequence[str] | None = None, **defaults: Any
) -> None:
    """Parse the command line and call `main(method, run, **flags)`.

    The flags are the keyword-only parameters of `main`, described in its docstring, and the fields of the chosen method.
    A mistake of the user's ends the program with one line and status 2, Ctrl-C with status 130.

    Args:
        main: the recipe.
        method: the default of `--method`.
        argv: the command line; the program's own by default.
        **defaults: this recipe's defaults for fields of `FedMethod`, e.g. `lr=0.01`; a method that sets its own keeps it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    recipe = Path(main.__code__.co_filename).stem
    run = Run(recipe, "", "")
    try:
        chosen = method_named(_method_name(arguments, method))
        parser = _parser(main, chosen, recipe, defaults)
        config = parser.parse_args(arguments)
        name, resume, _ = config.pop("name"), config.pop("resume"), config.pop("config")
        run = Run(recipe, chosen.__name__.lower(), yaml.safe_dump(config.as_dict(), sort_keys=False), name, resume)
        del config["method"]
        fields = {field: config.pop(field) for field in field_names(chosen)}
        main(chosen(**fields), run, **config.as_dict())
    except FedLightningError as error:
        if isinstance(error, ConfigurationError):
            run.discard()
        print(f"{recipe}: error: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print(f"{recipe}: stopped; go on with `--resume last`.", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None


class _Parser(ArgumentParser):
    """Flags with dashes, and the nearest flag for one that does not exist."""

    def dash(self) -> None:
        """Show every flag with dashes; underscores are taken too."""
        for action in self._actions:
            action.option_strings = [flag.replace("_", "-") for flag in action.option_strings]
            self._option_string_actions.update(dict.fromkeys(action.option_strings, action))
            if getattr(action, "_typehint", None) is bool:
                action.nargs, action.const = "?", True

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line and status 2."""
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flag = unknown.group(1).split("=")[0]
            owners: dict[str, list[str]] = {}
            for name in method_names():
                for field in field_names(method_named(name)):
                    owners.setdefault(f"--{field.replace('_', '-')}", []).append(name)
            near = difflib.get_close_matches(flag, {**owners, **self._option_string_actions}, n=2)
            own = self._option_string_actions
            known = [n if n in own else f"{n} (of --method {', '.join(owners[n])})" for n in near]
            hint = f"did you mean {' or '.join(known)}?" if near else "`--help` lists them."
            message = f"there is no flag {flag} here; {hint}"
        raise ConfigurationError(message)


def _method_name(arguments: list[str], default: str) -> str:
    """The method that the command line or else the configuration file names; it decides which flags there are."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--method")
    first.add_argument("--config")
    known, _ = first.parse_known_args(arguments)
    if known.method is None and known.config and Path(known.config).is_file():
        content = yaml.safe_load(Path(known.config).read_text(encoding="utf-8"))
        default = content.get("method", default) if isinstance(content, dict) else default
    return known.method or default


def _parser(main: Callable[..., Any], method: type[FedMethod], recipe: str, defaults: dict[str, Any]) -> _Parser:
    parser = _Parser(prog=recipe, description=main.__doc__.splitlines()[0] if main.__doc__ else None)
    parser.add_argument("--method", default=method.__name__.lower(), help=f"one of {', '.join(method_names())}")
    parser.add_argument("--config", action="config", help="a run's config.yaml; flags after it win")
    parser.add_argument("--name", type=str, default=None, help="name of the run's folder instead of version_N")
    parser.add_argument("--resume", type=str, default=None, help="'last', or the path of a checkpoint")
    parser.add_function_arguments(main, skip={"method", "run"})
    parser.add_class_arguments(method, nested_key=None)
    own, usual = (
        method.__dataclass_fields__,
        FedMethod.__dataclass_fields__,
    )  # a paper's default is stronger than a recipe's
    parser.set_defaults({name: value for name, value in defaults.items() if own[name].default == usual[name].default})
    parser.dash()
    return parser
