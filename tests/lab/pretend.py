"""Stand-ins for the lab: one that trains nothing, where every run of a study gets the marks that a
test invents for it, and one that trains little, in one process.
"""

import queue
from importlib import import_module

from minialign.lab import arena
from minialign.lab.studies import STUDIES
from minialign.lab.studies.lab import Lab

SEEDS = 4


def function(name):
    module, name = STUDIES[name].home.split(":")
    return getattr(import_module(f"minialign.lab.studies.{module}"), name)


def marks(right=0.6, average=None, jitter=0.01, **more):
    """Marks of four seeds, a little apart. What is not named is uneventful."""
    values = {"right": right, "wrong": (1 - right) / 2, "garbage": (1 - right) / 2,
              "greedy": right, "agree": 0.9, "skill": 0.9, "good_logp_change": 1.0,
              "bad_logp_change": -5.0, "wanted_change": 1.0, "negatives_change": -4.0,
              "peak_lost": 0.0, "negative_weights": 0.2, "lost_behind": 0.2,
              "recovery_opening": 0.1, "recovery_fork": 0.1, "good_opening_change": -0.1,
              "good_fork_change": 0.5, "good_behind_change": 0.1,
              "average": (right + 1.8) / 3 if average is None else average, **more}
    columns = {}
    for i, (name, x) in enumerate(values.items()):
        columns[name] = [x + jitter * s * (1 + (i % 3)) / SEEDS for s in range(SEEDS)]
    columns["curve"] = []
    for s in range(SEEDS):
        columns["curve"].append([[step, -1.0, -1.0, -1.0 - s, -2.0] for step in (0, 4, 8)])
    return columns


FEW = {"N_TRAIN": 128, "N_TEST": 40, "N_SKILL": 20, "N_CURVE": 16, "N_WATCHED": 16}


def run_here(runs, seeds, cache, found=None):
    """What run_all does, but here, one run after the other."""
    ticks = queue.SimpleQueue()
    base = [arena.base_job(seed, cache, ticks)[0] for seed in seeds]
    results = {}
    for label, run in runs.items():
        results[label] = [arena.run_job(seed, run, cache, ticks) for seed in seeds]
    return base, results


class Pretend(Lab):
    """A lab that trains nothing.

    Every setting gets the marks that `outcome` has for the longest part of its name.
    """

    def __init__(self, tmp_path, outcome):
        super().__init__(list(range(SEEDS)), tmp_path)
        self.outcome = outcome

    def run(self, runs, seeds=None):
        data = {}
        for label in ["base", *runs]:
            key = max((key for key in self.outcome if key in label), key=len, default="")
            data[label] = marks(**self.outcome.get(key, {}))
        return data
