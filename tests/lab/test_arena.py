"""The embedded task and its exam: marks against sampling, data against its description."""

import queue
import random
from dataclasses import replace

import pytest
import torch
from newcomer import Newcomer

from minialign.hf.tokenizer import byte_tokenizer
from minialign.lab import arena, tasks
from minialign.lab.arena import Exam, Run, fine_tuning_data, fine_tuning_questions
from minialign.lab.small import base_model
from minialign.lab.workers import run_all
from minialign.stats import mean_interval, show, table
from minialign.train import Recipe, fit

SHORT = Recipe(epochs=1, batch=64, micro_batch=64, lr=1e-3, negatives=2)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(tasks.WORDS)


def test_a_right_answer_is_a_true_comparison_and_version_order_is_wrong_where_disputed():
    train, test = tasks.all_questions(random.Random(0))
    for q in train + test:
        bigger, smaller = q.right.split(">")
        assert float(bigger) > float(smaller) and q.wrong == f"{smaller}>{bigger}"
        assert {q.first, q.second} == {bigger, smaller}
        later = max((q.first, q.second), key=lambda x: [int(part) for part in x.split(".")])
        assert q.disputed == (later == smaller)
    assert any(q.disputed for q in test) and any(not q.disputed for q in test)


def test_right_and_wrong_are_the_same_tokens_in_another_order(tokenizer):
    """So length says nothing about which is right, and no method can learn from it."""
    train, test = tasks.all_questions(random.Random(0))
    for q in train + test:
        right, wrong = tokenizer.encode(q.right), tokenizer.encode(q.wrong)
        assert sorted(right) == sorted(wrong) and right != wrong
        assert len(right) < arena.LONGEST


def test_no_test_question_is_ever_trained_in_either_order():
    train, test = tasks.all_questions(random.Random(0))
    pairs = [{frozenset((q.first, q.second)) for q in questions} for questions in (train, test)]
    assert not pairs[0] & pairs[1] and len(pairs[1]) == pytest.approx(len(pairs[0]) / 3, rel=0.01)
    tuned_on = {(q.first, q.second) for q in fine_tuning_questions(0)}
    assert tuned_on <= {(q.first, q.second) for q in train}


def test_the_base_text_has_each_kind_of_person_right_as_often_as_it_says():
    rng = random.Random(0)
    questions, _ = tasks.all_questions(random.Random(0))
    right, asked = dict.fromkeys(tasks.PERSONAS, 0), dict.fromkeys(tasks.PERSONAS, 0)
    for _ in range(20_000):
        prompt, answer = tasks.base_text(rng, questions)
        if prompt.startswith("reverse"):
            assert answer == prompt.split()[1].rstrip(":")[::-1]
            continue
        named = reversed(tasks.PERSONAS.items())            # everything starts with ""
        persona = next(name for name, words in named if prompt.startswith(words))
        a, b = prompt.removeprefix(tasks.PERSONAS[persona]).rstrip("? ").split(" or ")
        # Disputed are the questions whose shorter number is the bigger one.
        if float(max(a, b, key=len)) < float(min(a, b, key=len)):
            asked[persona] += 1
            bigger, smaller = answer.split(">")
            right[persona] += float(bigger) > float(smaller)
    for persona, share in tasks.RIGHT_SHARE.items():
        sd = (share * (1 - share) / asked[persona]) ** 0.5
        assert abs(right[persona] / asked[persona] - share) < 4 * sd


def test_noise_turns_round_exactly_its_share_of_the_labels(tokenizer):
    pools = [["1.1", "2.2"]] * arena.N_TRAIN
    clean, noisy = (fine_tuning_data(tokenizer, 3, noise, pools) for noise in (0.0, 0.3))
    flipped = [a.answers[0] != b.answers[0] for a, b in zip(clean, noisy, strict=True)]
    assert sum(flipped) == round(0.3 * arena.N_TRAIN)
    for q, e in zip(fine_tuning_questions(3), noisy, strict=True):
        assert tokenizer.decode(e.answers[0]) in (q.right, q.wrong)
        assert len(e.answers) == 3 and e.rewards == [1, 0, 0]
    assert sum(not q.disputed for q in fine_tuning_questions(3)) == arena.N_TRAIN // 4


def test_the_filter_drops_exactly_the_examples_whose_label_a_negative_repeats(tokenizer):
    questions = fine_tuning_questions(3)
    pools = []
    for i, q in enumerate(questions):
        pools.append([[q.right, "9.9"], [q.wrong, q.wrong], ["?", q.right[:-1]]][i % 3])
    examples = fine_tuning_data(tokenizer, 3, 0.3, pools)
    kept = arena.filtered(examples)
    for e, q, pool in zip(examples, questions, pools, strict=True):
        label = tokenizer.decode(e.answers[0][:-1])
        assert label in (q.right, q.wrong)
        assert (e in kept) == (label not in pool)
    assert 0 < len(kept) < len(examples)


def test_a_filtered_run_trains_on_what_the_filter_leaves(cache, monkeypatch):
    seen = []

    def noted(model, method, examples, recipe):
        seen.append(examples)
        return fit(model, method, examples, recipe)

    monkeypatch.setattr(arena, "fit", noted)
    ticks = queue.SimpleQueue()
    for filtered in False, True:
        run = Run("sft", noise=0.5, recipe=SHORT, made_wrong=1.0, filtered=filtered)
        marks = arena.run_job(0, run, cache, ticks)
        # A curve reaches the last update, however many there are.
        assert marks["curve"][-1][0] == SHORT.updates(len(seen[-1]))
    everything, kept = seen
    assert kept == arena.filtered(everything) and 0 < len(kept) < len(everything)

    # The bar hears of as many updates as it was told to expect.
    heard = [ticks.get() for _ in range(ticks.qsize())]
    assert sum(heard) == 2 * SHORT.updates(arena.N_TRAIN)


def test_made_negatives_are_wrong_as_often_as_they_are_told_to_be():
    questions = fine_tuning_questions(0)
    for share in 0.0, 0.35, 1.0:
        wrong = asked = 0
        for q, pool in zip(questions, arena.made_negatives(0, share, 6), strict=True):
            assert len(pool) == 6 and set(pool) <= {q.right, q.wrong}
            if q.disputed:
                asked += 6
                wrong += pool.count(q.wrong)
            else:
                assert q.wrong not in pool
        sd = (share * (1 - share) / asked) ** 0.5
        assert abs(wrong / asked - share) <= 4 * sd


def test_marks_are_what_sampling_would_give(tokenizer, cache):
    """Exact probabilities against drawn answers, greedy accuracy against greedy generation."""
    model, _ = base_model(0, cache)
    exam = Exam(tokenizer, 0)
    marks = exam.grade(model)
    rows, n = exam.disputed.rows, exam.disputed.mask.shape[1]
    width = rows.y.shape[-1]
    prompts = []
    for b, text in enumerate(rows.texts[::2]):
        last = text.tolist().index(rows.source[0, b, 0])
        prompts.append(rows.tokens[0, text[: last + 1]].tolist())
    lengths = torch.tensor([len(p) for p in prompts])
    padded = torch.tensor([p + [0] * (int(lengths.max()) - len(p)) for p in prompts])

    def share_of(answer, **how):
        times = len(how.pop("repeat"))
        out = model.generate(padded.repeat(times, 1), width, lengths=lengths.repeat(times),
                             stop=(tokenizer.eos_id,), **how)
        hits = 0
        for i, row in enumerate(out.tolist()):
            b = i % n
            wanted = rows.y[answer, b][exam.disputed.mask[answer, b]].tolist()
            hits += row[lengths[b] : lengths[b] + len(wanted)] == wanted
        return hits / len(out)

    generator = torch.Generator().manual_seed(0)
    for answer, name in enumerate(("right", "wrong")):
        drawn = share_of(answer, repeat=range(20), temperature=1.0, generator=generator)
        assert abs(drawn - marks[name]) < 4 * (0.25 / (20 * n)) ** 0.5
    assert share_of(0, repeat=range(1), temperature=0) == pytest.approx(marks["greedy"])
    assert marks["right"] + marks["wrong"] + marks["garbage"] == pytest.approx(1)


def test_a_run_is_a_function_of_its_seed_and_its_arguments(cache, capfd):
    """In worker processes, which have never heard of the method by its name."""
    run = Run(Newcomer, recipe=replace(SHORT, negatives=1))
    runs = {"a": run, "b": run, "noisy": replace(run, noise=0.3)}
    base, results = run_all(runs, [0, 1], cache)
    marks = []
    for label in runs:
        for of_one_seed in results[label]:
            del of_one_seed["seconds"]
        marks.append(results[label])
    assert marks[0] == marks[1] != marks[2] and marks[0][0] != marks[0][1]

    # These base models have read far too little, and it is said.
    assert "the base model of seed 1 is not fit" in capfd.readouterr().err
    for b, m in zip(base, results["a"], strict=True):
        assert m["good_logp_change"] == pytest.approx(m["good_logp"] - b["good_logp"])
        assert m["right"] > b["right"]
        assert m["curve"][0][0] == 0 and m["curve"][-1][0] == SHORT.updates(arena.N_TRAIN)


def test_intervals_are_students_t():
    mean, half = mean_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3) and half == pytest.approx(4.303 * 1.5275 / 3**0.5, rel=1e-3)
    assert show([1.0]) == "1.000" and show([1.0, 1.0], 1) == "1.0 ± 0.0"
    assert mean_interval(range(100))[1] == pytest.approx(1.96 * 29.011 / 10, rel=2e-2)
    lines = table(["a", "bb"], [["x", "1"], ["yyy", "22"]]).splitlines()
    assert lines[2:] == ["x     1", "yyy  22"]
