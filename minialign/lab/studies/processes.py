"""The same function on many inputs, in as many processes as there are cores."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed

from tqdm import tqdm


def in_processes(function: Callable, jobs: list[tuple], words: str) -> list:
    """function(*job) for every job, in the order of the jobs; a bar named `words` shows the way.

    When it is interrupted, or a job fails, the workers are stopped before the error goes on.
    """
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(min(os.cpu_count() or 1, 8, len(jobs)), context)
    finished = False
    try:
        futures = [pool.submit(function, *job) for job in jobs]
        done = as_completed(futures)
        for future in tqdm(done, desc=words, total=len(jobs), unit="job"):
            future.result()
        finished = True
    finally:
        if not finished:
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
        pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]
