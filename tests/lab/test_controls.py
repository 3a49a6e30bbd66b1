"""What studies train for comparison: variants of a method, other starting points, more updates,
and questions whose rejected answer is the other number.
"""

import math

import pytest
import torch
from conftest import tiny_model
from torch.testing import assert_close

from minialign.data import Example, collate
from minialign.hf.tokenizer import byte_tokenizer
from minialign.lab import arena
from minialign.lab.arena import RECIPE
from minialign.lab.race import CONTROL
from minialign.lab.small import tasks
from minialign.lab.studies import dft, ift, lab
from minialign.methods import METHODS, build_method


def test_the_floor_has_no_memory_and_the_memory_no_floor():
    index, low = torch.tensor([0]), torch.tensor([-3.0], dtype=torch.float64)
    kinds = (METHODS["dft"], dft.FloorOnly, dft.MemoryOnly)
    plain, floor, memory = (kind(gamma=0.9) for kind in kinds)
    first = [method.update(index, low) for method in (plain, floor, memory)]
    assert_close(first[0], first[1])
    assert_close(first[1].exp(), 0.1 + 0.9 * low.exp())
    start = torch.tensor([math.exp(-10)], dtype=torch.float64)
    assert_close(first[2].exp(), 0.1 * start + 0.9 * low.exp())
    again = [method.update(index, low) for method in (plain, floor)]
    assert_close(again[1], first[1])
    assert again[0] < again[1]


def test_random_guesses_stand_where_the_policy_was_wrong_and_nowhere_else():
    model = tiny_model()
    batch = collate([Example(i, [1, 2, 3], [[4 + i, 5, 6, 7]]) for i in range(6)])
    own, noise = (kind(lam=0.5).prepare(model, [batch])[0].rows.guesses
                  for kind in (METHODS["ift"], ift.RandomGuesses))
    right = (own == batch.rows.y) & batch.mask
    assert (noise[right] == batch.rows.y[right]).all()
    assert torch.isin(noise[batch.mask], batch.rows.y[batch.mask]).all()
    assert (noise != own)[batch.mask & ~right].float().mean() > 0.5


def test_sft_and_ift_have_one_gradient_where_the_guess_is_the_label():
    model, method = tiny_model(), METHODS["ift"](lam=0.5, gamma=0.0)
    prompt = [1, 2, 3]
    batch = collate([Example(0, prompt, [[4, 4, 4, 4]])])
    for _ in range(4):              # answer as the policy would, one token after the other
        answer = method.prepare(model, [batch])[0].rows.guesses[0, 0].tolist()
        batch = collate([Example(0, prompt, [answer])])
    right = Example(0, prompt, [answer])
    wrong = Example(0, prompt, [[(t + 1) % 50 for t in answer]])
    assert ift.guessed_right(model, [right, wrong]) == [True, False]
    for example, equal in ((right, True), (wrong, False)):
        sft, other = (ift.flat_gradient(model, m, [example]) for m in (METHODS["sft"](), method))
        assert torch.equal(sft, other) == equal


def test_pairs_have_the_other_number_as_the_rejected_answer():
    tokenizer = byte_tokenizer(tasks.WORDS)
    examples = arena.fine_tuning_data(tokenizer, 0, 0.3, None)
    questions, flipped = arena.fine_tuning_questions(0), 0
    for e, q in zip(examples, questions, strict=True):
        texts = [tokenizer.decode(answer[:-1]) for answer in e.answers]
        assert sorted(texts) == sorted([q.right, q.wrong])
        flipped += texts[0] == q.wrong
    assert flipped == round(0.3 * len(questions))


def test_a_run_takes_a_variant_by_its_class_and_starts_where_it_is_told():
    method = build_method(dft.FloorOnly, {"gamma": 0.8}, 7)
    assert isinstance(method, dft.FloorOnly) and method.gamma == 0.8 and len(method.log_u) == 7
    assert build_method(ift.RandomGuesses, {}, 7).lam == 0.2
    examples, base = [Example(i, [1, 2], [[3, 4]]) for i in range(4)], tiny_model()
    models = {}
    for init in ("base", "untrained", "sft"):
        models[init] = arena.starting_point(init, base, examples, RECIPE)
    assert torch.equal(models["base"].head, base.head) and models["base"].head is not base.head
    batch = collate(examples)
    logp = {init: arena.batch_logps(model, batch).sum().item() for init, model in models.items()}
    assert logp["sft"] > logp["base"] and models["untrained"].head.std() < 0.03
    with pytest.raises(ValueError, match="choose base, untrained or the name of a method"):
        arena.starting_point("else", base, examples, RECIPE)


def test_the_control_has_three_times_the_updates():
    runs = lab.under_both(lab.sft_and_control())
    sft, control = runs["noisy sft"], runs[f"noisy {CONTROL}"]
    assert control.recipe.updates(512) == 3 * sft.recipe.updates(512)
    assert sft.noise == control.noise == 0.3
