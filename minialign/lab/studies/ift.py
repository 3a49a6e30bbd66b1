"""What the IFT paper claims (arXiv 2405.11870): residual connection and propagation, part by part.

What its first forward pass costs is in cost.py, what it says about estimates in estimate.py.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch

from minialign.data import collate
from minialign.lab import plot
from minialign.lab.arena import RECIPE, Exam, Run, fine_tuning_data
from minialign.lab.places import PLACES, split
from minialign.lab.plot import COLOR, average
from minialign.lab.race import CONDITIONS, CONTROL, TITLES, Difference, tripled
from minialign.lab.small import base_model
from minialign.lab.studies.lab import (
    HOLDS,
    MARKS,
    SMALL,
    Better,
    Findings,
    Lab,
    by_condition,
    in_parts,
    less,
    more,
    verdict,
)
from minialign.lab.studies.tuned import at_best, in_words
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.stats import show
from minialign.train import fit, fused_pass

DEFAULTS = "ift, defaults"
NO_ROOM = f"no room to decide: behind the fork SFT loses no more than {SMALL}"


@dataclass
class RandomGuesses(METHODS["ift"]):
    """IFT whose guess, where the policy's is not the label, is any token of the batch's answers.

    It has the same amount of noise in the same places, and nothing of the policy's preferences.
    """

    def prepare(self, model, parts):
        return [self.confuse(part) for part in super().prepare(model, parts)]

    def confuse(self, batch):
        rows = batch.rows
        tokens = rows.y[batch.mask]
        draw = torch.Generator().manual_seed(int(batch.index.sum()))
        noise = tokens[torch.randint(len(tokens), rows.y.shape, generator=draw).to(tokens.device)]
        guesses = torch.where(rows.guesses == rows.y, rows.y, noise)
        return replace(batch, rows=replace(rows, guesses=guesses))


LAMS = (0.2, 0.5, 0.8, 1.0)


def residuals() -> dict[str, Run]:
    """IFT without propagation, and the control that reads random tokens."""
    runs = {f"λ {lam:g}": Run("ift", {"lam": lam, "gamma": 0.0}) for lam in LAMS}
    return runs | {"random, λ 0.5": Run(RandomGuesses, {"lam": 0.5, "gamma": 0.0})}


def residual(lab: Lab) -> Findings:
    """The rule: it helps if λ = 0.2 or 0.5 clearly gives more right answers than SFT. If it does
    not, there must have been room. A guess is read behind its place, and the opening of an answer
    is never guessed wrong, so there is room only if SFT loses clearly more than SMALL behind the
    fork. Otherwise nothing is decided.
    """
    data = lab.both(residuals())
    gain, told, noise, room = {}, [], {}, {}
    zero = {"lost_behind": [0.0] * len(lab.seeds)}
    for c in CONDITIONS:
        for lam in LAMS:
            gain[c, lam] = Difference(data[f"{c} λ {lam:g}"], data[f"{c} sft"], "right")
        told.append(f"{c} labels " + ", ".join(f"λ = {lam:g} {gain[c, lam]}" for lam in LAMS))
        noise[c] = Difference(data[f"{c} λ 0.5"], data[f"{c} random, λ 0.5"], "right")
        room[c] = Difference(data[f"{c} sft"], zero, "lost_behind")
    helped = [key for key, difference in gain.items() if more(difference)]
    where = {c for c, _ in helped}
    found = verdict(
        any(lam in (0.2, 0.5) for _, lam in helped),
        all(gain[c, 0.2].below(SMALL) for c in CONDITIONS),             # 0.2 is the paper's
        limit=f"with {TITLES[helped[0][0]]}" if len(where) == 1 else "",
    )
    if not helped and not any(r.above(SMALL) for r in room.values()):
        found = NO_ROOM
    sentence = (
        f"Right answers against SFT (λ = 0), without propagation: {'; '.join(told)}. The policy's "
        f"own guesses against random tokens in the same places (λ = 0.5): {noise['clean']} clean, "
        f"{noise['noisy']} noisy. What SFT loses of the right answers behind the fork, where "
        f"guesses are read: {room['clean']} clean, {room['noisy']} noisy."
    )
    question = "IFT's residual alone: how much of its own guess should the model read (λ)?"
    colors = dict.fromkeys(residuals(), COLOR["ift"]) | {"random, λ 0.5": COLOR["ift_eq21"]}
    tests = {f"λ {lam:g} over sft, {c}": gain[c, lam] for c in CONDITIONS for lam in (0.2, 0.5)}
    return Findings(data, found, sentence,
                    partial(plot.answer_bars, by_condition(data), question, colors), tests=tests)


WEIGHTS = {             # the ways to weigh tokens, for `pushes`
    "sft": METHODS["sft"](),
    "eq. 21": METHODS["ift_eq21"](),
    "released code": METHODS["ift"](),
    "released, detached": METHODS["ift"](detach_weights=True),
}


@torch.no_grad()
def pushes(model, batch) -> dict[str, list[float]]:
    """{way: mean push on a right answer, summed over its opening, fork and what is behind}."""
    logps = batch_logps(model, batch)
    found = {}
    for way, method in WEIGHTS.items():
        _, weights, _ = method.weigh(logps, batch)
        found[way] = split(weights, batch)[:, 0].sum(-1).tolist()       # (3,), over the examples
    return found


def base_pushes(lab: Lab) -> dict[str, list[float]]:
    """The same of the base models' answers to the exam, the mean over seeds."""
    found = {way: [] for way in WEIGHTS}
    for seed in lab.seeds:
        model, tokenizer = base_model(seed, lab.out / "cache")
        for way, places in pushes(model, Exam(tokenizer, seed).disputed).items():
            found[way].append(places)
    means = {}
    for way, seeds in found.items():
        means[way] = [average(xs) for xs in zip(*seeds, strict=True)]
    return means


def propagation(lab: Lab) -> Findings:
    """Each form against the simple sum of its own kind, at the same λ: eq. 21 is a sum over the
    tokens of an answer, the released code a weighted mean of them.

    The rule: a form is better if it clearly gives more right answers than that.
    """
    runs = {
        "sft sum": Run("sft", {"reduction": "seq_sum"}),
        "simple sum": Run("ift_eq21", {"gamma": 0.0}),
        "simple mean": Run("ift", {"lam": 0.2, "gamma": 0.0}),
        "eq. 21": Run("ift_eq21"),
        "released code": Run("ift"),
        "released, detached": Run("ift", {"detach_weights": True}),
    }
    data = lab.both(runs)
    forms = {"released code": "simple mean", "eq. 21": "simple sum"}
    gain, told, share, steps = {}, [], {}, []
    for c in CONDITIONS:
        released = data[f"{c} released code"]
        for form, simple in forms.items():
            gain[c, form] = Difference(data[f"{c} {form}"], data[f"{c} {simple}"], "right")
        told.append(f"{c} labels " + ", ".join(f"{form} {gain[c, form]}" for form in forms))
        share[c] = average(released["negative_weights"])
        # From SFT to the released code, one change at a time.
        path = [data[f"{c} {name}"] for name in ("sft", "simple mean", "released, detached")]
        parts = [Difference(b, a, "right") for a, b in pairwise([*path, released])]
        steps.append(f"{c} labels {parts[0]}, {parts[1]} and {parts[2]}")

    where = []
    for way, places in base_pushes(lab).items():
        where.append(f"{way} " + ", ".join(f"{x:+.2f}" for x in places))
    clear = [f"{form} with {TITLES[c]}" for (c, form), d in gain.items() if more(d)]
    found = verdict(
        bool(clear), all(d.below(SMALL) for d in gain.values()),
        limit="" if len(clear) == len(gain) else "for " + " and ".join(clear),
    )
    sentence = (
        f"Right answers against the simple sum of the same kind: {'; '.join(told)}. From SFT to "
        "the released code, first reading guesses, then the weights, then the gradient through "
        f"them: {'; '.join(steps)}. That gradient pushes {share['clean']:.0%} and "
        f"{share['noisy']:.0%} of the wanted tokens down. Pushes on a right answer of the base "
        f"model at {', '.join(PLACES)}: {'; '.join(where)}. By sums and by means SFT itself "
        f"differs by {Difference(data['noisy sft sum'], data['noisy sft'], 'right')} (noisy)."
    )
    question = "IFT, λ = 0.2: does propagating losses through the answer help?"
    colors = dict.fromkeys(runs, COLOR["ift"]) | {
        "eq. 21": COLOR["ift_eq21"], "simple sum": COLOR["ift_eq21"], "sft sum": COLOR["sft"]}
    marks = MARKS | {"negative_weights": ("pushed down", 3)}
    return Findings(data, found, sentence,
                    partial(plot.answer_bars, by_condition(data), question, colors), marks,
                    tests={f"{form} over its {forms[form]}, {c}": d for (c, form), d in
                           gain.items()})


# ------------------------------------------------------------------ after a slip, and after SFT

SLIPS = {"recovery_opening": "a wrong first digit", "recovery_fork": "the wrong number's digit"}


def recovery(lab: Lab) -> Findings:
    """The answer begins with a slip that the policy did not choose: does it come back?

    What is measured is the probability of all the right answer's other tokens behind the slip. The
    rule: IFT recovers if that is clearly higher than after SFT, by more than SMALL, in one of its
    forms at the paper's λ = 0.2, or at 0.5.
    """
    whole = {"released code": Run("ift"), "eq. 21": Run("ift_eq21")}
    data = lab.both(residuals() | whole)
    parts, told, tests = {}, [], {}
    for mark, slip in SLIPS.items():
        ahead = {}
        for c in CONDITIONS:
            for name in ("released code", "eq. 21", "λ 0.2", "λ 0.5"):
                ahead[c, name] = Difference(data[f"{c} {name}"], data[f"{c} sft"], mark)
                tests[f"{name} over sft, {c}, after {slip}"] = ahead[c, name]
            most = Difference(data[f"{c} λ 1"], data[f"{c} sft"], mark)
            random = Difference(data[f"{c} λ 0.5"], data[f"{c} random, λ 0.5"], mark)
            told.append(
                f"after {slip}, {c} labels, sft {show(data[f'{c} sft'][mark])}, against that "
                f"released {ahead[c, 'released code']}, eq. 21 {ahead[c, 'eq. 21']}, λ = 0.2 alone "
                f"{ahead[c, 'λ 0.2']}, λ = 0.5 {ahead[c, 'λ 0.5']}, λ = 1 {most}; λ = 0.5 against "
                f"random tokens {random}")
        better = [key for key, d in ahead.items() if more(d)]
        limit = "for " + " and ".join(f"{name} with {TITLES[c]}" for c, name in better)
        parts[f"after {slip}"] = verdict(
            bool(better), all(d.below(SMALL) for d in ahead.values()),
            "" if len(better) == len(ahead) else limit)
    panels, shown = {}, ("sft", *whole, *residuals())
    for mark, slip in SLIPS.items():
        panels[f"after {slip}"] = {name: data[f"clean {name}"][mark] for name in shown}
    colors = dict.fromkeys(shown[1:], COLOR["ift"]) | {"random, λ 0.5": COLOR["ift_eq21"]}
    draw = partial(plot.bars, panels, "p(the rest of the right answer) →",
                   "The answer has begun with a slip. Does the policy come back?", colors)
    marks = {mark: (f"after {slip}", 3) for mark, slip in SLIPS.items()} | MARKS
    return Findings(data, in_parts(parts),
                    f"Probability of the rest of the right answer: {'; '.join(told)}.", draw, marks,
                    tests=tests)


def pipeline(lab: Lab) -> Findings:
    """IFT's main claim: wanted answers alone, against SFT and then DPO on preference pairs.

    The rule: IFT is at least as good if its right answers are known to be no more than SMALL below,
    and worse if they clearly are, by more than SMALL. If the same is known of SFT alone, and IFT is
    not clearly above that, the verdict says so: then it is not IFT's doing.
    """
    names = ("sft", "ift", "sft → dpo")
    runs = {}
    for c in CONDITIONS:
        pairs = "pairs" if c == "clean" else "noisy pairs"
        runs |= {f"{c} {name}": at_best(pairs if "→" in name else c, name) for name in names}
        runs[f"{c} {CONTROL}"] = tripled(runs[f"{c} sft"])
        runs[f"{c} {DEFAULTS}"] = Run("ift", noise=CONDITIONS[c])
    data = lab.run(runs)
    parts, told, tests = {}, [], {}
    for c, labels in TITLES.items():
        against = Better(data[f"{c} ift"], data[f"{c} sft → dpo"])
        plain = Better(data[f"{c} {DEFAULTS}"], data[f"{c} sft → dpo"])
        base = Better(data[f"{c} ift"], data[f"{c} sft"])
        alone = Difference(data[f"{c} sft"], data[f"{c} sft → dpo"], "right")
        found = verdict(against.right.above(-SMALL), less(against.right))
        if found == HOLDS and alone.above(-SMALL) and not base.right.above():
            found = f"{HOLDS}, as it does for SFT alone"
        parts[labels] = found
        tests |= against.tests(f"ift over sft → dpo, {labels}")
        tests |= {f"sft over sft → dpo, {labels}": alone, f"ift over sft, {labels}": base.right}
        settings = ", ".join(in_words(name, runs[f"{c} {name}"]) for name in names)
        told.append(f"with {labels} against sft → dpo {against}, against sft {base} ({settings}); "
                    f"at its defaults against sft → dpo {plain}")
    question = "IFT from wanted answers alone, or SFT and then DPO on pairs?"
    return Findings(data, in_parts(parts), f"IFT {'; '.join(told)}.",
                    partial(plot.answer_bars, by_condition(data), question,
                            {"sft → dpo": COLOR["dpo"], DEFAULTS: COLOR["ift"]}), tests=tests)


# ------------------------------------------------------------------- where the guess is the label

def flat_gradient(model, method, examples) -> torch.Tensor:
    """The gradient of all parameters on these examples, as one vector."""
    model.zero_grad(set_to_none=True)
    [batch] = method.prepare(model, [collate(examples)])
    fused_pass(model, method, batch)
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    return flat


def guessed_right(model, examples) -> list[bool]:
    """Of each example: is every token that will be read the greedy guess already?"""
    [batch] = METHODS["ift"](lam=0.5).prepare(model, [collate(examples)])
    wrong = (batch.rows.guesses != batch.rows.y) & batch.mask           # (1, B, T)
    wrong[..., :-1] &= batch.mask[..., 1:]      # the last token of an answer is never read
    wrong[..., -1] = False
    return (~wrong.any(-1))[0].tolist()


def compare_with_sft(model, exam, examples, lam: float, seed: int) -> dict[str, dict[str, float]]:
    """The marks of SFT and of IFT's residual after training on these examples.

    Those of IFT also say how far it leads from SFT: "gradient", the first one, relatively, and
    "apart", the examples' log-probs in the end.
    """
    sft, ift = METHODS["sft"](), METHODS["ift"](lam=lam, gamma=0.0)
    first_sft, first_ift = (flat_gradient(model, method, examples) for method in (sft, ift))
    marks, ends = {}, {}
    for name, method in {"sft": sft, "ift": ift}.items():
        trained = copy.deepcopy(model)
        for _ in fit(trained, method, examples, replace(RECIPE, seed=seed)):
            pass
        marks[name] = exam.grade(trained)
        with torch.no_grad():
            ends[name] = batch_logps(trained, collate(examples)).sum(-1)[0]         # (B,)
    marks["ift"]["gradient"] = ((first_ift - first_sft).norm() / first_sft.norm()).item()
    marks["ift"]["apart"] = (ends["ift"] - ends["sft"]).abs().mean().item()
    return marks


def greedy(lab: Lab) -> Findings:
    lab.run({})                                 # the base models
    lam, data = 0.5, {}
    for group in ("right", "wrong"):
        for name in ("sft", "ift"):
            data[f"guesses {group}, {name}"] = {}
    for seed in lab.seeds:
        model, tokenizer = base_model(seed, lab.out / "cache")
        examples, exam = fine_tuning_data(tokenizer, seed, 0.0, None), Exam(tokenizer, seed)
        right = guessed_right(model, examples)
        for group in ("right", "wrong"):
            wanted = group == "right"
            chosen = [e for e, ok in zip(examples, right, strict=True) if ok is wanted][:128]
            for name, marks in compare_with_sft(model, exam, chosen, lam, seed).items():
                for mark, value in marks.items():
                    data[f"guesses {group}, {name}"].setdefault(mark, []).append(value)

    same, other = data["guesses right, ift"], data["guesses wrong, ift"]
    after = Difference(other, same, "apart")
    found = verdict(max(same["gradient"]) == 0 < min(other["gradient"]), True,
                    limit="" if after.above() else "for the first gradient")
    sentence = (
        "On questions where every greedy guess of the base model is the label, the first gradient "
        f"of IFT (λ = {lam}) is off SFT's by {max(same['gradient']):.2g} of its length, elsewhere "
        f"by {min(other['gradient']):.2f} at least. Trained on those questions, the answers' "
        f"log-probs end {max(same['apart']):.1g} nats apart at most, elsewhere "
        f"{show(other['apart'])} ({after} more)."
    )
    panels = {
        "first gradient (relative)": {"guess right": same["gradient"],
                                      "guess wrong": other["gradient"]},
        "log-probs after training (nats)": {"guess right": same["apart"],
                                            "guess wrong": other["apart"]},
    }
    question = "Where the greedy guess is right already, is IFT anything but SFT?"
    colors = dict.fromkeys(("guess right", "guess wrong"), COLOR["ift"])
    shown = {mark: MARKS[mark] for mark in ("right", "wrong", "garbage", "agree", "skill")}
    shown |= {"gradient": ("gradient off SFT's", 4), "apart": ("log-probs off SFT's", 4)}
    draw = partial(plot.bars, panels, "how far IFT is from SFT", question, colors)
    tests = {"apart after training, guesses wrong over right": after}
    return Findings(data, found, sentence, draw, shown, tests=tests)
