"""What holds of every test file: it keeps out of the package's private parts, and its room has quick tests."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedlightning

PACKAGE, TESTS = Path(fedlightning.__file__).parent, Path(__file__).parents[1]
FILES = sorted(path for path in TESTS.rglob("*.py") if path.name != Path(__file__).name)
ROOMS = sorted({path.parent.name for path in FILES if path.name.startswith("test_")})
WIDTH = 120


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names() -> set[str]:
    """Of functions, classes, constants and attributes that the package keeps to itself."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return {name for name in found if is_private(name)}


PRIVATE = private_names() - {"_fields", "_is_protocol"}  # which are Python's


def is_module(dotted: str) -> bool:
    path = PACKAGE.parent.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(node: ast.AST) -> Iterator[str]:
    """What is imported from one of the package's modules, and is no module itself."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedlightning":
        yield from (alias.name for alias in node.names if not is_module(f"{node.module}.{alias.name}"))


def accessed(node: ast.AST) -> Iterator[str]:
    """The attribute of anything but a test's own object."""
    if isinstance(node, ast.Attribute):
        owner = node.value
        own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
        if not own and not (isinstance(owner, ast.Call) and ast.unparse(owner.func) == "super"):
            yield node.attr


def named(node: ast.AST) -> Iterator[str]:
    """The parts of names that are given as strings, e.g. to `monkeypatch.setattr`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr", "delattr", "setitem")):
        for argument in node.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value.rpartition(".")[2]


def intrusions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        for name in (*imported(node), *accessed(node), *named(node)):
            if is_private(name) and name in PRIVATE:
                yield f"line {node.lineno}: {name}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_private_name_of_the_package_is_read_or_patched(path: Path) -> None:
    """Thresholds and collaborators are arguments; what is inside is tested from outside."""
    assert not list(intrusions(ast.parse(path.read_text())))


@pytest.mark.parametrize(
    "source",
    [
        "from fedlightning.data.module import _Pooled",
        "trainer._finished",
        "strategy.runner._backend.seconds",
        "monkeypatch.setattr(pool, '_start', None)",
        "monkeypatch.setattr('fedlightning.execution.pool._start', None)",
        "getattr(strategy, '_backend')",
    ],
)
def test_an_intrusion_is_seen(source: str) -> None:
    assert list(intrusions(ast.parse(source)))


def test_what_is_ones_own_is_not_one() -> None:
    source = "self._backend\nrow._replace(a=1)\nfrom fedlightning.server import _columns\nsuper()._backend"
    assert not list(intrusions(ast.parse(source)))


def functions(path: Path) -> Iterator[str]:
    """Names of the functions of a file; not those of its classes, which may stand for something of the package's."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    for node in waiting:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        waiting.extend(child for child in ast.iter_child_nodes(node) if not isinstance(node, ast.ClassDef))


def test_one_fit_serves_all() -> None:
    own = [str(path.relative_to(TESTS)) for path in FILES if "fit" in functions(path)]
    assert own == ["helpers/small_runs.py"]


def test_names_fit_a_line() -> None:
    lines = [f"def {name}() -> None:" for path in FILES for name in functions(path)]
    assert not [line for line in lines if len(line) > WIDTH]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_quick_tests(room: str) -> None:
    sources = [path.read_text() for path in FILES if path.parent.name == room and path.name.startswith("test_")]
    assert any(re.search(r"^(@|pytestmark = )pytest\.mark\.quick$", source, re.MULTILINE) for source in sources)


def test_every_room_is_on_the_page() -> None:
    page = (TESTS / "README.md").read_text()
    assert not [room for room in ROOMS if f"`{room}`" not in page]
