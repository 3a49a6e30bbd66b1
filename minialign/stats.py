"""Mean and 95 % interval over seeds, and a plain text table."""

import math

# Student's t, two-sided 95 %, for 1, 2, 3, … degrees of freedom: with three seeds an interval is 2.2 times wider than the normal
# 1.96 says.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
       2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def mean_interval(values) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval; the half-width of a single value is nan."""
    values = [float(v) for v in values]
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return mean, (T95[n - 2] if n - 2 < len(T95) else 1.96) * deviation / math.sqrt(n)


def show(values, digits: int = 3) -> str:
    """ "0.984 ± 0.002", or the mean alone for one value."""
    mean, half = mean_interval(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns aligned with spaces: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    line = lambda row: "  ".join(  # noqa: E731
        cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
    return "\n".join([line(header), "  ".join("─" * w for w in widths), *map(line, rows)])
