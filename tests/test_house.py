"""The house: imports point one way, the core stands alone, and files and lines stay readable.

Read from the sources with `ast`, not by running them.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "minialign"
WINGS = ("core", "hf", "bench", "lab", "verbs")  # each imports only what stands before it
CORE = (
    "settings",
    "files",
    "progress",
    "stats",
    "rope",
    "model",
    "data",
    "logps",
    "optim",
    "generate",
    "methods",
    "train",
    "evaluate",
    "parallel",
)
FRONT = ("__init__", "__main__")  # the package's face: it may name everything
SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """The first name behind `minialign.` of a source file."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path):
    """Full names of what a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.module == "minialign":
                yield from (f"minialign.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def wing_of(module: str) -> str:
    """The wing that a module of minialign belongs to."""
    if module in CORE:
        return "core"
    assert module in WINGS, f"{module} has no place in the house yet"
    return module


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    if module_of(path) in FRONT:
        return
    here = WINGS.index(wing_of(module_of(path)))
    for name in imports(path):
        if name.startswith("minialign."):
            there = WINGS.index(wing_of(name.split(".")[1]))
            assert there <= here, f"{path.relative_to(PACKAGE)} imports {name}, of a wing above it"


def test_nothing_of_the_core_imports_in_a_circle():
    """Every module of the core can be read before those that import it."""
    needs = {name: set() for name in CORE}
    for path in SOURCES:
        if module_of(path) in CORE:
            used = {name.split(".")[1] for name in imports(path) if name.startswith("minialign.")}
            needs[module_of(path)] |= used - {module_of(path)}
    read = set()
    while needs:
        ready = [name for name, used in needs.items() if used <= read]
        assert ready, f"these import one another: {sorted(needs)}"
        for name in ready:
            read.add(name)
            del needs[name]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_imports_no_peer_and_nothing_that_stands_on_it(path):
    foreign = {"lessons", "tests", "toy"}
    if "peers" not in path.parts:
        foreign |= {"transformers", "trl", "peft"}
    assert not {name.split(".")[0] for name in imports(path)} & foreign


def test_a_peer_imports_nothing_of_ours():
    peers = PACKAGE / "bench" / "peers"
    for path in sorted(peers.glob("*.py")):
        assert not [name for name in imports(path) if name.split(".")[0] == "minialign"], path


def test_the_front_of_the_house_is_small():
    """A newcomer sees the core first: few files in minialign/ itself, and only what belongs at
    the top level.
    """
    assert len(list(PACKAGE.glob("*.py"))) <= 15


@pytest.mark.parametrize("wing", ["train.py", "data.py", "lab/arena.py", "bench", "verbs/train.py"])
def test_machinery_knows_no_method_by_name(wing):
    """What differs between methods is said by the method; nothing compares names."""
    from minialign import METHODS

    place = PACKAGE / wing
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        if "peers" in path.parts:  # what other libraries offer is their business
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in METHODS and node.value != "kl", (
                    f"{path.name} line {node.lineno}: {node.value!r}"
                )


def test_lines_are_of_ordinary_width():
    """Under 3 % of the package's lines are longer than 100 characters."""
    lines = [line for path in SOURCES for line in path.read_text().split("\n")]
    assert sum(len(line) > 100 for line in lines) < 0.03 * len(lines)


@pytest.mark.parametrize(
    "name", ["model", "data", "logps", "train", "optim", "generate", "methods"]
)
def test_every_class_and_public_function_of_the_core_says_what_it_is(name):
    place = PACKAGE / name
    for path in sorted(place.glob("*.py")) if place.is_dir() else [PACKAGE / f"{name}.py"]:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
