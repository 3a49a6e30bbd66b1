"""The arena: fine-tuning runs of the small GPT that differ in one thing, many of them at once, all measured in the same way.

A `Run` says everything that a fine-tuning run depends on besides its seed. A seed fixes the base model, the questions, the order
of the data and the test, so that runs of one seed can be compared pair by pair. Processes share the work, one thread each.
"""

import copy
import multiprocessing
import os
import random
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path

import torch
from tqdm import tqdm

from minialign.data import Batch, Example, collate
from minialign.lab import tasks
from minialign.lab.small import STEPS, base_model, base_path
from minialign.logps import batch_logps
from minialign.methods import METHODS, Method, build_method
from minialign.train import Recipe, fit
from minialign.verbs.sample import answers

RECIPE = Recipe(epochs=3, batch=32, micro_batch=32, lr=5e-4, negatives=2)
N_TRAIN, N_TEST, N_SKILL, N_CURVE, N_WATCHED, CURVE_EVERY, LONGEST = 512, 400, 200, 96, 48, 4, 8
LOGGED = {"step", "epoch", "loss", "lr", "gradient_norm", "tokens", "seconds"}      # what fit reports of every method


@dataclass(frozen=True)
class Run:
    """One fine-tuning run of the small GPT, seed aside."""

    method: str | type[Method]      # a name in METHODS, or the class of a variant that has no name there
    hyper: dict = field(default_factory=dict)
    noise: float = 0.0              # share of the labels that name the wrong number
    recipe: Recipe = RECIPE
    persona: str | None = "troll"   # in whose name the base model gives the negatives (tasks.PERSONAS); None: labelled pairs,
                                    # in which the rejected answer is the number that is not the label
    temperature: float = 0.7        # at which the base model gives them
    init: str = "base"              # what is fine-tuned: "base", "untrained", or "sft", the base model after SFT on the same data


# ------------------------------------------------------------------------------------------------ one seed: questions and answers

def fine_tuning_questions(seed: int) -> list[tasks.Question]:
    """Mostly questions on which the two rules disagree, a quarter where they agree (or "the shorter one" would do).

    None of them is in the test.
    """
    rng, (train, _) = random.Random(seed + 1), tasks.all_questions(random.Random(seed))
    agreed = rng.sample([q for q in train if not q.disputed], N_TRAIN // 4)
    disputed = rng.sample([q for q in train if q.disputed], N_TRAIN - len(agreed))
    return rng.sample(agreed + disputed, N_TRAIN)


def fine_tuning_data(tokenizer, seed: int, noise: float, negatives: list[list[str]] | None) -> list[Example]:
    """The wanted answer, wrong in a share `noise` of the examples, and the pool of negatives (None: the other number).

    Rewards 1 and 0 for methods that rank.
    """
    questions = fine_tuning_questions(seed)
    flipped = set(random.Random(seed + 2).sample(range(len(questions)), round(noise * len(questions))))
    labels = [(q.wrong, q.right) if i in flipped else (q.right, q.wrong) for i, q in enumerate(questions)]
    pools = [[other] for _, other in labels] if negatives is None else negatives
    examples = [tasks.as_example(tokenizer, i, q.prompt(), [label, *pool])
                for i, (q, (label, _), pool) in enumerate(zip(questions, labels, pools, strict=True))]
    return [replace(e, rewards=[1.0] + [0.0] * (len(e.answers) - 1)) for e in examples]


class Exam:
    """What every model of a seed is asked, on held-out questions.

    Its marks are exact probabilities, as if sampled at temperature 1 forever.
    """

    def __init__(self, tokenizer, seed: int):
        rng = random.Random(seed + 3)
        _, test = tasks.all_questions(random.Random(seed))
        disputed = [(q.prompt(), [q.right, q.wrong]) for q in rng.sample([q for q in test if q.disputed], N_TEST)]
        agreed = [(q.prompt(), [q.right]) for q in rng.sample([q for q in test if not q.disputed], N_SKILL)]
        reversals = [(prompt, [answer]) for prompt, answer in (tasks.reversal(rng) for _ in range(N_SKILL))]
        self.disputed, self.curve, self.agreed, self.reversals = (
            collate([tasks.as_example(tokenizer, i, prompt, answers) for i, (prompt, answers) in enumerate(asked)])
            for asked in (disputed, disputed[:N_CURVE], agreed, reversals))

    @torch.no_grad()
    def grade(self, model) -> dict[str, float]:
        logps = batch_logps(model, self.disputed).sum(-1)               # (2, questions)
        right, wrong = logps.exp().mean(1).tolist()
        agree, skill = (batch_logps(model, asked).sum(-1).exp().mean().item() for asked in (self.agreed, self.reversals))
        good, bad = logps.mean(1).tolist()
        return {"right": right, "wrong": wrong, "garbage": 1 - right - wrong, "greedy": self.greedy(model), "agree": agree,
                "skill": skill, "good_logp": good, "bad_logp": bad}

    def greedy(self, model) -> float:
        """Share of questions answered right at temperature 0:
        every token of the right answer must be the likeliest at its place.
        """
        rows = self.disputed.rows
        hidden = model(rows.tokens, rows.positions, rows.texts).flatten(0, 1)[rows.source[0]]       # (B, T, C)
        hit = (hidden @ model.head.T).argmax(-1) == rows.y[0]           # (B, T)
        return (hit | ~self.disputed.mask[0]).all(-1).float().mean().item()

    @torch.no_grad()
    def point(self, model) -> list[float]:
        """Mean log-prob of the good and of the bad answers, for the curves."""
        return batch_logps(model, self.curve).sum(-1).mean(1).tolist()


# ------------------------------------------------------------------------------------------------ jobs, each in a worker process

@lru_cache
def start(seed: int, cache: Path):
    """What the runs of a seed share: base model, tokenizer, exam, the base model's marks.

    Kept by each worker, so that the next run of the seed begins at once.
    """
    model, tokenizer = base_model(seed, cache)
    exam = Exam(tokenizer, seed)
    return model, tokenizer, exam, exam.grade(model)


@lru_cache
def draw(seed: int, cache: Path, persona: str, temperature: float, k: int) -> list[list[str]]:
    """k answers of the base model to every fine-tuning question: the negatives. Kept like `start`."""
    model, tokenizer, _, _ = start(seed, cache)
    prompts = [tokenizer.encode(q.prompt(persona)) for q in fine_tuning_questions(seed)]
    pools = answers(model, tokenizer, prompts, k, LONGEST, temperature, 50, None, torch.Generator().manual_seed(seed))
    return [[text or "?" for text, _ in pool] for pool in pools]


def starting_point(init: str, base, examples: list[Example], recipe: Recipe):
    """A copy of the base model; the same architecture untrained; or the base model after SFT on these examples."""
    model = copy.deepcopy(base)
    if init == "untrained":
        torch.manual_seed(recipe.seed + 4)
        model.initialise()
    elif init == "sft":
        for _ in fit(model, METHODS["sft"](), examples, recipe):
            pass
    elif init != "base":
        raise ValueError(f"init is {init!r}; choose base, untrained or sft")
    return model


def method_of(run: Run, n_examples: int) -> Method:
    if isinstance(run.method, str):
        return build_method(run.method, run.hyper, n_examples)
    sized = any(f.name == "n_examples" for f in fields(run.method))
    return run.method(**run.hyper, **({"n_examples": n_examples} if sized else {}))


@torch.no_grad()
def watch(model, watched: Batch) -> list[float]:
    """Mean log-prob of the wanted answers and of the negatives of some training examples."""
    sums, present = batch_logps(model, watched).sum(-1), watched.mask.any(-1)       # (A, B)
    return [sums[0].mean().item(), sums[1:][present[1:]].mean().item()]


def base_job(seed: int, cache: Path, ticks) -> dict:
    """Train the base model of a seed, or find it in the cache; returns its marks."""
    torch.set_num_threads(1)
    model, tokenizer = base_model(seed, cache, lambda: ticks.put(1))
    return Exam(tokenizer, seed).grade(model)


def run_job(seed: int, run: Run, cache: Path, ticks) -> dict:
    """Fine-tune on the data of a seed; returns marks, what changed, the method's own numbers averaged over the updates,
    the seconds in the training loop, and the curve: [update, good, bad (held out), wanted, negatives (training)] log-probs.
    """
    torch.set_num_threads(1)
    recipe = replace(run.recipe, seed=seed)
    base, tokenizer, exam, before = start(seed, cache)
    method = method_of(run, N_TRAIN)
    k = recipe.negatives * (recipe.epochs if method.reads_others else RECIPE.epochs)       # who looks at none shares the usual draw
    pools = None if run.persona is None else draw(seed, cache, run.persona, run.temperature, k)
    examples = fine_tuning_data(tokenizer, seed, run.noise, pools)
    watched = collate([replace(e, answers=e.answers[:3], rewards=None) for e in examples[:N_WATCHED]])
    model = starting_point(run.init, base, examples, recipe)
    method.prepare_data(model, examples, progress=False)
    before = before if run.init == "base" else exam.grade(model)
    curve, seconds, infos = [[0, *exam.point(model), *watch(model, watched)]], 0.0, {}
    for record in fit(model, method, examples, recipe):
        seconds += record["seconds"]
        for name in record.keys() - LOGGED:
            infos[name] = infos.get(name, 0.0) + record[name] / recipe.updates(N_TRAIN)
        if record["step"] % CURVE_EVERY == 0:
            curve.append([record["step"], *exam.point(model), *watch(model, watched)])
        ticks.put(1)
    after = exam.grade(model)
    change = {f"{kind}_logp_change": after[f"{kind}_logp"] - before[f"{kind}_logp"] for kind in ("good", "bad")}
    return {**after, **change, "seconds": seconds, "curve": curve, "info": infos}


def run_all(runs: dict, seeds: list[int], cache: Path) -> tuple[list[dict], dict]:
    """Every run on every seed, all cores busy, one progress bar for everything.

    runs   {label: Run}
    →      the base models' marks, one per seed, and {label: [marks of every seed]}; interrupted, the workers are stopped first
    """
    updates = sum(run.recipe.updates(N_TRAIN) for run in runs.values())
    total = sum(updates + (0 if base_path(seed, cache).exists() else STEPS) for seed in seeds)
    base, results = [{} for _ in seeds], {label: [{} for _ in seeds] for label in runs}
    context = multiprocessing.get_context("spawn")
    with tqdm(total=total, desc="base models", unit="update", smoothing=0.02) as bar, context.Manager() as manager:
        ticks = manager.Queue()
        pool = ProcessPoolExecutor(min(os.cpu_count() or 1, 8), context)
        try:
            waiting = {pool.submit(base_job, seed, cache, ticks): (None, s) for s, seed in enumerate(seeds)}
            while waiting:
                done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    label, s = waiting.pop(future)
                    if label is not None:
                        results[label][s] = future.result()
                        continue
                    base[s] = future.result()
                    waiting |= {pool.submit(run_job, seeds[s], run, cache, ticks): (label, s) for label, run in runs.items()}
                if all(base):
                    bar.set_description("fine-tuning")
                while not ticks.empty():
                    bar.update(ticks.get())
        finally:
            for worker in multiprocessing.active_children() if waiting else []:
                if worker.pid != manager._process.pid:
                    worker.terminate()
            pool.shutdown(cancel_futures=True)
    return base, results
