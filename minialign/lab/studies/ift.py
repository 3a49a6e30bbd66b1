"""What the IFT paper claims (arXiv 2405.11870), part by part: residual connection and propagation. First pass: cost.py."""

import copy
from dataclasses import dataclass, replace

import torch

from minialign.data import collate
from minialign.lab.arena import RECIPE, Exam, Run, fine_tuning_data
from minialign.lab.plot import COLOR
from minialign.lab.small import base_model
from minialign.lab.studies import plots
from minialign.lab.studies.lab import (
    CONDITIONS,
    HOLDS,
    MARKS,
    NOT,
    OPEN,
    SMALL,
    TITLES,
    Difference,
    Findings,
    Lab,
    by_condition,
    sft_and_control,
)
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.stats import show
from minialign.train import fit, fused_pass


@dataclass
class RandomGuesses(METHODS["ift"]):
    """IFT whose guess, where the policy's differs from the label, is any token of the batch's answers: the same amount of noise,
    in the same places, and nothing of the policy's preferences in it.
    """

    def prepare(self, model, parts):
        return [self.confuse(part) for part in super().prepare(model, parts)]

    def confuse(self, batch):
        rows = batch.rows
        tokens, draw = rows.y[batch.mask], torch.Generator().manual_seed(int(batch.index.sum()))
        noise = tokens[torch.randint(len(tokens), rows.y.shape, generator=draw).to(tokens.device)]
        return replace(batch, rows=replace(rows, guesses=torch.where(rows.guesses == rows.y, rows.y, noise)))


def residual(lab: Lab) -> Findings:
    lams, runs = (0.2, 0.5, 0.8, 1.0), {}
    for c, noise in CONDITIONS.items():
        runs |= {f"{c} {name}": run for name, run in sft_and_control(noise=noise).items()}
        runs |= {f"{c} λ {lam:g}": Run("ift", {"lam": lam, "gamma": 0.0}, noise) for lam in lams}
        runs[f"{c} random, λ 0.5"] = Run(RandomGuesses, {"lam": 0.5, "gamma": 0.0}, noise)
    data = lab.run(runs)
    gain = {(c, lam): Difference(data[f"{c} λ {lam:g}"], data[f"{c} sft"], "right") for c in CONDITIONS for lam in lams}
    helped = [key for key, d in gain.items() if d.more()]
    if any(lam in (0.2, 0.5) for _, lam in helped):
        verdict = HOLDS if {c for c, _ in helped} == set(CONDITIONS) else f"holds only with {TITLES[helped[0][0]]}"
    else:
        verdict = NOT if all(gain[c, 0.2].below(SMALL) for c in CONDITIONS) else OPEN         # the paper's λ
    noise = {c: Difference(data[f"{c} λ 0.5"], data[f"{c} random, λ 0.5"], "right") for c in CONDITIONS}
    sentence = ("Right answers against SFT (λ = 0), without propagation: " + "; ".join(
        f"{c} labels " + ", ".join(f"λ = {lam:g} {gain[c, lam]}" for lam in lams) for c in CONDITIONS)
        + f". The policy's own guesses against random tokens in the same places (λ = 0.5): {noise['clean']} clean, "
          f"{noise['noisy']} noisy.")
    colors = {f"λ {lam:g}": COLOR["ift"] for lam in lams} | {"random, λ 0.5": COLOR["ift_eq21"]}
    return Findings(data, verdict, sentence, lambda out: plots.bars(
        by_condition(data), "IFT's residual alone: how much of its own guess should the model read (λ)?", out, "lambda", colors))


def propagation(lab: Lab) -> Findings:
    forms = {"simple sum": ("ift", {"gamma": 0.0}), "released code": ("ift", {}),
             "released, detached": ("ift", {"detach_weights": True}), "eq. 21": ("ift_eq21", {})}
    runs = {}
    for c, noise in CONDITIONS.items():
        runs |= {f"{c} {name}": run for name, run in sft_and_control(noise=noise).items()}
        runs |= {f"{c} {form}": Run(method, hyper, noise) for form, (method, hyper) in forms.items()}
    data = lab.run(runs)
    gain = {(c, form): Difference(data[f"{c} {form}"], data[f"{c} simple sum"], "right")
            for c in CONDITIONS for form in ("released code", "eq. 21")}
    own = {c: Difference(data[f"{c} released code"], data[f"{c} released, detached"], "right") for c in CONDITIONS}
    clear = [key for key, d in gain.items() if d.more()]
    if clear:
        verdict = HOLDS if len(clear) == len(gain) else "holds only for " + " and ".join(
            f"{form} with {TITLES[c]}" for c, form in clear)
    else:
        verdict = NOT if all(d.below(SMALL) for d in gain.values()) else OPEN
    share = {c: plots.average(data[f"{c} released code"]["negative_weights"]) for c in CONDITIONS}
    sentence = ("Right answers against the simple sum: " + "; ".join(
        f"{c} labels " + ", ".join(f"{form} {gain[c, form]}" for form in ("released code", "eq. 21")) for c in CONDITIONS)
        + f". Gradient through the released weights, against detached ones: {own['clean']} clean, {own['noisy']} noisy; it "
          f"pushes {share['clean']:.0%} and {share['noisy']:.0%} of the wanted tokens down.")
    colors = {form: COLOR["ift_eq21" if form == "eq. 21" else "ift"] for form in forms}
    marks = MARKS | {"negative_weights": ("pushed down", 3)}
    return Findings(data, verdict, sentence, lambda out: plots.bars(
        by_condition(data), "IFT, λ = 0.2: does propagating losses through the answer help?", out, "propagation", colors), marks)


# ------------------------------------------------------------------------------------------------ where the guess is the label

def flat_gradient(model, method, examples) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    fused_pass(model, method, collate(examples))
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    return flat


def guessed_right(model, examples) -> list[bool]:
    """Is every token that will be read (all but the last) the greedy guess already?"""
    batch = collate(examples)
    rows = METHODS["ift"](lam=0.5).prepare(model, [batch])[0].rows
    wrong = (rows.guesses != rows.y) & batch.mask
    wrong[..., :-1] &= batch.mask[..., 1:]                              # the last token is predicted, never read
    wrong[..., -1] = False
    return (~wrong.any(-1))[0].tolist()


def compare_with_sft(model, exam, examples, lam: float, seed: int) -> dict[str, dict[str, float]]:
    """SFT's marks and those of IFT's residual, trained on these examples; for IFT also how far it leads from SFT:
    the first gradient, relatively, and the examples' log-probs in the end.
    """
    methods, marks, ends = {"sft": METHODS["sft"](), "ift": METHODS["ift"](lam=lam, gamma=0.0)}, {}, {}
    sft, ift = (flat_gradient(model, method, examples) for method in methods.values())
    for name, method in methods.items():
        trained = copy.deepcopy(model)
        for _ in fit(trained, method, examples, replace(RECIPE, seed=seed)):
            pass
        marks[name] = exam.grade(trained)
        with torch.no_grad():
            ends[name] = batch_logps(trained, collate(examples)).sum(-1)[0]     # (B,)
    marks["ift"] |= {"gradient": ((ift - sft).norm() / sft.norm()).item(),
                     "apart": (ends["ift"] - ends["sft"]).abs().mean().item()}
    return marks


def greedy(lab: Lab) -> Findings:
    lab.run({})                                                         # the base models
    lam, data = 0.5, {f"guesses {group}, {name}": {} for group in ("right", "wrong") for name in ("sft", "ift")}
    for seed in lab.seeds:
        model, tokenizer = base_model(seed, lab.out / "cache")
        examples, exam = fine_tuning_data(tokenizer, seed, 0.0, None), Exam(tokenizer, seed)
        right = guessed_right(model, examples)
        for group, wanted in (("right", True), ("wrong", False)):
            chosen = [e for e, ok in zip(examples, right, strict=True) if ok is wanted][:128]
            for name, marks in compare_with_sft(model, exam, chosen, lam, seed).items():
                for mark, value in marks.items():
                    data[f"guesses {group}, {name}"].setdefault(mark, []).append(value)
    same, other = data["guesses right, ift"], data["guesses wrong, ift"]
    verdict = HOLDS if max(same["gradient"]) == 0 < min(other["gradient"]) else NOT
    sentence = (f"On questions where every greedy guess of the base model is the label, the first gradient of IFT (λ = {lam}) is "
                f"off SFT's by {max(same['gradient']):.2g} of its length, elsewhere by {min(other['gradient']):.2f} at least. "
                f"Trained on those questions, the answers' log-probs end {max(same['apart']):.1g} nats apart at most, elsewhere "
                f"{show(other['apart'])}.")
    shown = {mark: MARKS[mark] for mark in ("right", "wrong", "garbage", "agree", "skill")}
    shown |= {"gradient": ("gradient off SFT's", 4), "apart": ("log-probs off SFT's", 4)}
    return Findings(data, verdict, sentence, lambda out: plots.dots(
        {title: {f"guess {group}": data[f"guesses {group}, ift"][mark] for group in ("right", "wrong")}
         for title, mark in (("first gradient (relative)", "gradient"), ("log-probs after training (nats)", "apart"))},
        "how far IFT is from SFT", "Where the greedy guess is right already, is IFT anything but SFT?", out, "greedy",
        {f"guess {group}": COLOR["ift"] for group in ("right", "wrong")}), shown)
