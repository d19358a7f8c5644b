"""The command line of the importer."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fedlightning.contrib.federatedx.files import read
from fedlightning.contrib.federatedx.translate import translate
from fedlightning.errors import ConfigurationError


class _Parser(argparse.ArgumentParser):
    """One that ends with one line for a mistake."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong."""
        raise ConfigurationError(f"{message}; `--help` lists what there is.")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: writes the YAML to standard output or to `--out`."""
    parser = _Parser(
        prog="fedlightning.contrib.federatedx", description="FederatedX's configurations as ours.", allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="its config.py, or the same as YAML; nothing of it is run")
    parser.add_argument("--command", default="", help="one of its commands, e.g. '.FedADAM -fedopt --method adam'")
    parser.add_argument("--server", help="its server's class, if the command's name does not say it")
    parser.add_argument("--out", type=Path, help="the file to write, e.g. recipes/configs/cifar100/A0d01C100.yaml")
    try:
        given = parser.parse_args(argv)
        config, notes = read(given.file)
        folder = given.file.resolve().parent.name
        partition = folder if re.fullmatch(r"A\d+d\d+C\d+", folder) else None
        result = translate(config, command=given.command, server=given.server, partition=partition)
        result.notes[:0] = [*_command(given.out, result.recipe), *notes]
        _write(given.out, result.yaml())
    except ConfigurationError as error:
        print(f"federatedx: error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error


def _command(out: Path | None, recipe: str | None) -> list[str]:
    """How the file is used."""
    return [f"python recipes/{recipe}.py --preset {shlex.quote(str(out))}"] if out and recipe else []


def _write(path: Path | None, text: str) -> None:
    """Write to a file, or to standard output.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    if path is None:
        sys.stdout.write(text)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"`--out` must be a file that can be written, but is {path} ({error.strerror}); name another."
        ) from error


if __name__ == "__main__":
    main()
