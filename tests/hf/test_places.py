"""What a path may mean: a folder, an adapter on its base model, or a name on the hub.

The hub is a folder made here; nothing leaves the machine.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest import tiny_model
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

from minialign.hf.folders import load_model, read_config, save_model
from minialign.hf.lora import add_adapters, merge, save_adapters
from minialign.hf.places import SAVING
from minialign.hf.tokenizer import byte_tokenizer, load_tokenizer

NAME = "some-owner/Some.Model_1"
TOKENS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache, and no connection: anything that would go out raises."""
    def offline(*args, **kwargs):
        raise OfflineModeIsEnabled("offline mode is enabled\nand a second line")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    return tmp_path / "hub"


def put(hub: Path, source: Path, name: str = NAME) -> Path:
    """The folder `source` where the hub's cache would have it under this name."""
    place = hub / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text("abc123")
    shutil.copytree(source, place / "snapshots" / "abc123", dirs_exist_ok=True)
    return place / "snapshots" / "abc123"


@pytest.fixture
def saved(tmp_path):
    """A model in a folder of its own."""
    model = tiny_model().float()
    save_model(tmp_path / "saved", model, byte_tokenizer())
    return tmp_path / "saved", model


def adapter_of(model, folder: Path, base: str, **changes) -> torch.Tensor:
    """Writes an adapter with something in it; the logits of the model with it."""
    add_adapters(model, 2, 8.0, ("q_proj", "up_proj"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    save_adapters(folder, model, base)
    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    merge(model)
    return model.logits(TOKENS)


# ---- the hub


def test_a_name_in_the_cache_is_a_model(hub, saved):
    put(hub, saved[0])
    model, tokenizer = load_model(NAME)
    assert torch.equal(model.logits(TOKENS), saved[1].logits(TOKENS))
    assert read_config(NAME) == model.config
    assert load_tokenizer(NAME).files == tokenizer.files == byte_tokenizer().files


def test_a_folder_of_that_name_comes_first(hub, saved):
    put(hub, saved[0])
    other = tiny_model("gpt2")
    save_model(NAME, other, byte_tokenizer())
    assert read_config(NAME) == other.config != saved[1].config


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json", "model-00002-of-"])
def test_half_a_download_says_what_is_missing_and_what_completes_it(hub, tmp_path, lost):
    shard_bytes = 10_000 if lost.startswith("model-") else 10**9
    save_model(tmp_path / "saved", tiny_model().float(), byte_tokenizer(), shard_bytes)
    folder = put(hub, tmp_path / "saved")
    next(folder.glob(f"{lost}*")).unlink()
    with pytest.raises(FileNotFoundError) as raised:
        load_model(NAME)
    said = str(raised.value)
    assert f"{NAME} is only half downloaded: {folder} lacks {lost}" in said
    assert f"run `hf download {NAME}`" in said and "\n" not in said and "second line" not in said


def test_without_a_connection_the_command_is_said(hub):
    for reader in load_model, read_config, load_tokenizer:
        with pytest.raises(FileNotFoundError, match=f"no folder {NAME} here, .*hub does not hold "
                                                    f"that model.*run `hf download {NAME}`"):
            reader(NAME)


@pytest.mark.parametrize("kind, words", [
    (RepositoryNotFoundError, f"no folder {NAME} here, and the .* shows no model of that name"),
    (GatedRepoError, f"licence: do so at https://huggingface.co/{NAME}, run `hf auth login`"),
])
def test_what_the_hub_refuses_is_told_with_the_remedy(hub, monkeypatch, kind, words):
    def refuse(*args, **kwargs):
        raise kind("401", response=SimpleNamespace(headers={}, request=None, status_code=401))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(FileNotFoundError, match=words):
        load_model(NAME)


def serve(monkeypatch, hub: Path, source: Path, files: dict[str, int]) -> list:
    """A hub that offers `files` of these sizes; downloads are copied from `source` and recorded."""
    asked = []
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in files.items()]

    def download(name, cache_dir, allow_patterns):
        asked.append(sorted(allow_patterns))
        return put(hub, source)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info",
                        lambda *args, **kwargs: SimpleNamespace(siblings=siblings))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_what_is_needed_is_announced_downloaded_once_and_nothing_else(
    hub, saved, monkeypatch, capsys
):
    folder, model = saved
    files = {"config.json": 1000, "model.safetensors": 2_000_000_000, "tokenizer.json": 1000}
    useless = ["pytorch_model.bin", "consolidated.safetensors", "modeling.py", "README.md",
               "onnx/model.safetensors"]
    asked = serve(monkeypatch, hub, folder, files | dict.fromkeys(useless, 10**9))
    assert torch.equal(load_model(NAME)[0].logits(TOKENS), model.logits(TOKENS))
    assert asked == [sorted(files)]
    said = capsys.readouterr()
    assert said.err == f"downloading {NAME} (3 files, 2.00 GB) into {hub}\n" and said.out == ""


def test_a_model_of_pickles_is_refused_before_it_is_downloaded(hub, saved, monkeypatch):
    asked = serve(monkeypatch, hub, saved[0], {"config.json": 1, "pytorch_model.bin": 10**9})
    with pytest.raises(FileNotFoundError, match=f"{NAME} .* no weights in safetensors files"):
        load_model(NAME)
    assert not asked


@pytest.mark.parametrize("path", ["nowhere", "./nowhere/model", "../a/b", "/a/b", "a/b/c"])
def test_what_cannot_be_a_name_is_a_path(hub, path):
    with pytest.raises(FileNotFoundError, match="does not exist .a model is a folder .* or OWNER/"):
        load_model(path)


# ---- adapters


def test_an_adapter_is_its_base_model_with_the_difference_merged(saved, tmp_path):
    folder, model = saved
    expected = adapter_of(model, tmp_path / "run" / "adapter", str(folder))
    got, tokenizer = load_model(tmp_path / "run" / "adapter")
    assert torch.equal(got.logits(TOKENS), expected)
    assert read_config(tmp_path / "run" / "adapter") == model.config
    assert tokenizer.files == byte_tokenizer().files
    save_model(tmp_path / "merged", got, tokenizer)
    assert torch.equal(load_model(tmp_path / "merged")[0].logits(TOKENS), expected)


def test_an_adapter_on_the_hub_finds_its_base_there(hub, saved, tmp_path):
    folder, model = saved
    put(hub, folder)
    expected = adapter_of(model, tmp_path / "adapter", NAME)
    put(hub, tmp_path / "adapter", "me/adapter")
    assert torch.equal(load_model("me/adapter")[0].logits(TOKENS), expected)


def test_a_relative_base_is_found_from_here_and_around_the_adapter(saved, tmp_path, monkeypatch):
    """The project may have moved, and the command may be given from somewhere else."""
    folder, model = saved
    expected = adapter_of(model, tmp_path / "a" / "runs" / "adapter", "models/base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for place in tmp_path / "elsewhere" / "models" / "base", tmp_path / "a" / "models" / "base":
        shutil.copytree(folder, place)
        assert torch.equal(load_model(tmp_path / "a" / "runs" / "adapter")[0].logits(TOKENS),
                           expected)
        shutil.rmtree(place)


def test_an_adapter_may_bring_its_own_tokenizer(saved, tmp_path):
    adapter_of(saved[1], tmp_path / "adapter", str(saved[0]))
    byte_tokenizer(["word"]).save(tmp_path / "adapter")
    assert load_model(tmp_path / "adapter")[1].encode("word") == [257]


def test_a_killed_save_is_still_read_with_its_own_tokenizer(saved):
    folder, model = saved
    shutil.copytree(folder, folder / SAVING)
    (folder / "config.json").unlink()
    (folder / "tokenizer.json").write_text("of another model")
    assert load_model(folder)[1].files == byte_tokenizer().files


@pytest.mark.parametrize("changes, words", [
    ({"base_model_name_or_path": None}, "adapter_config.json does not name the base model"),
    ({"base_model_name_or_path": "gone"}, "'gone', and there is no such model folder; write where"),
    ({"base_model_name_or_path": "me/gone"}, "names a base model that is not here: .*hf download"),
    ({"base_model_name_or_path": "."}, "there is no such model folder"),
    ({"peft_type": "IA3"}, "peft_type IA3 is not supported; only plain LoRA"),
    ({"use_dora": True}, "use_dora is not supported"),
    ({"layers_to_transform": [0]}, "layers_to_transform is not supported"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
    ({"r": "eight"}, "no LoRA adapter that can be read"),
])
def test_an_adapter_that_cannot_be_merged_says_why(hub, saved, tmp_path, changes, words):
    adapter_of(saved[1], tmp_path / "adapter", str(saved[0]), **changes)
    with pytest.raises((FileNotFoundError, ValueError), match=words) as raised:
        load_model(tmp_path / "adapter")
    assert str(tmp_path / "adapter") in str(raised.value) and "\n" not in str(raised.value)
