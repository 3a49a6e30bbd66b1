"""What all sides of a comparison have in common: the conversation, the clock, the memory.

A side reads what to do as a line of JSON, works once, and answers with facts. For every further
line it works again and answers with the seconds, and with the floor if the work has one: the least
it could take, measured right after it, so that whatever else the machine does hits both.

This file is run by a peer's interpreter too. It imports nothing but torch.
"""

import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Task:
    """Something to measure."""

    work: Callable[[], object]
    facts: dict = field(default_factory=dict)       # what the first answer shall say
    floor: Callable[[], dict] | None = None         # measures {"floor": seconds, …}


def listen() -> tuple[dict, Callable]:
    """What to do, and the function `say` with which to answer.

    Standard output is for the conversation. Whatever else prints there goes to standard error.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**facts) -> None:
        print(json.dumps(facts), file=out, flush=True)

    spec = json.loads(sys.stdin.readline())
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    return spec, say


def take_turns(build: Callable[[dict], Task], spec: dict, say: Callable) -> None:
    """Build the task, and work whenever asked. The first time warms up, and shows the peak."""
    device = spec["device"]
    try:
        task = build(spec)
        before = used(device, reset=True)
        task.work()
        peak = used(device) - before
    except (ValueError, OSError) as error:
        say(error=str(error))
        return
    measure_floor = task.floor or dict              # an empty dict where there is no floor
    measure_floor()
    say(peak=peak, **task.facts)
    for _ in sys.stdin:
        say(seconds=timed(task.work, device), **measure_floor())


def now(device: str) -> float:
    """The time in seconds, once the device has finished what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(work: Callable, device: str) -> float:
    began = now(device)
    work()
    return now(device) - began


def used(device: str, reset: bool = False) -> int:
    """The most bytes in use since the last reset: by the GPU's allocator, else by this process.

    Only on Linux can a process forget its peak. Elsewhere this is the peak since the process began,
    and 0 on Windows, where nothing tells.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def touch(tensors) -> None:
    """Read a byte of every page, so that a file that is only mapped gets loaded."""
    for tensor in tensors:
        tensor.detach().view(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()
