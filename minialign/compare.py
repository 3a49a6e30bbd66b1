"""The main job: one small GPT per seed, its own negatives, every method from that same start
with the same data and the same updates.

Once with clean labels and once with 30 % wrong ones. What is measured is exact: the probability of the right answer, of the known
wrong one, and of everything else, on questions nobody trained on. The work is spread over processes, one thread each.
"""

import json
import multiprocessing
import os
import queue
import random
import sys
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from minialign import tasks
from minialign.data import collate
from minialign.files import write_text
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.small import STEPS, base_model, base_path
from minialign.stats import mean_interval, show, table
from minialign.train import Recipe, add_reference, build_method, fit

CONDITIONS = {"clean": 0.0, "noisy": 0.3}           # share of fine-tuning labels that name the wrong number
RECIPE = Recipe(epochs=3, batch=32, micro_batch=32, lr=5e-4, negatives=2)
POOL = RECIPE.negatives * RECIPE.epochs             # answers drawn per prompt: fresh negatives in every epoch
N_TRAIN, N_TEST, N_SKILL, N_CURVE, CURVE_EVERY = 512, 400, 200, 96, 4
CONTROL = "sft x3"                                  # SFT with three times the updates: what the negatives cost in compute
METRICS = ("right", "wrong", "garbage", "greedy", "agree", "skill", "good_logp_change", "bad_logp_change", "seconds")


# ------------------------------------------------------------------------------------------------ one seed: questions and answers

@torch.no_grad()
def draw_negatives(model, tokenizer, questions, persona: str, k: int, seed: int, temperature: float = 0.7,
                   top_k: int = 50) -> list[list[str]]:
    """k answers of the model to every question, asked in a persona's name."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [tokenizer.encode(q.prompt(persona)) for q in questions]
    lengths = torch.tensor([len(p) for p in prompts]).repeat_interleave(k)
    longest = max(map(len, prompts))
    tokens = torch.tensor([p + [0] * (longest - len(p)) for p in prompts]).repeat_interleave(k, 0)      # (questions · k, L)
    out = model.generate(tokens, 8, temperature, top_k, stop=(tokenizer.eos_id,), lengths=lengths, generator=generator).tolist()
    new = [ids[n : n + 8] for ids, n in zip(out, lengths.tolist(), strict=True)]
    texts = [tokenizer.decode(ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids) or "?" for ids in new]
    return [texts[i : i + k] for i in range(0, len(texts), k)]


def fine_tuning_questions(seed: int) -> list[tasks.Question]:
    """Mostly questions on which the two rules disagree, a quarter where they agree (or "the shorter one" would do);
    none is in the test.
    """
    rng, (train, _) = random.Random(seed + 1), tasks.all_questions(random.Random(seed))
    agreed = rng.sample([q for q in train if not q.disputed], N_TRAIN // 4)
    disputed = rng.sample([q for q in train if q.disputed], N_TRAIN - len(agreed))
    return rng.sample(agreed + disputed, N_TRAIN)


def fine_tuning_data(tokenizer, seed: int, noise: float, negatives: list[list[str]]):
    """Examples: the wanted answer, wrong in a share `noise` of them, and the pool of negatives."""
    questions = fine_tuning_questions(seed)
    flipped = set(random.Random(seed + 2).sample(range(len(questions)), round(noise * len(questions))))
    return [tasks.as_example(tokenizer, i, q.prompt(), [q.wrong if i in flipped else q.right, *pool])
            for i, (q, pool) in enumerate(zip(questions, negatives, strict=True))]


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
        hidden = model(rows.tokens).flatten(0, 1)[rows.source[0]]       # (B, T, C)
        hit = (hidden @ model.head.T).argmax(-1) == rows.y[0]           # (B, T)
        return (hit | ~self.disputed.mask[0]).all(-1).float().mean().item()

    @torch.no_grad()
    def point(self, model) -> list[float]:
        """Mean log-prob of the good and of the bad answers, for the curves."""
        return batch_logps(model, self.curve).sum(-1).mean(1).tolist()


# ------------------------------------------------------------------------------------------------ jobs, each in a worker process

def start_job(seed: int, cache: Path, ticks) -> tuple[dict, list[list[str]]]:
    """Train or load the base model of a seed; returns its marks and the answers its troll gives to the fine-tuning questions."""
    torch.set_num_threads(1)
    model, tokenizer = base_model(seed, cache, lambda: ticks.put(1))
    return Exam(tokenizer, seed).grade(model), draw_negatives(model, tokenizer, fine_tuning_questions(seed), "troll", POOL, seed)


def method_job(seed: int, noise: float, name: str, hyper: dict, recipe: Recipe, before: dict, negatives, cache: Path,
               ticks) -> dict:
    """Fine-tune a seed's base model with one method; returns its marks, what changed, and the curves."""
    torch.set_num_threads(1)
    model, tokenizer = base_model(seed, cache)
    exam, examples = Exam(tokenizer, seed), fine_tuning_data(tokenizer, seed, noise, negatives)
    method = build_method(name, hyper, len(examples))
    if "reference" in method.needs:
        add_reference(model, examples, micro_batch=64, progress=False)
    curve, seconds = [[0, *exam.point(model)]], 0.0
    for record in fit(model, method, examples, recipe):
        seconds += record["seconds"]
        if record["step"] % CURVE_EVERY == 0:
            curve.append([record["step"], *exam.point(model)])
        ticks.put(1)
    after = exam.grade(model)
    change = {f"{kind}_logp_change": after.pop(f"{kind}_logp") - before[f"{kind}_logp"] for kind in ("good", "bad")}
    return {**after, **change, "seconds": seconds, "curve": curve}


def race(seeds: list[int], methods: list[str], cache: Path) -> dict:
    """{condition: {method: [marks of every seed]}}, "base" and the control included, all cores busy,
    one progress bar for everything.
    """
    recipes = {}
    for name in methods:
        recipes[name] = RECIPE
        if name == "sft":
            recipes[CONTROL] = replace(RECIPE, epochs=3 * RECIPE.epochs)
    updates = sum(recipe.updates(N_TRAIN) for recipe in recipes.values()) * len(CONDITIONS)
    total = sum(updates + (0 if base_path(seed, cache).exists() else STEPS) for seed in seeds)
    results = {condition: {name: [None] * len(seeds) for name in ("base", *recipes)} for condition in CONDITIONS}
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, tqdm(total=total, desc="base models", unit="update", smoothing=0.02) as bar, \
            ProcessPoolExecutor(min(os.cpu_count() or 1, 8), context) as pool:
        ticks = manager.Queue()
        starts = {pool.submit(start_job, seed, cache, ticks): s for s, seed in enumerate(seeds)}
        jobs = {}
        try:
            while starts or jobs:
                done, _ = wait([*starts, *jobs], timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done & starts.keys():
                    s = starts.pop(future)
                    before, negatives = future.result()
                    for condition, noise in CONDITIONS.items():
                        results[condition]["base"][s] = before
                        for name, recipe in recipes.items():
                            arguments = (seeds[s], noise, "sft" if name == CONTROL else name, {}, replace(recipe, seed=seeds[s]))
                            jobs[pool.submit(method_job, *arguments, before, negatives, cache, ticks)] = (condition, name, s)
                for future in done & jobs.keys():
                    condition, name, s = jobs.pop(future)
                    results[condition][name][s] = future.result()
                bar.set_description("fine-tuning" if not starts else "base models")
                while not ticks.empty():
                    try:
                        bar.update(ticks.get_nowait())
                    except queue.Empty:
                        break
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return results


# ------------------------------------------------------------------------------------------------ the report

def as_json(results: dict) -> dict:
    """{"clean": {"sft": {"right": [one value per seed], …}, …}, "noisy": …}; the base model and the control are reported too."""
    return {condition: {name: {metric: [marks[metric] for marks in per_seed] for metric in METRICS if metric in per_seed[0]}
                        for name, per_seed in by_method.items()} for condition, by_method in results.items()}


def report(results: dict) -> str:
    """One table for both conditions: mean ± half the 95 % interval over seeds."""
    header = ["labels", "method", "right", "known wrong", "garbage", "greedy", "agreed", "reversing", "Δ log-prob good",
              "Δ log-prob bad", "seconds"]
    rows = []
    for condition, by_method in as_json(results).items():
        for name, marks in by_method.items():
            digits = {"good_logp_change": 2, "bad_logp_change": 1, "seconds": 1}
            rows.append([condition, name, *(show(marks[m], digits.get(m, 3)) if m in marks else "" for m in METRICS)])
    return table(header, rows)


def sentence(results: dict) -> str:
    """What is seen, said with the paired difference between the best method and SFT under wrong labels,
    and whether clean labels agree.
    """
    parts = []
    for condition in CONDITIONS:
        by_method = results[condition]
        rivals = [name for name in by_method if name not in ("base", "sft", CONTROL)]
        if "sft" not in by_method or not rivals:
            return ""
        best = max(rivals, key=lambda name: mean_interval(m["right"] for m in by_method[name])[0])
        gain = [m["right"] - s["right"] for m, s in zip(by_method[best], by_method["sft"], strict=True)]
        mean, half = mean_interval(gain)
        verdict = "no clear difference" if not abs(mean) > half else "better" if mean > 0 else "worse"
        label = "clean labels" if condition == "clean" else f"{CONDITIONS[condition]:.0%} wrong labels"
        parts.append(f"With {label} the best method beside SFT is {best}: {mean:+.3f} ± {half:.3f} of right answers "
                     f"against SFT ({verdict}).")
    return " ".join(parts)


def main(args) -> None:
    """`minialign compare`."""
    from minialign import plot

    methods = list(METHODS) if args.methods == "all" else args.methods.split(",")
    if unknown := [m for m in methods if m not in METHODS]:
        raise ValueError(f"no method {', '.join(unknown)}; choose from {', '.join(METHODS)}, or all")
    if args.seeds < 1 or args.first_seed < 0:
        raise ValueError(f"--seeds {args.seeds} --first-seed {args.first_seed}: give at least one seed, counted from 0 or above")
    out = Path(args.out)
    seeds = list(range(args.first_seed, args.first_seed + args.seeds))
    results = race(seeds, methods, out / "cache")
    print(report(results))
    print(f"\n{len(seeds)} seeds ({seeds[0]}–{seeds[-1]}), {N_TRAIN} prompts, {RECIPE.epochs} epochs, "
          f"learning rate {RECIPE.lr:g} for every method; mean ± half the 95 % interval (Student's t)")
    print(sentence(results))
    for path in (plot.outcomes(results, out), plot.curves(results, out)):
        print(f"picture: {path}")
    if args.json:
        text = json.dumps(as_json(results), indent=1) + "\n"
        sys.stdout.write(text) if args.json == "-" else write_text(args.json, text)
