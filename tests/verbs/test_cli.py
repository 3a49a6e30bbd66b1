"""The command line as its user meets it: help, exit statuses, one sentence for every mistake."""

import json
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROWS, write
from terminal import TEMPLATE, command

import minialign
from minialign.__main__ import VERBS, flags_of, main
from minialign.verbs import generate


def test_a_conversation_remembers_until_the_context_is_full_or_an_empty_line(
    folder, tmp_path, capsys, monkeypatch
):
    shutil.copytree(folder, tmp_path / "chat")
    file = tmp_path / "chat" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    lines, asked = iter(["hi", "more", "", "z" * 99, "x" * 9, "y" * 30]), []
    monkeypatch.setattr("builtins.input", lambda _: next_or_end(lines))
    monkeypatch.setattr(
        generate,
        "say",
        lambda model, tokenizer, ids, *_: asked.append(tokenizer.decode(ids)) or "ok",
    )
    assert main(["generate", "--model", str(tmp_path / "chat"), "--chat", "--system", "be"]) == 0
    assert asked == [
        "s:be\nu:hi\na:",
        "s:be\nu:hi\na:ok\nu:more\na:",
        f"s:be\nu:{'x' * 9}\na:",
        f"s:be\nu:{'y' * 30}\na:",
    ]
    errors = capsys.readouterr().err
    assert (
        "forgotten" in errors and "a prompt of 109 tokens fills the model's context of 64" in errors
    )


def next_or_end(lines):
    for line in lines:
        return line
    raise EOFError


TRAIN = "train --model {folder} --data {pairs} --out {tmp}/r"
MISTAKES = [
    (f"{TRAIN} --method sft --tau 1", "sft has no --tau; its hyper-parameters: --reduction"),
    (f"{TRAIN} --method ift --lam 3", "lam is 3.0"),
    (f"{TRAIN} --method sft --model nowhere", "nowhere"),
    (f"{TRAIN} --method sft --data none.jsonl", "no such file: none.jsonl"),
    (f"{TRAIN} --method asft --data {{plain}}", "asft needs pairs"),
    (f"{TRAIN} --method dft2 --data {{plain}}", "minialign sample"),
    (f"{TRAIN} --method sft --data {{broken}}", "broken.jsonl line 2: not JSON"),
    (f"{TRAIN} --method sft --data {{unpaired}}", "line 1 is unpaired (label: false); sft needs"),
    (f"{TRAIN} --method sft --device cuda:99", "cuda"),
    (f"{TRAIN} --method sft --inside-backward", "give --micro-batch as large as --batch (32)"),
    (f"{TRAIN} --method sft --lora-alpha 3", "give --lora-rank too"),
    (
        f"{TRAIN} --method sft --lora-rank 2 --lora-targets q_proj,qkv",
        "no layer is called 'qkv'",
    ),
    (f"{TRAIN} --method sft --out {{pairs}}", "pairs.jsonl is a file; name"),
    (f"{TRAIN} --method sft --out {{pairs}}/r", "is a file; name"),
    (f"{TRAIN} --method sft --model {{tmp}}", "has no config.json"),
    ("evaluate --model {folder} --data {tmp}", "is a folder; give a JSONL file"),
    ("generate --model {folder}", "give either --prompt TEXT"),
    ("generate --model {folder} --chat", "has no chat template"),
    ("generate --model {finished} --prompt a", "is the folder of a run; its model is"),
    ("generate --model {finished}/adapter --prompt a", "does not name the base model; write its"),
    ("generate --model {folder} --prompt a --chat-template {tmp}/none", "none is no file; give"),
    ("generate --model {torn} --prompt a", "error: {torn}/config.json: not JSON"),
    (
        "generate --model {folder} --prompt " + "a" * 99,
        "a prompt of 99 tokens fills the model's context of 64",
    ),
    (
        "sample --model {folder} --data {long} --out {tmp}/r",
        "long.jsonl line 2: a prompt of 99 tokens fills",
    ),
    (
        "sample --model {folder} --data {chat} --out {tmp}/r",
        "chat.jsonl line 1: this model folder has",
    ),
    ("compare --methods sft,magic", "no method magic; choose from sft, asft"),
    ("study magic", "no study magic; choose from likelihoods"),
    ("study tau --methods sft", "--methods means something to the study methods only"),
    ("bench magic", "no mode is called magic; choose among head"),
]


@pytest.mark.parametrize("words, sentence", MISTAKES)
def test_every_mistake_gets_one_sentence_and_status_2(
    words, sentence, folder, pairs, tmp_path, capsys
):
    plain = write(
        tmp_path / "plain.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS]
    )
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n')
    for place in "finished", "finished/model", "finished/adapter", "torn":
        (tmp_path / place).mkdir()
    for file, content in [
        ("finished/config.json", '{"method": "sft"}'),
        ("finished/model/config.json", "{}"),
        ("finished/adapter/adapter_config.json", "{}"),
        ("torn/config.json", "{"),
    ]:
        (tmp_path / file).write_text(content)
    long = write(tmp_path / "long.jsonl", [{"prompt": "a" * n, "completion": "b"} for n in (9, 99)])
    chat = write(
        tmp_path / "chat.jsonl",
        [{"messages": [{"role": role, "content": "a"} for role in ("user", "assistant")]}],
    )
    unpaired = write(
        tmp_path / "unpaired.jsonl", [{"prompt": "a", "completion": "b", "label": False}]
    )
    names = {
        "unpaired": unpaired,
        "folder": folder,
        "pairs": pairs,
        "plain": plain,
        "broken": broken,
        "tmp": tmp_path,
        "long": long,
        "chat": chat,
        "finished": tmp_path / "finished",
        "torn": tmp_path / "torn",
    }
    assert main(shlex.split(words.format(**names))) == 2
    said = capsys.readouterr()
    errors = said.err.strip()
    assert sentence.format(**names) in errors and "Traceback" not in errors and said.out == ""
    assert len([line for line in errors.splitlines() if "error:" in line]) == 1
    assert not (tmp_path / "r").exists(), "nothing half-written is left"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "--metod", "sft"],
        ["train", "--model", "m", "--data", "d", "--out", "o", "--method", "ppo"],
        ["train", "--model", "m", "--data", "d", "--out", "o", "--method", "sft", "--epochs", "0"],
        ["compare", "--seeds", "many"],
        ["compare", "--seeds", "0"],
        ["generate", "--model", "m", "--prompt", "p", "--top-p", "1.5"],
        ["sample", "--model", "m", "--data", "d", "--out", "o", "--k", "0"],
    ],
)
def test_unknown_words_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


def test_help_answers_at_once_and_without_torch():
    code = (
        "import sys; from minialign.__main__ import main\n"
        "try: main(['-h'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout and all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_flags(verb, capsys):
    """Each verb is one module of its own name, with a dataclass Flags and a function run."""
    module = import_module(f"minialign.verbs.{verb}")
    assert module.Flags.__dataclass_params__.frozen and callable(module.run)
    with pytest.raises(SystemExit) as stop:
        main([verb, "-h"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith(f"usage: minialign {verb}")
    for name in module.Flags.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text or name.upper() in text


def test_both_ways_to_start_the_program_are_the_same():
    file = Path(__file__).parents[2] / "pyproject.toml"
    module, function = tomllib.loads(file.read_text())["project"]["scripts"]["minialign"].split(":")
    assert getattr(import_module(module), function) is main
    done = subprocess.run(command("fly"), capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice: 'fly'" in done.stderr


def test_the_public_names_are_there():
    names = (
        "METHODS Batch Config Example Method Recipe Transformer build_method fit linear_logps "
        "load_examples load_model load_tokenizer save_model"
    ).split()
    assert sorted(minialign.__all__) == sorted(names) and set(names) <= set(dir(minialign))
    for name in names:
        assert getattr(minialign, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'train_it'"):
        getattr(minialign, "train_it")  # noqa: B009


RECIPES = sorted((Path(minialign.__file__).parent / "verbs" / "recipes").glob("*.sh"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_command_of_a_recipe_is_one_that_the_program_takes(recipe):
    lines = recipe.read_text().replace("\\\n", " ").splitlines()
    commands = [shlex.split(line)[3:] for line in lines if line.startswith("python -m minialign ")]
    assert commands and lines[0] == "#!/usr/bin/env bash"
    for words in commands:
        flags_of(words[0], words[1:])
