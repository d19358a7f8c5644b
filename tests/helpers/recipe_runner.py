"""Runs a recipe in this process, in a folder of its own."""

import importlib.util
from pathlib import Path
from types import ModuleType

from fedlightning.cli.early import read_program

RECIPES = Path(__file__).parents[2] / "recipes"


def path_of(name: str) -> Path:
    """The file of `python -m recipes.<name>`."""
    place = RECIPES.joinpath(*name.split("."))
    return place / "__main__.py" if place.is_dir() else place.with_name(f"{place.name}.py")


def programs() -> list[str]:
    """Every recipe and every other program whose flags come from a signature, e.g. "synthetic", "benchmarks.gpu"."""
    places = [
        path.parent if path.stem == "__main__" else path.with_suffix("")
        for path in RECIPES.rglob("*.py")
        if read_program(path)
    ]
    return sorted(".".join(place.relative_to(RECIPES).parts) for place in places)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path_of(name))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
