"""The layers, the public names and the sizes that the design promises."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedlightning

PACKAGE = Path(fedlightning.__file__).parent
LAYERS = {
    0: ["_atomic", "_capabilities", "_declarations", "_hashing", "_interpreter", "_signals", "errors"],
    1: ["_checked", "_locks", "_sealed", "layout", "randomness", "state"],
    2: ["data", "loggers", "method", "models"],
    3: ["_run_log", "hooks", "methods", "participation"],
    4: ["contrib", "server"],
    5: ["task"],
    6: ["_arguments", "_identity", "datasets", "execution"],
    7: ["callbacks", "evaluation"],
    8: ["_start", "analysis"],
    9: ["trainer"],
    10: ["baselines", "testing"],
    11: ["cli"],
    12: ["compare"],  # its methods and lists are typed on a command line
    13: ["__init__"],
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}


def modules() -> Iterator[tuple[Path, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and part of the package of every import that runs; those under `if TYPE_CHECKING` do not."""
    skipped = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) for inner in ast.walk(node)}  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "fedlightning":
            names = [f"fedlightning.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        yield from ((node.lineno, name.split(".")[1]) for name in names if name.startswith("fedlightning."))


@pytest.mark.quick
def test_imports_go_only_downward() -> None:
    broken = []
    for path, part in modules():
        for line, imported in imports(ast.parse(path.read_text())):
            if part != imported and LAYER[imported] >= LAYER[part]:
                broken.append(
                    f"{path.relative_to(PACKAGE)}:{line} (layer {LAYER[part]}) imports {imported} ({LAYER[imported]})"
                )
    assert not broken, "\n".join(broken)


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {part for _, part in modules()} == set(LAYER)


def test_methods_fit_on_a_page() -> None:
    methods = [path for path in (PACKAGE / "methods").glob("*.py") if path.name != "__init__.py"]
    assert not [path.name for path in methods if len(path.read_text().splitlines()) >= 60]


@pytest.mark.quick
def test_public_names_are_pinned() -> None:
    names = """
    Batching Callback Classification ClientContext ClientError ConfigurationError Dirichlet Dissimilarity EarlyStopping Examples FedAvg
    FedLightningError FedMethod FedProx FederatedDataModule FederatedTask FederatedTrainer IID MethodError ModelCheckpoint
    Natural NextToken Partition Partitioner QuantitySkew Reconstruction Regression Round RoundProgress RoundState Scaffold Shards
    SlotStrategy State Stragglers TensorData Throughput hyper keyed_uniform stream
    """
    assert sorted(fedlightning.__all__) == sorted(names.split())
    assert all(hasattr(fedlightning, name) for name in fedlightning.__all__)


def test_every_public_name_is_documented() -> None:
    assert [name for name in fedlightning.__all__ if not (getattr(fedlightning, name).__doc__ or "").strip()] == []
