"""What every study needs: runs that are done once, and findings that can be judged and printed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from minialign.lab import race
from minialign.lab.arena import Run
from minialign.lab.race import CONDITIONS, CONTROL, TITLES, Difference, cells, columns, tripled
from minialign.lab.studies.known import Known
from minialign.lab.workers import run_all
from minialign.stats import holm, table

HOLDS, NOT, OPEN = "holds", "does not hold here", "undecided with these seeds"
TRAINED_FOR = "if nothing counts but the questions trained for"         # a limit of a verdict
SMALL = 0.03                            # a share of answers that we call no difference

# A study's table: the marks of the race without the seconds, and the average of the three tasks.
MARKS = {mark: how for mark, how in race.MARKS.items() if mark != "seconds"}
MARKS["average"] = ("average", 3)


def verdict(holds: bool, fails: bool, limit: str = "") -> str:
    """What is said about a claim that holds, perhaps within a `limit`, or fails, or neither."""
    if holds and limit:
        return f"holds only {limit}"
    if holds:
        return HOLDS
    return NOT if fails else OPEN


def in_parts(parts: dict[str, str]) -> str:
    """The verdict on a claim of several parts, from {part: its own verdict}.

    What all parts have in common is said once.
    """
    if len(set(parts.values())) == 1:
        return next(iter(parts.values()))
    return "; ".join(f"{part}: {found}" for part, found in parts.items())


# -------------------------------------------------------------------------------- what is to be run

def sft_and_control() -> dict[str, Run]:
    """SFT, and SFT with three times the updates."""
    return {"sft": Run("sft"), CONTROL: tripled(Run("sft"))}


def under_both(runs: dict[str, Run]) -> dict[str, Run]:
    """{"dft": …} → {"clean dft": …, "noisy dft": …}: every run with clean and with wrong labels."""
    both = {}
    for condition, noise in CONDITIONS.items():
        for label, run in runs.items():
            both[f"{condition} {label}"] = replace(run, noise=noise)
    return both


def by_condition(data: dict) -> dict[str, dict]:
    """The way back, for pictures: {panel title: {"dft": …}}, the base models in each."""
    panels = {}
    for condition, title in TITLES.items():
        panels[title] = {"base": data["base"]}
        for label, marks in data.items():
            if label.startswith(f"{condition} "):
                panels[title][label.removeprefix(f"{condition} ")] = marks
    return panels


@dataclass
class Lab:
    """Seeds, a folder, and what has been measured so far.

    A run is a function of its `Run` and its seed, so it is done once, whatever study asks for it,
    and a command that was interrupted goes on where it was.
    """

    seeds: list[int]
    out: Path
    known: Known | None = None                      # shared by all studies of a command
    methods: list[str] | None = None                # --methods, if given
    judge: str | None = None                        # --judge, if given
    tune: bool = False                              # --tune
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self):
        self.known = self.known or Known(self.out / "cache")

    def run(self, runs: dict[str, Run], seeds: list[int] | None = None) -> dict[str, dict]:
        """{label: {mark: [one value per seed]}}, the base models first.

        The method's own numbers are marks too.
        """
        seeds = self.seeds if seeds is None else seeds
        runs = {"base": None, **runs}
        todo = {}                                           # {what is missing: [seeds it misses]}
        for seed in seeds:
            missing = tuple(label for label, run in runs.items() if (run, seed) not in self.known)
            if missing:
                todo.setdefault(missing, []).append(seed)

        def keep(label: str | None, seed: int, marks: dict) -> None:
            self.known.add(runs[label or "base"], seed, marks)

        for missing, some in todo.items():
            new = {label: runs[label] for label in missing if label != "base"}
            run_all(new, some, self.out / "cache", keep)
        data = {}
        for label, run in runs.items():
            data[label] = columns([with_more_marks(self.known[run, seed]) for seed in seeds])
        return data

    def noisy(self, runs: dict[str, Run]) -> dict[str, dict]:
        """The marks of SFT, its control and these runs, with 30 % wrong labels.

        DFT is varied there: clean labels leave it nothing to win over SFT (see study `methods`).
        """
        runs = sft_and_control() | runs
        noise = CONDITIONS["noisy"]
        return self.run({label: replace(run, noise=noise) for label, run in runs.items()})

    def both(self, runs: dict[str, Run]) -> dict[str, dict]:
        """The marks of SFT, its control and these runs, with clean and with wrong labels."""
        return self.run(under_both(sft_and_control() | runs))


def with_more_marks(marks: dict) -> dict:
    """A run's marks and what follows from them.

    average                            of right, agree and skill
    wanted_change, negatives_change    what training changed on its own examples
    peak_lost                          how far the right answers fell back from their best
    """
    more = {name: value for name, value in marks.items() if name != "info"}
    more["average"] = (marks["right"] + marks["agree"] + marks["skill"]) / 3
    more |= marks.get("info", {})
    if "curve" in marks:
        first, last = marks["curve"][0], marks["curve"][-1]
        more["wanted_change"] = last[3] - first[3]
        more["negatives_change"] = last[4] - first[4]
        more["peak_lost"] = max(point[1] for point in marks["curve"]) - last[1]
    return more


# ------------------------------------------------------------------------------------ what is found

def more(difference: Difference) -> bool:
    """Clearly above 0, and by more than what we call no difference."""
    return difference.above() and difference.mean > SMALL


def less(difference: Difference) -> bool:
    return difference.below() and difference.mean < -SMALL


class Better:
    """Is setting a better than b?

    Judged on what was trained for (right), then on what should be kept all the same.
    """

    def __init__(self, a: dict[str, list], b: dict[str, list]):
        self.right = Difference(a, b, "right")
        self.agree = Difference(a, b, "agree")
        self.average = Difference(a, b, "average")

    @property
    def costly(self) -> bool:
        """Clearly worse on average, or on the agreed questions by more than a little."""
        return self.average.below() or less(self.agree)

    @property
    def verdict(self) -> str:
        if self.right.above():
            return verdict(True, False, TRAINED_FOR if self.costly else "")
        ahead = self.right.mean > 0 and self.average.above()
        return verdict(ahead, self.right.below() or self.right.within(SMALL))

    def tests(self, words: str) -> dict[str, Difference]:
        """What the verdict reads, for `Findings.tests`; `words` say who is compared with whom."""
        return {f"{words}, {mark}": getattr(self, mark) for mark in ("right", "agree", "average")}

    def __str__(self) -> str:
        return (f"{self.right} right (agreed questions {self.agree}, "
                f"mean of all three tasks {self.average})")


@dataclass
class Findings:
    """What a study saw. Verdict and sentence are computed from `data`."""

    data: dict[str, dict[str, list]]        # {setting: {mark: [one value per seed]}}
    verdict: str
    sentence: str
    draw: Callable[..., Path]               # takes folder= and name=
    marks: dict[str, tuple[str, int]] = field(default_factory=lambda: MARKS)    # table columns
    examples: str = ""                      # something to read, printed below the table
    tests: dict[str, Difference] = field(default_factory=dict)  # {words: what the verdict reads}

    def numbers(self) -> dict[str, dict[str, list[float]]]:
        """The data without curves and texts."""
        kept = {}
        for setting, marks in self.data.items():
            kept[setting] = {m: xs for m, xs in marks.items() if not isinstance(xs[0], list)}
        return kept

    def report(self, name: str, study, lab: Lab) -> str:
        rows = [[setting, *cells(marks, self.marks)] for setting, marks in self.data.items()]
        seconds = time.perf_counter() - lab.began
        return "\n".join([
            f"\n{name} — “{study.claim}” ({study.source})\n",
            table(["", *(title for title, _ in self.marks.values())], rows) + self.examples,
            f"\nVerdict: {self.verdict}.\n{self.sentence}",
            f"{len(lab.seeds)} seeds ({lab.seeds[0]}–{lab.seeds[-1]}), "
            f"mean ± half the 95 % interval (Student's t), {seconds:.0f} s; "
            f"picture: {lab.out / f'study_{name}.png'}",
        ])


def many_at_once(found: dict[str, Findings]) -> str:
    """The comparisons of all these studies as one family: which intervals would not survive?

    Clear is a difference whose own 95 % interval leaves out 0. Of many, a few are clear by chance;
    the correction of Bonferroni and Holm keeps the risk of even one such below 5 %.
    """
    p = {}
    for study, findings in found.items():
        for words, difference in findings.tests.items():
            p[f"{study}: {words}"] = difference.p
    if not p:
        return "No verdict rests on a comparison of means."
    clear = [name for name in p if p[name] < 0.05]
    kept = holm(p)
    lost = [f"{name} (p = {p[name]:.2g})" for name in clear if name not in kept]
    text = (
        f"The verdicts rest on {len(p)} comparisons; {len(clear)} of them are clear by their own "
        f"95 % interval, {len(kept)} also after Bonferroni–Holm for all {len(p)}."
    )
    if lost:
        text += f" Those that would not survive it: {'; '.join(lost)}."
    return text
