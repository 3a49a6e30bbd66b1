"""Many runs of the arena at once: processes share the work, one thread each."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.managers import SyncManager
from pathlib import Path

from minialign.lab.arena import N_TRAIN, base_job, run_job
from minialign.lab.small import COURSES, FIT, base_path
from minialign.progress import bar


def follow(parent: int) -> None:
    """End this process when its parent is gone, however it went; called as a worker begins."""
    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def run_all(
    runs: dict, seeds: list[int], cache: Path, found: Callable[..., object] | None = None
) -> tuple[list[dict], dict]:
    """Every run on every seed, all cores busy, one progress bar for everything.

    runs   {label: Run}
    found  called with (label, seed, marks) as soon as they are there; the base's label is None
    →      the base models' marks, one per seed, and {label: [marks of every seed]}

    When it is interrupted, or a run fails, the workers are stopped before the error goes on.
    """
    updates = sum(run.recipe.updates(N_TRAIN) for run in runs.values())
    untrained = [seed for seed in seeds if not base_path(seed, cache).exists()]
    total = len(seeds) * updates + len(untrained) * sum(COURSES)
    base = [{} for _ in seeds]
    results = {label: [{} for _ in seeds] for label in runs}
    fitnesses: dict[int, float] = {}

    context = multiprocessing.get_context("spawn")
    shown = bar(total, "base models", "update", smoothing=0.02)
    manager = SyncManager(ctx=context)
    manager.start(follow, (os.getpid(),))
    with shown, manager:
        ticks = manager.Queue()
        not_workers = multiprocessing.active_children()         # the manager, and our caller's own
        workers = min(os.cpu_count() or 1, 8)
        pool = ProcessPoolExecutor(workers, context, initializer=follow, initargs=(os.getpid(),))
        waiting = {}
        try:
            for s, seed in enumerate(seeds):
                waiting[pool.submit(base_job, seed, cache, ticks)] = None, s
            while waiting:
                done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    label, s = waiting.pop(future)
                    if label is not None:
                        results[label][s] = marks = future.result()
                    else:
                        # The base model of this seed is there: its runs can begin.
                        base[s], fitnesses[seeds[s]] = future.result()
                        marks = base[s]
                        for name, run in runs.items():
                            waiting[pool.submit(run_job, seeds[s], run, cache, ticks)] = name, s
                    if found is not None:
                        found(label, seeds[s], marks)
                if all(base):
                    shown.set_description("fine-tuning")
                while not ticks.empty():
                    shown.update(ticks.get())
        finally:
            if waiting:
                for process in multiprocessing.active_children():
                    if process not in not_workers:
                        process.terminate()
            pool.shutdown(cancel_futures=True)
    report_unfit(fitnesses)
    return base, results


def report_unfit(fitnesses: dict[int, float]) -> None:
    """Name the seeds whose base model is not fit, {seed: fitness}.

    Such a model is taken as it is, and its row of the table has more garbage than others.
    """
    for seed, x in fitnesses.items():
        if x < FIT:
            print(f"the base model of seed {seed} is not fit: after {sum(COURSES)} updates it "
                  f"copies or reverses with probability {x:.3f}, not {FIT}", file=sys.stderr)
