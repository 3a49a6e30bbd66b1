"""The studies: their verdicts, which follow from invented numbers, and their command line.

No test says how a method of the papers ought to fare.
"""

import json
import subprocess
import sys

import pytest
from pretend import SEEDS, Pretend, function

from minialign.__main__ import main
from minialign.lab.race import TITLES, Difference
from minialign.lab.studies import STUDIES, cost, exact, lab, pools
from minialign.lab.studies.lab import HOLDS, NOT, OPEN, TRAINED_FOR, Better, Lab


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
# SFT alone is worse than with a second stage.
SECOND_STAGES = {"sft": {"right": 0.4}} | {
    f"{stage}, {kind}": {} for stage in ("sft → dpo", "sft → simpo", "sft → kto")
    for kind in ("preference pairs", "own answers")}

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
    ("filter", {"dft, 95": {"right": 0.9}, "dft, 35": {"right": 0.4}, "dft, 5%": {"right": 0.5}},
     f"{HOLDS}, but not everywhere there"),
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
    ("two_stages", {"dft": {"right": 0.9}, **SECOND_STAGES}, HOLDS),
    ("two_stages", {"dft": {"right": 0.9, "agree": 0.5}, **SECOND_STAGES},
     f"holds only {TRAINED_FOR}"),
    ("two_stages", {}, in_all(TABLES_3_4_PARTS, f"{HOLDS}, and SFT alone is as good",
                              {part: NOT for part in TABLES_3_4_PARTS if "better" in part})),
    ("two_stages", {"noisy dft": {"right": 0.9}, **SECOND_STAGES,
                    "clean sft → kto, preference pairs": {"right": 0.8}},
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


# ------------------------------------------------------------------ studies that train nothing


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
    (1.0, 100, 1.0, HOLDS), (1.97, 100, 1.0, NOT), (1.0, 195, 1.0, NOT),
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
