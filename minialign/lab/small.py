"""The small GPT: its vocabulary and its base training, cached per seed, so that every comparison starts from the same model."""

import hashlib
import inspect
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from minialign import model as model_source
from minialign import optim
from minialign.data import collate
from minialign.files import write_tensors
from minialign.hf.tokenizer import Tokenizer, byte_tokenizer
from minialign.lab import tasks
from minialign.methods import METHODS
from minialign.model import Transformer
from minialign.train import fused_pass

STEPS, BATCH, LR, WARMUP = 1000, 64, 3e-3, 50
CACHE = Path("out") / "cache"


def base_path(seed: int, cache: Path) -> Path:
    """Where a seed's base model is kept.

    The name holds a digest of the source that makes it, so a changed task never meets an old file.
    """
    source = "".join(inspect.getsource(part) for part in (tasks, model_source, optim, base_training))
    source += str((STEPS, BATCH, LR, WARMUP))
    return Path(cache) / f"base-{hashlib.sha256(source.encode()).hexdigest()[:10]}-seed{seed}.safetensors"


def base_training(model: Transformer, tokenizer, seed: int) -> Iterator[int]:
    """Train a fresh small GPT on what a base model reads (tasks.base_text); yields after every update."""
    rng = random.Random(seed)
    questions, _ = tasks.all_questions(random.Random(seed))
    method = METHODS["sft"](reduction="token_mean")
    optimizer = optim.AdamW(dict(model.named_parameters()), weight_decay=0.01)
    for step in range(STEPS):
        texts = (tasks.base_text(rng, questions) for _ in range(BATCH))
        fused_pass(model, method, collate([tasks.as_example(tokenizer, i, p, [a]) for i, (p, a) in enumerate(texts)]))
        optimizer.step(LR * optim.cosine(step, STEPS, WARMUP), min(1.0, 1.0 / float(optimizer.gradient_norm())))
        yield step


def base_model(seed: int, cache: Path = CACHE, tick=lambda: None) -> tuple[Transformer, Tokenizer]:
    """The base model of a seed, from the cache or trained now; `tick` is called after every update."""
    path, tokenizer = base_path(seed, cache), byte_tokenizer(tasks.WORDS)
    torch.manual_seed(seed)
    model = Transformer(tasks.small_config(tokenizer.vocab_size))
    parameters = dict(model.named_parameters())
    try:
        saved = load_file(path)
        for name, p in parameters.items():
            p.data.copy_(saved[name])
    except (FileNotFoundError, SafetensorError, KeyError, RuntimeError):     # not there yet, or damaged: train, and write it anew
        model.initialise()
        for _ in base_training(model, tokenizer, seed):
            tick()
        write_tensors(path, parameters)
    return model, tokenizer
