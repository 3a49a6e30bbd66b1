"""The models and data that ship with the package: real weights, and names instead of paths."""

import json
import shutil
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minialign.generate import answers
from minialign.hf.datafiles import load_examples
from minialign.hf.encoding import encode_prompt
from minialign.hf.folders import load_model
from minialign.hf.lora import add_adapters, save_adapters
from minialign.hf.places import MODELS, SHIPPED, local_folder
from minialign.hf.rowfiles import DATA, data_file, read_file
from minialign.verbs.checkpoint import fingerprint

ROOT = Path(__file__).parents[2]
REFERENCES = ROOT / "tests" / "fixtures" / "shipped"


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_real_checkpoint_are_those_of_transformers(name):
    expected = load_file(REFERENCES / f"{name}.safetensors")
    model, _ = load_model(name)
    with torch.no_grad():
        found = model.logits(expected["input_ids"])
    torch.testing.assert_close(found, expected["logits"], atol=2e-4, rtol=0)


def test_the_stories_are_those_that_transformers_tells():
    model, tokenizer = load_model("stories260K")
    stories = json.loads((REFERENCES / "greedy.json").read_text())
    ids = [encode_prompt(tokenizer, story["prompt"]) for story in stories]
    told = answers(model, tokenizer, ids, 1, 80, temperature=0.0)
    assert [pool[0][0].strip() for pool in told] == [story["text"] for story in stories]


def test_a_story_ends_where_the_next_one_would_begin():
    model, tokenizer = load_model("stories260K")
    assert tokenizer.eos_id == tokenizer.bos_id == 1 and tokenizer.stop_ids == (1, 2)
    _, story = read_file("stories")[1]
    prompt = encode_prompt(tokenizer, story["text"][:-40])
    assert prompt.count(1) == 1
    draw = torch.Generator().manual_seed(0)
    [pool] = answers(model, tokenizer, [prompt], 8, 60, temperature=0.8, generator=draw)
    assert any(finished and text.rstrip().endswith((".", '"')) for text, finished in pool)


def test_the_data_are_as_many_as_the_page_says_and_load_with_either_model():
    counts = {"stories-dialogue": 441, "stories-dialogue-test": 100, "stories": 562}
    for name, count in counts.items():
        assert len(read_file(name)) == count
    _, tokenizer = load_model("llama2xs")
    examples, truncated = load_examples("stories-dialogue-test", tokenizer, 256)
    assert len(examples) == 100 and truncated == 0
    for example in examples:
        assert all(answer[-1] == 1 and answer.count(1) == 1 for answer in example.answers)
    prompts = [{row["prompt"] for _, row in read_file(name)} for name in list(counts)[:2]]
    assert not prompts[0] & prompts[1]


def test_what_lies_here_comes_before_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_folder("llama2xs") == SHIPPED / "llama2xs"
    assert data_file("stories") == DATA["stories"]
    assert fingerprint("stories") == fingerprint(str(DATA["stories"]))
    Path("llama2xs").mkdir()
    Path("stories").write_text('{"text": "mine"}\n')
    assert local_folder("llama2xs") == Path("llama2xs")
    assert [row for _, row in read_file("stories")] == [{"text": "mine"}]


def test_an_unknown_name_is_told_those_that_are_shipped():
    with pytest.raises(FileNotFoundError, match="stories-dialogue-test"):
        read_file("stories-dialog")
    with pytest.raises(FileNotFoundError, match="or one of stories260K, llama2xs"):
        load_model("stories260k")


def test_an_adapter_on_a_shipped_model_is_opened(tmp_path):
    model, _ = load_model("stories260K")
    add_adapters(model, 2, 4.0)
    save_adapters(tmp_path, model, "stories260K")
    again, tokenizer = load_model(tmp_path)
    assert again.config == model.config and tokenizer.eos_id == 1

    # PEFT does not know our names, so what it reads must be a folder.
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    base = Path(config["base_model_name_or_path"])
    assert base.is_absolute() and (base / "config.json").is_file()


def test_a_trained_copy_keeps_the_end_of_its_stories(tmp_path):
    from minialign.hf.folders import save_model

    save_model(tmp_path / "copy", *load_model("stories260K"))
    _, tokenizer = load_model(tmp_path / "copy")
    assert tokenizer.eos_id == 1 and tokenizer.stop_ids == (1, 2)


def test_an_installed_package_has_every_file(tmp_path):
    """The patterns of pyproject.toml cover what is shipped, its licences and its page."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["minialign.hf"]
    for file in SHIPPED.rglob("*"):
        inside = file.relative_to(SHIPPED.parent)
        if file.is_file():
            # A star of setuptools does not cross a slash.
            fits = [p for p in patterns
                    if p.count("/") == len(inside.parts) - 1 and fnmatch(inside.as_posix(), p)]
            assert fits, inside
    assert {"LICENSE", "README.md"} <= {file.name for file in SHIPPED.iterdir()}
    shutil.copytree(SHIPPED, tmp_path / "moved")
    assert load_model(tmp_path / "moved" / "llama2xs")[0].config.max_len == 256
