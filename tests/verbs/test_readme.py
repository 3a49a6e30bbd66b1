"""What the READMEs tell a reader to type is run, or at least understood, as it stands there."""

import importlib.util
import inspect
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import test_methods_gradients as laws
import torch
from conftest import ROWS, write

import minialign
from minialign import METHODS, load_model
from minialign.__main__ import flags_of

ROOT = Path(__file__).parents[2]
VERBS = Path(minialign.__file__).parent / "verbs"


def section(path: Path, title: str) -> str:
    """A section of a README, from its title to the next one."""
    return re.split(rf"^## {title}$", path.read_text(), flags=re.M)[1].split("\n## ")[0]


def code(text: str, language: str) -> str:
    """The first fenced block in a language."""
    return re.search(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)[1]


def test_the_script_of_the_readme_trains_a_model(folder, tmp_path, monkeypatch, capsys):
    script = code(section(ROOT / "README.md", "Use it on a model and data of your own"), "python")
    assert script.count("\n") <= 11 and '"stories260K"' in script and '"runs/mine"' in script
    script = script.replace("Recipe(", "Recipe(batch=4, ")
    write(tmp_path / "pairs.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    script = script.replace("stories260K", folder).replace("stories-dialogue", "pairs.jsonl")
    exec(compile(script, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == [str(step) for step in range(1, 7)]
    before, after = load_model(folder)[0], load_model(tmp_path / "runs/mine")[0]
    assert not before.head.equal(after.head)


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The method that README.md adds, in a file of its own and in METHODS, as it says there."""
    text = section(ROOT / "README.md", "Add a method")
    file = tmp_path / "added.py"
    file.write_text(code(text, "python"))
    spec = importlib.util.spec_from_file_location("added", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "added", module)
    spec.loader.exec_module(module)
    name, kind = re.search(r'`"(\w+)": (\w+)` in', text).groups()
    monkeypatch.setitem(METHODS, name, getattr(module, kind))
    return name


# The laws that every method keeps, and what some want besides the method and its settings.
MORE = {"cuts": [0, 2, 3], "dtype": torch.float64}
LAWS = []
for title, test in inspect.getmembers(laws, inspect.isfunction):
    wants = inspect.signature(test).parameters.keys()
    if title.startswith("test_") and {"name", "hyper"} <= wants <= {"name", "hyper", *MORE}:
        LAWS.append(test)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_method_that_the_readme_adds_keeps_the_laws(added, law):
    more = {key: MORE[key] for key in MORE if key in inspect.signature(law).parameters}
    law(name=added, hyper={}, **more)


def test_those_are_laws_worth_the_name():
    assert len(LAWS) >= 10 and laws.test_weights_are_minus_the_slope_of_the_loss in LAWS


@pytest.mark.parametrize("readme, least", [(ROOT / "README.md", 6), (VERBS / "README.md", 1)],
                         ids=["README", "verbs"])
def test_every_command_is_one_that_the_program_takes(readme, least):
    lines = readme.read_text().replace("\\\n", " ").splitlines()
    commands = []
    for line in lines:
        said = re.match(r"(?:python -m )?minialign (?!VERB)(\w.*)", line)
        if said and not re.search("DIR|NAME", line):
            words = re.split(r" {3,}(?=\w+ )", said[1])[0]          # without a remark beside it
            commands.append(shlex.split(words, comments=True))
    assert len(commands) >= least
    for words in commands:
        flags_of(words[0], words[1:])


def test_what_pip_installs_is_what_is_pinned_and_tested():
    """Every dependency has a pin in requirements.txt that lies in its range; all wings go along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = {}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    for line in lines:
        if "==" in line:
            name, version = line.split("==")
            pins[name] = [int(part) for part in version.split(".")]
    extras = project["project"]["optional-dependencies"]
    assert {"data", "peers", "lessons", "dev"} <= extras.keys()
    for wanted in project["project"]["dependencies"] + extras["dev"]:
        name, least = wanted.split(">=")
        assert pins[name] >= [int(part) for part in least.split(".")], wanted
    assert lines[-1] == "-e ."
    places = set()
    for top in "minialign", "lessons", "toy":
        places |= {path.parent for path in (ROOT / top).rglob("*.py")}
    packages = {".".join(place.relative_to(ROOT).parts) for place in places}
    assert packages == set(project["tool"]["setuptools"]["packages"])
