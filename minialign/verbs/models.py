"""What --model names: a model of places.py, or `small`, the small GPT that the methods race with.

The shape and the tokenizer of either are known before its weights are read; train needs them first.
"""

import hashlib

import torch

from minialign import parallel
from minialign.bench.sheet import Adapters
from minialign.hf import lora
from minialign.hf.folders import check_device, load_weights, model_digest, read_config
from minialign.hf.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer
from minialign.lab import small, tasks
from minialign.model import Config, Transformer
from minialign.progress import bar

SMALL = "small"             # a folder that is really called so can be given as ./small


def shape_and_tokenizer(name: str, chat_template: str | None = None) -> tuple[Config, Tokenizer]:
    """What is known of a model before its weights are read; a chat template comes from a file."""
    if name == SMALL:
        tokenizer = byte_tokenizer(tasks.WORDS)
        if chat_template is not None:
            tokenizer.use_template(chat_template)
        return tasks.small_config(tokenizer.vocab_size), tokenizer
    config, tokenizer = read_config(name), load_tokenizer(name, chat_template)
    tokenizer.limit = config.vocab_size
    return config, tokenizer


def digest_of(name: str, seed: int = 0) -> str:
    """What changes when the model does that --model names."""
    if name == SMALL:
        stem = small.base_path(seed, small.CACHE).stem
        return hashlib.sha256(stem.encode()).hexdigest()[:16]
    return model_digest(name)


def read_weights(name: str, config: Config, dtype: str, device: str, seed: int = 0) -> Transformer:
    """The model. The small GPT of a seed is trained first, in half a minute, unless cached."""
    if name != SMALL:
        return load_weights(name, config, dtype, device)
    device = check_device(device)
    with bar(sum(small.COURSES), "base model", "update", stay=False) as shown:
        model, _ = small.base_model(seed, tick=shown.update)
    return model.to(device, getattr(torch, dtype))


def open_model(
    name: str, dtype: str, device: str, seed: int = 0, chat_template: str | None = None
) -> tuple[Transformer, Tokenizer]:
    """Both at once, for the verbs that do not train."""
    config, tokenizer = shape_and_tokenizer(name, chat_template)
    return read_weights(name, config, dtype, device, seed), tokenizer


def in_one_piece(model: Transformer, adapters: Adapters | None) -> Transformer | None:
    """The model; if it is shared out, all of it on the CPU of the first rank, None elsewhere."""
    if parallel.world() == 1:
        return model
    state = parallel.whole_state(model)
    if not parallel.first():
        return None
    with torch.device("meta"):
        plain = Transformer(model.config)
        if adapters:
            lora.add_adapters(plain, adapters.rank, adapters.alpha, adapters.targets)
    plain.load_state_dict(state, assign=True)
    if model.config.tie:
        plain.lm_head.weight = plain.model["embed_tokens"].weight
    if hasattr(model, "hf_config"):
        plain.hf_config = model.hf_config
    return plain
