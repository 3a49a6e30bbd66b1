"""What several tests of the lab share."""

import pytest
import torch
from safetensors.torch import save_file

from minialign.hf.tokenizer import byte_tokenizer
from minialign.lab import small, tasks


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer(tasks.WORDS)


@pytest.fixture(scope="session")
def cache(tokenizer, tmp_path_factory):
    """Base models of two seeds after a few updates, where the race looks for finished ones."""
    folder = tmp_path_factory.mktemp("cache")
    for seed in 0, 1:
        torch.manual_seed(seed)
        model = small.Transformer(tasks.small_config(tokenizer.vocab_size))
        training = small.base_training(model, tokenizer, seed)
        for _ in range(60):
            next(training)
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        save_file(parameters, small.base_path(seed, folder))
    return folder
