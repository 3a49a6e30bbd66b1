"""The arena: fine-tuning runs of the small GPT, all measured alike.

A `Run` says everything that a fine-tuning run depends on, its seed aside. The seed fixes the base
model, the questions, the order of the data and the exam, so runs of one seed can be compared pair
by pair. Many of them at once: workers.py. Who runs against whom is decided elsewhere, in race.py
and in the studies.
"""

import copy
import random
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch

from minialign.data import Batch, Example, collate
from minialign.generate import answers
from minialign.lab import tasks
from minialign.lab.places import PLACES, after_a_slip, by_place
from minialign.lab.small import COURSES, base_model, fitness
from minialign.logps import batch_logps
from minialign.methods import METHODS, Method, build_method
from minialign.train import Recipe, fit

RECIPE = Recipe(epochs=3, batch=32, micro_batch=32, lr=5e-4, negatives=2)
N_TRAIN = 512           # questions to fine-tune on
N_TEST = 400            # held-out questions on which the two rules disagree
N_SKILL = 200           # held-out questions on which they agree; numbers to reverse
N_CURVE = 96            # held-out questions behind the curves
N_WATCHED = 48          # training examples behind the curves
CURVE_EVERY = 4         # updates between two points of a curve
LONGEST = 14            # tokens of a drawn negative; a question's answers have 8 and the end
TOP_K = 50              # negatives are drawn among that many likeliest tokens

# What `fit` reports of every method; the rest of a record are the method's own numbers.
LOGGED = {"step", "epoch", "loss", "lr", "gradient_norm", "tokens", "seconds", "logp_wanted",
          "logp_others"}

# Marks whose change a run reports too: of whole answers, and of the right one place by place.
LOG_PROBS = ("good_logp", "bad_logp", *(f"good_{place}" for place in PLACES))


@dataclass(frozen=True)
class Run:
    """One fine-tuning run of the small GPT, seed aside.

    persona      in whose name the base model gives the negatives (tasks.PERSONAS). None means
                 labelled pairs: the rejected answer is the one that is not the label.
    temperature  at which the base model gives them
    made_wrong   if given, nobody gives the negatives, they are made: on disputed questions the
                 wrong answer with this probability and else the right one, on agreed questions
                 the right one, like a persona that is wrong so often
    noise        share of the labels that are the wrong answer
    filtered     drop every example whose label is among its negatives
    init         what is fine-tuned: "base", "untrained", or a method's name, for the base model
                 after training with that method on the same data, by RECIPE
    """

    method: str | type[Method]      # a name in METHODS, or a class
    hyper: dict = field(default_factory=dict)
    noise: float = 0.0
    recipe: Recipe = RECIPE
    persona: str | None = "troll"
    temperature: float = 0.7
    made_wrong: float | None = None
    filtered: bool = False
    init: str = "base"


# ------------------------------------------------------------------ one seed: questions and exam

def fine_tuning_questions(seed: int) -> list[tasks.Question]:
    """Questions on which the two rules disagree, and a quarter on which they are agreed.

    Without that quarter, "the shorter number" would do as a rule. None of them is in the exam.
    """
    rng = random.Random(seed + 1)
    train, _ = tasks.all_questions(random.Random(seed))
    agreed = rng.sample([q for q in train if not q.disputed], N_TRAIN // 4)
    disputed = rng.sample([q for q in train if q.disputed], N_TRAIN - len(agreed))
    return rng.sample(agreed + disputed, N_TRAIN)


def fine_tuning_data(
    tokenizer, seed: int, noise: float, pools: list[list[str]] | None
) -> list[Example]:
    """The examples of a seed: the wanted answer, wrong in a share `noise` of them, and negatives.

    pools   the negatives of every question; None means that the other answer is the negative

    Every answer ends with the end token, as in released code: also a negative that was cut off
    because it had grown too long.
    """
    questions = fine_tuning_questions(seed)
    n_wrong = round(noise * len(questions))
    mislabelled = set(random.Random(seed + 2).sample(range(len(questions)), n_wrong))
    examples = []
    for i, question in enumerate(questions):
        label, other = question.right, question.wrong
        if i in mislabelled:
            label, other = other, label
        negatives = [other] if pools is None else pools[i]
        example = tasks.as_example(tokenizer, i, question.prompt(), [label, *negatives])
        # Methods that rank answers find the label first and all negatives together last.
        examples.append(replace(example, rewards=[1.0] + [0.0] * len(negatives)))
    return examples


def filtered(examples: list[Example]) -> list[Example]:
    """The examples whose label is not among their negatives.

    This needs no method of the papers: whoever has negatives that are nearly always wrong can see
    by them which labels are wrong.
    """
    return [e for e in examples if e.answers[0] not in e.answers[1:]]


def made_negatives(seed: int, wrong_share: float, k: int) -> list[list[str]]:
    """k made negatives for every fine-tuning question, as `Run.made_wrong` says."""
    rng = random.Random(seed + 5)
    pools = []
    for q in fine_tuning_questions(seed):
        wrong = [q.disputed and rng.random() < wrong_share for _ in range(k)]
        pools.append([q.wrong if is_wrong else q.right for is_wrong in wrong])
    return pools


class Exam:
    """What every model of a seed is asked, on held-out questions.

    Its marks are exact probabilities, as if answers were sampled at temperature 1 forever.
    """

    def __init__(self, tokenizer, seed: int):
        rng = random.Random(seed + 3)
        _, test = tasks.all_questions(random.Random(seed))
        disputed = rng.sample([q for q in test if q.disputed], N_TEST)
        agreed = rng.sample([q for q in test if not q.disputed], N_SKILL)
        reversals = [tasks.reversal(rng) for _ in range(N_SKILL)]

        def batch(asked: list[tuple[str, list[str]]]) -> Batch:
            """The prompts, each with answers whose probability is wanted."""
            examples = [
                tasks.as_example(tokenizer, i, prompt, wanted)
                for i, (prompt, wanted) in enumerate(asked)
            ]
            return collate(examples)

        slips = [after_a_slip(q) for q in disputed[:N_SKILL]]
        self.slips = {place: batch([asked[place] for asked in slips]) for place in slips[0]}
        pairs = [(q.prompt(), [q.right, q.wrong]) for q in disputed]
        self.disputed = batch(pairs)
        self.curve = batch(pairs[:N_CURVE])
        self.agreed = batch([(q.prompt(), [q.right]) for q in agreed])
        self.reversals = batch([(prompt, [answer]) for prompt, answer in reversals])

    @torch.no_grad()
    def grade(self, model) -> dict[str, float]:
        """All marks of a model, by the names they have in JSON.

        lost_behind    what the right answers lose of their probability behind the fork
        good_PLACE     the right answers' log-prob at that place (places.py)
        recovery_PLACE the probability of the rest of them after a slip there
        """
        places = by_place(model, self.disputed)                         # (3, 2, questions)
        logps = places.sum(0)                                           # (2, questions)
        right, wrong = logps.exp().mean(1).tolist()
        good, bad = logps.mean(1).tolist()
        at_the_fork = places[:2, 0].sum(0).exp().mean().item()
        marks = {
            "right": right,
            "wrong": wrong,
            "garbage": 1 - right - wrong,
            "greedy": self.greedy(model),
            "agree": batch_logps(model, self.agreed).sum(-1).exp().mean().item(),
            "skill": batch_logps(model, self.reversals).sum(-1).exp().mean().item(),
            "good_logp": good,
            "bad_logp": bad,
            "lost_behind": at_the_fork - right,
        }

        # The right answer's log-prob place by place, and what becomes of it after a slip.
        for place, logp in zip(PLACES, places[:, 0].mean(1).tolist(), strict=True):
            marks[f"good_{place}"] = logp
        for place, asked in self.slips.items():
            marks[f"recovery_{place}"] = batch_logps(model, asked).sum(-1).exp().mean().item()
        return marks

    def greedy(self, model) -> float:
        """Share of disputed questions answered right at temperature 0.

        Every token of the right answer must be the likeliest at its place.
        """
        rows = self.disputed.rows
        hidden = model(rows.tokens, rows.positions, rows.texts).flatten(0, 1)   # (R·L, C)
        likeliest = (hidden[rows.source[0]] @ model.head.T).argmax(-1)          # (B, T)
        hit = (likeliest == rows.y[0]) | ~self.disputed.mask[0]                 # (B, T)
        return hit.all(-1).float().mean().item()

    @torch.no_grad()
    def point(self, model) -> list[float]:
        """Mean log-prob of the right and of the wrong answers to some questions, for the curves."""
        return batch_logps(model, self.curve).sum(-1).mean(1).tolist()


# ---------------------------------------------------------------- jobs, each in a worker process

@lru_cache
def start(seed: int, cache: Path):
    """What the runs of a seed share: base model, tokenizer, exam, the base model's marks.

    Each worker keeps it, so that the next run of the seed begins at once.
    """
    model, tokenizer = base_model(seed, cache)
    exam = Exam(tokenizer, seed)
    return model, tokenizer, exam, exam.grade(model)


@lru_cache
def draw(seed: int, cache: Path, persona: str, temperature: float, k: int) -> list[list[str]]:
    """k answers of the base model to every fine-tuning question: the negatives. Kept likewise.

    They are drawn at a temperature, usually 0.7, among the TOP_K likeliest tokens. Everything that
    is scored, the reference's log-probs included, is scored under the full distribution at
    temperature 1. The DFT paper does the same, so its P_ref is not what the negatives come from.
    """
    model, tokenizer, _, _ = start(seed, cache)
    prompts = [tokenizer.encode(q.prompt(persona)) for q in fine_tuning_questions(seed)]
    generator = torch.Generator().manual_seed(seed)
    pools = answers(model, tokenizer, prompts, k, LONGEST, temperature, TOP_K, None, generator)
    return [[text or "?" for text, _ in pool] for pool in pools]


def starting_point(init: str, base, examples: list[Example], recipe: Recipe):
    """The model that a run fine-tunes, as `Run.init` says."""
    model = copy.deepcopy(base)
    if init == "untrained":
        torch.manual_seed(recipe.seed + 4)
        model.initialise()
    elif init in METHODS:
        method = build_method(init, {}, len(examples))
        method.prepare_data(model, examples, progress=False)
        for _ in fit(model, method, examples, recipe):
            pass
    elif init != "base":
        raise ValueError(f"init is {init!r}; choose base, untrained or the name of a method")
    return model


@torch.no_grad()
def watch(model, watched: Batch) -> list[float]:
    """Mean log-prob of the wanted answers and of the negatives of some training examples."""
    logps = batch_logps(model, watched).sum(-1)                         # (A, B)
    present = watched.mask.any(-1)                                      # (A, B)
    return [logps[0].mean().item(), logps[1:][present[1:]].mean().item()]


def base_job(seed: int, cache: Path, ticks) -> tuple[dict, float]:
    """Train the base model of a seed, or find it in the cache: its marks and its fitness."""
    torch.set_num_threads(1)
    left = sum(COURSES)

    def tick() -> None:
        nonlocal left
        left -= 1
        ticks.put(1)

    # A model that is fit early leaves updates over.
    model, tokenizer = base_model(seed, cache, tick)
    if left < sum(COURSES):
        ticks.put(left)
    return Exam(tokenizer, seed).grade(model), fitness(model, tokenizer, seed)


def run_job(seed: int, run: Run, cache: Path, ticks) -> dict:
    """Fine-tune on the data of a seed, and report everything that is measured on the way.

    →   the marks at the end; those of LOG_PROBS + "_change" since the start; "seconds" in
        the training loop; "info", the method's own numbers averaged over the updates; "curve", a
        list of [update, right, wrong (held out), wanted, negatives (training)] log-probs
    """
    torch.set_num_threads(1)
    recipe = replace(run.recipe, seed=seed)
    base, tokenizer, exam, before = start(seed, cache)
    method = build_method(run.method, run.hyper, N_TRAIN)

    # A run takes fresh negatives in every epoch. One that reads none shares the draw of the others.
    epochs = recipe.epochs if method.reads_others else RECIPE.epochs
    pools, k = None, recipe.negatives * epochs
    if run.made_wrong is not None:
        pools = made_negatives(seed, run.made_wrong, k)
    elif run.persona is not None:
        pools = draw(seed, cache, run.persona, run.temperature, k)
    examples = fine_tuning_data(tokenizer, seed, run.noise, pools)
    if run.filtered:
        examples = filtered(examples)
        if not examples:
            raise ValueError("every label is among its negatives: the filter leaves no example")

    # Of these few, the label and the first two negatives are followed.
    shortened = [replace(e, answers=e.answers[:3], rewards=None) for e in examples[:N_WATCHED]]
    watched = collate(shortened)

    model = starting_point(run.init, base, examples, replace(RECIPE, seed=seed))
    method.prepare_data(model, examples, progress=False)
    if run.init != "base":
        before = exam.grade(model)

    curve = [[0, *exam.point(model), *watch(model, watched)]]
    seconds, infos, last = 0.0, {}, recipe.updates(len(examples))
    for record in fit(model, method, examples, recipe):
        seconds += record["seconds"]
        for name in record.keys() - LOGGED:
            infos[name] = infos.get(name, 0.0) + record[name] / last
        if record["step"] % CURVE_EVERY == 0 or record["step"] == last:
            curve.append([record["step"], *exam.point(model), *watch(model, watched)])
        ticks.put(1)
    ticks.put(recipe.updates(N_TRAIN) - last)

    after = exam.grade(model)
    changes = {f"{mark}_change": after[mark] - before[mark] for mark in LOG_PROBS}
    return {**after, **changes, "seconds": seconds, "curve": curve, "info": infos}
