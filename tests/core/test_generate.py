"""Generation: a cache against plain recomputation, the choice of a token against its definition."""

import copy

import pytest
import torch
from conftest import Operators, tiny_model

from minialign import generate
from minialign.generate import answers, choose, room

PROMPTS = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 0, 0, 0, 0], [11, 12, 13, 14, 15, 0, 0]])
LENGTHS = torch.tensor([7, 3, 5])


def greedy_by_recomputing(model, prompt, n):
    for _ in range(n):
        prompt = torch.cat([prompt, model.logits(prompt[None])[0, -1:].argmax(-1)])
    return prompt


def test_generation_with_a_cache_is_generation_without(any_model):
    """Ragged prompts, longer than the sliding window, give together what each gives alone."""
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


def test_top_k_and_top_p_draw_only_among_the_likeliest():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    g = torch.Generator().manual_seed(0)

    def shares(temperature=1.0, top_k=None, top_p=None):
        random = torch.rand(4000, 1, dtype=torch.float64, generator=g)
        drawn, _ = choose(logits, temperature, top_k, top_p, random)
        return torch.bincount(drawn, minlength=4) / 4000

    def check(drawn, expected):
        four_sd = 4 * (0.25 / 4000) ** 0.5
        torch.testing.assert_close(drawn, torch.tensor(expected), atol=four_sd, rtol=0)

    check(shares(), [0.5, 0.3, 0.15, 0.05])
    check(shares(top_k=2), [5 / 8, 3 / 8, 0.0, 0.0])
    check(shares(top_p=0.6), [5 / 8, 3 / 8, 0.0, 0.0])                  # 0.5 alone is not yet 0.6
    check(shares(top_p=0.5), [1.0, 0.0, 0.0, 0.0])
    check(shares(temperature=0.5), [x / 0.365 for x in (0.25, 0.09, 0.0225, 0.0025)])
    assert (shares(top_k=2)[2:] == 0).all(), "not rarely: never"
    assert (shares(top_p=0.6)[2:] == 0).all(), "not rarely: never"
    assert (choose(logits, 0, None, None, None)[0] == 0).all()


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_no_numbers_are_refused(model, monkeypatch, temperature, top_k):
    for odd in torch.nan, torch.inf:
        logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, odd, 1.0]])
        random = torch.full((2, 1), 0.5, dtype=torch.float64)
        largest = choose(logits, temperature, top_k, None, random)[1]
        assert largest.isfinite().tolist() == [True, False]
        model.head.data[7] = odd
        for every in 1, 4, 100:
            monkeypatch.setattr(generate, "CPU_LOOKS_EVERY", every)
            with pytest.raises(FloatingPointError, match="not finite"):
                model.generate(PROMPTS, 6, temperature, top_k, lengths=LENGTHS)


def test_rows_of_one_length_generate_as_rows_of_several_do(any_model):
    """No mask, and keys written as a block: the general way's tokens, beyond the window too."""
    even, longer = PROMPTS[:, :3], torch.nn.functional.pad(PROMPTS[:, :3], (0, 2))
    fast = any_model.generate(even, 9, temperature=0)
    general = any_model.generate(longer, 9, temperature=0, lengths=torch.tensor([3, 3, 3]))
    assert torch.equal(fast, general[:, :12])


def test_the_same_seed_draws_the_same_text(model):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return model.generate(PROMPTS, 6, 1.0, lengths=LENGTHS, generator=generator)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("few", [1, 14, 10**6])
def test_a_prompt_that_is_read_once_draws_what_its_copies_draw(any_model, monkeypatch, few):
    """In whatever parts the prompts are read, and ragged or not."""
    monkeypatch.setattr(generate, "READ_TOKENS", few)

    def draw(tokens, lengths, repeat):
        generator = torch.Generator().manual_seed(3)
        return any_model.generate(
            tokens, 6, 1.0, lengths=lengths, generator=generator, repeat=repeat)

    for prompts, lengths in (PROMPTS, LENGTHS), (PROMPTS, None):
        copies = None if lengths is None else lengths.repeat_interleave(4)
        monkeypatch.setattr(generate, "READ_TOKENS", 10**6)
        expected = draw(PROMPTS.repeat_interleave(4, 0), copies, 1)
        monkeypatch.setattr(generate, "READ_TOKENS", few)
        assert torch.equal(draw(prompts, lengths, 4), expected)


def test_reading_prompts_holds_one_row_for_each(model, monkeypatch):
    read = []
    inside = model.model["layers"][0].mlp.register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0].shape[0]))
    model.generate(PROMPTS, 3, lengths=LENGTHS, repeat=5)
    inside.remove()
    assert read == [3, 15, 15]


def test_a_single_query_asks_for_no_copies_of_keys_and_values(any_model, monkeypatch):
    """With a mask and grouped heads, torch would copy them on a GPU: 43 GB a token at 128 rows."""
    attention, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watched(q, k, v, mask=None, is_causal=False, enable_gqa=False):
        seen.append((mask is not None, enable_gqa, is_causal, q.shape[1] == k.shape[1]))
        return attention(q, k, v, mask, is_causal=is_causal, enable_gqa=enable_gqa)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    any_model.generate(PROMPTS, 3, lengths=LENGTHS)
    layers = any_model.config.n_layer
    assert len(seen) == 3 * layers
    assert seen[layers:] == [(True, False, False, True)] * 2 * layers


# Operators that read a number back from the device, for which the program has to wait.
READERS = "_local_scalar_dense", "is_nonzero", "equal", "nonzero"


@pytest.mark.parametrize("temperature, top_k, top_p", [(0, None, None), (0.7, 20, 0.9)])
def test_looking_seldom_reads_little_and_changes_no_text(
        any_model, monkeypatch, temperature, top_k, top_p):
    """As a GPU does it: rows that have all stopped run on for a while, and nobody sees it."""
    def text(stop):
        draw = torch.Generator().manual_seed(0)
        return any_model.generate(
            PROMPTS, 40, temperature, top_k, top_p, stop, LENGTHS, draw, repeat=2)

    without, stopped, readings = {}, {}, {}
    for every in 1, 16:
        monkeypatch.setattr(generate, "CPU_LOOKS_EVERY", every)
        stopped[every] = text(stop=tuple(range(0, 50, 3)))
        # Counting takes long, and is for the texts that nothing stops.
        with Operators() as operators:
            without[every] = text(stop=())
        readings[every] = sum(operators.calls[name] for name in READERS)
    assert torch.equal(without[1], without[16]) and torch.equal(stopped[1], stopped[16])
    at_the_door = 4                                                     # of lengths and shapes
    assert readings[16] <= at_the_door + 2 * 3 < 2 * 40 <= readings[1]


def test_rows_that_stop_leave_the_batch_and_the_others_do_not_notice(any_model, monkeypatch):
    """Drawn or greedy, ragged or not, looked at after every token or every few: the same tokens."""
    stop, widths = tuple(range(0, 50, 7)), []
    any_model.model["layers"][0].mlp.register_forward_pre_hook(
        lambda _, inputs: widths.append(inputs[0].shape[0]))

    def text(going_on, every, choice, lengths):
        monkeypatch.setattr(generate, "GOING_ON", going_on)
        monkeypatch.setattr(generate, "CPU_LOOKS_EVERY", every)
        draw = torch.Generator().manual_seed(1)
        return any_model.generate(
            PROMPTS, 20, *choice, stop=stop, lengths=lengths, generator=draw, repeat=4)

    for choice in (1.0,), (0.7, 20, 0.9), (0,):
        for lengths in LENGTHS, None:
            widths.clear()
            expected = text(-1.0, 1, choice, lengths)
            assert set(widths[1:]) == {12}
            for going_on, every in (0.75, 1), (0.999, 1), (0.75, 4):
                assert torch.equal(text(going_on, every, choice, lengths), expected)
            assert choice == (0,) or any(3 < width < 12 for width in widths)


def test_a_model_that_has_generated_can_still_be_copied_and_trained(any_model):
    """What is computed without a record for gradients must not stay behind in the model."""
    before = copy.deepcopy(any_model)
    tokens = any_model.generate(PROMPTS, 5, lengths=LENGTHS)
    gradients = []
    for model in before, any_model, copy.deepcopy(any_model):
        (model(tokens) @ model.head.T).logsumexp(-1).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[2], atol=0, rtol=0)


def test_learned_positions_end_where_they_end():
    with pytest.raises(ValueError, match="exceed the 64 learned positions"):
        tiny_model("gpt2").generate(PROMPTS, 60)


def test_the_stream_of_tokens_is_what_generate_puts_together(model):
    streamed = list(model.stream(PROMPTS[:1], 5, temperature=0))
    generated = model.generate(PROMPTS[:1], 5, temperature=0)
    assert torch.equal(torch.stack(streamed, 1), generated[:, 7:])


@pytest.mark.parametrize("tokens, how, sentence", [
    (PROMPTS[0], {}, "tokens must be"),
    (PROMPTS[:, :0], {}, "tokens must be"),
    (PROMPTS[:0], {}, "tokens must be"),
    (PROMPTS, {"lengths": torch.tensor([7, 0, 5])}, "every row with a token to continue from"),
    (PROMPTS, {"lengths": torch.tensor([7, 8, 5])}, "every row with a token to continue from"),
    (PROMPTS, {"temperature": -1.0}, "temperature -1.0"),
    (PROMPTS, {"temperature": torch.nan}, "temperature nan"),
    (PROMPTS, {"top_k": 0}, "top_k 0"),
    (PROMPTS, {"top_p": 0.0}, "top_p 0.0"),
    (PROMPTS, {"top_p": 1.1}, "top_p 1.1"),
])
def test_what_cannot_be_continued_is_refused(model, tokens, how, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.generate(tokens, 3, **how)


class Letters:
    """A tokenizer for the tiny models: a token is a character behind a space; 1 to 9 stop."""

    stop_ids = tuple(range(1, 10))

    def decode(self, ids):
        return "".join(f" {chr(96 + n)}" for n in ids).removeprefix(" ")


def test_answers_are_texts_up_to_the_stop_and_keep_the_space_before_their_first_word(any_model):
    """Each pool holds what `generate` gives to its prompt alone, k times the same if greedy."""
    tokenizer = Letters()
    prompts = [[11, 12, 13], [20], [30, 31]]
    pools = answers(any_model, tokenizer, prompts, 2, 10, temperature=0.0)
    for prompt, pool in zip(prompts, pools, strict=True):
        whole = any_model.generate(torch.tensor([prompt]), 10, temperature=0)[0]
        row = whole[len(prompt) :].tolist()
        stops = [i for i, token in enumerate(row) if token in tokenizer.stop_ids]
        kept = row[: stops[0]] if stops else row
        expected = "".join(f" {chr(96 + n)}" for n in kept)
        assert pool == [(expected, bool(stops) or not expected)] * 2


def test_room_is_what_the_context_leaves_behind_the_longest_prompt(model):
    assert model.config.max_len == 64
    assert room(model.config, [[1] * 10, [1] * 60], 100) == 4
    assert room(model.config, [[1] * 10], 7) == 7
    with pytest.raises(ValueError, match="a prompt of 64 tokens fills the model's context of 64"):
        room(model.config, [[1] * 64], 1)
