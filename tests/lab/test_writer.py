"""The study of the better writer: its measures against plain arithmetic, its verdict against
invented numbers, and the whole of it on tiny sizes. No test says which row ought to win.
"""

import json
import math
from dataclasses import replace

import pytest
import torch

from minialign.__main__ import main
from minialign.evaluate import answer_logps
from minialign.lab.studies import STUDIES, chosen, writer
from minialign.lab.studies.lab import HOLDS, NOT, OPEN, SMALL, Lab
from minialign.lab.studies.processes import in_processes
from minialign.lab.studies.writer import CONTROL, PLAIN, ROWS, Size, Training

TINY = Size(train=6, development=3, test=4, new=8, bad=6, samples=1, batch=3, epochs=1, negatives=1)
PROMPTS = ["Tom had a red ball.", "Once upon a time"]
TEXTS = [" He liked to play with it.", ", there was a dog. \"Hello!\" said the dog."]


def here(function, jobs, words):
    """What in_processes does, without processes."""
    return [function(*job) for job in jobs]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(writer, "SIZE", TINY)
    monkeypatch.setattr(writer, "in_processes", here)


@pytest.fixture(scope="module")
def tiny_lesson():
    return writer.lesson(0, TINY, development=False)


# ------------------------------------------------------------------------------------ what is asked

def test_bits_are_log_probs_per_character():
    judge = writer.opened("stories260K")
    whole, *thirds = writer.bits(judge, PROMPTS, TEXTS)
    pools = [[(text, False)] for text in TEXTS]
    examples = writer.as_examples(judge[1], PROMPTS, pools)
    sums, _ = answer_logps(judge[0], examples, 1, progress=False)
    expected = -sum(l for [l] in sums) / math.log(2) / sum(map(len, TEXTS))
    assert whole == pytest.approx(expected, rel=1e-5)
    assert min(thirds) < whole < max(thirds)


def test_thirds_are_those_of_the_tokens():
    judge = writer.opened("stories260K")
    example, = writer.as_examples(judge[1], PROMPTS[:1], [[(TEXTS[0], False)]])
    ids, n = example.answers[0], len(example.answers[0])
    first = judge[1].decode(example.prompt + ids[: round(n / 3)])[len(PROMPTS[0]) :]
    expected = writer.bits(judge, PROMPTS[:1], [first])[0]
    assert writer.bits(judge, PROMPTS[:1], TEXTS[:1])[1] == pytest.approx(expected, rel=1e-5)


def test_an_empty_continuation_costs_nothing():
    judge = writer.opened("stories260K")
    some = writer.bits(judge, PROMPTS, TEXTS)
    assert writer.bits(judge, [*PROMPTS, "The end."], [*TEXTS, ""]) == pytest.approx(some)
    assert writer.bits(judge, ["The end."], [""]) == [0.0] * 4


def test_distinct_runs_are_counted_over_all_texts():
    assert writer.distinct(["a b c d", "a b c e", "a b"]) == 3 / 4
    assert writer.distinct(["a b"]) == 0


# ------------------------------------------------------------------------------ openings and texts

def test_nobody_trains_on_what_is_measured_and_rates_are_chosen_elsewhere():
    size = writer.SIZE
    train, test = writer.openings(size, 3, False)
    same, development = writer.openings(size, 3, True)
    others, other_test = writer.openings(size, 4, True)
    assert train == same and development == other_test and train != others
    assert (len(train), len(test), len(development)) == (size.train, size.test, size.development)
    assert not set(train) & set(test)
    assert not set(development) & {*train, *test, *others}


def test_a_lesson_has_the_teachers_answer_and_the_policys_own(tiny_lesson):
    size = replace(TINY, epochs=3)
    longer = writer.lesson(0, size, development=False)
    assert [e.answers[0] for e in longer.examples] == [e.answers[0] for e in tiny_lesson.examples]
    assert {len(e.answers) for e in longer.examples} == {1 + 3 * size.negatives}
    assert {len(e.answers) for e in longer.wanted} == {1}
    for bad, prompt in zip(longer.bad, longer.held_out, strict=True):
        assert bad.startswith(prompt)


def test_a_later_training_begins_where_the_earlier_one_ended(tiny_lesson):
    first = Training("sft", 1e-3)
    before, _ = writer.taught(first, tiny_lesson, TINY)
    after, _ = writer.taught(Training("dpo", 1e-30, after=first), tiny_lesson, TINY)
    alone, _ = writer.taught(Training("dpo", 1e-30), tiny_lesson, TINY)
    torch.testing.assert_close(after.state_dict(), before.state_dict(), atol=1e-7, rtol=0)
    assert not torch.allclose(after.head, alone.head)


def test_training_leaves_the_shared_models_and_the_lesson_alone(tiny_lesson):
    policy, _ = writer.opened("llama2xs")
    before = [p.clone() for p in policy.parameters()]
    writer.taught(Training("dft", 1e-2), tiny_lesson, TINY)
    for p, q in zip(policy.parameters(), before, strict=True):
        assert torch.equal(p, q)
    assert all(e.ref_logps is None for e in tiny_lesson.examples)


# ------------------------------------------------------------------------------------ what is found

def invented(**judge):
    """Marks of four seeds: every row as good as SFT, but for those that are given."""
    data = {}
    for name in ("base", *ROWS, "teacher"):
        value, distinct = judge.get(name.replace(" ", "_"), (1.5, 0.8))
        data[name] = {"judge": [value + 0.001 * s for s in range(4)], "distinct_3": [distinct] * 4}
    return data


@pytest.mark.parametrize("judge, verdict", [
    ({}, NOT),
    ({"dft": (1.4, 0.8)}, "holds only for dft"),
    ({"dft": (1.4, 0.8), "ift": (1.3, 0.79)}, "holds only for dft, ift"),
    ({"dft": (1.4, 0.8 - 2 * SMALL)}, OPEN),                # likelier, but it repeats itself
    ({"dft": (1.4, 0.8), "sft_x3": (1.3, 0.8)}, NOT),
    ({"sft_sum": (1.3, 0.8)}, NOT),                         # is imitation, too
    ({"teacher": (0.7, 0.9)}, NOT),
])
def test_the_verdict_follows_the_numbers(judge, verdict):
    assert writer.judged(invented(**judge)) == verdict
    assert HOLDS != verdict


@pytest.mark.parametrize("rise, recovery, said", [
    (-0.1, 0.0, (HOLDS, NOT)), (0.1, -0.1, (NOT, HOLDS)), (-SMALL, -SMALL, (HOLDS, HOLDS))])
def test_the_claims_of_ift_are_judged_by_their_intervals(rise, recovery, said):
    sft = {"judge_rise": [0.2, 0.3, 0.25], "judge_recovery": [1.5, 1.6, 1.4]}
    ift = {"judge_rise": [x + rise for x in sft["judge_rise"]],
           "judge_recovery": [x + recovery for x in sft["judge_recovery"]]}
    told = writer.claims_of_ift({"sft": sft, "ift": ift})
    assert told.endswith(f"{said[1]}.") and f"): {said[0]}; " in told
    ift["judge_rise"][0] += 1
    assert f"): {OPEN}; " in writer.claims_of_ift({"sft": sft, "ift": ift})


@pytest.mark.parametrize("peak, too_much, chosen, tried", [
    (1e-3, 1, 1e-3, {5e-4, 1e-3, 2e-3}),                                # it stands between others
    (4e-3, 1, 4e-3, {5e-4, 1e-3, 2e-3, 4e-3, 8e-3}),
    (1, 1, 8e-3, {5e-4, 1e-3, 2e-3, 4e-3, 8e-3}),                       # five and no more
    (1e-9, 1, 1.25e-4, {1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3}),
    (1, 3e-3, 2e-3, {5e-4, 1e-3, 2e-3, 4e-3}),                          # beyond it repeats itself
    (1, 0, 1.25e-4, {1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3}),               # all of them repeat
])
def test_the_rate_is_the_best_one_that_repeats_itself_no_more_than_the_teacher(
        monkeypatch, tmp_path, peak, too_much, chosen, tried):
    """The better the nearer its rate is to `peak`; above `too_much` it repeats itself."""
    def run_rows(lessons, rows, judge):
        assert lessons == "development" and judge == writer.TEACHER
        asked.update(rows)
        data = {}
        for name, row in rows.items():
            rate = row.lr if row else 0
            distance = abs(math.log(rate / peak)) if row else 0
            data[name] = {"judge": [distance], "distinct_3": [0.5 if rate > too_much else 0.9],
                          "perplexity": [4.0]}
        return data

    asked = {}
    monkeypatch.setattr(writer, "run_rows", run_rows)
    monkeypatch.setattr(writer, "lessons_of", lambda *_, development: "development")
    found = writer.writer(Lab([0], tmp_path, tune=True))
    rates = [part.rpartition(" ")[2] for part in found.verdict.split(", ")]
    assert len(rates) == len(ROWS) - 1 and {float(rate) for rate in rates} == {chosen}
    assert CONTROL not in found.verdict
    for name in ROWS:
        of_row = {row.lr for key, row in asked.items() if key.rpartition(" ")[0] == name}
        assert of_row == (set() if name == CONTROL else tried)
    for key, row in asked.items():
        if key.startswith("sft → dpo"):
            assert row.after.lr == chosen


def test_the_study_prints_draws_and_writes_every_number(tiny, tmp_path, monkeypatch, capsys):
    few = {name: ROWS[name] for name in ("sft", CONTROL, "dft", "ift", "sft → dpo")}
    monkeypatch.setattr(writer, "ROWS", few)
    path = tmp_path / "numbers.json"
    words = ["--seeds", "2", "--judge", "llama2xs", "--json", str(path), "--out", str(tmp_path)]
    assert main(["study", "writer", *words]) == 0
    numbers = json.loads(path.read_text())["writer"]
    assert list(numbers) == ["base", *few, "teacher"]
    for marks in numbers.values():
        assert {len(values) for values in marks.values()} == {2}
        assert {"judge", "teacher", "judge_third_3", "judge_recovery", "distinct_3", "perplexity",
                "characters"} <= set(marks)
        assert "samples" not in marks
        assert marks["judge"] != marks["teacher"]
    printed = capsys.readouterr().out
    assert "Verdict: " in printed and "2 seeds (0–1)" in printed
    assert printed.count("\n  sft → dpo ") == writer.SHOWN
    assert (tmp_path / "study_writer.png").stat().st_size > 10_000


def test_a_model_without_training_is_only_asked(tiny_lesson):
    assert set(PLAIN) == {"base", "teacher"}
    base = writer.row_job("base", None, tiny_lesson, "stories260K", TINY)
    still = writer.row_job("x", Training("sft", 1e-30), tiny_lesson, "stories260K", TINY)
    assert base == still


@pytest.mark.parametrize("words, said", [
    (["gamma", "--tune"], "--tune means something to the studies methods, texts and writer only"),
    (["all", "--judge", "stories260K"], "--judge means something to the study writer only"),
])
def test_its_flags_mean_nothing_to_other_studies(words, said, capsys):
    assert main(["study", *words]) == 2
    assert said in capsys.readouterr().err


def test_all_studies_are_all_but_this_one_which_takes_half_an_hour():
    assert chosen("all") == [name for name in STUDIES if name != "writer"]
    assert chosen("writer") == ["writer"]


def test_a_judge_that_is_none_is_refused_before_anything_is_trained(tmp_path, capsys):
    assert main(["study", "writer", "--judge", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_jobs_come_back_in_order_and_a_failure_is_told():
    assert in_processes(divmod, [(7, 2), (9, 4), (1, 1)], "jobs") == [(3, 1), (2, 1), (1, 0)]
    with pytest.raises(ZeroDivisionError):
        in_processes(divmod, [(7, 2), (9, 0)], "jobs")
