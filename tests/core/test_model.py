"""The network: embeddings against tokens, what a token can see, positions, configs it refuses."""

import pytest
import torch
from conftest import tiny_model

from minialign.model import Config, Transformer
from minialign.rope import rope_frequencies

PROMPTS = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 0, 0, 0, 0], [11, 12, 13, 14, 15, 0, 0]])


def test_embeddings_of_tokens_are_as_good_as_tokens(any_model):
    torch.testing.assert_close(any_model(any_model.embed(PROMPTS)), any_model(PROMPTS))


def test_a_window_as_long_as_the_text_changes_nothing():
    model = tiny_model("mistral")
    wide = Transformer(Config(**{**vars(model.config), "window": 7})).double()
    plain = Transformer(Config(**{**vars(model.config), "window": None})).double()
    for other in wide, plain:
        other.load_state_dict(model.state_dict())
    torch.testing.assert_close(wide(PROMPTS), plain(PROMPTS))
    assert not torch.allclose(model(PROMPTS), plain(PROMPTS))


def test_a_window_hides_what_is_further_back():
    """One layer, window 3: the last position does not depend on anything four back."""
    torch.manual_seed(0)
    model = Transformer(Config(vocab_size=20, n_layer=1, n_head=2, d_model=16, d_mlp=16, window=3))
    a, b = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([[9, 9, 9, 4, 5, 6]])
    torch.testing.assert_close(model(a)[0, -1], model(b)[0, -1])
    assert not torch.allclose(model(a)[0, -2], model(b)[0, -2])


def test_the_future_is_not_seen(any_model):
    changed = PROMPTS.clone()
    changed[:, 4:] = 33
    torch.testing.assert_close(any_model(PROMPTS)[:, :4], any_model(changed)[:, :4])


def test_rotary_positions_know_only_distances():
    """Shifting all positions by one number changes no hidden state; the angles are float32."""
    model = tiny_model("llama")
    positions = torch.arange(7).expand(3, 7)
    shifted = model(PROMPTS, positions + 11)
    torch.testing.assert_close(model(PROMPTS, positions), shifted, atol=1e-5, rtol=0)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    scaling = "llama3", 8.0, 1.0, 4.0, 64
    config = Config(10, 1, 1, 64, 8, rope_theta=10_000.0, rope_scaling=scaling)
    plain = rope_frequencies(Config(10, 1, 1, 64, 8, rope_theta=10_000.0))
    ratio = rope_frequencies(config) / plain
    wavelength = 2 * torch.pi / plain
    assert (ratio[wavelength < 64 / 4] == 1).all()
    long = ratio[wavelength > 64 / 1]
    torch.testing.assert_close(long, torch.full_like(long, 1 / 8))
    assert (ratio.diff() <= 0).all() and len(set(ratio.tolist())) > 2


def test_yarn_keeps_what_turns_often_and_slows_what_hardly_turns():
    scaling = "yarn", 8.0, 32.0, 1.0, 4096, 1.2
    config = Config(10, 1, 1, 64, 8, rope_theta=10_000.0, rope_scaling=scaling)
    plain = rope_frequencies(Config(10, 1, 1, 64, 8, rope_theta=10_000.0))
    ratio = rope_frequencies(config) / plain
    turns = 4096 * plain / (2 * torch.pi)
    assert (ratio[turns > 32] == 1).all()
    slow = ratio[turns < 0.75]          # the last pair in the blend is rounded up to a whole one
    torch.testing.assert_close(slow, torch.full_like(slow, 1 / 8))
    assert (ratio.diff() <= 0).all() and len(set(ratio.tolist())) > 4


def test_a_layer_without_rope_knows_no_positions():
    """One such layer: the last hidden state stays, whatever order the tokens before it are in."""
    torch.manual_seed(0)
    shape = {"vocab_size": 20, "n_layer": 1, "n_head": 2, "d_model": 16, "d_mlp": 16}
    without, with_rope = Transformer(Config(**shape, no_rope=(0,))), Transformer(Config(**shape))
    with_rope.load_state_dict(without.state_dict())
    a, b = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[4, 2, 1, 3, 5]])
    torch.testing.assert_close(without(a)[0, -1], without(b)[0, -1])
    assert not torch.allclose(with_rope(a)[0, -1], with_rope(b)[0, -1], atol=1e-5)


@pytest.mark.parametrize("kind", ["head", "all"])
def test_norms_of_queries_and_keys_make_their_length_irrelevant(kind):
    """With them, scaling what makes the queries and keys changes nothing; without, it does."""
    model = Transformer(Config(20, 1, 4, 32, 16, n_kv_head=2, qk_norm=kind, norm_eps=1e-12))
    before = model(PROMPTS)
    with torch.no_grad():
        model.model["layers"][0].self_attn.q_proj.weight.mul_(7)
        model.model["layers"][0].self_attn.k_proj.weight.mul_(0.3)
    torch.testing.assert_close(model(PROMPTS), before)


@pytest.mark.parametrize("wrong, sentence", [
    ({"norm": "batch"}, "Config.norm is 'batch'; choose one of rms, layer"),
    ({"qk_norm": "rms"}, "Config.qk_norm is 'rms'; choose one of None, head, all"),
    ({"n_head": 3}, "not a multiple of n_head 3"),
    ({"n_kv_head": 3}, "not a multiple of n_kv_head 3"),
    ({"d_head": 5}, "must be even"),
])
def test_a_config_that_cannot_be_built_says_why(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Config(**{"vocab_size": 10, "n_layer": 1, "n_head": 4, "d_model": 32, "d_mlp": 8, **wrong})


def test_embeddings_of_the_wrong_width_are_refused(model):
    with pytest.raises(ValueError, match="5 wide, this model is 32 wide"):
        model(torch.zeros(1, 3, 5))
