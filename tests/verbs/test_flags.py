"""Flags are declared once: in a verb, in Recipe, or in the method that has them."""

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass, fields

import pytest
from conftest import read

from minialign import METHODS, Method, Recipe
from minialign.__main__ import flags_of, main
from minialign.methods import SFT
from minialign.settings import setting
from minialign.verbs import train
from minialign.verbs.flags import add_flags, kind_of

RUN = ["--model", "m", "--data", "d", "--out", "o", "--method", "sft"]


@dataclass(frozen=True)
class Words:
    must: str = setting(..., "has to be given")
    many: list[int] = setting((), "some numbers", positional=True, nargs="*")
    share: float = setting(0.5, "100 % is all of it", above=0, below=1)
    size: int | None = setting(None, "how large", least=2)
    kind: str = setting("a", "which", choices=("a", "b"))
    off: bool = setting(False, "switched on by its name")
    unknown: bool | None = setting(None, "on, off, or neither")


def parse(*words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, Words)
    return Words(**vars(parser.parse_args(["--must", "x", *words])))


def test_a_dataclass_becomes_a_command_line():
    assert parse() == Words("x", many=[])
    given = parse("--share", "0.25", "--size", "3", "--kind", "b", "--off", "--no-unknown")
    assert given == Words("x", [], 0.25, 3, "b", True, False)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--share", "1"], "1 is out of range, give a number above 0 and below 1"),
        (["--share", "nan"], "nan is out of range"),
        (["--size", "1"], "1 is out of range, give a number from 2"),
        (["--size", "1e3"], "'1e3' is not a whole number"),
        (["--kind", "c"], "invalid choice"),
    ],
)
def test_a_value_outside_its_bounds_is_refused(words, sentence):
    with pytest.raises(argparse.ArgumentError, match=sentence):
        parse(*words)


def test_the_flags_of_train_are_the_fields_of_recipe():
    """Flags that are left out make the very recipe that is used without a command line."""
    assert train.recipe_of(flags_of("train", RUN)) == Recipe(lr=5e-4)
    given = [
        "--k",
        "3",
        "--epochs",
        "2",
        "--lr",
        "1e-3",
        "--beta1",
        "0",
        "--clip",
        "2",
        "--seed",
        "5",
    ]
    recipe = train.recipe_of(flags_of("train", [*RUN, *given]))
    assert recipe == Recipe(negatives=3, epochs=2, lr=1e-3, beta1=0.0, clip=2.0, seed=5)
    one_pass = ["--inside-backward", "--batch", "4"]
    assert train.recipe_of(flags_of("train", [*RUN, *one_pass])).clip == math.inf
    with pytest.raises(ValueError, match="neither --pass-tokens nor --clip"):
        train.recipe_of(flags_of("train", [*RUN, *one_pass, "--clip", "1"]))


def test_every_hyper_parameter_of_every_method_is_a_flag_of_its_own():
    """Each name has one type and no other use; left out, it leaves the method its own default."""
    flags = {f.name: f for f in fields(train.Flags)}
    taken = {f.name for f in fields(train.RunFlags)} | {
        name for name, _, _ in train.recipe_settings()
    }
    for name, method in METHODS.items():
        for f in fields(method):
            if f.init and f.name != "n_examples":
                assert f.name in flags, f"{name} has {f.name}, train has no flag for it"
                assert f.name not in taken and kind_of(flags[f.name]) is kind_of(f)
                assert flags[f.name].default is None
                assert f"{name} ({f.default})" in flags[f.name].metadata["help"]
    assert train.hyper_of(flags_of("train", RUN)) == {}
    assert "n_examples" not in flags


@dataclass
class Softer(SFT):
    """A method that a reader might add."""

    softness: float = setting(0.5, "how soft", least=0, most=1)
    lam: float = setting(7.0, "a weight of its own", least=0)
    twice: bool = setting(False, "push twice")
    n_examples: int = 1


@dataclass
class Hard(Method):
    softness: float = setting(0.0, "how soft", least=0, most=1)
    curve: str = setting("round", "of which shape", choices=("round", "flat"))


def test_methods_that_mean_the_same_by_a_name_are_named_together():
    made = {
        name: f.metadata["help"]
        for name, _, f in train.method_settings({"softer": Softer, "hard": Hard})
    }
    assert made["softness"] == "softer (0.5), hard (0.0): how soft [from 0 and up to 1]"
    assert made["curve"] == "hard (round): of which shape [round or flat]"
    assert "n_examples" not in made
    lam = {name: f for name, _, f in train.method_settings(METHODS | {"softer": Softer})}["lam"]
    assert "; softer (7.0): a weight of its own [from 0]" in lam.metadata["help"]


# A process of its own, for flags are made of METHODS as they are when `train` is read.
NEW = """
import contextlib, io, json, sys
from dataclasses import dataclass
from minialign import METHODS
from minialign.__main__ import main
from minialign.methods import SFT
from minialign.settings import setting

@dataclass
class Softer(SFT):
    softness: float = setting(0.5, "how soft", least=0, most=1)

METHODS["softer"] = Softer
told = []
for words in json.loads(sys.argv[1]):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
    told.append([status, out.getvalue(), errors.getvalue()])
print(json.dumps(told))
"""


def test_a_new_method_is_one_class_and_one_line(folder, pairs, tmp_path):
    """Its hyper-parameters are in `train -h`, reach the method, and are checked by it alone."""

    train = ["train", "--model", folder, "--data", pairs, "--method"]
    out, nowhere = tmp_path / "run", tmp_path / "nowhere"
    commands = [
        ["train", "-h"],
        [*train, "softer", "--out", str(nowhere), "--softness", "2"],
        [*train, "softer", "--out", str(out), "--softness", "0.25", "--epochs", "2"],
        [*train, "sft", "--out", str(out), "--softness", "0.25", "--resume"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", NEW, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown, refused, trained, foreign = json.loads(done.stdout)

    words = " ".join(shown[1].split())
    assert shown[0] == 0
    assert "--softness FLOAT softer (0.5): how soft [from 0 and up to 1]" in words
    assert refused[0] == 2 and "softness is 2.0; it must be a number" in refused[2]
    assert not nowhere.exists()
    assert trained[0] == 0, trained[2]
    assert json.loads((out / "config.json").read_text())["softness"] == 0.25
    assert len(read(out / "log.jsonl")) == 2 and "softness=0.25" in trained[1]
    assert foreign[0] == 2


def test_a_hyper_parameter_of_another_method_is_refused(folder, pairs, tmp_path, capsys):
    run = ["train", "--model", folder, "--data", pairs, "--out", str(tmp_path / "run"), "--method"]
    assert main([*run, "sft", "--tau", "1"]) == 2
    assert "sft has no --tau; its hyper-parameters: --reduction" in capsys.readouterr().err
