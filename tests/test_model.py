"""The network: cached generation against plain recomputation, embeddings against tokens, sampling against its definition."""

import pytest
import torch

from minialign.generate import choose
from minialign.model import Config, Transformer, rope_frequencies

PROMPTS = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 0, 0, 0, 0], [11, 12, 13, 14, 15, 0, 0]])
LENGTHS = torch.tensor([7, 3, 5])


def greedy_by_recomputing(model, prompt, n):
    for _ in range(n):
        prompt = torch.cat([prompt, model.logits(prompt[None])[0, -1:].argmax(-1)])
    return prompt


def test_generation_with_a_cache_is_generation_without(any_model):
    """Ragged prompts in one batch, longer than the sliding window, give what each gives alone without a cache."""
    out = any_model.generate(PROMPTS, 9, temperature=0, lengths=LENGTHS)
    for row, prompt, n in zip(out, PROMPTS, LENGTHS, strict=True):
        assert torch.equal(row[: n + 9], greedy_by_recomputing(any_model, prompt[:n], 9))
        assert (row[n + 9 :] == 0).all()


def test_without_lengths_the_new_tokens_are_appended(any_model):
    out = any_model.generate(PROMPTS[:1], 4, temperature=0)
    assert torch.equal(out[0], greedy_by_recomputing(any_model, PROMPTS[0], 4))


def test_a_row_that_stopped_repeats_its_stop_token_and_generation_ends(model):
    free = model.generate(PROMPTS[:1], 9, temperature=0)[0, 7:].tolist()
    stop = free[3]
    first = free.index(stop)
    out = model.generate(PROMPTS[:1], 9, temperature=0, stop=(stop,))
    assert out[0, 7:].tolist() == free[: first + 1]
    both = model.generate(PROMPTS[[0, 2]], 9, temperature=0, stop=(stop,), lengths=LENGTHS[[0, 2]])
    assert (both[0, 7 + first : both.shape[1]] == stop).all()


def test_embeddings_of_tokens_are_as_good_as_tokens(any_model):
    torch.testing.assert_close(any_model(any_model.embed(PROMPTS)), any_model(PROMPTS))


def test_a_window_as_long_as_the_text_changes_nothing():
    from conftest import tiny_model
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
    """Shifting all positions by the same number changes no hidden state."""
    from conftest import tiny_model
    model = tiny_model("llama")
    positions = torch.arange(7).expand(3, 7)
    torch.testing.assert_close(model(PROMPTS, positions), model(PROMPTS, positions + 11), atol=1e-5, rtol=0)  # angles are float32


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    config = Config(10, 1, 1, 64, 8, rope_theta=10_000.0, rope_scaling=("llama3", 8.0, 1.0, 4.0, 64))
    plain = rope_frequencies(Config(10, 1, 1, 64, 8, rope_theta=10_000.0))
    ratio = rope_frequencies(config) / plain
    wavelength = 2 * torch.pi / plain
    assert (ratio[wavelength < 64 / 4] == 1).all()
    torch.testing.assert_close(ratio[wavelength > 64 / 1], torch.full_like(ratio[wavelength > 64], 1 / 8))
    assert (ratio.diff() <= 0).all() and len(set(ratio.tolist())) > 2


def test_top_k_and_top_p_draw_only_among_the_likeliest():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    g = torch.Generator().manual_seed(0)
    plain = {"temperature": 1.0, "top_k": None, "top_p": None}
    shares = lambda **how: torch.bincount(choose(logits, generator=g, **{**plain, **how}), minlength=4) / 4000  # noqa: E731
    sd = 4 * (0.25 / 4000) ** 0.5
    torch.testing.assert_close(shares(), logits[0].exp(), atol=sd, rtol=0)
    torch.testing.assert_close(shares(top_k=2), torch.tensor([5 / 8, 3 / 8, 0, 0]), atol=sd, rtol=0)
    torch.testing.assert_close(shares(top_p=0.6), torch.tensor([5 / 8, 3 / 8, 0, 0]), atol=sd, rtol=0)  # 0.5 alone is not yet 0.6
    torch.testing.assert_close(shares(top_p=0.5), torch.tensor([1.0, 0, 0, 0]), atol=sd, rtol=0)
    torch.testing.assert_close(shares(temperature=0.5), torch.tensor([0.25, 0.09, 0.0225, 0.0025]) / 0.365, atol=sd, rtol=0)
    assert (shares(top_k=2)[2:] == 0).all() and (shares(top_p=0.6)[2:] == 0).all(), "not rarely: never"
    assert (choose(logits, 0, None, None, None) == 0).all()


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_no_numbers_are_refused(temperature, top_k):
    for odd in torch.nan, torch.inf:
        with pytest.raises(FloatingPointError, match="not finite"):
            choose(torch.tensor([[0.0, 1.0, 2.0], [0.0, odd, 1.0]]), temperature, top_k, None, None)


def test_rows_of_one_length_generate_as_rows_of_several_do(any_model):
    """Without a mask, with keys written as a block: the same tokens as by the general way, beyond the window too."""
    even, longer = PROMPTS[:, :3], torch.nn.functional.pad(PROMPTS[:, :3], (0, 2))
    fast = any_model.generate(even, 9, temperature=0)
    general = any_model.generate(longer, 9, temperature=0, lengths=torch.tensor([3, 3, 3]))
    assert torch.equal(fast, general[:, :12])


def test_the_same_seed_draws_the_same_text(model):
    seeded = torch.Generator().manual_seed
    draw = lambda seed: model.generate(PROMPTS, 6, 1.0, lengths=LENGTHS, generator=seeded(seed))  # noqa: E731
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("wrong, sentence", [
    ({"norm": "batch"}, "Config.norm is 'batch'; choose one of rms, layer"),
    ({"n_head": 3}, "not a multiple of n_head 3"),
    ({"n_kv_head": 3}, "not a multiple of n_kv_head 3"),
    ({"d_head": 5}, "must be even"),
])
def test_a_config_that_cannot_be_built_says_why(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Config(**{"vocab_size": 10, "n_layer": 1, "n_head": 4, "d_model": 32, "d_mlp": 8, **wrong})


def test_learned_positions_end_where_they_end():
    from conftest import tiny_model
    with pytest.raises(ValueError, match="exceed the 64 learned positions"):
        tiny_model("gpt2").generate(PROMPTS, 60)


def test_embeddings_of_the_wrong_width_are_refused(model):
    with pytest.raises(ValueError, match="5 wide, this model is 32 wide"):
        model(torch.zeros(1, 3, 5))
