"""The studies: exact computations against other formulas, verdicts against invented numbers.

No test says how a method of the papers ought to fare.
"""

import ast
import json
import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import tiny_model
from pretend import SEEDS, Pretend, function
from torch.testing import assert_close

from minialign.__main__ import main
from minialign.data import Batch, Example, collate
from minialign.hf.tokenizer import byte_tokenizer
from minialign.lab import arena
from minialign.lab.arena import RECIPE, Run
from minialign.lab.race import CONTROL, TITLES, Difference
from minialign.lab.small import tasks
from minialign.lab.studies import STUDIES, cost, dft, exact, ift, lab, pools, rivals, tuned
from minialign.lab.studies.lab import HOLDS, NOT, OPEN, TRAINED_FOR, Better, Lab
from minialign.methods import METHODS, build_method
from minialign.model import Config, Transformer
from minialign.stats import holm, mean_interval, p_value


def in_all(parts, verdict, others):
    """A verdict in parts: the same for all but the others."""
    return lab.in_parts(dict.fromkeys(parts, verdict) | others)


FIGURE_3 = {"dft": {"negatives_change": -9}, "simpo": {"wanted_change": -2},
            "spin": {"wanted_change": -3}}
FIGURE_3_PARTS = ("the wanted answers rise under DFT", "as under SFT",
                  "the model's own answers fall, against SFT",
                  "under SimPO the wanted ones fall", "under SPIN too")
TABLE_2_PARTS = [f"over {whom}, {title}" for title in TITLES.values()
                 for whom in ("SFT", "every preference method")]
TABLES_3_4_PARTS = [f"{words}, {title}" for title in TITLES.values()
                    for words in ("as good as with preference pairs",
                                  "better than with its own answers")]

OPPOSITES = [   # study, marks by setting, verdict, and what else must change with the marks
    ("likelihoods", FIGURE_3, HOLDS),
    ("likelihoods", FIGURE_3 | {"dft": {"negatives_change": -9, "wanted_change": 0.2}},
     in_all(FIGURE_3_PARTS, HOLDS, {"as under SFT": NOT})),
    ("likelihoods", FIGURE_3 | {"simpo": {"wanted_change": 2}},
     in_all(FIGURE_3_PARTS, HOLDS, {"under SimPO the wanted ones fall": NOT})),
    ("likelihoods", FIGURE_3 | {"dft": {"negatives_change": -9, "jitter": 3}},
     in_all(FIGURE_3_PARTS, HOLDS, {"the wanted answers rise under DFT": OPEN,
                                    "as under SFT": OPEN})),
    ("gamma", {"γ 0.9": {"right": 0.9}, "γ 1": {"right": 0.5}}, HOLDS),
    ("gamma", {"γ 0.9": {"right": 0.9, "average": 0.1}, "γ 1": {"right": 0.5}},
     f"holds only {TRAINED_FOR}"),
    ("gamma", {"γ 0.9": {"right": 0.9}, "γ 1": {"right": 0.5}, "floor": {"right": 0.8}},
     "holds, and a floor without memory gives most of the gain"),
    ("gamma", {"γ 0.9": {"right": 0.5}, "γ 1": {"right": 0.9}}, NOT),
    ("gamma", {"γ 0.9": {"jitter": 1}}, OPEN),
    ("negatives", {"B 1": {"right": 0.6}, "B 2": {"right": 0.9}, "B 4": {"right": 0.7}}, HOLDS),
    ("negatives", {"B 1": {"right": 0.9}, "B 2": {"right": 0.8}, "B 4": {"right": 0.7}},
     "two over one, bad persona: does not hold here; two over four, bad persona: holds; "
     "two over one, plain persona: does not hold here; two over four, plain persona: holds"),
    ("negatives", {"B 2": {"jitter": 1}}, OPEN),
    ("filter", {"dft, 95": {"right": 0.9}, "dft, 5%": {"right": 0.5}}, HOLDS),
    ("filter", {"dft, 95": {"right": 0.9}, "dft, 5%": {"right": 0.7}}, NOT),
    ("filter", {}, NOT),
    ("filter", {"dft, 50": {"right": 0.4}}, NOT),
    ("temperature", {"T 0.7": {"right": 0.9}}, HOLDS),
    ("temperature", {}, NOT),
    ("temperature", {"plain T 0.7": {"right": 0.9}}, f"bad persona: {NOT}; plain persona: holds"),
    ("temperature", {"T 0.7": {"jitter": 1}}, OPEN),
    ("personas", {"bad": {"right": 0.9}, "good": {"right": 0.2}}, HOLDS),
    ("personas", {"bad": {"right": 0.3}, "good": {"right": 0.9}}, NOT),
    ("personas", {"bad": {"right": 0.9}},
     f"the bad persona's are the best: holds; the good one's the worst: {NOT}"),
    ("tau", {"dft τ 1": {"right": 0.9}, "dft τ 1.5": {"right": 0.4}, "dft2 τ 0.3": {"right": 0.9}},
     HOLDS),
    ("tau", {"dft2 τ 0.3": {"right": 0.9}}, f"DFT near 1: {NOT}; DFT2 near 0.3: holds"),
    ("tau", {}, NOT),
    ("tau", {"dft τ 1.5": {"right": 0.9}}, NOT),
    ("methods", {"dft": {"right": 0.9}}, HOLDS),
    ("methods", {"dft": {"right": 0.9, "average": 0.2}},
     in_all(TABLE_2_PARTS, f"holds only {TRAINED_FOR}",
            {part: HOLDS for part in TABLE_2_PARTS if "preference" in part})),
    ("methods", {"noisy dft": {"right": 0.9}},
     in_all(TABLE_2_PARTS, HOLDS, {part: NOT for part in TABLE_2_PARTS if "right" in part})),
    ("methods", {"dft": {"right": 0.9}, "clean kto": {"right": 0.95}},
     in_all(TABLE_2_PARTS, HOLDS, {TABLE_2_PARTS[1]: NOT})),
    ("methods", {"dft": {"right": 0.9}, "x3": {"right": 0.95}},
     in_all(TABLE_2_PARTS, HOLDS, {part: NOT for part in TABLE_2_PARTS if "over SFT" in part})),
    ("methods", {"dft": {"right": 0.3}}, NOT),
    ("methods", {"dft": {"jitter": 1}}, OPEN),
    ("two_stages", {"dft": {"right": 0.9}}, HOLDS),
    ("two_stages", {}, in_all(TABLES_3_4_PARTS, HOLDS,
                              {part: NOT for part in TABLES_3_4_PARTS if "better" in part})),
    ("two_stages", {"clean sft → kto": {"right": 0.8}, "noisy dft": {"right": 0.9}},
     in_all(TABLES_3_4_PARTS, HOLDS, {TABLES_3_4_PARTS[0]: NOT, TABLES_3_4_PARTS[1]: NOT})),
    ("motivation", {"sft": {"wrong": 0.3}, "dft": {"wrong": 0.01}}, HOLDS),
    ("motivation", {"base": {"wrong": 0.6}, "sft": {"wrong": 0.02}, "dft": {"wrong": 0.0}},
     f"SFT leaves the bad answer likely: {NOT}; DFT makes it less likely: holds"),
    ("motivation", {"base": {"wrong": 0.6}, "sft": {"wrong": 0.02}, "dft": {"wrong": 0.1}}, NOT),
]


@pytest.mark.parametrize("name, outcome, verdict", OPPOSITES)
def test_the_verdict_follows_the_numbers(name, outcome, verdict, tmp_path):
    findings = function(name)(Pretend(tmp_path, outcome))
    assert findings.verdict == verdict, findings.sentence
    assert findings.sentence
    for setting in findings.numbers().values():
        assert {len(values) for values in setting.values()} == {SEEDS}


@pytest.mark.parametrize("name", ["gamma", "likelihoods"])
def test_the_sentence_quotes_the_numbers_and_the_picture_is_drawn(name, tmp_path):
    def found(x):
        outcome = {"dft": {"right": x}, "γ 0.9": {"right": x}, "spin": {"wanted_change": x},
                   "dpo": {"good_logp_change": x, "wrong": x}}
        return function(name)(Pretend(tmp_path, outcome))

    one, other = found(0.7), found(0.8)
    assert one.sentence != other.sentence
    picture = one.draw(folder=tmp_path, name=f"study_{name}")
    assert picture == tmp_path / f"study_{name}.png" and picture.stat().st_size > 10_000
    assert STUDIES[name].claim in one.report(name, STUDIES[name], Pretend(tmp_path, {}))


def test_no_rival_is_beaten_where_none_races(tmp_path):
    lab_ = Pretend(tmp_path, {"dft": {"right": 0.9}})
    lab_.methods = ["sft", "dft"]
    findings = function("methods")(lab_)
    assert findings.verdict == HOLDS and not any("kto" in label for label in findings.data)


def test_one_seed_decides_nothing():
    better = Better(*({mark: [x] for mark in ("right", "agree", "average")} for x in (0.9, 0.1)))
    assert better.verdict == OPEN and not Difference({"x": [1.0]}, {"x": [0.0]}, "x").above()


def test_differences_are_paired():
    """Two settings that move together differ clearly, however far apart their seeds are."""
    a, b = {"x": [0.1, 0.5, 0.9]}, {"x": [0.05, 0.449, 0.851]}
    d = Difference(a, b, "x")
    assert d.above(0.04) and not d.above(0.06) and str(d).startswith("+0.050 ± 0.00")


# ------------------------------------------------------------------------- many tests at once

@pytest.mark.parametrize("n, t, p", [       # two-sided, from printed tables of Student's t
    (2, 12.706, 0.05), (2, 63.657, 0.01), (3, 4.303, 0.05), (4, 3.182, 0.05), (5, 2.776, 0.05),
    (5, 8.610, 0.001), (6, 4.032, 0.01), (6, 6.869, 0.001), (10, 1.383, 0.2), (10, 2.262, 0.05),
    (10, 3.250, 0.01), (11, 2.228, 0.05), (31, 2.042, 0.05),
])
def test_p_values_are_those_of_the_tables(n, t, p):
    values = [i - (n - 1) / 2 for i in range(n)]
    error = math.sqrt(sum(x * x for x in values) / (n - 1) / n)
    for sign in (1, -1):
        assert p_value([x + sign * t * error for x in values]) == pytest.approx(p, rel=1e-3)


def test_p_values_agree_with_the_intervals_and_have_ends():
    for shift in (0.3, 0.9, 1.5, 3.0):
        values = [x + shift for x in (-1.0, 0.2, 0.4, 1.1, -0.7)]
        mean, half = mean_interval(values)
        assert (p_value(values) < 0.05) == (mean - half > 0)
    assert p_value([0.0, 0.0]) == p_value([-1.0, 1.0]) == 1 and p_value([0.5, 0.5]) == 0
    assert math.isnan(p_value([0.5]))


def test_holm_on_p_values_made_by_hand():
    """Four tests: thresholds .0125, .0167, .025, .05; behind the first failure none counts."""
    assert holm({"a": 0.01, "b": 0.016, "c": 0.03, "d": 0.04}) == {"a", "b"}
    assert holm({"a": 0.013, "b": 0.016, "c": 0.02, "d": 0.04}) == set()
    assert holm({"a": 0.04}) == {"a"} and holm({"a": 0.04, "b": 0.04}) == set()
    assert holm({"a": 0.04, "b": 0.02}) == {"a", "b"}
    assert holm({"a": 0.001, "b": math.nan}) == {"a"} and holm({}) == set()


def test_a_run_of_studies_names_the_intervals_that_would_not_survive():
    def findings(tests):
        return lab.Findings({}, HOLDS, "", None, tests=tests)

    def apart(x):
        return Difference({"x": [x - 0.01, x, x + 0.01]}, {"x": [0.0] * 3}, "x")

    found = {"one": findings({"sure": apart(5.0), "perhaps": apart(0.03)}),
             "two": findings({"no": apart(0.0)}), "three": findings({})}
    text = lab.many_at_once(found)
    assert "rest on 3 comparisons; 2 of them are clear" in text and "1 also after" in text
    assert "one: perhaps (p = 0.035)" in text and "sure" not in text and "two: no" not in text
    assert "No verdict rests" in lab.many_at_once({"three": findings({})})


# ---------------------------------------------------------------- exact studies, by other formulas

def test_exact_u_is_the_sum_over_all_answers_and_what_the_samples_estimate():
    draw = torch.Generator().manual_seed(0)
    log_p, ref = torch.randn(2, 3, 40, generator=draw, dtype=torch.float64).log_softmax(-1)
    u = [sum(math.exp(x) ** (1 / 0.8) for x in row) for row in log_p.tolist()]
    assert_close(exact.exact_log_u(log_p, 0.8).exp(), torch.tensor(u, dtype=torch.float64))
    assert_close(exact.exact_log_u(log_p, 1.0), torch.zeros(3, dtype=torch.float64))
    y = torch.multinomial(ref.exp(), 200_000, replacement=True, generator=draw)             # (3, K)
    method = METHODS["dft"](0.8, 1.0, 3)
    batch = Batch(mask=torch.ones(y.shape[1] + 1, 3, 1, dtype=torch.bool),
                  ref_logps=torch.cat([ref[:, :1], ref.gather(1, y)], 1).T)
    _, _, info = method.weigh(torch.cat([log_p[:, :1], log_p.gather(1, y)], 1).T[..., None], batch)
    assert_close(info["log_u"].exp(), torch.tensor(u, dtype=torch.float64), rtol=0.03, atol=0)


def test_estimators_agree_at_the_start_and_forget_as_they_should(monkeypatch):
    monkeypatch.setattr(exact, "PROMPTS", 6)
    errors = exact.watch_policy(0, visits=3)
    for name, visits in errors.items():
        # The policy still is the reference, so u is 1, and every sample says so.
        assert max(map(abs, visits[0])) < 1e-9, name
    first, second = (torch.tensor(errors["γ 1"][v]).exp() for v in (1, 2))  # τ = 1: error = log û
    assert_close(torch.tensor(errors["floor, no memory"][2]).exp(), 0.1 + 0.9 * second)
    assert_close(torch.tensor(errors["γ 0.5"][2]).exp(), 0.25 + 0.25 * first + 0.5 * second)


def test_a_reference_in_memory_costs_its_parameters_and_a_stored_one_nothing(monkeypatch):
    shape = Config(vocab_size=64, n_layer=1, n_head=2, d_model=32, d_mlp=64, max_len=64)
    monkeypatch.setattr(cost, "SHAPE", shape)
    parameters = 4 * sum(p.numel() for p in Transformer(shape).parameters())
    asft = cost.peak_bytes(partial(cost.stepper, 0, "asft", {}))
    stored = cost.peak_bytes(partial(cost.stepper, 0, "dpo", {}, "stored"))
    live = cost.peak_bytes(partial(cost.stepper, 0, "dpo", {}, "in memory"))
    assert abs(stored - asft) < 0.01 * asft
    assert live - stored == pytest.approx(parameters, rel=0.01)


def test_pushes_on_negatives_are_those_of_the_losses_by_hand():
    """One prompt, the wanted answer and four others, of 2 to 6 tokens."""
    mask = torch.zeros(5, 1, 6, dtype=torch.bool)
    lengths = (4, 2, 3, 5, 6)
    for answer, n in enumerate(lengths):
        mask[answer, :, :n] = True
    draw = torch.Generator().manual_seed(0)
    logps = -torch.rand(5, 1, 6, generator=draw, dtype=torch.float64) * mask
    ref = logps.sum(-1) - torch.rand(5, 1, generator=draw, dtype=torch.float64)
    batch = Batch(mask=mask, index=torch.tensor([0]), ref_logps=ref)
    l, ref = logps.sum(-1)[:, 0], ref[:, 0]
    a = l / torch.tensor(lengths)

    def shares(down):
        return down / down.sum()

    expected = {
        "dft2": (a[1:] / 0.3).softmax(0),
        "dft": (l - ref)[1:].softmax(0),
        "simpo": shares(torch.sigmoid(5 - 10 * (a[0] - a[1:]))),
        "spin": shares(torch.sigmoid(-0.1 * ((l - ref)[0] - (l - ref)[1:]))),
    }
    for name, share in expected.items():
        assert_close(shares(pools.pushes(logps, batch, name)[:, 0]), share, msg=name)


@pytest.mark.parametrize("spread, higher, dft2, simpo, verdict", [
    (0.2, 1.0, 0.4, 0.26, HOLDS),
    (5.0, 0.5, 0.25, 0.4, NOT),
    (5.0, 1.0, 0.4, 0.26, "sampled answers score alike: does not hold here; "
     "far above random text: holds; DFT2 weighs the likeliest negative most: holds; "
     "an average over pairs does not: holds"),
])
def test_the_verdict_on_pools(spread, higher, dft2, simpo, verdict, tmp_path, monkeypatch):
    def measured(function, jobs, words):
        found = []
        for (seed,) in jobs:
            e = 0.001 * seed
            found.append({
                "sampled": {"score": -1.5 - e, "spread": spread + e},
                "random": {"score": -9.5, "spread": 1.0, "higher": higher - e},
                "dft2": {"share": dft2 + e}, "dft": {"share": 0.3},
                "simpo": {"share": simpo + e}, "spin": {"share": 0.25},
            })
        return found

    monkeypatch.setattr(pools, "in_processes", measured)
    findings = pools.pools(Lab([0, 1, 2], tmp_path))
    assert findings.verdict == verdict and len(findings.tests) == 4


@pytest.mark.parametrize("seconds, megabytes, stored, verdict", [
    (1.0, 100, 1.0, HOLDS), (1.9, 100, 1.0, NOT), (1.0, 195, 1.0, NOT),
    (1.0, 100, 0.5, f"reference in memory: holds; reference stored: {NOT}"),
])
def test_the_verdict_on_the_cost_of_dft2(seconds, megabytes, stored, verdict, tmp_path,
                                         monkeypatch):
    """What DFT costs is 2 s and 200 MB, or `stored` of that."""
    def measure(lab, settings):
        data = {}
        for name in settings:
            x = {"dft2": 0.0, "dft, reference stored": stored}.get(name, 1.0)
            cpu, space = (seconds, megabytes) if name == "dft2" else (2 * x, 200 * x)
            data[name] = {"seconds": [cpu, cpu * 1.01, cpu], "megabytes": [space] * 3}
        return data

    monkeypatch.setattr(cost, "measure", measure)
    assert function("dft_cost")(Lab([0, 1, 2], tmp_path)).verdict == verdict


# ---------------------------------------------------------------------------------------- controls

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


def test_settings_are_chosen_by_right_answers_on_seeds_of_their_own(tmp_path, monkeypatch):
    """First the rate, then the hyper-parameters, and the best of two seeds wins at last."""
    monkeypatch.setattr(tuned, "FIELDS", {"noisy": ("sft", "simpo", "sft → dpo")})
    first = {5e-5: 0.1, 1e-4: 0.5, 2e-4: 0.6, 5e-4: 0.3}
    second = {1e-4: 0.9, 2e-4: 0.3}
    asked = []

    class Noted(Pretend):
        def run(self, runs, seeds=None):
            asked.append((seeds, len(runs)))
            rates = first if seeds == tuned.SEEDS[:1] else second
            data = {}
            for label, run in runs.items():
                right = rates.get(run.recipe.lr, 0.1)
                if run.hyper.get("beta") in (8.0, 0.01):
                    right += 0.05
                data[label] = {"right": [right]}
            return data

    best = tuned.choose(Noted(tmp_path, {}))["noisy"]
    assert best == {"sft": ({}, 1e-4), "simpo": ({"beta": 8.0, "gamma": 4.0}, 2e-4),
                    "sft → dpo": ({"beta": 0.01}, 2e-4)}
    one, other = tuned.SEEDS[:1], tuned.SEEDS[1:]
    assert asked == [(one, 3 * len(tuned.RATES)), (one, 3 + 2), (other, 3 * 2)]
    assert not set(tuned.SEEDS) & set(range(600))


def test_every_setting_of_a_grid_can_be_built_and_every_rival_has_a_grid():
    for name, grid in tuned.GRIDS.items():
        for hyper in grid:
            run = tuned.setting("clean", name, hyper, 1e-4)
            assert vars(build_method(run.method, run.hyper, 4)).items() >= hyper.items()
    for data, names in tuned.FIELDS.items():
        assert data in tuned.DATA and set(names) <= set(tuned.GRIDS)
    assert {"sft", "dft", "dft2", *rivals.RIVALS} <= set(tuned.FIELDS["noisy"])


def test_tune_prints_what_can_stand_in_the_file(tmp_path, monkeypatch):
    best = {"noisy": {"sft": ({}, 1e-05), "simpo": ({"beta": 8.0, "gamma": 4.0}, 0.0002)}}
    monkeypatch.setattr(tuned, "choose", lambda lab: best)
    lab_ = Pretend(tmp_path, {})
    lab_.tune = True
    sentence = function("methods")(lab_).sentence
    assert ast.literal_eval(sentence.partition("CHOSEN = ")[2]) == best
    assert lab_.seeds == list(tuned.SEEDS)


def test_what_is_chosen_comes_from_the_grids_and_what_has_no_grid_runs_at_its_defaults():
    for data, settings in tuned.CHOSEN.items():
        assert tuple(settings) == tuned.FIELDS[data]
        for name, (hyper, rate) in settings.items():
            assert hyper in tuned.GRIDS[name] and rate in tuned.RATES, (data, name)
    run = tuned.at_best("noisy", "sft → dpo")
    assert (run.method, run.init, run.noise, run.persona) == ("dpo", "sft", 0.3, "troll")
    assert tuned.at_best("pairs", "dpo").persona is None
    assert tuned.at_best("clean", "slic") == Run("slic")
    told = tuned.in_words("simpo", tuned.setting("clean", "simpo", {"beta": 10.0}, 2e-4))
    assert told == "simpo (beta 10, lr 0.0002)"


def pretended(asked):
    """A stand-in for run_all: it notes what it is asked for, and invents the marks."""
    def run_all(runs, seeds, cache, found):
        curve = [[0, -1.0, -1.0, -2.0, -1.0], [4, -3.0, -1.0, -1.5, -4.0]]
        marks = {"right": 0.6, "agree": 0.9, "skill": 0.6, "curve": curve, "info": {"log_u": -1.0}}
        for seed in seeds:
            found(None, seed, {"right": 0.3, "agree": 0.9, "skill": 0.6})
            for label in runs:
                asked.append((label, seed))
                found(label, seed, marks)
    return run_all


def test_a_run_is_measured_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(lab, "run_all", pretended(asked))
    known = lab.Known(tmp_path)
    for _ in range(2):
        data = Lab([0, 1], tmp_path, known).run({"a": Run("sft"), "b": Run("dft")})
    Lab([0, 1], tmp_path, known).run({"c": Run("dft"), "d": Run("ift")})
    Lab([1, 2], tmp_path, known).run({"a": Run("sft")})
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("d", 0), ("d", 1), ("a", 2)]
    expected = {"log_u": -1.0, "wanted_change": 0.5, "negatives_change": -3.0, "peak_lost": 2.0}
    for mark, value in expected.items():
        assert data["b"][mark] == [value, value]
    assert data["a"]["average"] == pytest.approx([0.7, 0.7]) and data["base"]["right"] == [0.3, 0.3]


def test_an_interrupted_command_goes_on_with_the_runs_that_are_missing(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(lab, "run_all", pretended(asked))
    runs = {"a": Run("sft"), "b": Run("dft", {"tau": 0.3}), "own": Run(dft.FloorOnly)}
    before = Lab([0, 1], tmp_path).run(runs)

    # The last line, b of seed 1, was being written when the process was killed.
    path = lab.Known(tmp_path / "cache").path
    path.write_text(path.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    asked.clear()
    assert Lab([0, 1], tmp_path).run(runs) == before
    assert asked == [("own", 0), ("b", 1), ("own", 1)], "a study's own class is in no known file"

    # Of a file whose last line was cut off nothing is lost by writing on.
    asked.clear()
    Lab([0, 1], tmp_path).run({"a": Run("sft"), "b": Run("dft", {"tau": 0.3})})
    assert asked == []


# -------------------------------------------------------------------------------- the command line

def test_help_lists_every_study_with_its_claim_and_needs_no_torch():
    code = ("import sys; from minialign.__main__ import main\n"
            "try: main(['study', '-h'])\nexcept SystemExit: pass\n"
            "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    for name, study in STUDIES.items():
        assert f"{name} " in words and study.claim in words and study.source in words


def test_every_study_exists():
    for name in STUDIES:
        assert callable(function(name)) and 3 <= STUDIES[name].seeds <= 5


@pytest.mark.parametrize("words, sentence", [
    (["magic"], "no study magic; choose from likelihoods, gamma, "),
    (["gamma", "--methods", "dft"], "--methods means"),
    (["methods", "--methods", "sft,magic"], "no method magic"),
])
def test_mistakes_get_one_sentence_and_status_2(words, sentence, capsys):
    assert main(["study", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_json_holds_one_value_per_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exact, "PROMPTS", 4)
    path = tmp_path / "numbers.json"
    where = ["--json", str(path), "--out", str(tmp_path)]
    assert main(["study", "exact_u", "--seeds", "2", "--first-seed", "7", *where]) == 0
    numbers = json.loads(path.read_text())
    assert list(numbers) == ["exact_u"]
    for of_one in numbers["exact_u"].values():
        assert {len(values) for values in of_one.values()} == {2}
    printed = capsys.readouterr().out
    assert "2 seeds (7–8)" in printed and (tmp_path / "study_exact_u.png").exists()
