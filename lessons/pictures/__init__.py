"""The lessons' pictures: one function per picture, which takes numbers and returns a figure.

No lesson draws for itself, so that its cells show what it is about. The pictures of lessons 01 to
04 and 12 are in ground.py, of 05 to 07 in methods.py, of 10 and 11 in guesses.py, of 08, 09, 13 and
14 in worlds.py.
"""


def lines(axes, x: list[float], runs: list[list[float]], color: str, style: str = "-"):
    """Draw every seed's curve faint and their mean bold; returns the mean."""
    for run in runs:
        axes.plot(x, run, style, color=color, linewidth=0.8, alpha=0.4)
    mean = [sum(values) / len(values) for values in zip(*runs, strict=True)]
    axes.plot(x, mean, style, color=color, linewidth=2.5)
    return mean
