"""Hugging Face folders, both ways: config.json, weights and tokenizer ⇄ (Transformer, Tokenizer).

Where a model lies is told in places.py, reading the tensors in weights.py, the tokenizer in
tokenizer.py. Saving leaves the old model or the new one, whenever it is interrupted.
"""

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

import torch
from torch import Tensor

from minialign.files import UNFINISHED, locked, write_json, write_tensors, write_text
from minialign.hf.families import config_from_hf, config_to_hf, to_gpt2
from minialign.hf.jsonfiles import read_json
from minialign.hf.lora import load_adapters, merge
from minialign.hf.places import (
    SAVING,
    adapter_folder,
    model_folder,
    tokenizer_files,
    tokenizer_folder,
)
from minialign.hf.tokenizer import Tokenizer, load_tokenizer
from minialign.hf.weights import and_more, read_state
from minialign.model import Config, Transformer

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
PART = ".part"                  # in SAVING, a file on its way to its place

# --------------------------------------------------------------------------------------- loading


def load_model(
    path: str | Path, dtype: str = "float32", device: str = "cpu",
    chat_template: str | Path | None = None,
) -> tuple[Transformer, Tokenizer]:
    """The model and the tokenizer of a Hugging Face folder, the weights as `dtype` on `device`.

    path           a model folder, OWNER/NAME on the Hugging Face hub, or an adapter of either,
                   which is merged into its base model
    chat_template  a Jinja file to use instead of the folder's own

    Which families it can be is told in families.py. On the CPU and in the files' own dtype nothing
    is copied: the parameters are the mapped file, and pages are copied as training changes them.
    So replace such a file, as `save_model` does, and never write into it.

    Raises FileNotFoundError for what is not there, ValueError for what is damaged, of another
    shape or unsupported.
    """
    config = read_config(path)
    tokenizer = load_tokenizer(path, chat_template)
    tokenizer.limit = config.vocab_size
    return load_weights(path, config, dtype, device), tokenizer


def read_config(path: str | Path) -> Config:
    """The Config of a model folder; the weights are not touched. Raises as `load_model` does."""
    file = model_folder(path) / "config.json"
    raw = read_json(file)
    if "method" in raw and "model_type" not in raw:
        model = Path(path) / "model"
        raise ValueError(f"{path} is the folder of a run; its model is {model}, "
                         "once the run is done")
    try:
        return config_from_hf(raw)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def load_weights(path: str | Path, config: Config, dtype: str, device: str) -> Transformer:
    """The model of a folder whose Config is known. Raises as `load_model` does."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    device = check_device(device)

    # On the meta device a model has shapes and no memory; the tensors that are read become its own.
    folder = model_folder(path)
    with torch.device("meta"):
        model = Transformer(config)
    state = read_state(folder, model, DTYPES[name], device)
    model.load_state_dict(state, strict=True, assign=True)
    if config.tie:
        # Assigning made two parameters of what is one.
        model.lm_head.weight = model.model["embed_tokens"].weight

    adapter = adapter_folder(path)
    if adapter is not None:
        load_adapters(adapter, model)
        merge(model)

    # save_model writes the keys that we have no use for as they were.
    model.hf_config = read_json(folder / "config.json")
    return model


def pick_device(device: str) -> str:
    """What `auto` stands for here: cuda, else mps, else cpu. Any other name stands for itself."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def check_device(device: str) -> str:
    """`pick_device`, tried. ValueError if nothing can be computed on this device."""
    device = pick_device(device)
    if device.startswith("cuda") and torch.version.cuda is None and torch.version.hip is None:
        raise ValueError(
            f"device {device!r} cannot be used here: this is torch {torch.__version__}, built "
            "without CUDA; install a build for your GPU (pytorch.org/get-started/locally gives "
            "the command), or give cpu")
    try:
        torch.zeros(1, device=device).sum().item()
    except Exception as error:
        # Every kind of device that torch does not have here raises an error of its own.
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"device {device!r} cannot be used here ({why}); give cpu") from None
    if torch.device(device).type == "cuda":
        choose_flash_attention()
    return device


def choose_flash_attention() -> None:
    """Keep cuDNN from computing attention, on every GPU of this process.

    It plans anew for every shape, up to a second each time, and ours are ragged: most passes of
    training have a shape of their own, and so has every generated token. Flash attention does not.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def model_digest(path: str | Path) -> str:
    """A digest of the files that a model is loaded from, every byte of them."""
    folder, adapter = model_folder(path), adapter_folder(path)
    files = [folder / "config.json", *folder.glob("*.safetensors")]
    files += tokenizer_files(tokenizer_folder(path))
    if adapter is not None:
        files += [adapter / "adapter_config.json", *adapter.glob("*.safetensors")]
    hashed = hashlib.sha256()
    for file in sorted(files, key=lambda file: (file.name, str(file))):
        with open(file, "rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        hashed.update(f"{file.name} {content}\n".encode())
    return hashed.hexdigest()[:16]


# ---------------------------------------------------------------------------------------- saving


def save_model(
    path: str | Path, model: Transformer, tokenizer: Tokenizer, shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a folder that `load_model`, transformers and vLLM read.

    The weights are written bit for bit, in the model's own dtype, in files of up to `shard_bytes`
    bytes. A model that came from a folder keeps every key of its config.json; one that was built
    from a bare Config becomes a folder of the family that has its switches.

    In a folder that is already there the files of a model are replaced. Those that the old model
    had and the new one has not (shards, a chat template) are removed. Nothing else is touched.

    Raises ValueError, before anything is written, for a model of no family or with other
    parameters than its Config says (adapters that are not merged), and OSError, with the old model
    still in place, when the disk is full. ValueError too if somebody else is saving there.
    """
    folder = Path(path)
    state = plain_state(model)
    raw = config_to_write(model, tokenizer)
    if raw["model_type"] == "gpt2":
        state = to_gpt2(state)
    if model.config.tie:
        del state["lm_head.weight"]
    shards, index = cut_into_shards(state, shard_bytes)

    with locked(folder):
        finish_killed_save(folder)
        staging = folder / SAVING
        staging.mkdir(mode=0o700)

        # config.json comes last: without it the folder is no model to anyone.
        try:
            tokenizer.save(staging)
            if index:
                write_text(staging / "model.safetensors.index.json", json.dumps(index, indent=2))
            for name, tensors in shards.items():
                write_tensors(staging / name, tensors, {"format": "pt"})
            write_json(staging / "config.json", raw, indent=2)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        put_in_place(folder)


def finish_killed_save(folder: Path) -> None:
    """Put in place what a killed save had finished, and throw away what it had only begun."""
    staging = folder / SAVING
    if staging.is_symlink():
        raise ValueError(f"{staging} is a link, and not the folder that saving makes; remove it")
    if (staging / "config.json").is_file():
        put_in_place(folder)
    shutil.rmtree(staging, ignore_errors=True)


def plain_state(model: Transformer) -> dict[str, Tensor]:
    """{name: tensor} of a model; ValueError if it has not exactly what its Config says."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        expected = Transformer(model.config).state_dict()
    odd = sorted(state.keys() ^ expected.keys())
    if odd:
        raise ValueError(f"{odd[0]}{and_more(odd)} does not belong to a plain model; "
                         "merge adapters before saving")
    return state


def config_to_write(model: Transformer, tokenizer: Tokenizer) -> dict:
    """The content of config.json; ValueError for a Config of no family."""
    raw = dict(getattr(model, "hf_config", {}))
    if not raw or config_from_hf(raw) != model.config:
        raw = config_to_hf(model.config)
        raw |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}

    # transformers 5 calls the key "dtype", and 4 called it "torch_dtype", which both can read.
    key = "dtype" if "dtype" in raw else "torch_dtype"
    raw[key] = str(model.head.dtype).removeprefix("torch.")
    return raw


def cut_into_shards(
    state: dict[str, Tensor], shard_bytes: int
) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """({file name: {tensor name: tensor}}, index): the index is empty if one file holds all."""
    shards, size = [{}], 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}, {}

    files, where = {}, {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        files[file] = shard
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in state.values())
    return files, {"metadata": {"total_size": total}, "weight_map": where}


def put_in_place(folder: Path) -> None:
    """Gives the finished files in SAVING their places in `folder`, and removes SAVING.

    Killed at any point, `folder` must not show half of one model and half of another. Without
    config.json it is no model to anyone, so the old one goes first and the new one comes last. In
    between, SAVING remains the whole new model, since its files are linked and not moved, and
    `load_model` reads it there.
    """
    staging = folder / SAVING
    part = staging / PART
    part.unlink(missing_ok=True)
    new = []
    for file in staging.rglob("*"):
        name = file.relative_to(staging).as_posix()
        if file.is_file() and not name.startswith(UNFINISHED) and name != "config.json":
            new.append(name)
    new.append("config.json")

    # The files that only the old model has go.
    (folder / "config.json").unlink(missing_ok=True)
    old = tokenizer_files(folder)
    old += folder.glob("model-[0-9]*-of-[0-9]*.safetensors")
    old += [folder / "model.safetensors", folder / "model.safetensors.index.json"]
    for file in old:
        if file.relative_to(folder).as_posix() not in new:
            file.unlink(missing_ok=True)

    # The files of the new one are linked under another name first, so that each appears whole.
    for name in new:
        (folder / name).parent.mkdir(exist_ok=True)
        part.unlink(missing_ok=True)
        try:
            os.link(staging / name, part)
        except OSError:
            # This file system has no links.
            shutil.copyfile(staging / name, part)
        if (folder / name).is_file():
            part.chmod(stat.S_IMODE((folder / name).stat().st_mode))
        os.replace(part, folder / name)

    # Without its config.json SAVING is no model any more, and may go file by file.
    (staging / "config.json").unlink()
    shutil.rmtree(staging)
