"""Model folders that transformers wrote, for the tests of folders: copies to edit and damage, and
the logits that belong to them.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from minialign.hf.tokenizer import byte_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(file.parent.name for file in FIXTURES.glob("*/config.json"))
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.2,
        "original_max_position_embeddings": 64}


def fixture(name: str, to: Path) -> Path:
    """A copy of a folder that transformers wrote, with a tokenizer."""
    shutil.copytree(FIXTURES / name, to, ignore=shutil.ignore_patterns("reference*"))
    byte_tokenizer().save(to)
    return to


def reference(name: str):
    """Tokens (2, 24) and the logits (2, 24, 96) that transformers computed for them."""
    stored = load_file(FIXTURES / name / "reference.safetensors")
    return stored["input_ids"], stored["logits"]


def edit_config(folder: Path, **changes) -> Path:
    """Sets keys of config.json; None removes a key."""
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items()
                                                    if value is not None}))
    return folder


def edit_weights(folder: Path, change) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]), name


@torch.no_grad()
def logits(model, tokens):
    return model.logits(tokens)
