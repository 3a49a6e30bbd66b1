"""The main job: one small GPT per seed, its own negatives, every method from that start with the same data and as many updates.

Once with clean labels and once with 30 % wrong ones. What is measured is exact: the probability of the right answer, of the known
wrong one, and of everything else, on questions nobody trained on.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from minialign.files import can_write, write_text
from minialign.lab.arena import N_TRAIN, RECIPE, Run, run_all
from minialign.methods import METHODS
from minialign.stats import mean_interval, show, table

CONDITIONS = {"clean": 0.0, "noisy": 0.3}           # share of fine-tuning labels that name the wrong number
CONTROL = "sft x3"                                  # SFT with three times the updates: what the negatives cost in compute
METRICS = ("right", "wrong", "garbage", "greedy", "agree", "skill", "good_logp_change", "bad_logp_change", "seconds")


def race(seeds: list[int], methods: list[str], cache: Path) -> dict:
    """{condition: {method: [marks of every seed]}}, the base model and the control included."""
    runs = {}
    for condition, noise in CONDITIONS.items():
        for name in methods:
            runs[condition, name] = Run(name, noise=noise)
            if name == "sft":
                runs[condition, CONTROL] = Run(name, noise=noise, recipe=replace(RECIPE, epochs=3 * RECIPE.epochs))
    base, results = run_all(runs, seeds, cache)
    return {condition: {"base": base} | {name: marks for (c, name), marks in results.items() if c == condition}
            for condition in CONDITIONS}


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
    """What is seen: one method against SFT, seed by seed, in what it was trained for and in what it was not."""
    parts = []
    for condition, by_method in results.items():
        rival = next((name for name in ("dft", *by_method) if name in by_method and name not in ("base", "sft", CONTROL)), None)
        if rival is None or "sft" not in by_method:
            return ""
        pairs = list(zip(by_method[rival], by_method["sft"], strict=True))
        gain, price = ([a[mark] - b[mark] for a, b in pairs] for mark in ("right", "agree"))
        mean, half = mean_interval(gain)
        verdict = "no clear difference" if not abs(mean) > half else "better" if mean > 0 else "worse"
        label = "clean labels" if condition == "clean" else f"{CONDITIONS[condition]:.0%} wrong labels"
        parts.append(f"With {label} {rival} answers {signed(gain)} more questions right than sft ({verdict}), "
                     f"and {signed(price)} of those on which both rules always agreed.")
    return " ".join(parts)


def signed(values) -> str:
    return ("" if show(values).startswith("-") else "+") + show(values)


def main(args) -> None:
    """`minialign compare`."""
    from minialign.lab import plot

    methods = list(METHODS) if args.methods == "all" else args.methods.split(",")
    if unknown := [m for m in methods if m not in METHODS]:
        raise ValueError(f"no method {', '.join(unknown)}; choose from {', '.join(METHODS)}, or all")
    can_write(args.out, args.json)
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
