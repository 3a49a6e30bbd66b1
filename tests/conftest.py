"""What several test files need: tiny models of every shape, and examples with ragged prompts
and answers.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from minialign.data import Example
from minialign.hf.folders import save_model
from minialign.hf.tokenizer import byte_tokenizer
from minialign.model import Config, Transformer

# The models here are too small for several threads, and the processes that tests start are many.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHAPES = {
    "llama": {"n_kv_head": 2},
    "mistral": {"n_kv_head": 2, "window": 5},
    "qwen2": {"n_kv_head": 1, "qkv_bias": True, "tie": True},
    "gpt2": {"norm": "layer", "pos": "learned", "mlp": "gelu", "bias": True, "tie": True},
    "llama3": {"n_kv_head": 2, "d_head": 12, "rope_scaling": ("llama3", 8.0, 1.0, 4.0, 16)},
    "qwen3": {"n_kv_head": 2, "d_head": 12, "qk_norm": "head",
              "rope_scaling": ("yarn", 4.0, 32.0, 1.0, 16, 1.2)},
    "smollm3": {"n_kv_head": 2, "tie": True, "no_rope": (1,)},
    "olmo2": {"n_kv_head": 2, "qk_norm": "all", "norm_after": True},
}


def tiny_model(shape: str = "llama", seed: int = 0, vocab_size: int = 50) -> Transformer:
    """Two layers in float64 with weights large enough that every switch of the architecture
    shows.
    """
    torch.manual_seed(seed)
    size = {"n_layer": 2, "n_head": 4, "d_model": 32, "d_mlp": 48, "max_len": 64}
    config = Config(vocab_size=vocab_size, **size, **SHAPES[shape])
    model = Transformer(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.fixture(params=SHAPES)
def any_model(request):
    return tiny_model(request.param)


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def examples():
    """Three prompts of different length; three, two and three answers of different length.
    """
    return [
        Example(0, [1, 2, 3, 4], [[5, 6, 7], [8, 9], [10]], ref_logps=[-9.0, -8.0, -4.0]),
        Example(1, [1, 2], [[11], [12, 13, 14, 15]], ref_logps=[-4.0, -15.0]),
        Example(
            2, [7, 8, 9, 1, 2, 3, 4, 5], [[16, 17], [18], [19, 20, 21]],
            ref_logps=[-7.0, -4.0, -12.0]),
    ]


@pytest.fixture
def shared_data():
    """The folder of real checkpoints and data sets named by MINIALIGN_DATA; tests that want it
    are skipped without.
    """
    folder = os.environ.get("MINIALIGN_DATA")
    if not folder:
        pytest.skip("MINIALIGN_DATA is not set")
    return Path(folder)


class Operators(TorchDispatchMode):
    """Counts the operators that torch carries out, by name."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # In inference mode what is put together from other operators comes here whole.
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


# ------------------------------------------------------------- the command line: a model, some rows

ROWS = [
    {"prompt": f"{a}+{b}=", "chosen": f"{a + b}", "rejected": f"{a + b + 1}"}
    for a in range(3) for b in range(4)
]


def read(path):
    """The rows of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write(path, rows):
    """Write a JSONL file and return its name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model folder that reads and writes bytes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    config = Config(
        vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, d_model=16, d_mlp=16, max_len=64)
    save_model(path, Transformer(config), tokenizer)
    return str(path)


@pytest.fixture
def pairs(tmp_path):
    """The name of a file with twelve preference pairs."""
    return write(tmp_path / "pairs.jsonl", ROWS)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Base models of two seeds after a few updates, where the race looks for finished ones."""
    from minialign.hf.tokenizer import byte_tokenizer
    from minialign.lab import small, tasks

    folder = tmp_path_factory.mktemp("cache")
    tokenizer = byte_tokenizer(tasks.WORDS)
    for seed in 0, 1:
        torch.manual_seed(seed)
        model = Transformer(tasks.small_config(tokenizer.vocab_size))
        training = small.base_training(model, tokenizer, seed)
        for _ in range(60):
            next(training)
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        save_file(parameters, small.base_path(seed, folder))
    return folder
