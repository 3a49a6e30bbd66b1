"""The studies of ASFT and IFT: exact numbers by other formulas, verdicts on invented ones.

No test says how a method of the papers ought to fare.
"""

import math

import pytest
import torch
from conftest import tiny_model
from pretend import SEEDS, Pretend, function
from torch.testing import assert_close

from minialign.data import Batch, Example, collate
from minialign.hf.tokenizer import byte_tokenizer
from minialign.lab import arena, tasks
from minialign.lab.places import PLACES, by_place, places, split
from minialign.lab.race import TITLES
from minialign.lab.studies import STUDIES, balance, estimate, fall, ift, texts
from minialign.lab.studies.lab import HOLDS, NOT, OPEN, TRAINED_FOR, in_parts
from minialign.logps import batch_logps
from minialign.methods import METHODS


def pushed(**changes):
    """Marks of a run whose chosen answer changed so at each place, and by the sum as a whole."""
    marks = {f"good_{place}_change": x for place, x in changes.items()}
    return {**marks, "good_logp_change": sum(changes.values()), "jitter": 0.01}


EXCESS = ("in log-probs", "in probabilities")
FALL = ("it rises at the fork", "and falls elsewhere", "likelihood keeps the whole up")
BALANCED = "in probabilities and at the logits of two contexts"
LIKELIHOOD = "for the alignment term without the likelihood term"
SLIPS = [f"after {slip}" for slip in ift.SLIPS.values()]
DOWN = pushed(opening=-1, fork=1, behind=-3)
UP = {"dpo + sft": {"good_logp_change": 1.0}}
OPPOSITES = [   # study, marks by setting, verdict
    ("asft_vs_dpo", {"dpo": {"bad_logp_change": -20, "garbage": 0.5}}, HOLDS),
    ("asft_vs_dpo", {"dpo": {"bad_logp_change": -20}},
     in_parts(dict(zip(EXCESS, (HOLDS, NOT), strict=True)))),
    ("asft_vs_dpo", {"dpo, one rate": {"bad_logp_change": -20, "garbage": 0.5}},
     "holds only at one learning rate for all"),
    ("asft_vs_dpo", {"dpo": {"bad_logp_change": -20, "garbage": 0.5},
                     "sft": {"bad_logp_change": -2, "garbage": 0.1}, "asft": {}},
     "holds only against DPO: under SFT, which sees no rejected answer, it is less"),
    ("asft_vs_dpo", {"asft": {"bad_logp_change": -20, "garbage": 0.5}}, NOT),
    ("asft_vs_dpo", {"dpo": {"jitter": 2}}, OPEN),
    ("balance", {"base": {"right": 0.3, "wrong": 0.6}}, f"holds only {BALANCED}, {LIKELIHOOD}"),
    ("balance", {"base": {"right": 0.6, "wrong": 0.3}}, NOT),
    ("fall", {"dpo": DOWN} | UP, HOLDS),
    ("fall", {"dpo": DOWN}, in_parts(dict(zip(FALL, (HOLDS, HOLDS, NOT), strict=True)))),
    ("fall", {"dpo": pushed(opening=-1, fork=-4, behind=-1)} | UP,
     in_parts(dict(zip(FALL, (NOT, HOLDS, HOLDS), strict=True)))),
    ("fall", {"dpo": pushed(opening=0.1, fork=1, behind=1)} | UP,
     in_parts(dict(zip(FALL, (HOLDS, NOT, HOLDS), strict=True)))),
    ("beta", {}, HOLDS),
    ("beta", {"clean β 1": {"right": 0.2}}, HOLDS),
    ("beta", {"clean β 0.5": {"agree": 0.6}}, f"holds only {TRAINED_FOR}"),
    ("beta", {"β 0.5": {"right": 0.2}}, NOT),
    ("beta", {"β 0.5": {"jitter": 1}}, OPEN),
    ("init", {"untrained, dpo": {"right": 0.1}, "untrained, orpo": {"right": 0.3}}, HOLDS),
    ("init", {"untrained, dpo": {"right": 0.1}}, "holds only against DPO"),
    ("init", {"dpo": {"right": 0.1}}, NOT),
    ("init", {"untrained, asft": {"right": 0.1}}, NOT),
    ("init", {"untrained": {"right": 0.01}, "untrained, dpo": {"right": 0.002}}, NOT),
    ("init", {"untrained": {"right": 0.01}, "base, dpo": {"right": 0.3}}, "holds only against DPO"),
    ("init", {"sft": {"right": 0.1}}, OPEN),
    ("lambda", {"λ 0.5": {"right": 0.9}}, HOLDS),
    ("lambda", {"noisy λ 0.2": {"right": 0.9}}, "holds only with 30 % of the labels wrong"),
    ("lambda", {"λ": {"right": 0.3}}, NOT),
    ("lambda", {"sft": {"lost_behind": 0.0}}, ift.NO_ROOM),
    ("lambda", {"λ 0.5": {"right": 0.9}, "sft": {"lost_behind": 0.0}}, HOLDS),
    ("propagation", {"released code": {"right": 0.9}, "eq. 21": {"right": 0.9}}, HOLDS),
    ("propagation", {"released code": {"right": 0.9}, "eq. 21": {"right": 0.9},
                     "simple sum": {"right": 0.9}},
     "holds only for released code with every label right and released code with 30 % of the "
     "labels wrong"),
    ("propagation", {}, NOT),
    ("recovery", {name: {mark: 0.6 for mark in ift.SLIPS}
                  for name in ("released code", "eq. 21", "λ 0.2", "λ 0.5")}
     | {"random": {}}, HOLDS),
    ("recovery", {}, NOT),
    ("recovery", {"clean λ 0.2": {"recovery_fork": 0.6}},
     in_parts({SLIPS[0]: NOT, SLIPS[1]: f"holds only for λ 0.2 with {TITLES['clean']}"})),
    ("pipeline", {"ift": {"right": 0.9}}, HOLDS),
    ("pipeline", {"sft → dpo": {}, "sft": {"right": 0.4}}, HOLDS),
    ("pipeline", {}, f"{HOLDS}, as it does for SFT alone"),
    ("pipeline", {"noisy sft → dpo": {"right": 0.9}},
     in_parts({TITLES["clean"]: f"{HOLDS}, as it does for SFT alone", TITLES["noisy"]: NOT})),
    ("pipeline", {"ift": {"jitter": 1}}, OPEN),
]


@pytest.fixture(autouse=True)
def no_base_models(monkeypatch):
    monkeypatch.setattr(ift, "base_pushes", lambda lab: {"sft": [0.2, 0.1, 0.7]})


@pytest.mark.parametrize("name, outcome, verdict", OPPOSITES)
def test_the_verdict_follows_the_numbers(name, outcome, verdict, tmp_path):
    findings = function(name)(Pretend(tmp_path, outcome))
    assert findings.verdict == verdict, findings.sentence
    assert findings.sentence and (findings.tests or verdict == NOT)
    for setting in findings.numbers().values():
        assert {len(values) for values in setting.values()} == {SEEDS}


@pytest.mark.parametrize("name", ["balance", "fall", "asft_vs_dpo", "recovery"])
def test_the_sentence_quotes_the_numbers_and_the_picture_is_drawn(name, tmp_path):
    def found(x):
        outcome = {"base": {"right": x / 4, "wrong": x}, "dpo": pushed(opening=-x),
                   "sft": {"recovery_fork": x}}
        return function(name)(Pretend(tmp_path, outcome))

    one, other = found(0.6), found(0.7)
    assert one.sentence != other.sentence
    picture = one.draw(folder=tmp_path, name=f"study_{name}")
    assert picture.stat().st_size > 10_000
    assert STUDIES[name].claim in one.report(name, STUDIES[name], Pretend(tmp_path, {}))


# --------------------------------------------------------------------------- ratios of gradients

@pytest.mark.parametrize("p_w, p_l", [(0.3, 0.6), (0.95, 0.01), (0.2, 0.01), (0.63, 0.31)])
def test_gradient_ratios_are_those_of_autograd_on_the_losses_typed_again(p_w, p_l):
    """In probabilities, in log-probs, and in three logits: of two contexts, and of one."""
    def log_odds(log_p):
        return log_p - torch.log1p(-log_p.exp())

    def dpo(w, l):
        return -torch.nn.functional.logsigmoid(0.1 * (w - math.log(p_w) - l + math.log(p_l)))

    def alignment(w, l):
        return -0.1 * (log_odds(w).sigmoid().log() + (-log_odds(l)).sigmoid().log())

    def asft(w, l):
        return -w + alignment(w, l)

    def orpo(w, l):
        return -w - METHODS["orpo"]().lam * (log_odds(w) - log_odds(l)).sigmoid().log()

    losses = {"dpo": dpo, balance.ALONE: alignment, "asft": asft, "orpo": orpo}
    p = torch.tensor([p_w, p_l, 1 - p_w - p_l], dtype=torch.float64)
    for name, loss in losses.items():
        x = p[:2].clone().requires_grad_()
        in_p = torch.autograd.grad(loss(*x.log()), x)[0].abs()
        x = p[:2].log().requires_grad_()
        in_log = torch.autograd.grad(loss(*x), x)[0].abs()
        z = p.log().repeat(2, 1).requires_grad_()           # a context for each answer
        log_p = z.log_softmax(-1)
        two = torch.autograd.grad(loss(log_p[0, 0], log_p[1, 1]), z)[0].norm(dim=-1)
        z = p.log().requires_grad_()                        # one context for both
        log_p = z.log_softmax(-1)
        one = torch.autograd.grad(loss(log_p[0], log_p[1]), z)[0].abs()
        expected = [float(g[1] / g[0]) for g in (in_p, in_log, two, one)]
        assert list(balance.gradient_ratios(name, p_w, p_l)) == pytest.approx(expected, rel=1e-9)


def test_at_the_logits_the_unlikelier_answer_gets_the_larger_gradient_unless_a_context_is_shared():
    ratios = balance.gradient_ratios("dpo", 0.95, 0.01)
    assert ratios.p == pytest.approx(95) and ratios.log_p == 1
    by_hand = math.hypot(0.95, 0.99, 0.04) / math.hypot(0.05, 0.01, 0.04)
    assert ratios.logits == pytest.approx(by_hand)
    assert round(ratios.logits) == 21 and ratios.one_context == pytest.approx(1)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_asfts_alignment_term_is_balanced_where_the_two_answers_are_all_there_is(p):
    ratios = balance.gradient_ratios(balance.ALONE, p, 1 - p, lam=0.3)
    assert (ratios.p, ratios.logits, ratios.one_context) == pytest.approx((1, 1, 1))
    assert ratios.log_p == pytest.approx((1 - p) / p)
    whole = balance.gradient_ratios("asft", p, 1 - p, lam=0.3)
    assert whole.p == pytest.approx(ratios.p * 0.3 / 1.3)
    assert balance.gradient_ratios("dpo", p, 1 - p).logits == pytest.approx(p / (1 - p))


def test_the_alignment_term_and_the_likelihood_add_up_to_asft():
    logps = -torch.rand(2, 3, 4, dtype=torch.float64)
    batch = Batch(torch.ones(2, 3, 4, dtype=torch.bool))
    parts = [kind.weigh(logps, batch)
             for kind in (balance.AlignmentAlone(0.3), METHODS["sft"]())]
    loss, weights, _ = METHODS["asft"](0.3).weigh(logps, batch)
    assert_close(parts[0][0] + parts[1][0], loss)
    assert_close(parts[0][1] + parts[1][1], weights)


# ------------------------------------------------------------------------------ place by place

PAIR = [Example(0, [1, 2], [[5, 6, 7, 8], [5, 6, 9, 8, 8]]),       # parts at its third token
        Example(1, [3], [[4, 5], [6, 5]]),                         # at once
        Example(2, [3], [[4, 5], [4, 5, 6]])]                      # not at all: a beginning


def test_places_are_those_read_off_by_hand_and_their_parts_add_up():
    batch, model = collate(PAIR), tiny_model()
    lengths = places(batch).sum(-1).permute(2, 1, 0).tolist()
    assert lengths == [[[2, 1, 1], [2, 1, 2]], [[0, 1, 1], [0, 1, 1]], [[2, 0, 0], [2, 1, 0]]]
    parts = by_place(model, batch)
    assert parts.shape == (len(PLACES), 2, 3)
    assert_close(parts.sum(0), batch_logps(model, batch).sum(-1))
    alone = collate([Example(0, [1, 2], [[5, 6]])])
    assert_close(parts[0, 0, 0], batch_logps(model, alone).sum())
    with pytest.raises(ValueError, match="a fork needs two answers"):
        places(alone)


def test_at_the_opening_dpos_pushes_cancel_and_those_of_a_likelihood_do_not():
    batch = collate(PAIR[:1])
    batch.ref_logps = torch.tensor([[-3.0], [-4.0]], dtype=torch.float64)
    logps = batch_logps(tiny_model(), batch)
    opening = {}
    for name, method in {"dpo": METHODS["dpo"](), "sft": METHODS["sft"](),
                         "both": fall.DPOAndSFT(), "asft": METHODS["asft"]()}.items():
        _, weights, _ = method.weigh(logps.detach(), batch)
        opening[name] = split(weights, batch)[0].sum().item()
    assert opening["dpo"] == pytest.approx(0, abs=1e-12)
    assert opening["both"] == pytest.approx(opening["sft"]) and opening["asft"] > 0


def test_pushes_by_place_are_the_shares_of_tokens_in_sft_and_grow_to_the_right_in_eq_21():
    batch = collate([Example(0, [1, 2], [[5, 6, 7, 8, 9], [5, 6, 9, 8, 7]])])
    found = ift.pushes(tiny_model(), batch)
    assert found["sft"] == pytest.approx([2 / 5, 1 / 5, 2 / 5])
    assert found["eq. 21"] == pytest.approx([1 + 2, 3, 4 + 5])
    assert sum(found["released, detached"]) == pytest.approx(1)


def test_the_exam_tells_the_right_answer_place_by_place_and_asks_for_it_after_a_slip(monkeypatch):
    for name in ("N_TEST", "N_SKILL", "N_CURVE"):
        monkeypatch.setattr(arena, name, 5)
    tokenizer = byte_tokenizer(tasks.WORDS)
    exam, model = arena.Exam(tokenizer, 0), tiny_model(vocab_size=tokenizer.vocab_size)
    marks = exam.grade(model)
    assert sum(marks[f"good_{place}"] for place in PLACES) == pytest.approx(marks["good_logp"])
    assert 0 <= marks["lost_behind"] <= 1 - marks["right"]
    for b in range(5):
        right, wrong = (tokenizer.decode(exam.disputed.rows.y[a, b].tolist()) for a in (0, 1))
        text = exam.slips["fork"].rows
        rest = tokenizer.decode(text.y[0, b][text.mask[0, b]].tolist())
        assert right.endswith(rest) and not wrong.endswith(rest)


# ------------------------------------------------------------------------------------- estimates

def test_with_lambda_1_the_policy_reads_its_own_words_up_to_its_first_slip():
    model, method = tiny_model(), METHODS["ift"](lam=1.0)
    examples = [Example(i, [1 + i, 2, 3], [[4, 5 + i, 6, 7]]) for i in range(6)]
    found = estimate.estimates(model, examples)
    before = ~found["slips"]
    assert before[:, 0].all() and not before.all()
    assert_close(found["ift 1"][before], found["own"][before])
    assert_close(found["sft"], batch_logps(model, collate(examples))[0].exp())

    # Who answers as the policy would has nothing to be misled by: all estimates are the truth.
    same = examples[:1]
    for _ in range(4):
        guesses = method.prepare(model, [collate(same)])[0].rows.guesses[0, 0].tolist()
        same = [Example(0, [1, 2, 3], [guesses])]
    found = estimate.estimates(model, same)
    for read in estimate.READS:
        assert_close(found[read], found["own"])
    with pytest.raises(ValueError, match="answers of one length"):
        estimate.estimates(model, [examples[0], Example(9, [1], [[2]])])


def test_the_truth_is_the_policy_behind_its_own_words():
    model, [example] = tiny_model(), [Example(0, [1, 2, 3], [[4, 5, 6]])]
    text, expected = list(example.prompt), []
    for token in example.answers[0]:
        p = (model(torch.tensor([text]))[0, -1] @ model.head.T).softmax(-1)
        expected.append(p[token].item())
        text.append(int(p.argmax()))
    assert estimate.estimates(model, [example])["own"][0].tolist() == pytest.approx(expected)


# ------------------------------------------------------------------------------------- real text

@pytest.mark.parametrize("ahead, verdict", [
    ({"sft": 0.02, "orpo": 0.02, "dpo": 0.02}, HOLDS),
    ({"sft": 0.0, "orpo": 0.02, "dpo": 0.02}, "holds only against orpo and dpo"),
    ({"sft": 0.0, "orpo": -0.02, "dpo": 0.0}, NOT),
])
def test_the_verdict_on_texts_wants_both_marks(ahead, verdict, tmp_path, monkeypatch):
    def run_rows(lab, rows, development=False):
        data = {}
        for name in ("base", *rows):
            low = ahead.get(name, 0.0)
            data[name] = {mark: [0.2 - low + s / 1000 for s in range(3)] for mark in texts.MARKS}
        data["asft"] = {mark: [0.2 + s / 999 for s in range(3)] for mark in texts.MARKS}
        return data

    monkeypatch.setattr(texts, "run_rows", run_rows)
    findings = texts.texts(Pretend(tmp_path, {}))
    assert findings.verdict == verdict and len(findings.tests) == 6


def test_texts_are_measured_on_openings_that_nobody_saw():
    size = texts.SIZE
    train, test = texts.dealt(size, 3, False)
    _, kept = texts.dealt(size, 4, True)
    sets = [{row.prompt for row in rows} for rows in (train, test, kept)]
    assert len(train) == size.train and len(kept) == size.development and len(test) > 100
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


def test_the_texts_of_a_tiny_run_are_marked():
    size = texts.Size(train=4, development=2, batch=4, epochs=1, new=8)
    marks = texts.row_job(texts.Training("asft", 1e-3), 0, size, development=True)
    assert set(marks) == set(texts.MARKS) and 0 <= marks["rouge_l"] <= 1
