"""What is measured of a policy: every number exactly, one per seed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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


def success_off_path(world: World, policy: Table) -> Tensor:
    """Chance to reach the goal from a random neighbour of the path."""
    return lake.success(world.lakes, policy.probabilities(), beside(world))


def success_noise(world: World, policy: Table) -> Tensor:
    """Chance to reach the goal when every tenth action, on average, is a random one."""
    return lake.success(world.lakes, policy.probabilities(), noise=0.1)


def neighbour_accuracy(world: World, policy: Table) -> Tensor:
    """Share of the path's neighbours where the likeliest action is optimal."""
    likeliest = policy.probabilities().argmax(-1, keepdim=True)         # (N, S, 1)
    return (world.lakes.optimal.gather(-1, likeliest)[..., 0] * beside(world)).sum(-1)


def beside(world: World) -> Tensor:
    """The path's neighbours as a distribution (N, S); nan (0/0) where there are none."""
    neighbours = world.lakes.neighbours.double()
    return neighbours / neighbours.sum(-1, keepdim=True)


def states_visited(world: World, policy: Table) -> Tensor:
    """Expected number of different cells in one walk."""
    return lake.seen(world.lakes, policy.probabilities()).sum(-1)


@dataclass(frozen=True)
class Metric:
    """A number, what it is called, and whether more of it is better."""

    measure: Callable[[World, Table], Tensor]
    head: str                   # of a table's column
    words: str                  # in a picture
    good: int                   # 1: more is better; −1: less is; 0: neither


METRICS = {                     # the name in the JSON
    "mse": Metric(mse, "MSE", "MSE to the optimum", -1),
    "mse_nearest": Metric(mse_nearest, "MSE nearest", "MSE to nearest optimum", -1),
    "mse_parameters": Metric(mse_parameters, "MSE param.", "MSE of parameters", -1),
    "success": Metric(success, "success", "success", 1),
    "success_off_path": Metric(success_off_path, "from beside", "success from beside", 1),
    "success_noise_0.1": Metric(success_noise, "10 % noise", "success at 10 % noise", 1),
    "neighbour_accuracy": Metric(neighbour_accuracy, "right beside", "right beside the path", 1),
    "states_visited": Metric(states_visited, "cells seen", "cells seen", 0),
}


def measure(world: World, policy: Table, *only: str) -> dict[str, Tensor]:
    """Every number of METRICS, or only the named ones, each (N,)."""
    return {name: METRICS[name].measure(world, policy) for name in only or METRICS}
