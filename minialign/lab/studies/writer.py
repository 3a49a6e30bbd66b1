"""Learn from a better writer: real models, real text, and no label that anyone invented.

The policy is llama2xs, a half-trained teller of stories. The wanted answers are continuations by
stories260K, a better one, at temperature 0.7; the negatives are the policy's own, at 1. Both models
ship with the package (hf/shipped). Afterwards the policy writes by itself at temperature 1, on
openings that nobody trained on, and a judge, the teacher or another language model, says how many
bits each character of it costs.
"""

import random
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from minialign.data import Example
from minialign.evaluate import answer_logps
from minialign.evaluate import marks as marks_of
from minialign.hf.folders import load_model
from minialign.hf.rowfiles import read_file
from minialign.lab import plot
from minialign.lab.plot import COLOR
from minialign.lab.race import CONTROL, Difference, columns
from minialign.lab.studies.lab import SMALL, Findings, Lab, less, verdict
from minialign.lab.studies.processes import in_processes
from minialign.lab.studies.stories import AT_A_TIME, as_examples, bits, distinct, opened, write
from minialign.methods import build_method
from minialign.train import Recipe, fit

POLICY, TEACHER = "llama2xs", "stories260K"
WANTED = 0.7                    # temperature of the wanted answers
WILD = 1.7                      # temperature at which the policy makes no sense
SHOWN = 3                       # openings whose continuations are printed

# Rates that every row tries when they are chosen. Where the best one stands at the edge, the rate
# beyond it is tried too, twice or half as high, until the best stands between two others or so many
# have been tried. The rates in ROWS are the choice; README.md has the command that made it.
RATES = (5e-4, 1e-3, 2e-3)
MOST_RATES = 5


@dataclass(frozen=True)
class Training:
    """How the policy is trained: a method's name, its rate, and what differs from the common run.

    after   the training that comes first; the negatives are then drawn from its result
    """

    method: str
    lr: float
    hyper: dict = field(default_factory=dict)
    longer: int = 1             # times as many updates
    after: "Training | None" = None


SFT = Training("sft", 4e-3)
ROWS = {
    "sft": SFT,
    "sft sum": Training("sft", 4e-3, {"reduction": "seq_sum"}),
    CONTROL: replace(SFT, longer=3),
    "asft": Training("asft", 4e-3),
    "dft": Training("dft", 1e-3),
    "dft2": Training("dft2", 4e-3),
    "ift": Training("ift", 1e-3),
    "ift γ 0": Training("ift", 4e-3, {"gamma": 0.0}),
    "simpo_sft": Training("simpo_sft", 4e-3),
    "sft → dpo": Training("dpo", 1.25e-4, after=SFT),
}
PLAIN = {"base": POLICY, "teacher": TEACHER}            # rows that are not trained
IMITATION = ("sft", "sft sum", CONTROL)                 # what the others have to beat
COLORS = {"sft sum": "#6d6d6d", "ift γ 0": COLOR["ift_eq21"], "sft → dpo": COLOR["dpo"],
          "teacher": "#222222"}


@dataclass(frozen=True)
class Size:
    """How much of everything: a seed takes a few minutes on two cores."""

    train: int = 320            # openings to train on
    development: int = 64       # openings on which rates are chosen
    test: int = 128             # openings on which the study measures
    new: int = 60               # tokens of a continuation
    bad: int = 12               # tokens of a bad prefix
    samples: int = 2            # continuations of every opening that are judged
    batch: int = 32
    epochs: int = 3
    negatives: int = 2          # per prompt and epoch


SIZE = Size()


# ---------------------------------------------------------------------------------------- openings

def openings(size: Size, seed: int, development: bool) -> tuple[list[str], list[str]]:
    """The openings of a seed, to train on and to measure on.

    The development openings are the same for all seeds, and the study never measures on them. The
    others are dealt anew by each seed.
    """
    rows = read_file("stories-dialogue") + read_file("stories-dialogue-test")
    unique = list(dict.fromkeys(row["prompt"] for _, row in rows))
    random.Random(0).shuffle(unique)
    kept, others = unique[: size.development], unique[size.development :]
    random.Random(seed).shuffle(others)
    held_out = others[size.train : size.train + size.test]
    return others[: size.train], kept if development else held_out


# ------------------------------------------------------------------------------------------ a seed

@dataclass
class Lesson:
    """What all rows of a seed share. The test can be asked of any model."""

    seed: int
    prompts: list[str]              # to train on
    examples: list[Example]         # a continuation by the teacher, then the policy's own
    held_out: list[str]             # to measure on
    bad: list[str]                  # the same with a bad beginning of a continuation behind them
    wanted: list[Example]           # the teacher's continuations of the held-out openings


def lesson(seed: int, size: Size, development: bool) -> Lesson:
    """Openings, the teacher's continuations of them and the policy's own."""
    torch.set_num_threads(1)
    (policy, tokenizer), (teacher, _) = opened(POLICY), opened(TEACHER)
    prompts, held_out = openings(size, seed, development)
    theirs = write(teacher, tokenizer, prompts, 1, size.new, seed, WANTED)
    own = write(policy, tokenizer, prompts, size.negatives * size.epochs, size.new, seed + 1)
    pools = [first + others for first, others in zip(theirs, own, strict=True)]
    wanted = write(teacher, tokenizer, held_out, 1, size.new, seed + 2, WANTED)

    # A bad beginning: a few wild tokens of the policy, less the last word, which may be cut off.
    wild = write(policy, tokenizer, held_out, 1, size.bad, seed + 3, WILD)
    bad = [prompt + pool[0][0].rpartition(" ")[0]
           for prompt, pool in zip(held_out, wild, strict=True)]
    return Lesson(seed, prompts, as_examples(tokenizer, prompts, pools), held_out, bad,
                  as_examples(tokenizer, held_out, wanted))


def taught(row: Training, of: Lesson, size: Size):
    """The policy after the training of a row, and the training before it if there is one."""
    examples = [replace(example) for example in of.examples]
    if row.after is None:
        model, tokenizer = load_model(POLICY)
    else:
        model, tokenizer = taught(row.after, of, size)
        k = size.negatives * size.epochs
        pools = write(model, tokenizer, of.prompts, k, size.new, of.seed + 4)
        for example, own in zip(examples, as_examples(tokenizer, of.prompts, pools), strict=True):
            example.answers = example.answers[:1] + own.answers
    recipe = Recipe(epochs=size.epochs * row.longer, batch=size.batch, micro_batch=size.batch,
                    lr=row.lr, negatives=size.negatives, seed=of.seed)
    method = build_method(row.method, row.hyper, len(examples))
    method.prepare_data(model, examples, progress=False)
    for _ in fit(model, method, examples, recipe):
        pass
    return model, tokenizer


# ------------------------------------------------------------------------------------ what is asked

def measure(model, tokenizer, of: Lesson, judge: str, size: Size, temperature: float) -> dict:
    """Everything that is asked of a model: it continues the held-out openings, and is judged."""
    pools = write(model, tokenizer, of.held_out, size.samples, size.new, of.seed + 5, temperature)
    prompts = [p for p, pool in zip(of.held_out, pools, strict=True) for _ in pool]
    texts = [text for pool in pools for text, _ in pool]
    behind = write(model, tokenizer, of.bad, 1, size.new, of.seed + 6, temperature)
    recovery = [pool[0][0] for pool in behind]

    judges = {"judge": judge}
    if judge != TEACHER:
        judges["teacher"] = TEACHER
    found = {}
    for name, folder in judges.items():
        whole, *thirds = bits(opened(folder), prompts, texts)
        found |= {name: whole, f"{name}_recovery": bits(opened(folder), of.bad, recovery)[0]}
        found |= {f"{name}_third_{i}": x for i, x in enumerate(thirds, start=1)}
        found[f"{name}_rise"] = thirds[2] - thirds[0]
    held_out = marks_of(*answer_logps(model, of.wanted, AT_A_TIME, progress=False))
    return found | {
        "distinct_3": distinct(texts),
        "perplexity": held_out["perplexity"],
        "characters": sum(map(len, texts)) / len(texts),
        "samples": [pools[i][0][0] for i in range(SHOWN)],
    }


def row_job(name: str, row: Training | None, of: Lesson, judge: str, size: Size) -> dict:
    """Train a row, unless it is one of the two models as they are, and measure it."""
    torch.set_num_threads(1)
    if row is not None:
        model, tokenizer = taught(row, of, size)
    else:
        model, tokenizer = opened(PLAIN[name])
    # The teacher's own text is what was wanted, so it is drawn as that was.
    temperature = WANTED if name == "teacher" else 1.0
    return measure(model, tokenizer, of, judge, size, temperature)


def lessons_of(lab: Lab, judge: str, development: bool) -> list[Lesson]:
    """A lesson for each seed."""
    opened(judge)               # a folder that is no model is found out before anything is trained
    return in_processes(lesson, [(seed, SIZE, development) for seed in lab.seeds], "texts")


def run_rows(lessons: list[Lesson], rows: dict[str, Training | None], judge: str) -> dict:
    """{row: {mark: [one value per seed]}}; None stands for a model that is not trained."""
    jobs = [(name, row, of, judge, SIZE) for of in lessons for name, row in rows.items()]
    results = iter(in_processes(row_job, jobs, "fine-tuning"))
    per_seed = [{name: next(results) for name in rows} for _ in lessons]
    return {name: columns([seed[name] for seed in per_seed]) for name in rows}


# ------------------------------------------------------------------------------------ what is found

def judged(data: dict) -> str:
    """The verdict. Its rule was written before the first run.

    A row beats imitation if the judge clearly prefers its text to that of SFT and to that of SFT
    with three times the updates, and its text is not clearly less diverse than SFT's. The claim
    holds for the rows that do. It fails if every row is known to be no better than SMALL.
    """
    winners, hopeless = [], True
    for name in data:
        if name in PLAIN or name in IMITATION:
            continue
        against = [Difference(data[name], data[rival], "judge") for rival in ("sft", CONTROL)]
        poorer = less(Difference(data[name], data["sft"], "distinct_3"))
        if all(d.below() for d in against) and not poorer:
            winners.append(name)
        hopeless = hopeless and any(d.above(-SMALL) for d in against)
    return verdict(bool(winners), hopeless, limit=f"for {', '.join(winners)}")


def writer(lab: Lab) -> Findings:
    """The study; with `lab.tune` the choice of the learning rates instead."""
    if lab.tune:
        return tune(lab)
    judge = lab.judge or TEACHER
    lessons = lessons_of(lab, judge, development=False)
    data = run_rows(lessons, {"base": None, **ROWS, "teacher": None}, judge)
    over = {name: Difference(data[name], data["sft"], "judge") for name in ROWS if name != "sft"}
    told = ", ".join(f"{name} {difference}" for name, difference in over.items())
    sentence = (f"Bits per character under the judge ({judge}), lower is better, against sft: "
                f"{told}. {claims_of_ift(data)}")
    panels = {}
    for mark, title in (("judge", "bits per character of what it writes (← better)"),
                        ("distinct_3", "different runs of three words (more diverse →)")):
        panels[title] = {name: marks[mark] for name, marks in data.items()}
    draw = partial(plot.bars, panels, "", "Who writes most like the better writer?", COLORS)
    shown = {"judge": ("judge ↓", 3)}
    if lab.judge:
        shown["teacher"] = ("teacher ↓", 3)
    shown |= {
        "judge_third_1": ("1st third", 3), "judge_third_2": ("2nd", 3),
        "judge_third_3": ("last", 3), "judge_recovery": ("bad prefix", 3),
        "distinct_3": ("distinct-3", 3), "perplexity": ("perplexity", 2),
        "characters": ("length", 0),
    }
    return Findings(data, judged(data), sentence, draw, shown,
                    side_by_side(data, lessons[0].held_out),
                    {f"{name} over sft": difference for name, difference in over.items()})


def claims_of_ift(data: dict) -> str:
    """Whether IFT's text gets worse more slowly than SFT's, and recovers from a bad beginning.

    A claim holds if the interval says so, and not if the gain is known to be no more than SMALL.
    """
    told = []
    for mark, words in (("judge_rise", "it rises less from the first to the last third"),
                        ("judge_recovery", "it is lower after a bad beginning")):
        gain = Difference(data["ift"], data["sft"], mark)
        told.append(f"{words} ({gain}): {verdict(gain.below(), gain.above(-SMALL))}")
    return f"IFT's claims, against sft: {'; '.join(told)}."


def side_by_side(data: dict, prompts: list[str]) -> str:
    """What every row made of the first held-out openings, on the first seed, one line each."""
    lines = []
    for i, prompt in enumerate(prompts[:SHOWN]):
        lines.append(f"\n{prompt} …")
        for name, marks in data.items():
            lines.append(f"  {name:10} {' '.join(marks['samples'][0][i].split())}")
    return "\n".join(lines)


# ------------------------------------------------------------------------ the choice of the rates

def tune(lab: Lab) -> Findings:
    """Every row at several rates, on the development openings; see RATES for which.

    The best rate is the one whose text the teacher finds likeliest, among those that leave it as
    diverse as the teacher's own text: a higher rate goes on to win likelihood by repetition. A row
    that comes after another one begins with that one's best rate, so it is tried behind it.
    """
    lessons = lessons_of(lab, TEACHER, development=True)
    data = run_rows(lessons, dict.fromkeys(PLAIN), TEACHER)
    best = {}
    for later in False, True:
        names = [name for name, row in ROWS.items() if (row.after is not None) == later]
        names = [name for name in names if name != CONTROL]             # it has SFT's rate
        todo = {name: RATES for name in names}
        while todo:
            data |= run_rows(lessons, tries(todo, best), TEACHER)
            todo = {}
            for name in names:
                best[name], beyond = best_rate(data, name)
                if beyond:
                    todo[name] = (beyond,)
    chosen = ", ".join(f"{name} {rate:g}" for name, rate in best.items())
    shown = {"judge": ("teacher ↓", 3), "distinct_3": ("distinct-3", 3),
             "perplexity": ("perplexity", 2)}
    bars = {name: marks["judge"] for name, marks in data.items()}
    draw = partial(plot.bars, {"": bars}, "bits per character under the teacher",
                   "Learning rates, on development openings", COLORS)
    return Findings(data, f"the rates are {chosen}",
                    "They belong into ROWS of lab/studies/writer.py.", draw, shown)


def tries(todo: dict[str, tuple], best: dict[str, float]) -> dict[str, Training]:
    """{"ROW RATE": training} for the rates that are to be tried next."""
    rows = {}
    for name, rates in todo.items():
        row = ROWS[name]
        if row.after is not None:
            row = replace(row, after=replace(SFT, lr=best["sft"]))
        for rate in rates:
            rows[f"{name} {rate:g}"] = replace(row, lr=rate)
    return rows


def best_rate(data: dict, name: str) -> tuple[float, float | None]:
    """The best rate that a row has tried, and the one to be tried next, or None.

    If none leaves the text diverse enough, the lowest counts as the best.
    """
    tried = {}
    for key, marks in data.items():
        row, _, rate = key.rpartition(" ")
        if row == name:
            tried[float(rate)] = marks
    rates = sorted(tried)
    floor = sum(data["teacher"]["distinct_3"])
    diverse = [rate for rate in rates if sum(tried[rate]["distinct_3"]) >= floor]
    best = min(diverse or rates[:1], key=lambda rate: sum(tried[rate]["judge"]))
    if len(rates) == MOST_RATES:
        return best, None
    if best == rates[0]:
        return best, best / 2
    return best, 2 * best if best == rates[-1] else None
