"""Mean and 95 % interval over seeds, tests of many differences at once, a plain text table."""

import math

# Student's t, two-sided 95 %, for 1, 2, 3, … degrees of freedom. With three seeds an interval is
# 2.2 times wider than the 1.96 of the normal distribution says.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
       2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
       2.052, 2.048, 2.045, 2.042)


def mean_interval(values) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval; the half-width of a single value is nan."""
    values = [float(v) for v in values]
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan

    # The sample's standard deviation has n − 1 degrees of freedom.
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    t = T95[n - 2] if n - 2 < len(T95) else 1.96
    return mean, t * deviation / math.sqrt(n)


def p_value(values) -> float:
    """Two-sided p-value of the t test that the mean of the values is 0; nan for a single value.

    With ν degrees of freedom and θ = arctan(t/√ν), Student's distribution is a finite sum
    (Abramowitz & Stegun 26.7.3 and 26.7.4).
    """
    values = [float(v) for v in values]
    n = len(values)
    if n < 2:
        return math.nan
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    theta = math.atan2(abs(mean) * math.sqrt(n / (n - 1)), deviation)
    cos, odd = math.cos(theta), (n - 1) % 2

    # The terms are cosᵏθ · (2·4·…)/(3·5·…) for odd ν and cosᵏθ · (1·3·…)/(2·4·…) for even ν.
    term = cos if odd else 1.0
    inside = 0.0
    for k in range(odd, n - 2, 2):
        inside += term
        term *= cos * cos * (k + 1) / (k + 2)
    inside *= math.sin(theta)
    if odd:
        inside = (theta + inside) * 2 / math.pi
    return min(1.0, max(0.0, 1 - inside))


def holm(p_values: dict[str, float], level: float = 0.05) -> set[str]:
    """The names that stay significant when all are tested together (Bonferroni–Holm).

    The smallest of m p-values must be at most level/m, the next level/(m−1), and so on; after the
    first that is not, none counts. That any of them is there by chance alone is no likelier than
    `level`. A p-value that is nan fails.
    """
    kept = set()
    unknown_last = sorted(p_values, key=lambda name: (math.isnan(p_values[name]), p_values[name]))
    for rank, name in enumerate(unknown_last):
        if not p_values[name] <= level / (len(p_values) - rank):
            break
        kept.add(name)
    return kept


def show(values, digits: int = 3) -> str:
    """Mean and interval, as in "0.984 ± 0.002"; a single value stands alone."""
    mean, half = mean_interval(values)
    if math.isnan(half):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns aligned with spaces: the first to the left, numbers to the right."""
    columns = zip(header, *rows, strict=True)
    widths = [max(len(cell) for cell in column) for column in columns]

    # The rule below the header is a row like the others.
    rule = ["─" * width for width in widths]
    lines = []
    for first, *others in [header, rule, *rows]:
        cells = [first.ljust(widths[0])]
        for cell, width in zip(others, widths[1:], strict=True):
            cells.append(cell.rjust(width))
        lines.append("  ".join(cells))
    return "\n".join(lines)
