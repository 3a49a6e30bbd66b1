"""What the DFT paper (arXiv 2502.18679) says of a model's own answers, on a real model and text.

DFT2 leaves P_ref out because sampled answers score like one another (fig. 1). And its log-sum-exp
is said to give more weight to a likelier negative, as the average over pairs would not (§6). Both
are measured on continuations of stories by `llama2xs`, which ships with this package, after one
epoch of DFT2.
"""

import random
from functools import partial

import torch

from minialign.data import collate
from minialign.hf.folders import load_model
from minialign.hf.rowfiles import read_file
from minialign.lab import plot
from minialign.lab.race import Difference, columns
from minialign.lab.studies.lab import SMALL, Findings, Lab, in_parts, verdict
from minialign.lab.studies.processes import in_processes
from minialign.lab.studies.stories import as_examples, write
from minialign.logps import batch_logps
from minialign.methods import build_method
from minialign.train import Recipe, fit

POLICY = "llama2xs"
PROMPTS, DRAWN, NEW = 96, 4, 40         # openings; continuations of each; tokens of one
SAMPLING, RANDOM = 0.7, 10.0            # temperatures: the paper's, and "a very high temperature"
RECIPE = Recipe(epochs=1, batch=16, micro_batch=16, lr=1e-3, negatives=DRAWN)

# Whose pushes are compared, and whether its score is the mean log-prob of an answer or the sum.
LOSSES = {"dft2": ({}, True), "dft": ({}, False), "simpo": ({"beta": 10.0, "gamma": 5.0}, True),
          "spin": ({}, False)}


def pushes(logps: torch.Tensor, batch, name: str) -> torch.Tensor:
    """How hard a loss pushes each negative's score down: (A, B, T) → (A−1, B)."""
    hyper, per_token = LOSSES[name]
    _, weights, _ = build_method(name, hyper, PROMPTS).weigh(logps, batch)
    down = -weights[1:].sum(-1)
    if not per_token:
        down = down / batch.mask[1:].sum(-1)    # every token bears the whole push on a sum
    return down


def measure(seed: int) -> dict[str, dict[str, float]]:
    """{setting: marks} of a seed: sampled and random text, and the shares of each loss."""
    torch.set_num_threads(1)
    model, tokenizer = load_model(POLICY)
    rows = [row for _, row in read_file("stories-dialogue")]
    rows = random.Random(seed).sample(rows, PROMPTS)
    prompts = [row["prompt"] for row in rows]
    sampled = write(model, tokenizer, prompts, DRAWN, NEW, seed, SAMPLING, top_k=50)
    wild = write(model, tokenizer, prompts, DRAWN, NEW, seed + 1, RANDOM)
    wanted_first = [[(row["chosen"], True)] + own for row, own in zip(rows, sampled, strict=True)]
    examples = as_examples(tokenizer, prompts, wanted_first)
    others = as_examples(tokenizer, prompts, wild)
    build_method("dft", {}, PROMPTS).prepare_data(model, examples, progress=False)
    for _ in fit(model, build_method("dft2", {}, PROMPTS), examples, RECIPE):
        pass

    with torch.no_grad():
        batch, noise = collate(examples), collate(others)
        logps = batch_logps(model, batch).double()                      # (1 + DRAWN, B, T)
        own = (logps.sum(-1) / batch.mask.sum(-1))[1:]                  # (DRAWN, B)
        random_text = batch_logps(model, noise).double().sum(-1) / noise.mask.sum(-1)
    marks = {
        "sampled": {"score": own.mean().item(), "spread": own.std(0).mean().item()},
        "random": {"score": random_text.mean().item(), "spread": random_text.std(0).mean().item(),
                   "higher": (own[:, None] > random_text[None]).double().mean().item()},
    }
    for name, (_, per_token) in LOSSES.items():
        down = pushes(logps, batch, name)                               # (DRAWN, B)
        score = own if per_token else logps.sum(-1)[1:]
        likeliest = score.argmax(0, keepdim=True)                       # (1, B)
        share = (down / down.sum(0)).gather(0, likeliest)
        marks[name] = {"share": share.mean().item()}
    return marks


def pools(lab: Lab) -> Findings:
    measured = in_processes(measure, [(seed,) for seed in lab.seeds], "pools")
    data = {name: columns([marks[name] for marks in measured]) for name in measured[0]}
    n = len(lab.seeds)
    gap = [x - y for x, y in zip(data["sampled"]["score"], data["random"]["score"], strict=True)]
    alike = Difference(data["sampled"], {"spread": [g / 4 for g in gap]}, "spread")
    above = Difference(data["random"], {"higher": [0.5] * n}, "higher")
    even = {"share": [1 / DRAWN] * n}
    dft2, dft, simpo, spin = (Difference(data[name], even, "share") for name in LOSSES)
    found = in_parts({
        "sampled answers score alike": verdict(alike.below(), alike.above()),
        "far above random text": verdict(above.above(0.45), above.below(0.45)),
        "DFT2 weighs the likeliest negative most": verdict(dft2.above(), dft2.below(SMALL)),
        "an average over pairs does not": verdict(simpo.within(SMALL), simpo.above(SMALL)),
    })
    score, spread = (
        {name: sum(data[name][mark]) / n for name in ("sampled", "random")}
        for mark in ("score", "spread")
    )
    sentence = (
        f"Mean log-prob per token: sampled answers {score['sampled']:.2f}, random ones "
        f"{score['random']:.2f}; answers to one prompt are {spread['sampled']:.2f} apart "
        f"(standard deviation), {alike} against a quarter of that gap, which we call alike. Of "
        f"{DRAWN} negatives the likeliest gets {1 / DRAWN:.2f} of the push plus {dft2} under DFT2, "
        f"{dft} under DFT, {simpo} under SimPO and {spin} under SPIN."
    )
    panels = {
        "nats per token (minus the score)": {
            name: [-x for x in data[name]["score"]] for name in ("sampled", "random")},
        "share of the push on the likeliest of four": {n: data[n]["share"] for n in LOSSES},
    }
    question = "A model's own answers: do they score alike, and which is pushed down most?"
    draw = partial(plot.bars, panels, "", question, {"sampled": "#4d4d4d", "random": "#a6a6a6"})
    shown = {"score": ("score", 2), "spread": ("spread", 3),
             "higher": ("below sampled", 3), "share": ("share of likeliest", 3)}
    tests = {"spread against a quarter of the gap": alike, "sampled over random": above,
             "likeliest negative, dft2": dft2, "likeliest negative, simpo": simpo}
    return Findings(data, found, sentence, draw, shown, tests=tests)
