"""How much a GPU would be asked to do for an 8 B model, counted without one.

What counts is the number of calls that compute something: a generated token waits for each of them.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import Operators

from minialign import generate
from minialign.hf.shapes import PRESETS
from minialign.model import Transformer

# Operators that compute nothing: they only say how memory is to be read.
VIEWS = {"alias", "detach", "device", "expand", "select", "slice", "split_with_sizes", "squeeze",
         "t", "transpose", "unsqueeze", "view", "_unsafe_view"}


@pytest.mark.parametrize("lengths", [None, [64, 60] * 16])
def test_a_generated_token_of_an_8b_model_is_at_most_700_kernels(monkeypatch, lengths):
    """With 32 rows, from one token to the next. It was 1,128, and 1,259 for prompts of different
    length. The number of layers counts here, and their width does not.
    """
    # A CPU puts RMSNorm together from eight operators. A GPU has one, as all have for LayerNorm.
    monkeypatch.setattr(
        F, "rms_norm", lambda x, shape, weight, eps: F.layer_norm(x, shape, weight, None, eps))
    monkeypatch.setattr(generate, "CPU_LOOKS_EVERY", 16)
    narrow = {"vocab_size": 100, "d_model": 32, "d_mlp": 32, "n_head": 4, "n_kv_head": 2}
    config = replace(PRESETS["llama3-8b"], **narrow, d_head=8)
    model = Transformer(config).bfloat16()
    given = None if lengths is None else torch.tensor(lengths)
    prompts = torch.zeros(32, 64, dtype=torch.long)
    tokens = generate.stream(model, prompts, 8, 0.7, 50, stop=(7,), lengths=given)
    next(tokens)
    for _ in range(3):
        with Operators() as operators:
            next(tokens)
        kernels = sum(n for name, n in operators.calls.items() if name not in VIEWS)
        assert config.n_layer == 32 and 0 < kernels <= 700
