"""What the IFT paper claims (arXiv 2405.11870): residual connection and propagation, part by part.

What its first forward pass costs is in cost.py.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial

import torch

from minialign.data import collate
from minialign.lab import plot
from minialign.lab.arena import RECIPE, Exam, Run, fine_tuning_data
from minialign.lab.plot import COLOR, average
from minialign.lab.race import CONDITIONS, TITLES, Difference
from minialign.lab.small import base_model
from minialign.lab.studies.lab import MARKS, SMALL, Findings, Lab, by_condition, more, verdict
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.stats import show
from minialign.train import fit, fused_pass


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


def residual(lab: Lab) -> Findings:
    lams = (0.2, 0.5, 0.8, 1.0)
    runs = {f"λ {lam:g}": Run("ift", {"lam": lam, "gamma": 0.0}) for lam in lams}
    runs["random, λ 0.5"] = Run(RandomGuesses, {"lam": 0.5, "gamma": 0.0})
    data = lab.both(runs)

    gain, told, noise = {}, [], {}
    for c in CONDITIONS:
        for lam in lams:
            gain[c, lam] = Difference(data[f"{c} λ {lam:g}"], data[f"{c} sft"], "right")
        told.append(f"{c} labels " + ", ".join(f"λ = {lam:g} {gain[c, lam]}" for lam in lams))
        noise[c] = Difference(data[f"{c} λ 0.5"], data[f"{c} random, λ 0.5"], "right")
    helped = [key for key, difference in gain.items() if more(difference)]
    where = {c for c, _ in helped}
    found = verdict(
        any(lam in (0.2, 0.5) for _, lam in helped),
        all(gain[c, 0.2].below(SMALL) for c in CONDITIONS),             # 0.2 is the paper's
        limit=f"with {TITLES[helped[0][0]]}" if len(where) == 1 else "",
    )
    sentence = (
        f"Right answers against SFT (λ = 0), without propagation: {'; '.join(told)}. The policy's "
        f"own guesses against random tokens in the same places (λ = 0.5): {noise['clean']} clean, "
        f"{noise['noisy']} noisy."
    )
    question = "IFT's residual alone: how much of its own guess should the model read (λ)?"
    colors = dict.fromkeys(runs, COLOR["ift"]) | {"random, λ 0.5": COLOR["ift_eq21"]}
    return Findings(data, found, sentence,
                    partial(plot.answer_bars, by_condition(data), question, colors))


def propagation(lab: Lab) -> Findings:
    runs = {
        "simple sum": Run("ift", {"gamma": 0.0}),
        "released code": Run("ift"),
        "released, detached": Run("ift", {"detach_weights": True}),
        "eq. 21": Run("ift_eq21"),
    }
    data = lab.both(runs)
    forms = ("released code", "eq. 21")
    gain, told, own, share = {}, [], {}, {}
    for c in CONDITIONS:
        released = data[f"{c} released code"]
        for form in forms:
            gain[c, form] = Difference(data[f"{c} {form}"], data[f"{c} simple sum"], "right")
        told.append(f"{c} labels " + ", ".join(f"{form} {gain[c, form]}" for form in forms))
        own[c] = Difference(released, data[f"{c} released, detached"], "right")
        share[c] = average(released["negative_weights"])
    clear = [f"{form} with {TITLES[c]}" for (c, form), d in gain.items() if more(d)]
    found = verdict(
        bool(clear), all(d.below(SMALL) for d in gain.values()),
        limit="" if len(clear) == len(gain) else "for " + " and ".join(clear),
    )
    sentence = (
        f"Right answers against the simple sum: {'; '.join(told)}. Gradient through the released "
        f"weights, against detached ones: {own['clean']} clean, {own['noisy']} noisy; it pushes "
        f"{share['clean']:.0%} and {share['noisy']:.0%} of the wanted tokens down."
    )
    question = "IFT, λ = 0.2: does propagating losses through the answer help?"
    colors = dict.fromkeys(runs, COLOR["ift"]) | {"eq. 21": COLOR["ift_eq21"]}
    marks = MARKS | {"negative_weights": ("pushed down", 3)}
    return Findings(data, found, sentence,
                    partial(plot.answer_bars, by_condition(data), question, colors), marks)


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
    found = verdict(max(same["gradient"]) == 0 < min(other["gradient"]), True)
    sentence = (
        "On questions where every greedy guess of the base model is the label, the first gradient "
        f"of IFT (λ = {lam}) is off SFT's by {max(same['gradient']):.2g} of its length, elsewhere "
        f"by {min(other['gradient']):.2f} at least. Trained on those questions, the answers' "
        f"log-probs end {max(same['apart']):.1g} nats apart at most, elsewhere "
        f"{show(other['apart'])}."
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
    return Findings(data, found, sentence, draw, shown)
