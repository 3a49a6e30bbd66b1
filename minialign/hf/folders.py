"""Hugging Face folders, both ways: config.json, safetensors and tokenizer files ⇄ (Transformer, Tokenizer).

Strict: every tensor the model needs is there in its shape, and none is left over. No pickle is ever read, nothing is downloaded,
nothing is quantised.
"""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from minialign.files import replacing, write_tensors, write_text
from minialign.hf import tokenizer as tokens
from minialign.hf.families import config_from_hf, config_to_hf, from_gpt2, gpt2_name, to_gpt2
from minialign.model import Config, Transformer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_model(path: str | Path, dtype: str = "float32", device: str = "cpu") -> tuple[Transformer, tokens.Tokenizer]:
    """The model and the tokenizer of a Hugging Face folder (llama, mistral, qwen2 or gpt2), the weights as `dtype` on `device`.

    Tensors stream one by one from the memory-mapped files, so the peak is the model and one tensor. On the CPU and in the
    files' own dtype it is not even that: the parameters are the mapped file, copied page by page as training changes them. So
    replace such a file, as `save_model` does, and never write into it. Raises FileNotFoundError for what is not there,
    ValueError for what is damaged, of another shape or unsupported.
    """
    config = read_config(path)
    tokenizer = tokens.load_tokenizer(model_folder(path))
    return load_weights(path, config, dtype, device), tokenizer


def model_folder(path: str | Path) -> Path:
    """The folder that holds the model: `path`, or what save_model was killed in while it put it in place. FileNotFoundError."""
    folder = Path(path)
    if not (folder / "config.json").is_file() and (folder / SAVING / "config.json").is_file():
        return folder / SAVING
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        if (folder / "adapter_config.json").is_file():
            raise FileNotFoundError(f"{folder} is an adapter; give the merged model, which `minialign train` leaves in RUN/model")
        raise FileNotFoundError(f"{folder} {what} (a model is a folder with config.json, *.safetensors and tokenizer.json; "
                                "`hf download OWNER/MODEL --local-dir DIR` makes one)")
    return folder


def read_config(path: str | Path) -> Config:
    """The Config of a model folder; the weights are not touched. Raises as `load_model` does."""
    file = model_folder(path) / "config.json"
    raw = tokens.read_json(file)
    if "method" in raw and "model_type" not in raw:
        raise ValueError(f"{path} is the folder of a run; its model is {Path(path) / 'model'}, once the run is done")
    try:
        return config_from_hf(raw)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def load_weights(path: str | Path, config: Config, dtype: str, device: str) -> Transformer:
    """The model of a folder whose Config is known."""
    folder, name = model_folder(path), str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    check_device(device)
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(read_state(folder, model, DTYPES[name], device), strict=True, assign=True)
    if config.tie:                                                      # two names, one parameter again
        model.lm_head.weight = model.model["embed_tokens"].weight
    model.hf_config = tokens.read_json(folder / "config.json")          # save_model keeps the keys we have no use for
    return model


def check_device(device: str) -> None:
    """ValueError if nothing can be computed on this device."""
    try:
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0].partition(". ")[0]
        raise ValueError(f"device {device!r} cannot be used here ({why}); give cpu") from None


def read_state(folder: Path, model: Transformer, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """{our name: tensor} for every parameter of `model`, which may be on the meta device."""
    gpt2, tie = model.config.pos == "learned", model.config.tie
    where = {name.removeprefix("transformer.") if gpt2 else name: (file, name) for name, file in locate(folder).items()}
    needed = {name: parameter.shape for name, parameter in model.state_dict().items() if not (tie and name == "lm_head.weight")}
    source = {ours: gpt2_name(ours) if gpt2 else ours for ours in needed}
    if missing := [theirs for theirs in source.values() if theirs not in where]:
        hint = ", and config.json does not tie it to the embeddings" if missing == ["lm_head.weight"] else ""
        raise ValueError(f"{folder}: the safetensors files lack {missing[0]}{and_more(missing)}{hint}")
    harmless = r".*rotary_emb\.inv_freq|h\.\d+\.attn\.(masked_)?bias" + r"|lm_head\.weight" * tie
    if extra := [theirs for theirs in where if theirs not in source.values() and not re.fullmatch(harmless, theirs)]:
        file, name = where[extra[0]]
        raise ValueError(f"{file}: {name}{and_more(extra)} has no place in this {model.config.n_layer}-layer model")

    state, mapped = {}, {}

    def read(theirs: str) -> Tensor:
        file, name = where[theirs]
        if file not in mapped:
            mapped[file] = open_file(file)
        tensor = mapped[file].get_tensor(name)
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ValueError(f"{file}: {name} is stored as {tensor.dtype}; quantised checkpoints are not supported")
        return tensor

    for ours, shape in needed.items():
        stored = read(source[ours])
        tensor = from_gpt2(ours, stored) if gpt2 else stored
        if tensor.shape != shape:
            file, name = where[source[ours]]
            raise ValueError(f"{file}: {name} has shape {list(stored.shape)}, but {ours} needs {list(shape)}")
        state[ours] = tensor.to(device, dtype).contiguous()
        if state[ours].data_ptr() != stored.data_ptr():
            mapped.clear()                                              # it was copied: unmapping gives the file's pages back
    if tie:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        if "lm_head.weight" in where and not torch.equal(read("lm_head.weight").to(device, dtype), state["lm_head.weight"]):
            raise ValueError(f"{where['lm_head.weight'][0]}: lm_head.weight differs from the embeddings config.json ties it to")
    return state


def locate(folder: Path) -> dict[str, Path]:
    """{tensor name: file}, from the headers of model.safetensors or of the shards that its index lists."""
    single, index, listed = folder / "model.safetensors", folder / "model.safetensors.index.json", {}
    if single.exists():
        files = [single]
    elif index.exists():
        listed = tokens.read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) and Path(file).name == file for file in listed.values()):
            raise ValueError(f"{index} has no weight_map from tensor names to files of its folder")
        files = [folder / file for file in dict.fromkeys(listed.values())]
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise ValueError(f"{folder} holds its weights as pickle, which can run code and is never read; convert them once with "
                         'transformers: AutoModelForCausalLM.from_pretrained("FOLDER").save_pretrained("FOLDER")')
    else:
        raise FileNotFoundError(f"{folder} holds no weights: neither model.safetensors nor model.safetensors.index.json")
    where = {}
    for file in files:
        if not file.exists():
            name = next(name for name in listed if listed[name] == file.name)
            raise FileNotFoundError(f"{file} is missing, though {index.name} says it holds {name}")
        where |= dict.fromkeys(open_file(file).keys(), file)
    for name, file in listed.items():
        if where.get(name) != folder / file:
            raise ValueError(f"{folder / file} lacks {name}, which {index.name} says it holds")
    return where


def open_file(file: Path):
    try:
        return safe_open(file, framework="pt")
    except Exception as error:                                          # a damaged header, or one that promises too much
        raise ValueError(f"{file} cannot be read as safetensors ({error}); fetch it again") from None


def and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


SAVING = ".saving"                                                      # the folder in a folder where save_model prepares it


def save_model(path: str | Path, model: Transformer, tokenizer: tokens.Tokenizer, shard_bytes: int = 5_000_000_000) -> None:
    """Writes a folder that `load_model`, transformers and vLLM read: the weights bit for bit, in the model's own dtype.

    A model that came from a folder keeps every key of its config.json; one built from a bare Config becomes the llama, mistral,
    qwen2 or gpt2 folder that its switches allow. In a folder that is already there, the files a model consists of are replaced,
    those that the old model had and the new one has not (shards, a chat template) are removed, and nothing else is touched.
    Raises ValueError, before anything is written, for a model with more or other parameters than its Config says (unmerged
    adapters) or of no family, and OSError, with the old model still in place, when the disk is full.
    """
    folder, config = Path(path), model.config
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        if odd := sorted(state.keys() ^ Transformer(config).state_dict().keys()):
            raise ValueError(f"{odd[0]}{and_more(odd)} does not belong to a plain model; merge adapters before saving")
    raw = dict(getattr(model, "hf_config", {}))
    if not raw or config_from_hf(raw) != config:
        raw = config_to_hf(config) | {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    raw["dtype" if "dtype" in raw else "torch_dtype"] = str(model.head.dtype).removeprefix("torch.")
    files = dict(tokenizer.files)

    shards, size = [{}], 0
    for name, tensor in (to_gpt2(state) if raw["model_type"] == "gpt2" else state).items():
        if config.tie and name == "lm_head.weight":
            continue
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards, size = shards + [{}], 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        files["model.safetensors.index.json"] = json.dumps(index, indent=2).encode()

    staging = folder / SAVING
    if (staging / "config.json").is_file():
        put_in_place(folder)                                            # what a killed save had finished
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for name, data in files.items():
            with replacing(staging / name) as unfinished:
                unfinished.write_bytes(data)
        for name, shard in zip(names, shards, strict=True):
            write_tensors(staging / name, shard, {"format": "pt"})
        write_text(staging / "config.json", json.dumps(raw, indent=2) + "\n")
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    put_in_place(folder)


def put_in_place(folder: Path) -> None:
    """Gives the finished files in SAVING their places in `folder`, and removes what only the model before them had.

    Killed at any point, `folder` must not show half of one model and half of another. Without config.json it is no model to
    anyone, so the old one goes first and the new one comes last. In between SAVING remains the whole new model, since its files
    are linked and not moved, and `load_model` reads it there.
    """
    staging, part = folder / SAVING, folder / f"{SAVING}.part"
    names = [file.relative_to(staging).as_posix() for file in staging.rglob("*") if file.is_file()]
    old = [*tokens.tokenizer_files(folder), *folder.glob("model-[0-9]*-of-[0-9]*.safetensors"),
           folder / "model.safetensors", folder / "model.safetensors.index.json"]
    (folder / "config.json").unlink(missing_ok=True)
    for file in old:
        if file.relative_to(folder).as_posix() not in names:
            file.unlink(missing_ok=True)
    for name in sorted(names, key="config.json".__eq__):
        (folder / name).parent.mkdir(exist_ok=True)
        part.unlink(missing_ok=True)
        try:
            os.link(staging / name, part)
        except OSError:                                                 # a file system without links
            shutil.copyfile(staging / name, part)
        os.replace(part, folder / name)
    (staging / "config.json").unlink()                                  # from here on SAVING is no model
    shutil.rmtree(staging)
