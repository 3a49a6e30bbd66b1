"""FrozenLake-v1 as a Markov decision process that is known completely: a policy's success is solved for, not sampled.

The physics is gymnasium's own table `P`; nothing about the ice is retyped. S states (cells, row by row), 4 actions: left, down,
right, up. A policy is a tensor (..., S, 4) of probabilities, with any number of leading dimensions. No learning here.
"""

import bisect
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from toy.paths import Path, best_path, worse_path

DISCOUNT = 0.99         # below 1, or every step that does not yet drown would be optimal: with it, optimal means shortest


@dataclass(frozen=True)
class Lake:
    """One map with its solution. Tensors may carry a leading N: that many lakes side by side (see `stack`)."""

    rows: tuple[str, ...]
    slippery: bool
    P: Tensor               # (S, 4, S) float64: chance that an action in a state leads to a state; holes and goals: to themselves
    start: Tensor           # (S,) one-hot
    ends: Tensor            # (S,) bool: holes and goals
    goals: Tensor           # (S,) bool
    optimal: Tensor         # (S, 4) bool: the optimal actions, ties included
    expert: Tensor          # (S,) one optimal action per state: the demonstration's on its path, else the first
    solvable: Tensor        # (S,) bool: the walk goes on here, and the goal can still be reached
    neighbours: Tensor      # (S,) bool: solvable, off the demonstrated path, and one action away from it
    best: Path              # the optimal trajectory
    worse: Path             # the sub-optimal trajectory: at least one wrong action


def make(rows: tuple[str, ...], slippery: bool = False) -> Lake:
    """Read gymnasium's table for this map, solve it, and search the two trajectories."""
    P, R = read_gymnasium(rows, slippery)
    letters = "".join(rows)
    ends, goals = (torch.tensor([letter in kind for letter in letters]) for kind in ("HG", "G"))
    V, Q = value_iteration(P, R)
    solvable = ~ends & (V > 0)
    optimal = (Q >= V[:, None] * (1 - 1e-9)) & solvable[:, None]
    best, worse = best_path(P, V, Q, optimal, letters), worse_path(P, V, Q, optimal, letters)
    on_path = torch.zeros_like(ends)
    on_path[[s for s, _ in best]] = True
    expert = optimal.int().argmax(-1)
    for s, a in best:
        expert[s] = a
    neighbours = (P[on_path] > 0).any(0).any(0) & solvable & ~on_path
    start = torch.tensor([letter == "S" for letter in letters]).to(P)
    return Lake(tuple(rows), slippery, P, start, ends, goals, optimal, expert, solvable, neighbours, best, worse)


def stack(lakes: list[Lake]) -> Lake:
    """N lakes as one, every tensor with a leading N. Maps must have equally many cells. The same lake N times takes no memory."""
    first = lakes[0]
    same = all(lake is first for lake in lakes)
    tensors = {}
    for name in ("P", "start", "ends", "goals", "optimal", "expert", "solvable", "neighbours"):
        x = getattr(first, name)
        tensors[name] = x.expand(len(lakes), *x.shape) if same else torch.stack([getattr(lake, name) for lake in lakes])
    return Lake(first.rows, first.slippery, **tensors, best=first.best, worse=first.worse)


def environment(rows: tuple[str, ...], slippery: bool):
    """gymnasium's own FrozenLake-v1 on this map, without its time limit: the exact values have none either."""
    import gymnasium

    return gymnasium.make("FrozenLake-v1", desc=[list(row) for row in rows], is_slippery=slippery).unwrapped


def read_gymnasium(rows: tuple[str, ...], slippery: bool) -> tuple[Tensor, Tensor]:
    """gymnasium's {state: {action: [(chance, next state, reward, ended)]}} as P (S, 4, S) and R (S, 4)."""
    table = environment(rows, slippery).P
    S = len(table)
    P, R = torch.zeros(S, 4, S, dtype=torch.float64), torch.zeros(S, 4, dtype=torch.float64)
    for s in table:
        for a in table[s]:
            for chance, then, reward, _ in table[s][a]:
                P[s, a, then] += chance
                R[s, a] += chance * reward
    return P, R


def value_iteration(P: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """V (S,) and Q (S, 4) of the optimal policy: V ← max_a R + DISCOUNT · P V, until nothing changes any more."""
    V = torch.zeros_like(R[:, 0])
    while True:
        Q = R + DISCOUNT * P @ V                                        # (S, 4)
        if torch.allclose(new := Q.amax(-1), V, rtol=1e-13, atol=0):
            return new, Q
        V = new


# ---------------------------------------------------------------------------------------------------- exact evaluation

def chain(lake: Lake, policy: Tensor, start: Tensor) -> Tensor:
    """One step of the policy's walk, (…, S + 1, S + 2). Rows: from each cell, and from before the start (…, S). Columns: to each
    cell, "won" and "lost"; the step after reaching a goal is won, after drowning lost.
    """
    moves = (policy[..., None] * lake.P).sum(-2) * ~lake.ends[..., None]                                # (…, S, S)
    over = torch.stack([lake.goals, lake.ends & ~lake.goals], -1).to(moves).expand(*moves.shape[:-1], 2)
    before = torch.nn.functional.pad(start, (0, 2)).expand(*moves.shape[:-2], moves.shape[-1] + 2)
    return torch.cat([torch.cat([moves, over], -1), before[..., None, :]], -2)


def without(M: Tensor, cells: int) -> Tensor:
    """The same walk, seen by someone who ignores the first so many cells: each is cut out, its ways in joined to its ways out.

    Gaussian elimination that never subtracts (Grassmann, Taksar and Heyman): a chance of 1e-20 to leave a loop keeps all digits,
    where solving (I − Q) x = r would find the loop closed. From a cell that is truly never left nobody wins.
    """
    for _ in range(cells):
        out = M[..., 0, 1:]                                             # standing still changes when, not where: it drops out
        total = out.sum(-1, keepdim=True)
        out = torch.where(total > 0, out / torch.where(total > 0, total, 1), 0)
        M = M[..., 1:, 1:] + M[..., 1:, :1] * out[..., None, :]
    return M


def success(lake: Lake, policy: Tensor, start: Tensor | None = None, noise: float = 0.0) -> Tensor:
    """Chance to reach a goal, (…): solved for, not sampled. `start` (…, S) is a distribution, `noise` as in `with_noise`."""
    M = chain(lake, with_noise(policy, noise), lake.start if start is None else start)
    return without(M, M.shape[-2] - 1)[..., 0, 0]


def seen(lake: Lake, policy: Tensor) -> Tensor:
    """Chance to see each cell in one walk from the start, (…, S): cut out all the others. Halves share the work of cutting."""
    def each(M: Tensor, cells: list[int]) -> dict[int, Tensor]:
        if len(cells) == 1:
            return {cells[0]: M[..., -1, 0]}
        half, rest = len(cells) // 2, list(range(len(cells), M.shape[-1]))
        swapped = [*range(half, len(cells)), *range(half)]
        other = M[..., [*swapped, len(cells)], :][..., [*swapped, *rest]]
        return each(without(M, half), cells[half:]) | each(without(other, len(cells) - half), cells[:half])

    found = each(chain(lake, policy, lake.start), list(range(policy.shape[-2])))
    return torch.stack([found[s] for s in sorted(found)], -1)


def with_noise(policy: Tensor, noise: float) -> Tensor:
    """The policy whose action is replaced by a random one with chance `noise`."""
    return (1 - noise) * policy + noise / 4


# ---------------------------------------------------------------------------------------------------- playing

def play(lake: Lake, policy: Tensor, episodes: int, seed: int, max_steps: int = 10_000) -> int:
    """How many of so many episodes reach the goal in gymnasium's environment, one env.step at a time. One lake, policy (S, 4)."""
    env, dice = environment(lake.rows, lake.slippery), random.Random(seed)
    bounds = policy.cumsum(-1)[:, :3].tolist()          # the action is the number of bounds below the dice
    env.reset(seed=seed)
    reached = 0
    for _ in range(episodes):
        state, _ = env.reset()
        for _ in range(max_steps):
            state, reward, ended, _, _ = env.step(bisect.bisect_right(bounds[state], dice.random()))
            if ended:
                reached += reward
                break
    return int(reached)


def sample(lake: Lake, policy: Tensor, dice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Trajectories of N policies (N, S, 4) on N stacked lakes, from uniform random numbers `dice` (N, K, T, 2) for action and
    ice.

    → states, actions (N, K, T) and mask (N, K, T): "the walk had not ended before this step". K walks per policy, cut off after
    T steps.
    """
    N, K, T, _ = dice.shape
    n = torch.arange(N)[:, None].expand(N, K)
    state = lake.start.argmax(-1)[:, None].expand(N, K)
    states, actions, mask = [], [], []
    for t in range(T):
        action = (policy.cumsum(-1)[n, state][..., :3] <= dice[:, :, t, :1]).sum(-1)                   # (N, K)
        states.append(state)
        actions.append(action)
        mask.append(~lake.ends[n, state])
        landing = lake.P[n, state, action].cumsum(-1)                   # (N, K, S)
        state = (landing[..., :-1] <= dice[:, :, t, 1:]).sum(-1)
    return torch.stack(states, -1), torch.stack(actions, -1), torch.stack(mask, -1)
