"""Runs a recipe in this process, in a folder of its own."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from fedlightning.cli.early import read_program
from fedlightning.cli.recipe import run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *argv: str, module: ModuleType | None = None, **defaults: Any) -> None:
    """Run a recipe as its file does, with its own defaults.

    Args:
        name: of the recipe.
        *argv: the command line.
        module: the recipe, with what a test has put in the place of its data or its model.
        **defaults: in the place of the recipe's.
    """
    program = read_program(RECIPES / f"{name}.py")
    assert program
    run_recipe((module or load(name)).main, argv=argv, **{**program.defaults, **defaults})
