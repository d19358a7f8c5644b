"""A recipe's command line, read from its source before torch is imported.

Importing torch and Lightning takes seconds, which is long for a mistyped flag. All that the command line needs stands in the
recipe's source and in those of the methods: signatures, fields and docstrings. Where a source is not as the recipes are, nothing
is said here, and `fedlightning.cli.recipe` reads the same from the live functions and classes, as it does anyway.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from fedlightning.cli.command import Command, Program, program_name
from fedlightning.cli.flags import (
    REQUIRED,
    Flag,
    Gathered,
    completed,
    described,
    no_such_flag,
    parse,
    show_help,
    wants_help,
)
from fedlightning.errors import ConfigurationError, no_such_method

_NAMES = {
    "Any": Any, "Literal": Literal, "Path": Path, "bool": bool, "dict": dict, "float": float, "Gathered": Gathered,
    "int": int, "list": list, "str": str, "tuple": tuple,
}  # fmt: skip


class Unclear(Exception):
    """A source says something in a way that is not understood here."""


def refuse_mistakes() -> None:
    """End the program where it is a recipe whose command line cannot be, or asks for help.

    Raises:
        SystemExit: with status 2 and one line, or with status 0 after the help.
    """
    path = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    try:
        program = read_program(path) if path.suffix == ".py" and path.is_file() else None
        if program:
            _check(program, sys.argv[1:])
    except (Unclear, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            print(f"{program_name(path)}: error: {error}", file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None


def _check(program: Program, words: Sequence[str]) -> None:
    if program.method is None:
        if wants_help(words):
            _show(show_help(program.name, program.summary, program.flags))
        names = [flag.name for flag in program.flags]
        completed(parse(words, program.flags, lambda word: no_such_flag(word, names, {})), program.flags)
        return
    command = Command(program, words, Sources())
    if wants_help(words):
        _show(command.help())
    command.parse()


def _show(text: str) -> None:
    print(text, end="")  # noqa: T201
    raise SystemExit(0)


# -- recipes -----------------------------------------------------------------------------------------------------------
def read_program(path: Path) -> Program | None:
    """What a source says of its command line; None if it does not end as the recipes do.

    Raises:
        Unclear: a default or an annotation is more than a literal.
    """
    text = path.read_text(encoding="utf-8")
    if "run_recipe(" not in text and "run_program(" not in text:
        return None
    tree = ast.parse(text)
    call = next(filter(None, map(_ending, tree.body)), None)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if call is None or not call.args or not isinstance(call.args[0], ast.Name) or call.args[0].id not in functions:
        return None
    defaults = {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
    if {"argv", "None"} & set(defaults):
        return None
    function = functions[call.args[0].id]
    summary, helps = described(ast.get_docstring(function, clean=False))
    arguments = function.args
    flags = [
        Flag(one.arg, _kind(one.annotation), REQUIRED if value is None else _literal(value), helps.get(one.arg, ""))
        for one, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    is_recipe = isinstance(call.func, ast.Name) and call.func.id == "run_recipe"
    method = str(defaults.pop("method", "fedavg")) if is_recipe else None
    return Program(path, summary, flags, method, defaults)


def _ending(node: ast.stmt) -> ast.Call | None:
    """The call of `run_recipe` or `run_program` under `if __name__ == "__main__"`."""
    if not isinstance(node, ast.If) or ast.unparse(node.test) != "__name__ == '__main__'":
        return None
    calls = [line.value for line in node.body if isinstance(line, ast.Expr) and isinstance(line.value, ast.Call)]
    found = [call for call in calls if ast.unparse(call.func) in ("run_recipe", "run_program")]
    return found[0] if found else None


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise Unclear(ast.unparse(node)) from error


def _kind(node: ast.expr | None) -> Any:
    """The kind that an annotation names."""
    if node is None:
        return Any
    try:
        return eval(compile(ast.Expression(node), "annotation", "eval"), {"__builtins__": {}}, _NAMES)
    except (NameError, TypeError, AttributeError) as error:
        raise Unclear(ast.unparse(node)) from error


# -- methods -----------------------------------------------------------------------------------------------------------
class Sources:
    """The methods of this package, from their sources; equal to what `fedlightning.methods` has."""

    def names(self) -> list[str]:
        """The names that `--method` takes."""
        return sorted(_listed())

    def fields(self, name: str) -> list[Flag]:
        """The fields of a method, as `fedlightning.cli.flags.of_dataclass` gives them.

        Raises:
            ConfigurationError: there is none of that name.
            Unclear: it is a class of one's own.
        """
        if ":" in name:
            raise Unclear(name)
        if name not in _listed():
            raise no_such_method(name, _listed())
        return _fields(_listed()[name])


class _Class:
    """A class as its source describes it; its subclasses are those of the class there, so that they have its MRO."""

    own: ClassVar[dict[str, tuple[Any, Any]]] = {}
    helps: ClassVar[dict[str, str]] = {}
    summary: ClassVar[str] = ""


@cache
def _files() -> dict[str, Path]:
    """The file of each class."""
    package = Path(__file__).parent.parent
    paths = [package / "method.py", *sorted((package / "methods").glob("*.py"))]
    return {name: path for path in paths for name in re.findall(r"^class (\w+)", path.read_text("utf-8"), re.MULTILINE)}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _listed() -> dict[str, str]:
    """The class of each name."""
    for node in _tree(Path(__file__).parent.parent / "methods" / "__init__.py").body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_ALL" and isinstance(node.value, ast.Tuple):
            return {ast.unparse(name).lower(): ast.unparse(name) for name in node.value.elts}
    raise Unclear("_ALL")


@cache
def _described(name: str) -> type[_Class]:
    if name not in _files():
        raise Unclear(name)
    found = (node for node in _tree(_files()[name]).body if isinstance(node, ast.ClassDef) and node.name == name)
    node = next(found)
    bases = tuple(_described(ast.unparse(base)) for base in node.bases) or (_Class,)
    summary, helps = described(ast.get_docstring(node, clean=False))
    own = {
        line.target.id: (_kind(line.annotation), _default(line.value))
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        if not ast.unparse(line.annotation).startswith("ClassVar")
    }
    return type(name, bases, {"own": own, "helps": helps, "summary": summary})


def _default(node: ast.expr | None) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "hyper":
        return _literal(node.args[0])
    return REQUIRED if node is None else _literal(node)


def _fields(name: str) -> list[Flag]:
    cls = _described(name)
    line = [base for base in cls.__mro__ if issubclass(base, _Class) and "own" in vars(base)]
    names = list(dict.fromkeys(field for base in reversed(line) for field in base.own))
    helps = {field: text for base in reversed(line) for field, text in base.helps.items()}
    first = {field: next(base.own[field] for base in line if field in base.own) for field in names}
    return [Flag(field, *first[field], helps.get(field, ""), cls.summary) for field in names]
