"""What every study needs: runs that are done once, differences paired seed by seed, findings that can be printed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from minialign.lab.arena import RECIPE, Run, run_all
from minialign.lab.plot import TITLES
from minialign.stats import mean_interval, show, table

HOLDS, NOT, OPEN = "holds", "does not hold here", "undecided with these seeds"
ONLY_TRAINED = "holds only if nothing counts but the questions trained for"
CONDITIONS = {"clean": 0.0, "noisy": 0.3}       # share of wrong labels
RATES, N_TUNING = (2e-4, 5e-4, 1e-3), 2         # learning rates a method may choose from, on so many seeds
SMALL = 0.03                        # a share of answers that we call no difference
CONTROL = "sft x3"                  # SFT with three times the updates: what negatives cost in compute
MARKS = {"right": ("right", 3), "wrong": ("known wrong", 3), "garbage": ("garbage", 3), "greedy": ("greedy", 3),
         "agree": ("agreed", 3), "skill": ("reversing", 3), "average": ("average", 3), "good_logp_change": ("Δ log-prob good", 2),
         "bad_logp_change": ("Δ log-prob bad", 1)}      # average: of right, agreed and reversing
NOISY = CONDITIONS["noisy"]         # where DFT is varied: with clean labels SFT leaves nothing to win (see the study `methods`)


def sft_and_control(**options) -> dict[str, Run]:
    """SFT, and SFT with three times the updates."""
    run = Run("sft", **options)
    return {"sft": run, CONTROL: replace(run, recipe=replace(run.recipe, epochs=3 * run.recipe.epochs))}


def by_condition(data: dict) -> dict[str, dict]:
    """{"noisy dft": …} → {panel title: {"dft": …}}, the base models in each."""
    return {TITLES[c]: {"base": data["base"]} | {name.removeprefix(f"{c} "): marks for name, marks in data.items()
                                                 if name.startswith(f"{c} ")} for c in CONDITIONS}


class Lab:
    """Seeds, a folder, and what has been measured so far: a run is a function of its `Run` and its seed, so it is done once."""

    def __init__(self, seeds: list[int], out: Path, known: dict | None = None, methods: list[str] | None = None):
        self.seeds, self.out, self.known, self.methods = seeds, out, {} if known is None else known, methods
        self.began = time.perf_counter()

    def run(self, runs: dict[str, Run], seeds: list[int] | None = None) -> dict[str, dict[str, list]]:
        """{label: {mark: [one value per seed]}}, the base models first. The method's own numbers are marks too."""
        seeds = self.seeds if seeds is None else seeds
        todo = {label: run for label, run in runs.items() if any((repr(run), seed) not in self.known for seed in seeds)}
        if todo or any(("base", seed) not in self.known for seed in seeds):
            base, results = run_all(todo, seeds, self.out / "cache")
            for label, per_seed in [*results.items(), ("base", base)]:
                for seed, marks in zip(seeds, per_seed, strict=True):
                    self.known["base" if label == "base" else repr(todo[label]), seed] = with_more_marks(marks)
        keys = {"base": "base", **{label: repr(run) for label, run in runs.items()}}
        measured = {label: [self.known[key, seed] for seed in seeds] for label, key in keys.items()}
        return {label: {mark: [marks[mark] for marks in per_seed] for mark in per_seed[0]}
                for label, per_seed in measured.items()}


def with_more_marks(marks: dict) -> dict:
    """A run's marks, and what follows from them: the average over three tasks, what training changed on its own examples."""
    more = {"average": (marks["right"] + marks["agree"] + marks["skill"]) / 3, **marks.get("info", {})}
    if "curve" in marks:
        first, last = marks["curve"][0], marks["curve"][-1]
        more |= {"wanted_change": last[3] - first[3], "negatives_change": last[4] - first[4],
                 "peak_lost": max(point[1] for point in marks["curve"]) - last[1]}
    return {name: value for name, value in marks.items() if name != "info"} | more


def tuned(lab: Lab, runs: dict[str, Run]) -> dict[str, Run]:
    """The same runs, each at the learning rate with most right answers on seeds that are not judged on: the next ones."""
    seeds = [max(lab.seeds) + 1 + i for i in range(N_TUNING)]
    tries = {(label, rate): replace(run, recipe=replace(run.recipe, lr=rate)) for label, run in runs.items() for rate in RATES}
    data = lab.run({f"{label} {rate}": run for (label, rate), run in tries.items()}, seeds)
    best = {label: max(RATES, key=lambda rate: sum(data[f"{label} {rate}"]["right"])) for label in runs}    # noqa: B023
    return {label: tries[label, rate] for label, rate in best.items()}


def rates(runs: dict[str, Run]) -> str:
    """The learning rates of `runs`, for a sentence."""
    return ", ".join(f"{label} {run.recipe.lr:g}" for label, run in runs.items())


class Difference:
    """One mark of two settings, seed by seed: mean and half the 95 % interval of the paired difference."""

    def __init__(self, a: dict[str, list], b: dict[str, list], mark: str):
        self.values = [x - y for x, y in zip(a[mark], b[mark], strict=True)]
        self.mean, self.half = mean_interval(self.values)

    def above(self, x: float = 0.0) -> bool:
        """Clearly: the whole interval lies above x. Never with a single seed, which has no interval."""
        return self.mean - self.half > x

    def more(self) -> bool:
        """Clearly above 0, and by more than what we call no difference."""
        return self.above() and self.mean > SMALL

    def less(self) -> bool:
        return self.below() and self.mean < -SMALL

    def small(self) -> bool:
        """No more than what we call no difference, and measured as finely."""
        return abs(self.mean) <= SMALL and self.half <= SMALL

    def below(self, x: float = 0.0) -> bool:
        return self.mean + self.half < x

    def within(self, x: float) -> bool:
        """The whole interval lies between −x and x: no difference that matters."""
        return self.above(-x) and self.below(x)

    def percent(self) -> str:
        return f"{round(100 * self.mean)} ± {100 * self.half:.0f} %"

    def __str__(self) -> str:
        text = show(self.values, 3 if abs(self.mean) < 1 else 2)
        return text if text.startswith("-") else "+" + text


class Better:
    """Is setting a better than b? Judged on what was trained for (right), then on what should be kept all the same."""

    def __init__(self, a: dict[str, list], b: dict[str, list]):
        self.right, self.agree, self.average = (Difference(a, b, mark) for mark in ("right", "agree", "average"))

    @property
    def costly(self) -> bool:
        """Clearly worse on average, or on the questions on which both rules always agreed."""
        return self.average.below() or self.agree.less()

    @property
    def verdict(self) -> str:
        if self.right.above():
            return ONLY_TRAINED if self.costly else HOLDS
        if self.right.mean > 0 and self.average.above():
            return HOLDS
        if self.right.below() or self.right.within(SMALL):
            return NOT
        return OPEN

    def __str__(self) -> str:
        return f"{self.right} right (undisputed questions {self.agree}, mean of all three tasks {self.average})"


@dataclass
class Findings:
    """What a study saw. Verdict and sentence are computed from `data`."""

    data: dict[str, dict[str, list]]            # {setting: {mark: [one value per seed]}}
    verdict: str
    sentence: str
    draw: Callable[[Path], Path]
    marks: dict[str, tuple[str, int]] = field(default_factory=lambda: MARKS)    # the table's columns: mark → title, digits

    def numbers(self) -> dict[str, dict[str, list[float]]]:
        """The data without curves."""
        return {setting: {mark: values for mark, values in marks.items() if not isinstance(values[0], list)}
                for setting, marks in self.data.items()}

    def report(self, name: str, study, lab: Lab) -> str:
        rows = [[setting, *(show(marks[m], digits) if m in marks else "" for m, (_, digits) in self.marks.items())]
                for setting, marks in self.data.items()]
        seconds = time.perf_counter() - lab.began
        return "\n".join([
            f"\n{name} — “{study.claim}” ({study.source})\n",
            table(["", *(title for title, _ in self.marks.values())], rows),
            f"\nVerdict: {self.verdict}.\n{self.sentence}",
            f"{len(lab.seeds)} seeds ({lab.seeds[0]}–{lab.seeds[-1]}), mean ± half the 95 % interval (Student's t), "
            f"{seconds:.0f} s; picture: {self.draw(lab.out)}",
        ])


def quick(**changes) -> dict:
    """Options of a Run whose recipe differs from the usual one."""
    return {"recipe": replace(RECIPE, **changes)}
