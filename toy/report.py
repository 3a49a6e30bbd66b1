"""How numbers over seeds are written. Every interval is 95 %."""

import math
import sys

from torch import Tensor
from tqdm import tqdm

from minialign.stats import mean_interval


def progress(things, what: str):
    """The same things, with a bar on stderr that says how many of them are done."""
    return tqdm(list(things), desc=what, file=sys.stderr, leave=False)


def interval(x: Tensor) -> tuple[float, float]:
    """Mean and half-width of its interval. A seed without a value (nan) does not count."""
    x = x[~x.isnan()]
    return mean_interval(x.tolist()) if len(x) else (math.nan, math.nan)


def spelled(gain: Tensor) -> str:
    """ "+0.123 ± 0.045" """
    mean, half = interval(gain)
    return f"{mean:+.3f} ± {half:.3f}"


def shown(x: Tensor, reference: Tensor | None = None, good: int = 0) -> str:
    """ "0.812±.004▲": mean, half-width, and how it compares to the reference."""
    mean, half = interval(x)
    text = f"{mean:.3f}"
    if not math.isnan(half):
        text += f"±{half:.3f}".replace("±0.", "±.")
    return text + (" " if reference is None else verdict(x - reference, good))


def verdict(gain: Tensor, good: int) -> str:
    """▲ or ▼ if the interval of the paired gain says better or worse, ≠ if neither is good."""
    mean, half = interval(gain)
    if math.isnan(half) or abs(mean) <= half:
        return " "
    if good == 0:
        return "≠"
    return "▲" if good * mean > 0 else "▼"


def plain(x):
    """Nested results as JSON can hold them: tensors as lists, null for nan."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, Tensor):
        return plain(x.tolist())
    return None if isinstance(x, float) and not math.isfinite(x) else x
