"""What IFT calls preference estimation: what is the policy asked, and behind whose words?

The next token of the expert's answer gets one probability behind the expert's own prefix, which is
what SFT looks at, and another behind the policy's prefix, which is what counts when it writes by
itself. The paper says that the first overestimates the second, and that IFT at λ = 1 looks at the
second. Both are computed as they stand, for the small base model and for a real one on real text;
nothing is trained.
"""

import random
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from minialign.data import Batch, Example, collate
from minialign.hf.encoding import encode_rows
from minialign.hf.folders import load_model
from minialign.hf.rowfiles import read_file
from minialign.hf.rows import Row
from minialign.lab import plot
from minialign.lab.plot import COLOR
from minialign.lab.race import Difference, columns
from minialign.lab.small import base_model
from minialign.lab.studies.lab import SMALL, Findings, Lab, more, verdict
from minialign.lab.tasks import all_questions, as_example
from minialign.logps import batch_logps, linear_logps
from minialign.methods import METHODS
from minialign.stats import show

N_SMALL = 200                       # questions
REAL = "llama2xs"                   # the real model: half trained, so it has something to learn
N_REAL, LENGTH = 96, 40             # stories, and how many of their tokens
SAME = 1e-5             # probabilities this close are one and the same, but for rounding
MARKS = {
    "probability": ("p(expert's token)", 3),
    "off": ("off the truth", 3),
}
READS = {               # what is read before each token: how it is spoken of
    "sft": "the expert's words (SFT)",
    "ift 0.2": "IFT, λ = 0.2",
    "ift 1": "IFT, λ = 1",
    "own": "its own words",
}
COLORS = {"the expert's words (SFT)": COLOR["sft"], "IFT, λ = 0.2": COLOR["ift_eq21"],
          "IFT, λ = 1": COLOR["ift"], "its own words": COLOR["dft"]}


def as_read(model, method, batch: Batch) -> Tensor:
    """Probabilities (B, T) of the expert's tokens, the model reading what a method lets it read."""
    [part] = method.prepare(model, [batch])
    rows = part.rows
    hidden = model(method.inputs(model, part), rows.positions, rows.texts).flatten(0, 1)    # (L, C)
    y, source = rows.y[0], rows.source[0]                                           # (B, T)
    logps = linear_logps(hidden[source.flatten()], model.head, y.flatten())         # (B·T,)
    return logps.view(y.shape).exp()


def own_words(model, batch: Batch, prompts: list[list[int]]) -> Tensor:
    """As many tokens of the model's own, the likeliest each time, as the answers have: (B, T).

    It goes on behind its own end token, if it comes to one.
    """
    T = batch.mask.shape[-1]
    longest = max(map(len, prompts))
    tokens = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    whole = model.generate(tokens, T, temperature=0.0, lengths=lengths)             # (B, L + T)
    places = lengths[:, None] + torch.arange(T)                                     # (B, T)
    return whole.gather(1, places)


@torch.no_grad()
def estimates(model, examples: list[Example]) -> dict[str, Tensor]:
    """{what is read: probability of every token of the expert's answers (B, T)}.

    The answers must be equally long. "own" is the truth: the policy behind its own greedy words.
    "slips" says where the policy has left the expert's answer before this token.
    """
    batch = collate(examples)
    if not batch.mask.all():
        raise ValueError("the estimates want answers of one length")
    found = {
        "sft": as_read(model, METHODS["sft"](), batch),
        "ift 0.2": as_read(model, METHODS["ift"](lam=0.2), batch),
        "ift 1": as_read(model, METHODS["ift"](lam=1.0), batch),
    }
    # The model reads its own words, and is asked for the expert's.
    own = own_words(model, batch, [e.prompt for e in examples])                     # (B, T)
    said = [replace(e, answers=[words]) for e, words in zip(examples, own.tolist(), strict=True)]
    other = collate(said)
    asked = replace(other, rows=replace(other.rows, y=batch.rows.y))
    found["own"] = batch_logps(model, asked)[0].exp()
    wrong = (own != batch.rows.y[0]).long()                                         # (B, T)
    found["slips"] = wrong.cumsum(-1) - wrong > 0
    return found


def small_examples(seed: int, tokenizer) -> list[Example]:
    """The right answers to held-out questions on which the two rules disagree."""
    _, test = all_questions(random.Random(seed))
    questions = [q for q in test if q.disputed][:N_SMALL]
    return [as_example(tokenizer, i, q.prompt(), [q.right]) for i, q in enumerate(questions)]


def real_examples(seed: int, tokenizer) -> list[Example]:
    """The beginnings of chosen stories by a better writer, drawn anew by every seed."""
    rows = []
    for where, row in read_file("stories-dialogue") + read_file("stories-dialogue-test"):
        rows.append(Row(where, row["prompt"], [row["chosen"]]))
    long = [pair for pair in encode_rows(tokenizer, rows) if len(pair[1][0]) >= LENGTH]
    some = random.Random(seed).sample(long, N_REAL)
    return [Example(i, prompt, [answer[:LENGTH]]) for i, (prompt, [answer]) in enumerate(some)]


def summary(found: dict[str, Tensor]) -> dict[str, dict]:
    """{what is read: marks} of one model and seed.

    probability   of the expert's tokens, the mean from the second one on: behind the prompt alone
                  there is nothing yet to read
    off           the mean distance from the truth, there too
    off_at_first  the largest one up to the policy's first own slip, over all answers
    line          [(token, mean probability)], for the picture
    """
    before = ~found["slips"]                                                        # (B, T)
    marks = {}
    for read in READS:
        distance = (found[read] - found["own"]).abs()                               # (B, T)
        marks[read] = {
            "probability": found[read][:, 1:].mean().item(),
            "off": distance[:, 1:].mean().item(),
            "off_at_first": distance[before].max().item(),
            "line": list(enumerate(found[read].mean(0).tolist(), start=1)),
        }
    return marks


def estimate(lab: Lab) -> Findings:
    """The rule: SFT overestimates if the expert's tokens are clearly more probable behind the
    expert's words than behind the policy's own, by more than SMALL, in both models. λ = 1 is the
    truth if all its probabilities are those behind the policy's own words, to SAME.
    """
    lab.run({})                                             # the base models
    of_seeds = {"small GPT": [], REAL: []}
    for seed in lab.seeds:
        model, tokenizer = base_model(seed, lab.out / "cache")
        of_seeds["small GPT"].append(summary(estimates(model, small_examples(seed, tokenizer))))
        model, tokenizer = load_model(REAL)
        of_seeds[REAL].append(summary(estimates(model, real_examples(seed, tokenizer))))
    data = {}
    for name, seeds in of_seeds.items():
        for read, words in READS.items():
            data[f"{name}, {words}"] = columns([marks[read] for marks in seeds])

    tests, told, true = {}, [], True
    for name in of_seeds:
        sft, some, whole, own = (data[f"{name}, {words}"] for words in READS.values())
        tests[name] = Difference(sft, own, "probability")
        true = true and max(whole["off"]) < SAME
        told.append(
            f"{name}: behind the expert's words {show(sft['probability'])}, {tests[name]} more "
            f"than behind its own; with λ = 0.2 {Difference(some, own, 'probability')}, with λ = 1 "
            f"{Difference(whole, own, 'probability')}. Up to the first slip λ = 1 is off by "
            f"{max(whole['off_at_first']):.0e} at most, over all tokens by {show(whole['off'])} "
            f"on average, SFT by {show(sft['off'])}"
        )
    over = [name for name, difference in tests.items() if more(difference)]
    limits = []
    if len(over) < len(tests):
        limits += [f"for {name}" for name in over]
    if not true:
        limits.append("for SFT: λ = 1 is the truth up to the policy's first slip and no further")
    found = verdict(bool(over), all(d.below(SMALL) for d in tests.values()), ", ".join(limits))
    sentence = f"Probability of the expert's next token. {'. '.join(told)}."
    lines = {words: data[f"{REAL}, {words}"]["line"] for words in READS.values()}
    panel = ("", f"{REAL}: probability of the expert's next token", lines)
    draw = partial(plot.curves, [[panel]], "Behind whose words is the policy asked?", COLORS,
                   xlabel="token of the answer")
    return Findings(data, found, sentence, draw, MARKS, tests={
        f"behind the expert's words over its own, {name}": d for name, d in tests.items()})
