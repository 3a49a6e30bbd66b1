"""The main job: every method from the same start, on the same data, for as many updates.

One small GPT per seed gives its own negatives and is fine-tuned by each method, once with clean
labels and once with 30 % wrong ones. What is measured is exact: the probability of the right
answer, of the known wrong one, and of everything else, on questions that nobody trained on.
"""

from dataclasses import replace
from pathlib import Path

from minialign.files import can_write, write_json
from minialign.lab import plot
from minialign.lab.arena import N_TRAIN, RECIPE, Run, run_all
from minialign.methods import METHODS
from minialign.stats import mean_interval, p_value, show, table

CONDITIONS = {"clean": 0.0, "noisy": 0.3}           # share of the labels that name the wrong number
TITLES = {"clean": "every label right", "noisy": "30 % of the labels wrong"}
CONTROL = "sft x3"      # SFT with three times the updates: what the negatives cost in compute

# What a table shows of a mark: its title and its digits. "agree" is the mark on agreed questions.
MARKS = {
    "right": ("right", 3),
    "wrong": ("known wrong", 3),
    "garbage": ("garbage", 3),
    "greedy": ("greedy", 3),
    "agree": ("agreed", 3),
    "skill": ("reversing", 3),
    "good_logp_change": ("Δ log-prob good", 2),
    "bad_logp_change": ("Δ log-prob bad", 1),
    "seconds": ("seconds", 1),
}


def tripled(run: Run) -> Run:
    """The same run with three times the updates."""
    return replace(run, recipe=replace(run.recipe, epochs=3 * run.recipe.epochs))


def columns(per_seed: list[dict]) -> dict[str, list]:
    """The marks of every seed → {mark: [one value per seed]}."""
    return {mark: [marks[mark] for marks in per_seed] for mark in per_seed[0]}


class Difference:
    """One mark of two settings, seed by seed: the mean of the paired difference and its interval.

    `half` is half of the 95 % interval; a single seed has none, and decides nothing.
    """

    def __init__(self, a: dict[str, list], b: dict[str, list], mark: str):
        self.values = [x - y for x, y in zip(a[mark], b[mark], strict=True)]
        self.mean, self.half = mean_interval(self.values)

    def above(self, x: float = 0.0) -> bool:
        """Clearly: the whole interval lies above x."""
        return self.mean - self.half > x

    def below(self, x: float = 0.0) -> bool:
        return self.mean + self.half < x

    def within(self, x: float) -> bool:
        """The whole interval lies between −x and x: no difference that matters."""
        return self.above(-x) and self.below(x)

    @property
    def p(self) -> float:
        """Two-sided p-value of the paired t test that there is no difference."""
        return p_value(self.values)

    def percent(self) -> str:
        return f"{round(100 * self.mean)} ± {100 * self.half:.0f} %"

    def __str__(self) -> str:
        text = show(self.values, 3 if abs(self.mean) < 1 else 2)
        return text if text.startswith("-") else "+" + text


# ---------------------------------------------------------------------------------------- the race

def race(seeds: list[int], methods: list[str], cache: Path) -> dict[str, dict[str, dict]]:
    """{condition: {method: {mark: [one value per seed]}}}, the base model and the control too."""
    runs = {}
    for condition, noise in CONDITIONS.items():
        for name in methods:
            # The class is handed over, not its name: a worker process has its own METHODS.
            run = Run(METHODS[name], noise=noise, recipe=RECIPE)
            runs[condition, name] = run
            if name == "sft":
                runs[condition, CONTROL] = tripled(run)
    base, measured = run_all(runs, seeds, cache)
    results = {condition: {"base": columns(base)} for condition in CONDITIONS}
    for (condition, name), per_seed in measured.items():
        results[condition][name] = columns(per_seed)
    return results


def as_json(results: dict) -> dict:
    """{"clean": {"sft": {"right": [one value per seed], …}, …}, "noisy": …}: MARKS and no more."""
    numbers = {}
    for condition, by_method in results.items():
        numbers[condition] = {}
        for name, marks in by_method.items():
            numbers[condition][name] = {mark: marks[mark] for mark in MARKS if mark in marks}
    return numbers


def report(results: dict) -> str:
    """One table for both conditions: mean ± half the 95 % interval over seeds."""
    header = ["labels", "method", *(title for title, _ in MARKS.values())]
    rows = []
    for condition, by_method in results.items():
        for name, marks in by_method.items():
            rows.append([condition, name, *cells(marks, MARKS)])
    return table(header, rows)


def cells(marks: dict[str, list], shown: dict[str, tuple[str, int]]) -> list[str]:
    """A row of a table: the marks that are shown, empty where a setting has no such mark."""
    return [show(marks[m], digits) if m in marks else "" for m, (_, digits) in shown.items()]


def sentence(results: dict) -> str:
    """What is seen: one method against SFT, in what it was trained for and in what it was not."""
    parts = []
    for condition, by_method in results.items():
        rivals = [name for name in by_method if name not in ("base", "sft", CONTROL)]
        if not rivals or "sft" not in by_method:
            return ""
        rival = "dft" if "dft" in rivals else rivals[0]
        gain, price = (
            Difference(by_method[rival], by_method["sft"], mark) for mark in ("right", "agree")
        )
        verdict = "no clear difference"
        if gain.above():
            verdict = "better"
        elif gain.below():
            verdict = "worse"
        labels = "clean" if condition == "clean" else f"{CONDITIONS[condition]:.0%} wrong"
        parts.append(
            f"With {labels} labels {rival} answers {gain} more questions right than sft "
            f"({verdict}), and {price} of those on which both rules are agreed."
        )
    return " ".join(parts)


# ------------------------------------------------------------------------------------ its pictures

def of_training(settings: dict[str, dict], column: int) -> dict[str, list]:
    """A column of the arena's curves, for every setting with as many updates as the first.

    →   {setting: [one list of (update, log-prob) per seed]}
    """
    lines, updates = {}, None
    for setting, marks in settings.items():
        if "curve" not in marks:
            continue                            # the base model is not trained
        last = marks["curve"][0][-1][0]
        updates = last if updates is None else updates
        if last == updates:                     # the control trains longer
            lines[setting] = [[(p[0], p[column]) for p in run] for run in marks["curve"]]
    return lines


def pictures(results: dict, folder: Path) -> None:
    """outcomes.png: what the models answer. curves.png: good and bad answers over the updates."""
    panels = {TITLES[condition]: by_method for condition, by_method in results.items()}
    plot.answer_bars(panels, folder=folder, name="outcomes")
    good, bad = [], []
    for title, by_method in panels.items():
        good.append((title, "log-prob of the good answer ↑", of_training(by_method, 1)))
        bad.append(("", "log-prob of the bad answer ↓", of_training(by_method, 2)))
    plot.curves([good, bad], one_scale=True, folder=folder, name="curves")


def run(seeds: list[int], methods: list[str], json: str | None, out: str) -> None:
    """`minialign compare`: race, write the numbers into their file, print, and only then draw."""
    can_write(out, json)
    folder = Path(out)
    results = race(seeds, methods, folder / "cache")
    if json and json != "-":
        write_json(json, as_json(results), indent=1)
    print(report(results))
    print(
        f"\n{len(seeds)} seeds ({seeds[0]}–{seeds[-1]}), {N_TRAIN} prompts, "
        f"{RECIPE.epochs} epochs, learning rate {RECIPE.lr:g} for every method; "
        "mean ± half the 95 % interval (Student's t)"
    )
    print(sentence(results))
    print(f"picture: {folder / 'outcomes.png'}\npicture: {folder / 'curves.png'}", flush=True)
    if json == "-":
        write_json(json, as_json(results), indent=1)
    pictures(results, folder)
