"""The lake's pictures, one function each. A colour is a method's, as everywhere in minialign; controls are grey."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.animation import FuncAnimation, PillowWriter

from minialign.files import replacing
from minialign.lab.plot import COLOR, clean, save
from toy.lake import sample, seen, stack, with_noise
from toy.policy import dice

COLOR = COLOR | {"ift_simple": "#8db600", "neighbour noise": "#b2abd2", "oracle labels": "#5e3c99",
                 "sft_mean": COLOR["sft"]}
DASHES = {"ift_simple": (0, (5, 2)), "ift": (0, (1.5, 1.5))}      # IFT's variants often lie on top of each other
HOLE, GOAL, WRONG = "#27496d", "#f4c430", "#d62728"
STEP = torch.tensor([[-1, 0], [0, 1], [1, 0], [0, -1]])         # (x, y) of left, down, right, up, as drawn
BOLD = {"fontsize": 11, "fontweight": "bold"}
TITLE = {"loc": "left", **BOLD}


def cell(s: int, columns: int) -> tuple[int, int]:
    """Where a state is drawn: x to the right, y down."""
    return s % columns, s // columns


def ground(axes, rows) -> None:
    """The bare map: holes dark, goal yellow, S and G written."""
    columns = len(rows[0])
    axes.set(xlim=(-0.53, columns - 0.47), ylim=(len(rows) - 0.47, -0.53), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    for s, letter in enumerate("".join(rows)):
        x, y = cell(s, columns)
        face = {"H": HOLE, "G": GOAL}.get(letter, "white")
        axes.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor="#bbbbbb", linewidth=0.8))
        if letter in "SG":
            axes.text(x - 0.42, y - 0.4, letter, ha="left", va="top", fontsize=7, color="#555555")


def policy_map(axes, rows, probabilities, optimal, shade, color) -> None:
    """One policy on its map: shade = chance to see the cell, arrow = likeliest action, red where it is not optimal."""
    ground(axes, rows)
    columns = len(rows[0])
    for s, letter in enumerate("".join(rows)):
        x, y = cell(s, columns)
        axes.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="black" if letter == "H" else color,
                                     alpha=0.75 * min(max(float(shade[s]), 0.0), 1.0), linewidth=0))
        if optimal[s].any():
            a = int(probabilities[s].argmax())
            length = 0.36 * float(probabilities[s, a])
            dx, dy = (STEP[a] * length).tolist()
            axes.annotate("", (x + dx, y + dy), (x - dx, y - dy), arrowprops={
                "arrowstyle": "-|>,head_width=0.22,head_length=0.35", "color": "black" if optimal[s, a] else WRONG,
                "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0})


def demonstrations(axes, lake) -> None:
    """The bare map with the optimal trajectory and, dashed, the sub-optimal one."""
    ground(axes, lake.rows)
    columns = len(lake.rows[0])
    for path, shift, style in ((lake.worse, 0.07, ":"), (lake.best, -0.07, "-")):
        states = [s for s, _ in path] + [int((lake.P[path[-1]] * ~lake.solvable).argmax())]
        x, y = zip(*(cell(s, columns) for s in states), strict=True)
        axes.plot([v + shift for v in x], [v + shift for v in y], style, color=WRONG if style == ":" else "black", linewidth=2.2)
    axes.set_title("optimal, and sub-optimal (dotted)", fontsize=9.5)


def maps(panels: list[dict], lake, title: str, folder, name: str) -> Path:
    """The demonstrations, then every policy on the same map. A panel: words, color, probabilities (S, 4), seen (S,)."""
    columns = min(len(panels) + 1, 5)
    lines = -(-(len(panels) + 1) // columns)
    high = len(lake.rows) / len(lake.rows[0])
    figure, axes = plt.subplots(lines, columns, figsize=(2.5 * columns, (2.4 * high + 0.55) * lines + 0.5), squeeze=False)
    demonstrations(axes[0, 0], lake)
    for axis in axes.flat[len(panels) + 1:]:
        axis.axis("off")
    for axis, panel in zip(axes.flat[1:], panels, strict=False):
        policy_map(axis, lake.rows, panel["probabilities"], lake.optimal, panel["seen"], panel["color"])
        axis.set_title(panel["words"], fontsize=9.5)
    figure.suptitle(title, x=0.01, ha="left", **BOLD)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    return save(figure, folder, name)


def dots(results: dict[str, dict], words: dict[str, str], metrics: dict[str, str], title: str, folder, name: str) -> Path:
    """One panel per metric (name → axis label), one line per method, one dot per seed, a bar for mean and 95 % interval; SFT's
    mean as a line through all.
    """
    size = (2.6 * len(metrics) + 1.6, 0.36 * len(results) + 1.3)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False)
    for axis, (metric, label) in zip(axes.flat, metrics.items(), strict=True):
        clean(axis)
        axis.grid(False)
        if "sft" in results:
            axis.axvline(results["sft"][metric].nanmean(), color=COLOR["sft"], linewidth=0.9, linestyle=":")
        for y, (method, measured) in enumerate(results.items()):
            x = measured[metric][~measured[metric].isnan()]
            wiggle = 0.3 * torch.linspace(-1, 1, len(x))[torch.arange(len(x)) * 7919 % max(len(x), 1)]
            axis.plot(x, y + wiggle, "o", color=COLOR[method], alpha=0.25, markersize=3, markeredgewidth=0)
            half = 1.96 * x.std().item() / len(x) ** 0.5 if len(x) > 1 else 0.0
            axis.errorbar(x.mean().item(), y, xerr=half, fmt="|", color=COLOR[method], markersize=13, markeredgewidth=2.5,
                          linewidth=2.5)
        axis.set_xlabel(label, fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0, 0].set_yticks(range(len(results)), [words[m] for m in results], fontsize=9)
    axes[0, 0].set_ylim(len(results) - 0.4, -0.6)
    figure.suptitle(title, x=0.01, ha="left", **BOLD)
    figure.tight_layout()
    return save(figure, folder, name)


def lines(axes, curves: dict[str, tuple], words: dict[str, str], legend: str | None = "best") -> None:
    """Mean line and 95 % band per method; curves: method → (x, y (len(x), N)). A legend, since lines often coincide."""
    for method, (x, y) in curves.items():
        mean, half = y.mean(-1), 1.96 * y.std(-1) / y.shape[-1] ** 0.5 if y.shape[-1] > 1 else 0 * y[:, 0]
        axes.plot(x, mean, color=COLOR[method], linewidth=2.2, linestyle=DASHES.get(method, "-"), label=words[method])
        axes.fill_between(x, mean - half, mean + half, color=COLOR[method], alpha=0.15, linewidth=0)
    clean(axes)
    if legend:
        axes.legend(frameon=False, fontsize=9, loc=legend)


def exposure(curves: dict[str, tuple], words: dict[str, str], folder, name: str) -> Path:
    """How much of what the policy reads lies off the demonstrated path, over training."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    lines(axes, curves, words)
    axes.set(xlabel="training step", ylabel="share of the input off the path", ylim=(0, None))
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
    ift = [y.mean(-1) for method, (_, y) in curves.items() if method != "neighbour noise"]
    said = f": {max(y[0] for y in ift):.0%} at first, {100 * max(y[-1] for y in ift):.1g} % at the end" if ift else ""
    axes.set_title(f"IFT leaves the path{said}", **TITLE)
    return save(figure, folder, name)


def walk(walks: list[dict], rows, folder, name: str) -> Path:
    """A GIF of many walkers per method on the lake. A panel: words, color, positions (frames, W), fell and reached (frames,)."""
    columns = len(rows[0])
    across = min(len(walks), 5)
    down = -(-len(walks) // across)
    figure, axes = plt.subplots(down, across, figsize=(2.5 * across, (2.5 * len(rows) / columns + 0.6) * down), squeeze=False)
    for axis in axes.flat[len(walks):]:
        axis.axis("off")
    W = walks[0]["positions"].shape[1]
    spot = torch.rand(W, 2, generator=torch.Generator().manual_seed(0)) * 0.7 - 0.35
    crowds = []
    for axis, panel in zip(axes.flat, walks, strict=False):
        ground(axis, rows)
        crowds.append(axis.plot([], [], "o", color=panel["color"], markersize=4, markeredgecolor="white", markeredgewidth=0.4)[0])

    def draw(frame):
        for axis, crowd, panel in zip(axes.flat, crowds, walks, strict=False):
            at = panel["positions"][frame]
            crowd.set_data(at % columns + spot[:, 0], at // columns + spot[:, 1])
            axis.set_title(f"{panel['words']}\n{panel['reached'][frame]} at the goal, {panel['fell'][frame]} drowned", fontsize=9)

    figure.tight_layout()
    path = Path(folder) / f"{name}.gif"
    with replacing(path) as unfinished:
        gif = unfinished.with_suffix(".gif")        # the writer knows the format by its ending
        FuncAnimation(figure, draw, len(walks[0]["positions"])).save(gif, writer=PillowWriter(fps=4), dpi=80)
        gif.replace(unfinished)
    plt.close(figure)
    return path


# ---------------------------------------------------------------------------------------------------- the comparison's pictures

def comparison(setting, results: dict, args) -> list[Path]:
    """Maps, dots and exposure of `python -m toy`; with --animate also the walk."""
    same = all(lake is setting.singles[0] for lake in setting.singles)
    lake, panels = setting.singles[0], []
    words = {name: result.row.words for name, result in results.items()}
    for name, result in results.items():
        p = result.policy.probabilities()
        shade = seen(setting.lakes, p)
        rate = result.measured["success_noise_0.1"]
        said = f"{words[name]}\n{(rate.mean() if same else rate[0]):.0%} reach G with 10 % noise"
        panels.append({"words": said, "color": COLOR[name], "probabilities": p.mean(0) if same else p[0],
                       "seen": shade.mean(0) if same else shade[0]})
    whose = f"mean of {len(setting.seeds)} seeds" if same else f"the maze of seed {setting.seeds[0]}"
    title = f"Likeliest action: black is optimal, red is not. Shade: chance to see the cell ({whose})"
    made = [maps(panels, lake, title, args.out, "lake_maps")]
    measured = {name: result.measured for name, result in results.items() if name != "base"}
    shown = {"success_noise_0.1": "success at 10 % noise →", "neighbour_accuracy": "right beside the path →",
             "mse_nearest": "← MSE to nearest optimum", "mse": "← MSE to the optimum"}
    title = f"Every dot a seed; bars: mean and 95 % interval; dotted: SFT ({args.map}, {args.base} start)"
    made.append(dots(measured, words, shown, title, args.out, "lake_dots"))
    curves = {name: (torch.arange(1, 1 + len(r.off_path)), r.off_path) for name, r in results.items()
              if name.startswith("ift") or name == "neighbour noise"}
    made.append(exposure(curves, words, args.out, "lake_exposure"))
    if args.animate:
        made.append(animation(setting, results, words, args))
    return made


def animation(setting, results: dict, words: dict[str, str], args) -> Path:
    """Thirty walkers per method on the first seed's lake, one step per frame."""
    W, T = 30, 5 * len(setting.singles[0].best)
    chance = dice(setting.seeds[:1], "rollouts", W, T, 2)
    lake, letters = setting.singles[0], "".join(setting.singles[0].rows)
    one = stack([lake])
    walks = []
    for name, result in results.items():
        if name in ("sft x3", "neighbour noise", "ift_simple"):
            continue                                # enough to look at
        states = sample(one, with_noise(result.policy.probabilities()[:1], 0.1), chance)[0][0].T            # (T, W)
        hole = torch.tensor([letter == "H" for letter in letters])[states]
        goal = torch.tensor([letter == "G" for letter in letters])[states]
        walks.append({"words": words[name], "color": COLOR[name], "positions": states, "fell": hole.sum(-1).tolist(),
                      "reached": goal.sum(-1).tolist()})
    return walk(walks, lake.rows, args.out, "lake_walk")


# ---------------------------------------------------------------------------------------------------- the studies' pictures

def labels(dots: dict, r: tuple, gains: dict, words: dict[str, str], correct: dict[str, str], folder) -> Path:
    """Left: one dot per maze, IFT's gain against how often its label is right. Right: every method's gain in maze and corridor.
    """
    figure, (left, *bars) = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=(1.25, 1, 1), layout="constrained")
    x, y = (torch.cat(both) for both in zip(*dots.values(), strict=True))
    wiggle = torch.rand(len(x), 2, generator=torch.Generator().manual_seed(0), dtype=x.dtype) * 0.024 - 0.012
    left.axhline(0, color="#999999", linewidth=0.8)
    left.plot(x + wiggle[:, 0], y + wiggle[:, 1], "o", color=COLOR["ift_eq21"], alpha=0.35, markersize=4, markeredgewidth=0)
    edges = x.quantile(torch.linspace(0, 1, 6, dtype=x.dtype)) if len(x) else torch.zeros(0)
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (x >= low) & (x <= high)
        if inside.sum() > 2:
            half = 1.96 * y[inside].std().item() / inside.sum().item() ** 0.5
            middle = x[inside].mean().item(), y[inside].mean().item()
            left.errorbar(*middle, yerr=half, fmt="o", color="#00694c", markersize=7, linewidth=2)
    left.set(xlabel="share of deviated states whose label is right →", ylabel="IFT's gain over SFT beside the path ↑")
    left.set_title(f"a dot per maze: r = {r[0]:.2f} [{r[1]:.2f}, {r[2]:.2f}]", **TITLE)
    clean(left)
    for axis, (place, by) in zip(bars, gains.items(), strict=True):
        names = [name for name in by if name != "sft"]
        axis.axvline(0, color=COLOR["sft"], linewidth=1)
        for i, name in enumerate(names):
            gain = by[name]["neighbour_accuracy"]
            gain = gain[~gain.isnan()]
            half = 1.96 * gain.std().item() / len(gain) ** 0.5 if len(gain) > 1 else 0.0
            axis.barh(i, gain.mean().item() if len(gain) else 0.0, xerr=half, color=COLOR[name], error_kw={"elinewidth": 1.2})
        axis.set_yticks(range(len(names)), [words[name] for name in names], fontsize=9)
        axis.invert_yaxis()
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("gain over SFT beside the path →")
        axis.set_title(f"{place}: labels right {correct[place]}", **TITLE)
    return save(figure, folder, "lake_labels")


def paths(shares: dict, switch: dict, words: dict[str, str], ratios: dict, lake, folder) -> Path:
    """The lake, what every method makes of mixed demonstrations, and how fast a wrong habit is unlearned."""
    figure, (first, middle, last) = plt.subplots(1, 3, figsize=(13.5, 3.9), width_ratios=(0.8, 1, 1.2), layout="constrained")
    demonstrations(first, lake)
    names = [name for name in shares if name in ("sft", "ift_eq21")]
    for k, (share, (good, bad)) in enumerate(ratios.items()):
        middle.plot([k - 0.42, k + 0.42], [good / (good + bad)] * 2, color="black", linewidth=1.5, zorder=3)
        for i, name in enumerate(names):
            label = words[name] if k == 0 else None
            middle.bar(k + 0.4 * (i - 0.5), shares[name][share].mean().item(), 0.36, color=COLOR[name], label=label)
    middle.set_xticks(range(len(ratios)), [f"{share}" for share in ratios])
    middle.set(xlabel="optimal : sub-optimal demonstrations (line: their share)", ylabel="chance of the optimal first action",
               ylim=(0, 1))
    middle.legend(frameon=False, fontsize=9, loc="upper left")
    middle.set_title("Two paths shown", **TITLE)
    clean(middle)
    shown = slice(0, 31)                            # everything happens early
    lines(last, {name: (torch.arange(len(y))[shown], y[shown]) for name, y in switch.items()}, words)
    last.set(xlabel="training step", ylabel="chance of the optimal first action", ylim=(0, 1.02))
    last.set_title("A sub-optimal habit, then the optimal path", **TITLE)
    return save(figure, folder, "lake_paths")


def doses(curves: dict, x: tuple, words: dict[str, str], folder) -> Path:
    """Right actions beside the path against λ; one panel per place and optimizer."""
    figure, axes = plt.subplots(1, len(curves), figsize=(3.9 * len(curves), 3.4), sharey=True, layout="constrained")
    for axis, ((place, optimizer), by) in zip(axes, curves.items(), strict=True):
        axis.axhline(by["ift_simple"][0].nanmean(), color=COLOR["sft"], linestyle=":", linewidth=1.2)
        lines(axis, {name: (torch.tensor(x), y[:, ~y.isnan().any(0)]) for name, y in by.items()}, words,
              "lower right" if axis is axes[-1] else None)
        axis.set_title(f"{place}, {optimizer}", **TITLE)
        axis.set_xlabel("λ, share of the policy's own guess")
    axes[0].set_ylabel("right beside the path ↑   (dotted: SFT)")
    return save(figure, folder, "lake_lambda")


def designs(found: list[dict], words: dict[str, str], judged: dict, tally, folder) -> Path:
    """Per metric and method: in which share of the designs better (blue, right) or worse (red, left) than SFT."""
    figure, axes = plt.subplots(1, len(judged), figsize=(3.2 * len(judged) + 1, 3.3), sharey=True, layout="constrained")
    for axis, (metric, (title, _)) in zip(axes, judged.items(), strict=True):
        for i, name in enumerate(words):
            better, worse = tally(found, name, metric)
            axis.barh(i, better, color="#2166ac")
            axis.barh(i, -worse, color="#d6604d")
            axis.text(better + 0.02, i, f"{better:.0%}", va="center", fontsize=8, color="#2166ac")
            axis.text(-worse - 0.02, i, f"{worse:.0%}", va="center", ha="right", fontsize=8, color="#d6604d")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(xlim=(-1.2, 1.2), xticks=[], yticks=range(len(words)), yticklabels=list(words.values()))
        axis.spines[:].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.set_title(title, fontsize=10)
    axes[0].invert_yaxis()
    figure.suptitle(f"Worse than SFT (red) or better (blue), share of {len(found)} designs", x=0.01, ha="left", **BOLD)
    return save(figure, folder, "lake_designs")
