"""The main job: every method from the same start, on the same data, for as many updates.

One small GPT per seed gives its own negatives and is fine-tuned by each method, once with clean
labels and once with 30 % wrong ones. What is measured is exact: the probability of the right
answer, of the known wrong one, and of everything else, on questions that nobody trained on.

Where labels are wrong, controls say what a method's gain is made of: SFT with the same data cleaned
by a filter, DFT with negatives that tell less, both with labels that tell nothing.
"""

from dataclasses import replace
from pathlib import Path

from minialign.files import can_write, write_json
from minialign.lab import plot
from minialign.lab.arena import N_TRAIN, RECIPE, Run
from minialign.lab.tasks import RIGHT_SHARE
from minialign.lab.workers import run_all
from minialign.methods import METHODS
from minialign.stats import mean_interval, p_value, show, table

CONDITIONS = {"clean": 0.0, "noisy": 0.3}           # share of the labels that are the wrong answer
TITLES = {"clean": "every label right", "noisy": "30 % of the labels wrong"}
HALF = 0.5                              # with so many wrong, the labels do not tell the rule

# The controls. DFT scores three answers where SFT scores one, hence three times the updates. DFT
# and IFT add up the tokens of an answer, hence SFT by sums. SFT → DPO is what the papers compare
# with; its rejected answers are the negatives of the other rows, and DPO has a learning rate of its
# own, for at the common one it ruins the model. It is what studies/tuned.py has chosen.
CONTROL, BY_SUM, FILTER, THEN_DPO = "sft x3", "sft sum", "sft filtered", "sft → dpo"
PLAIN = "dft, plain negatives"
DPO_RATE = 5e-5

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

SHOWN = ("right", "wrong", "garbage", "agree", "skill")     # what the race prints; JSON has all


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

def controls(name: str, run: Run) -> dict[str, Run]:
    """The controls that belong to a method, on the same data as its `run`."""
    if name == "sft":
        return {
            CONTROL: tripled(run),
            BY_SUM: replace(run, hyper={"reduction": "seq_sum"}),
            FILTER: replace(run, filtered=True),
            THEN_DPO: replace(run, method=METHODS["dpo"], init="sft",
                              recipe=replace(run.recipe, lr=DPO_RATE)),
        }
    if name == "dft":
        return {PLAIN: replace(run, persona="plain")}
    return {}


def racing(methods: list[str]) -> dict[tuple[str, str], Run]:
    """{(condition, row of the table): Run}: the methods, then their controls.

    With half of the labels wrong only DFT races, and SFT beside it if it takes part at all.
    """
    # The class is handed over, not its name: a worker process has its own METHODS.
    clean = {name: Run(METHODS[name], recipe=RECIPE) for name in methods}
    noisy = {name: replace(run, noise=CONDITIONS["noisy"]) for name, run in clean.items()}
    for name in methods:
        noisy |= controls(name, noisy[name])
    half = {}
    if "dft" in methods:
        for name in ("sft", "dft"):
            if name in methods:
                half[name] = replace(clean[name], noise=HALF)

    runs = {}
    for condition, by_name in {"clean": clean, "noisy": noisy, "half": half}.items():
        for name, run in by_name.items():
            runs[condition, name] = run
    return runs


def race(seeds: list[int], methods: list[str], cache: Path) -> dict[str, dict[str, dict]]:
    """{condition: {row: {mark: [one value per seed]}}}, the base model's row first."""
    base, measured = run_all(racing(methods), seeds, cache)
    results = {}
    for (condition, name), per_seed in measured.items():
        rows = results.setdefault(condition, {"base": columns(base)})
        rows[name] = columns(per_seed)
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
    """One table for all conditions: mean ± half the 95 % interval over seeds."""
    shown = {mark: MARKS[mark] for mark in SHOWN}
    rows = []
    for condition, by_method in results.items():
        for name, marks in by_method.items():
            rows.append([f"{condition:5}  {name}", *cells(marks, shown)])
    return table(["labels method", *(title for title, _ in shown.values())], rows)


def cells(marks: dict[str, list], shown: dict[str, tuple[str, int]]) -> list[str]:
    """A row of a table: the marks that are shown, empty where a setting has no such mark."""
    return [show(marks[m], digits) if m in marks else "" for m, (_, digits) in shown.items()]


def judged(a: dict, b: dict) -> str:
    """How many more questions setting a answers right than b, and whether that is clear."""
    gain = Difference(a, b, "right")
    verdict = "no clear difference"
    if gain.above():
        verdict = "better"
    elif gain.below():
        verdict = "worse"
    return f"{gain} ({verdict})"


def sentence(results: dict) -> str:
    """What is seen: one method against SFT, in what it was trained for and in what it was not.

    If that is DFT, it is told what its difference is made of.
    """
    told = []
    for condition in CONDITIONS:
        by_method = results[condition]
        rivals = [name for name in by_method if name in METHODS and name != "sft"]
        if not rivals or "sft" not in by_method:
            return ""
        rival = "dft" if "dft" in rivals else rivals[0]
        price = Difference(by_method[rival], by_method["sft"], "agree")
        labels = "clean" if condition == "clean" else f"{CONDITIONS[condition]:.0%} wrong"
        told.append(
            f"With {labels} labels, {rival} against sft: "
            f"{judged(by_method[rival], by_method['sft'])} questions answered right, and {price} "
            "of those on which both rules are agreed."
        )
    if rival == "dft" and "half" in results:
        told.append(made_of(results["noisy"], results["half"]))
    return "\n".join(told)


def made_of(noisy: dict, half: dict) -> str:
    """What DFT's difference to SFT is made of, from the controls with wrong labels."""
    dft, sft = noisy["dft"], noisy["sft"]
    wrong = {name: f"{1 - share:.0%}" for name, share in RIGHT_SHARE.items()}
    above_filter = Difference(dft, noisy[FILTER], "right")
    conclusion = "whether DFT takes more from them is open"
    if above_filter.above():
        conclusion = "DFT takes more from them than that"
    elif above_filter.below():
        conclusion = "DFT takes less from them than that"
    return (
        f"DFT's negatives come from a persona that was made to be wrong on {wrong['troll']} of the "
        "questions where the rules disagree, so they tell the rule. SFT on the examples whose "
        "label no negative repeats, against sft: "
        f"{judged(noisy[FILTER], sft)} (agreed questions "
        f"{Difference(noisy[FILTER], sft, 'agree')}); dft against that: {above_filter}, so "
        f"{conclusion}. With negatives of the plain base model, made wrong on {wrong['plain']}, "
        f"dft against sft: {judged(noisy[PLAIN], sft)}. With half of the labels wrong, which then "
        f"tell nothing, sft answers {show(half['sft']['right'])} right, dft "
        f"{show(half['dft']['right'])}. Other controls against sft: by sums "
        f"{judged(noisy[BY_SUM], sft)}, three times the updates {judged(noisy[CONTROL], sft)}, "
        f"then DPO {judged(noisy[THEN_DPO], sft)}."
    )


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
    panels = {title: results[condition] for condition, title in TITLES.items()}
    plot.answer_bars(panels, folder=folder, name="outcomes")
    good, bad = [], []
    for title, rows in panels.items():
        by_method = {name: marks for name, marks in rows.items() if name in METHODS}
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
        f"{RECIPE.epochs} epochs, learning rate {RECIPE.lr:g} ({DPO_RATE:g} for DPO after SFT); "
        "mean ± half the 95 % interval (Student's t)"
    )
    print(sentence(results))
    print(f"picture: {folder / 'outcomes.png'}\npicture: {folder / 'curves.png'}", flush=True)
    if json == "-":
        write_json(json, as_json(results), indent=1)
    pictures(results, folder)
