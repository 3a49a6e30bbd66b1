"""Imports point one way: a module may import only what stands before it. Read from the source, not by running it."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "minialign"
LAYERS = [["cli", "files", "stats", "generate"], ["model", "tokens", "plot"], ["families", "presets", "lora"], ["data"],
          ["logps", "jsonl"], ["methods"], ["tasks", "load", "optim"], ["small", "sample"], ["train"], ["memory"],
          ["run", "evaluate", "talk", "arena", "bench"], ["compare"], ["studies"], ["__main__"]]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path):
    """Top modules of minialign that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minialign."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "minialign":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("minialign."))


def test_imports_point_one_way():
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if module == "__init__":
            continue
        assert module in LEVEL, f"{path.name} has no place in the layers yet"
        for other in imports(path):
            below = other == module or LEVEL[other] < LEVEL[module]
            assert below, f"{path.relative_to(PACKAGE)} imports {other}, which stands beside or above it"


def test_nothing_of_the_package_imports_lessons_tests_or_peers():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & {"lessons", "tests", "toy", "transformers", "trl"}, path
