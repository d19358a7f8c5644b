"""Its configuration files, of which nothing is run."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import yaml

from fedlightning.contrib.federatedx.tables import SECTIONS
from fedlightning.errors import ConfigurationError


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The nested dictionary of a Python file (that named CONFIG, else the last one assigned) or of a YAML file.

    Returns:
        The dictionary, and a note for each value that is code; it is left out, for nothing is run.

    Raises:
        ConfigurationError: the file cannot be read, or holds no dictionary.
    """
    try:
        text = path.read_text(encoding="utf-8")
        source: Any = ast.parse(text) if path.suffix == ".py" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    except (SyntaxError, yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(f"{path} must be Python or YAML, but is not: {error}.") from error
    if path.suffix != ".py":
        return _require_dict(path, source), []
    found = {
        ast.unparse(target): node.value
        for node in source.body
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    notes: list[str] = []
    chosen = found.get("CONFIG", list(found.values())[-1] if found else None)
    return _require_dict(path, None if chosen is None else _literal(chosen, notes)), notes


def _require_dict(path: Path, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} must hold a dictionary of {', '.join(SECTIONS)}, but holds none.")
    return values


def _literal(node: ast.expr, notes: list[str]) -> Any:
    """A literal's value, also of a list that is repeated or added; code in a dictionary is left out with a note."""
    if isinstance(node, ast.Dict):
        result: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            try:
                read = _literal(value, notes)
                result |= {ast.literal_eval(key): read} if key else read
            except (ValueError, TypeError):
                code = ast.unparse(value if key else node)
                notes.append(
                    f"line {value.lineno}: `{ast.unparse(key) if key else '**'}: {code}` is code, which is not run"
                )
        return result
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
        left, right = _literal(node.left, notes), _literal(node.right, notes)
        if isinstance(node.op, ast.Mult) and isinstance(right, int) and isinstance(left, list) and right <= 1000:
            return left * right
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
    return ast.literal_eval(node)
