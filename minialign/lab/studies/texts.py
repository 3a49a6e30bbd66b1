"""ASFT's marks on real text: BLEU-4 and ROUGE-L of what a model writes against the chosen answer.

The policy is llama2xs, a half-trained teller of stories, and the pairs are `stories-dialogue`: of
continuations by a better writer the chosen one has direct speech, the rejected one none. All
methods start from the policy as it is and take the same updates. Afterwards each continues openings
that nobody trained on, greedily, and minialign.evaluate compares that with the chosen text.
"""

import random
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from minialign.data import Example
from minialign.evaluate import answer_logps, compare_answers
from minialign.evaluate import marks as marks_of
from minialign.hf.encoding import encode_rows
from minialign.hf.folders import load_model
from minialign.hf.rowfiles import read_file
from minialign.hf.rows import Row
from minialign.lab import plot
from minialign.lab.race import Difference, columns
from minialign.lab.studies.lab import Findings, Lab, verdict
from minialign.lab.studies.processes import in_processes
from minialign.methods import build_method
from minialign.train import Recipe, fit

POLICY = "llama2xs"
COMPARED = ("bleu4", "rouge_l")
CLOSE = 0.01                    # of BLEU-4 or ROUGE-L, which go from 0 to 1: no difference
MARKS = {"bleu4": ("BLEU-4", 4), "rouge_l": ("ROUGE-L", 4), "perplexity": ("perplexity", 2),
         "pair_accuracy": ("pairs right", 3), "characters": ("length", 0)}


@dataclass(frozen=True)
class Training:
    """How a row is trained: a method, its learning rate, its settings."""

    method: str
    lr: float
    hyper: dict = field(default_factory=dict)


# What a row may choose from: learning rates, then settings at the best of them. Those of DPO and
# ASFT are their papers', ORPO's are TRL's, the IFT paper's and its authors'. ROWS is the choice,
# made once on the development openings by
#     python -m minialign study texts --tune --seeds 1 --first-seed 900
RATES = {"sft": (5e-4, 1e-3, 2e-3, 4e-3), "asft": (5e-4, 1e-3, 2e-3, 4e-3),
         "orpo": (5e-4, 1e-3, 2e-3, 4e-3), "dpo": (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4)}
GRIDS = {"sft": [{}], "asft": [{"lam": 0.1}, {"lam": 0.2}, {"lam": 0.5}],
         "orpo": [{"lam": 0.1}, {"lam": 0.25}, {"lam": 1.0}],
         "dpo": [{"beta": 0.1}, {"beta": 0.05}, {"beta": 0.01}]}
ROWS = {
    "sft": Training("sft", 2e-3),
    "asft": Training("asft", 2e-3, {"lam": 0.1}),
    "orpo": Training("orpo", 2e-3, {"lam": 0.1}),
    "dpo": Training("dpo", 2e-4, {"beta": 0.01}),
}


@dataclass(frozen=True)
class Size:
    """How much of everything: 12 runs, of half a minute on one core each."""

    train: int = 320            # pairs to train on
    development: int = 64       # openings on which the rows are chosen
    batch: int = 32
    epochs: int = 3
    new: int = 90               # tokens of a continuation, as long as the longest in the data


SIZE = Size()


def dealt(size: Size, seed: int, development: bool) -> tuple[list[Row], list[Row]]:
    """The pairs of a seed, to train on and to be asked about.

    The development openings are the same for all seeds, and the study never asks about them. The
    others are dealt anew by each seed.
    """
    rows = []
    for where, row in read_file("stories-dialogue") + read_file("stories-dialogue-test"):
        rows.append(Row(where, row["prompt"], [row["chosen"], row["rejected"]]))
    random.Random(0).shuffle(rows)
    kept, others = rows[: size.development], rows[size.development :]
    random.Random(seed).shuffle(others)
    return others[: size.train], kept if development else others[size.train :]


def row_job(row: Training | None, seed: int, size: Size, development: bool) -> dict:
    """Train a row, or none for the policy as it is, and mark what it writes."""
    torch.set_num_threads(1)
    model, tokenizer = load_model(POLICY)
    train, test = dealt(size, seed, development)
    if row is not None:
        examples = [Example(i, *pair) for i, pair in enumerate(encode_rows(tokenizer, train))]
        method = build_method(row.method, row.hyper, len(examples))
        method.prepare_data(model, examples, progress=False)
        recipe = Recipe(epochs=size.epochs, batch=size.batch, micro_batch=size.batch, lr=row.lr,
                        seed=seed)
        for _ in fit(model, method, examples, recipe):
            pass

    asked = [Example(i, *pair) for i, pair in enumerate(encode_rows(tokenizer, test))]
    prompts, wanted = [e.prompt for e in asked], [row.answers[0] for row in test]
    compared, texts = compare_answers(
        model, tokenizer, prompts, wanted, size.batch, size.new, progress=False)
    likely = marks_of(*answer_logps(model, asked, size.batch, progress=False))
    return {
        **{mark: compared[mark] for mark in COMPARED},
        "perplexity": likely["perplexity"],
        "pair_accuracy": likely["pair_accuracy"],
        "characters": sum(map(len, texts)) / len(texts),
    }


def run_rows(lab: Lab, rows: dict[str, Training], development: bool = False) -> dict[str, dict]:
    """{row: {mark: [one value per seed]}}, the policy as it is first."""
    rows = {"base": None, **rows}
    jobs = [(row, seed, SIZE, development) for row in rows.values() for seed in lab.seeds]
    results = in_processes(row_job, jobs, "fine-tuning")
    n = len(lab.seeds)
    return {name: columns(results[i * n : (i + 1) * n]) for i, name in enumerate(rows)}


def texts(lab: Lab) -> Findings:
    """The study; with `lab.tune` the choice of the rows instead.

    The rule: ASFT is better than a rival if it is clearly ahead in both marks. The claim fails if
    against every rival at least one mark is known to be ahead by less than CLOSE.
    """
    if lab.tune:
        return tune(lab)
    data = run_rows(lab, ROWS)
    rivals = [name for name in ROWS if name != "asft"]
    tests, told, beaten, hopeless = {}, [], [], True
    for rival in rivals:
        ahead = [Difference(data["asft"], data[rival], mark) for mark in COMPARED]
        tests |= {f"asft over {rival}, {MARKS[mark][0]}": d
                  for mark, d in zip(COMPARED, ahead, strict=True)}
        told.append(f"{rival} " + " and ".join(f"{d.mean:+.4f} ± {d.half:.4f}" for d in ahead))
        if all(d.above() for d in ahead):
            beaten.append(rival)
        hopeless = hopeless and any(d.below(CLOSE) for d in ahead)
    limit = "" if len(beaten) == len(rivals) else "against " + " and ".join(beaten)
    sentence = f"ASFT's BLEU-4 and ROUGE-L against {'; '.join(told)}."
    panels = {MARKS[mark][0]: {name: marks[mark] for name, marks in data.items()}
              for mark in COMPARED}
    draw = partial(plot.bars, panels, "of greedy continuations against the chosen text →",
                   "Real stories: who writes most like the chosen answer?")
    return Findings(data, verdict(bool(beaten), hopeless, limit), sentence, draw, MARKS,
                    tests=tests)


def tune(lab: Lab) -> Findings:
    """Every row's best learning rate at its first setting, then its best setting at that rate.

    The best is the one with the highest sum of both marks on the development openings.
    """
    tried = {}
    for name in ROWS:
        for rate in RATES[name]:
            tried[f"{name} {rate:g}"] = Training(name, rate, GRIDS[name][0])
    data = run_rows(lab, tried, development=True)
    others = {}
    for name in ROWS:
        row = best(name, tried, data)
        for hyper in GRIDS[name][1:]:
            others[f"{row.method} {row.lr:g} {hyper}"] = replace(row, hyper=hyper)
    tried |= others
    data |= run_rows(lab, others, development=True)
    chosen = ", ".join(str(best(name, tried, data)) for name in ROWS)
    bars = {name: marks["rouge_l"] for name, marks in data.items()}
    draw = partial(plot.bars, {"": bars}, "ROUGE-L on the development openings", "The settings")
    return Findings(data, f"the rows are {chosen}",
                    "They belong into ROWS of lab/studies/texts.py.", draw, MARKS)


def best(name: str, tried: dict[str, Training], data: dict[str, dict]) -> Training:
    """Of the settings of a method the one whose marks have the largest sum."""
    total = {}
    for key, row in tried.items():
        if row.method == name:
            total[key] = sum(sum(data[key][mark]) for mark in COMPARED)
    return tried[max(total, key=total.get)]
