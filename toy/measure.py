"""What is measured of a policy, exactly and once per seed, and how such numbers are written.

Every interval is 95 %.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.stats import mean_interval, table
from toy import lake
from toy.policy import Table
from toy.world import World


def mse(world: World, policy: Table) -> Tensor:
    """Squared difference of action probabilities to the optimal policy, a trained network."""
    difference = policy.probabilities() - world.optimum.probabilities()
    return mean_of_states(world, difference**2)


def mse_nearest(world: World, policy: Table) -> Tensor:
    """The same to the nearest optimal policy, where several actions are equally good.

    That one spreads what the policy lacks evenly over the tied optimal actions, and takes the
    rest to zero.
    """
    p, optimal = policy.probabilities(), world.lakes.optimal
    lacking = (p * ~optimal).sum(-1, keepdim=True)
    difference = torch.where(optimal, lacking / optimal.sum(-1, keepdim=True), p)
    return mean_of_states(world, difference**2)


def mean_of_states(world: World, x: Tensor) -> Tensor:
    """The mean over actions, and over the states the goal can still be reached from, (N,)."""
    counted = world.lakes.solvable.double()                             # (N, S)
    return (x * counted[..., None]).sum((1, 2)) / (4 * counted.sum(-1))


def mse_parameters(world: World, policy: Table) -> Tensor:
    """Squared difference of the parameters to those of the optimal policy."""
    differences = []
    for x, y in zip(policy.parameters, world.optimum.parameters, strict=True):
        differences.append(((x - y) ** 2).flatten(1))
    return torch.cat(differences, -1).mean(-1)


def success(world: World, policy: Table) -> Tensor:
    """Chance to reach the goal from the start."""
    return lake.success(world.lakes, policy.probabilities())


def success_noise(world: World, policy: Table) -> Tensor:
    """Chance to reach the goal when every tenth action, on average, is a random one."""
    return lake.success(world.lakes, policy.probabilities(), noise=0.1)


def neighbour_accuracy(world: World, policy: Table) -> Tensor:
    """Share of the path's neighbours where the likeliest action is optimal; nan without any."""
    likeliest = policy.probabilities().argmax(-1, keepdim=True)         # (N, S, 1)
    right = world.lakes.optimal.gather(-1, likeliest)[..., 0]           # (N, S)
    neighbours = world.lakes.neighbours.double()
    return (right * (neighbours / neighbours.sum(-1, keepdim=True))).sum(-1)


def states_visited(world: World, policy: Table) -> Tensor:
    """Expected number of different cells in one walk."""
    return lake.seen(world.lakes, policy.probabilities()).sum(-1)


@dataclass(frozen=True)
class Metric:
    """A number, what it is called, and whether more of it is better."""

    head: str                   # of a table's column
    good: int | None            # 1: more is better; −1: less is; 0: neither; None: not compared
    measure: Callable[[World, Table], Tensor] | None = None


METRICS = {                     # the name in the JSON
    "mse": Metric("MSE", -1, mse),
    "mse_nearest": Metric("MSE nearest", -1, mse_nearest),
    "mse_parameters": Metric("MSE param.", -1, mse_parameters),
    "success": Metric("success", 1, success),
    "success_noise_0.1": Metric("10 % noise", 1, success_noise),
    "neighbour_accuracy": Metric("right beside", 1, neighbour_accuracy),
    "states_visited": Metric("cells seen", 0, states_visited),
    "off_path_first": Metric("off path: first", None),
    "off_path_mean": Metric("mean", None),
    "off_path_last": Metric("last", None),
    "labels_right": Metric("labels right", None),
}
MEANINGS = """\
MSE           mean squared difference of action probabilities to the optimal policy,
              a network trained on the optimal actions
MSE nearest   the same to the nearest optimal policy, where several actions are equally good
MSE param.    mean squared difference of the parameters to those of that network
success       exact chance to reach the goal from the start
10 % noise    the same with every tenth action, on average, replaced by a random one
right beside  share of the path's neighbours where the likeliest action is optimal
cells seen    expected number of different cells in one walk
off path      share of what the policy reads that is not the demonstrated state: at the first
              training step, on average, and at the last
labels right  share of those states, over the whole training, in which the demonstration's next
              action is optimal; counted where the goal can still be reached"""


def measure(world: World, policy: Table, *only: str) -> dict[str, Tensor]:
    """Every number of METRICS that is measured of a policy, or only the named ones, each (N,)."""
    names = only or [name for name, metric in METRICS.items() if metric.measure]
    return {name: METRICS[name].measure(world, policy) for name in names}


def read(judged: Tensor) -> dict[str, Tensor]:
    """What was read off the path, from what the training judged of it, (steps, 3, N).

    A seed that never left its path has no labels there: nan.
    """
    share, reachable, right = judged.unbind(1)                          # (steps, N)
    return {"off_path_first": share[0], "off_path_mean": share.mean(0), "off_path_last": share[-1],
            "labels_right": right.sum(0) / reachable.sum(0)}


# ------------------------------------------------------------------------------ in words

def results_table(results: dict[str, dict], metrics, names: dict[str, str]) -> str:
    """A line per row, compared to that of SFT: `results` is {row: {metric: (N,)}}."""
    sft = results.get("sft")
    lines = []
    for name, measured in results.items():
        line = [names[name]]
        for metric in metrics:
            good = METRICS[metric].good
            compared = sft is not None and name != "sft" and good is not None
            line.append(shown(measured[metric], sft[metric] if compared else None, good))
        lines.append(line)
    return table(["", *(f"{METRICS[metric].head} " for metric in metrics)], lines)


def interval(x: Tensor) -> tuple[float, float]:
    """Mean and half-width of its interval. A seed without a value (nan) does not count."""
    x = x[~x.isnan()]
    return mean_interval(x.tolist()) if len(x) else (math.nan, math.nan)


def spelled(gain: Tensor) -> str:
    """ "+0.123 ± 0.045" """
    mean, half = interval(gain)
    return f"{mean:+.3f} ± {half:.3f}"


def shown(x: Tensor, reference: Tensor | None = None, good: int | None = None) -> str:
    """ "0.812±.004▲": mean and half-width; then how the interval of the paired gain compares x to
    the reference, ▲ better, ▼ worse, or ≠ where neither is good."""
    mean, half = interval(x)
    text = f"{mean:.3f}"
    if not math.isnan(half):
        text += f"±{half:.3f}".replace("±0.", "±.")
    if reference is None:
        return text + " "
    gain, doubt = interval(x - reference)
    if math.isnan(doubt) or abs(gain) <= doubt:
        return text + " "
    if good == 0:
        return text + "≠"
    return text + ("▲" if good * gain > 0 else "▼")
