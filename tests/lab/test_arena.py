"""The embedded task, its exam and the race: marks against sampling, data against its description, report against numbers."""

import json
import random

import pytest
import torch
from safetensors.torch import save_file

from minialign.__main__ import main
from minialign.hf.tokenizer import byte_tokenizer
from minialign.lab import arena, race, small, tasks
from minialign.lab.arena import Exam, Run, fine_tuning_data, fine_tuning_questions, run_all
from minialign.lab.small import base_model, base_path, base_training
from minialign.stats import mean_interval, show, table
from minialign.train import Recipe

SHORT = Recipe(epochs=1, batch=64, micro_batch=64, lr=1e-3, negatives=2)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(tasks.WORDS)


@pytest.fixture(scope="module")
def cache(tokenizer, tmp_path_factory):
    """Base models of two seeds after a few updates, where the race looks for finished ones."""
    folder = tmp_path_factory.mktemp("cache")
    for seed in 0, 1:
        torch.manual_seed(seed)
        model = small.Transformer(tasks.small_config(tokenizer.vocab_size))
        for _, _ in zip(range(60), base_training(model, tokenizer, seed), strict=False):
            pass
        save_file({name: p.detach() for name, p in model.named_parameters()}, base_path(seed, folder))
    return folder


def number(text):
    return float(text)


def test_right_is_the_bigger_number_and_wrong_the_later_version():
    train, test = tasks.all_questions(random.Random(0))
    for q in train + test:
        assert number(q.right) > number(q.wrong) and {q.first, q.second} == {q.right, q.wrong}
        later = max((q.first, q.second), key=lambda x: [int(part) for part in x.split(".")])
        assert q.disputed == (later == q.wrong)
    assert any(q.disputed for q in test) and any(not q.disputed for q in test)


def test_no_test_question_is_ever_trained_in_either_order():
    train, test = tasks.all_questions(random.Random(0))
    pairs = [{frozenset((q.first, q.second)) for q in questions} for questions in (train, test)]
    assert not pairs[0] & pairs[1] and len(pairs[1]) == pytest.approx(len(pairs[0]) / 3, rel=0.01)
    assert {(q.first, q.second) for q in fine_tuning_questions(0)} <= {(q.first, q.second) for q in train}


def test_the_base_text_has_each_kind_of_person_right_as_often_as_it_says():
    rng = random.Random(0)
    questions, _ = tasks.all_questions(random.Random(0))
    right, asked = dict.fromkeys(tasks.PERSONAS, 0), dict.fromkeys(tasks.PERSONAS, 0)
    for _ in range(20_000):
        prompt, answer = tasks.base_text(rng, questions)
        if prompt.startswith("reverse"):
            assert answer == prompt.split()[1].rstrip(":")[::-1]
            continue
        persona = next(name for name, words in reversed(tasks.PERSONAS.items()) if prompt.startswith(words))
        a, b = prompt.removeprefix(tasks.PERSONAS[persona]).rstrip("? ").split(" or ")
        if float(max(a, b, key=len)) < float(min(a, b, key=len)):       # disputed: the shorter one is the bigger number
            asked[persona] += 1
            right[persona] += float(answer) == max(float(a), float(b))
    for persona, share in tasks.RIGHT_SHARE.items():
        sd = (share * (1 - share) / asked[persona]) ** 0.5
        assert abs(right[persona] / asked[persona] - share) < 4 * sd


def test_noise_turns_round_exactly_its_share_of_the_labels(tokenizer):
    pools = [["1.1", "2.2"]] * arena.N_TRAIN
    clean, noisy = (fine_tuning_data(tokenizer, 3, noise, pools) for noise in (0.0, 0.3))
    flipped = [a.answers[0] != b.answers[0] for a, b in zip(clean, noisy, strict=True)]
    assert sum(flipped) == round(0.3 * arena.N_TRAIN)
    for q, e in zip(fine_tuning_questions(3), noisy, strict=True):
        assert tokenizer.decode(e.answers[0]) in (q.right, q.wrong) and len(e.answers) == 3 and e.rewards == [1, 0, 0]
    assert sum(not q.disputed for q in fine_tuning_questions(3)) == arena.N_TRAIN // 4


def test_marks_are_what_sampling_would_give(tokenizer, cache):
    """Exact probabilities against drawn answers, and greedy accuracy against greedy generation, on the same questions."""
    model, _ = base_model(0, cache)
    exam = Exam(tokenizer, 0)
    marks = exam.grade(model)
    rows, n = exam.disputed.rows, exam.disputed.mask.shape[1]
    width = rows.y.shape[-1]
    texts = [(text, text.tolist().index(rows.source[0, b, 0])) for b, text in enumerate(rows.texts[::2])]
    prompts = [rows.tokens[0, text[: last + 1]].tolist() for text, last in texts]
    lengths = torch.tensor([len(p) for p in prompts])
    padded = torch.tensor([p + [0] * (int(lengths.max()) - len(p)) for p in prompts])

    def share_of(answer, **how):
        times = len(how.pop("repeat"))
        out = model.generate(padded.repeat(times, 1), width, lengths=lengths.repeat(times), stop=(tokenizer.eos_id,), **how)
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


def test_a_run_is_a_function_of_its_seed_and_its_arguments(cache):
    runs = {"a": Run("dft", recipe=SHORT), "b": Run("dft", recipe=SHORT), "noisy": Run("dft", noise=0.3, recipe=SHORT)}
    base, results = run_all(runs, [0, 1], cache)
    marks = [[{k: v for k, v in m.items() if k != "seconds"} for m in results[label]] for label in runs]
    assert marks[0] == marks[1] != marks[2] and marks[0][0] != marks[0][1]
    for b, m in zip(base, results["a"], strict=True):
        assert m["good_logp_change"] == pytest.approx(m["good_logp"] - b["good_logp"])
        assert m["curve"][0][0] == 0 and m["curve"][-1][0] == SHORT.updates(arena.N_TRAIN)


def test_compare_prints_a_table_writes_its_numbers_and_draws_its_pictures(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(race, "RECIPE", SHORT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cache").symlink_to(cache)
    written = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "n.json")]
    assert main(["compare", "--seeds", "2", "--methods", "sft,dft2", *written]) == 0
    out = capsys.readouterr().out
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert set(numbers) == {"clean", "noisy"} and set(numbers["clean"]) == {"base", "sft", race.CONTROL, "dft2"}
    for condition in numbers.values():
        assert set(condition["dft2"]) == set(race.MARKS) and all(len(v) == 2 for v in condition["dft2"].values())
    assert show(numbers["noisy"]["dft2"]["right"]) in out and "more questions right than sft" in out
    for picture in "outcomes", "curves":
        assert (tmp_path / "out" / f"{picture}.png").stat().st_size > 10_000


def test_the_sentence_follows_the_numbers():
    def results(gain):
        sft = {"right": [0.5, 0.51, 0.52], "agree": [0.9, 0.91, 0.92]}
        right = [0.5 + gain, 0.511 + gain, 0.522 + gain]
        by_method = {"base": sft, "sft": sft, "dft": sft | {"right": right}}
        return {condition: by_method for condition in race.CONDITIONS}

    assert "(better)" in race.sentence(results(0.2)) and "+0.2" in race.sentence(results(0.2))
    assert "(worse)" in race.sentence(results(-0.2))
    assert "(no clear difference)" in race.sentence(results(-0.001))


def test_intervals_are_students_t():
    mean, half = mean_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3) and half == pytest.approx(4.303 * 1.5275 / 3**0.5, rel=1e-3)
    assert show([1.0]) == "1.000" and show([1.0, 1.0], 1) == "1.0 ± 0.0"
    assert mean_interval(range(100))[1] == pytest.approx(1.96 * 29.011 / 10, rel=2e-2)
    assert table(["a", "bb"], [["x", "1"], ["yyy", "22"]]).splitlines()[2:] == ["x     1", "yyy  22"]
