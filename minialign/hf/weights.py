"""The tensors of a model folder: which safetensors file holds what, and each of them read strictly.

Every tensor the model needs is there in its shape, and none is left over. No pickle is ever read
and nothing is quantised.
"""

import re
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from minialign.hf.families import from_gpt2, gpt2_name
from minialign.hf.jsonfiles import read_json
from minialign.model import Transformer

# Tensors that older versions of transformers saved though they are computed from the config.
COMPUTED = r".*rotary_emb\.inv_freq|h\.\d+\.attn\.(masked_)?bias"


def read_state(
    folder: Path, model: Transformer, dtype: torch.dtype, device: str
) -> dict[str, Tensor]:
    """{our name: tensor} for every parameter of `model`, which may be on the meta device.

    Tensors are read one after another from memory-mapped files, so that the peak is the model and
    one tensor. Raises ValueError for tensors that are missing, left over, of another shape,
    quantised or damaged, and FileNotFoundError for files that are not there.
    """
    gpt2, tie = model.config.pos == "learned", model.config.tie
    needed = {name: parameter.shape for name, parameter in model.state_dict().items()}
    if tie:
        del needed["lm_head.weight"]
    source = {ours: gpt2_name(ours) if gpt2 else ours for ours in needed}
    stored = StoredTensors(folder, "transformer." if gpt2 else "")
    check_names(folder, stored, list(source.values()), model)

    state = {}
    for ours, shape in needed.items():
        theirs = source[ours]
        raw = stored.read(theirs)
        tensor = from_gpt2(ours, raw) if gpt2 else raw
        if tensor.shape != shape:
            raise ValueError(f"{stored.name_place(theirs)} has shape {list(raw.shape)}, "
                             f"but {ours} needs {list(shape)}")
        state[ours] = tensor.to(device, dtype).contiguous()
        if state[ours].data_ptr() != raw.data_ptr():
            # The tensor was copied, so the pages of the file may go.
            stored.mapped.clear()

    # A tied head is the embedding table; if the files hold one as well, it must be the same.
    if tie:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        if "lm_head.weight" in stored.where:
            head = stored.read("lm_head.weight").to(device, dtype)
            if not torch.equal(head, state["lm_head.weight"]):
                raise ValueError(f"{stored.name_place('lm_head.weight')} differs from the "
                                 "embeddings config.json ties it to")
    return state


class StoredTensors:
    """The tensors of a folder, under their names less a prefix that only some folders write.

    where   {name less the prefix: (file, name in the file)}
    mapped  {file: the open file}; clearing it gives their pages in memory back, and `read` opens
            a file again
    """

    def __init__(self, folder: Path, prefix: str):
        self.where = {}
        for name, file in locate(folder).items():
            self.where[name.removeprefix(prefix)] = (file, name)
        self.mapped = {}

    def read(self, name: str) -> Tensor:
        """A tensor as it lies in the mapped file; ValueError if it is quantised."""
        file, full_name = self.where[name]
        if file not in self.mapped:
            self.mapped[file] = open_file(file)
        tensor = self.mapped[file].get_tensor(full_name)
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ValueError(f"{self.name_place(name)} is stored as {tensor.dtype}; "
                             "quantised checkpoints are not supported")
        return tensor

    def name_place(self, name: str) -> str:
        """"FILE: NAME", for messages."""
        file, full_name = self.where[name]
        return f"{file}: {full_name}"


def check_names(
    folder: Path, stored: StoredTensors, needed: list[str], model: Transformer
) -> None:
    """ValueError if a needed tensor is missing, or if one is there that has no place."""
    missing = [name for name in needed if name not in stored.where]
    if missing:
        hint = ""
        if missing == ["lm_head.weight"]:
            hint = ", and config.json does not tie it to the embeddings"
        raise ValueError(f"{folder}: the safetensors files lack {missing[0]}{and_more(missing)}"
                         f"{hint}")

    harmless = COMPUTED
    if model.config.tie:
        harmless += r"|lm_head\.weight"
    known = set(needed)
    extra = [name for name in stored.where
             if name not in known and not re.fullmatch(harmless, name)]
    if extra:
        raise ValueError(f"{stored.name_place(extra[0])}{and_more(extra)} has no place in this "
                         f"{model.config.n_layer}-layer model")


def locate(folder: Path) -> dict[str, Path]:
    """{tensor name: file}, from the headers of model.safetensors or of the shards in its index.

    Raises FileNotFoundError when weights are missing, and ValueError for pickles, for a damaged
    index or file, and for an index that does not say what the files hold.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    listed = {}
    if single.exists():
        files = [single]
    elif index.exists():
        listed = read_index(index)
        files = [folder / file for file in dict.fromkeys(listed.values())]
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise ValueError(
            f"{folder} holds its weights as pickle, which can run code and is never read; "
            "convert them once with transformers: "
            'AutoModelForCausalLM.from_pretrained("FOLDER").save_pretrained("FOLDER")')
    else:
        raise FileNotFoundError(f"{folder} holds no weights: neither model.safetensors nor "
                                "model.safetensors.index.json")

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


def read_index(index: Path) -> dict[str, str]:
    """{tensor name: file name} of a model in shards; ValueError for anything but plain names."""
    listed = read_json(index).get("weight_map")
    plain = isinstance(listed, dict)
    for file in listed.values() if plain else ():
        plain = plain and isinstance(file, str) and Path(file).name == file
    if not plain:
        raise ValueError(f"{index} has no weight_map from tensor names to files of its folder")
    return listed


def open_file(file: Path):
    """An open safetensors file; ValueError for a damaged header, or one that promises too much."""
    try:
        if not file.is_file():
            raise ValueError("it is no file")
        return safe_open(file, framework="pt")
    except Exception as error:
        raise ValueError(f"{file} cannot be read as safetensors ({error}); "
                         "fetch it again") from None


def check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """ValueError unless the tensors that were read are what is expected.

    That is the same names, shapes and dtypes, and finite numbers wherever finite ones are expected.
    """
    odd = sorted(found.keys() ^ expected.keys())
    if odd:
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in expected else 'one too many'}")
    for name, like in expected.items():
        tensor = found[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, "
                             f"not {like.dtype} {list(like.shape)}")
        if not tensor.isfinite().all() and like.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")


def and_more(names: list[str]) -> str:
    """" and 3 more", behind the first of four names in a message."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
