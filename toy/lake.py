"""FrozenLake-v1 as a Markov decision process that is known completely.

The physics is gymnasium's own table `P`; nothing about the ice is retyped. Optimal actions come
from value iteration, and a policy's success is solved for, not sampled. There are S states (cells,
row by row) and 4 actions: left, down, right, up. A policy is a tensor (…, S, 4) of probabilities
with any number of leading dimensions. Nothing is learned here.
"""

import bisect
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toy.paths import Path, best_path, worse_path

DISCOUNT = 0.99         # below 1, so that optimal means shortest and not merely "never drowns"
CORRIDOR = ("SFFHFFG", "FFFHFFF", "FFFHFFF", "FFFHFFF", "FFFHFFF", "FFFFFFF", "FFFFFFF")
OURS = {"corridor": CORRIDOR, "two-path": ("SFFFG", "FHHHF", "FFFFF")}


def find(name: str, seed: int = 0) -> tuple[str, ...]:
    """One of gymnasium's maps or ours, as rows of S (start), F (frozen), H (hole) and G (goal).

    "maze" is the random 6×6 map of a seed.
    """
    from gymnasium.envs.toy_text.frozen_lake import MAPS, generate_random_map

    if name == "maze":
        return tuple(generate_random_map(6, 0.8, seed))
    return OURS[name] if name in OURS else tuple(MAPS[name])


@dataclass(frozen=True)
class Lake:
    """One map with its solution. Tensors may carry a leading N: N lakes side by side (`stack`)."""

    rows: tuple[str, ...]
    slippery: bool
    P: Tensor               # (S, 4, S) float64: chance that an action in a state leads to a state;
                            #           holes and goals lead to themselves
    start: Tensor           # (S,) one-hot
    ends: Tensor            # (S,) bool: holes and goals
    goals: Tensor           # (S,) bool
    optimal: Tensor         # (S, 4) bool: the optimal actions, ties included
    expert: Tensor          # (S,) one optimal action per state, the demonstrated one on the path
    solvable: Tensor        # (S,) bool: the walk goes on here, and the goal can still be reached
    neighbours: Tensor      # (S,) bool: solvable, and one action away from the demonstrated path
    best: Path              # the optimal trajectory: the demonstration
    worse: Path             # the sub-optimal trajectory: at least one wrong action


def make(rows: tuple[str, ...], slippery: bool = False) -> Lake:
    """Read gymnasium's table for this map, solve it, and search the two trajectories."""
    P, R = read_gymnasium(rows, slippery)
    letters = "".join(rows)
    start = torch.tensor([letter == "S" for letter in letters]).to(P)
    goals = torch.tensor([letter == "G" for letter in letters])
    ends = goals | torch.tensor([letter == "H" for letter in letters])

    # An action is optimal if its value is the state's value, up to rounding.
    V, Q = value_iteration(P, R)
    solvable = ~ends & (V > 0)
    optimal = (Q >= V[:, None] * (1 - 1e-9)) & solvable[:, None]
    best = best_path(P, V, Q, optimal, letters)
    worse = worse_path(P, V, Q, optimal, letters, best)

    # The expert follows the demonstration on its path, elsewhere the first optimal action.
    expert = optimal.int().argmax(-1)
    on_path = torch.zeros_like(ends)
    for s, a in best:
        expert[s] = a
        on_path[s] = True
    neighbours = (P[on_path] > 0).any(0).any(0) & solvable & ~on_path
    return Lake(tuple(rows), slippery, P, start, ends, goals, optimal, expert, solvable,
                neighbours, best, worse)


def stack(lakes: list[Lake]) -> Lake:
    """N lakes as one: every tensor gets a leading N. Their maps must have equally many cells.

    The same lake N times takes no memory. Rows and trajectories are those of the first.
    """
    first = lakes[0]
    same = all(lake is first for lake in lakes)
    tensors = {}
    for name in ("P", "start", "ends", "goals", "optimal", "expert", "solvable", "neighbours"):
        x = getattr(first, name)
        if same:
            tensors[name] = x.expand(len(lakes), *x.shape)
        else:
            tensors[name] = torch.stack([getattr(lake, name) for lake in lakes])
    return Lake(first.rows, first.slippery, **tensors, best=first.best, worse=first.worse)


def environment(rows: tuple[str, ...], slippery: bool):
    """gymnasium's own FrozenLake-v1 on this map, without its time limit, as the exact values."""
    import gymnasium

    desc = [list(row) for row in rows]
    return gymnasium.make("FrozenLake-v1", desc=desc, is_slippery=slippery).unwrapped


def read_gymnasium(rows: tuple[str, ...], slippery: bool) -> tuple[Tensor, Tensor]:
    """gymnasium's {state: {action: [(chance, next state, reward, ended)]}} as P and R (S, 4)."""
    table = environment(rows, slippery).P
    S = len(table)
    P = torch.zeros(S, 4, S, dtype=torch.float64)
    R = torch.zeros(S, 4, dtype=torch.float64)
    for s in table:
        for a in table[s]:
            for chance, then, reward, _ in table[s][a]:
                P[s, a, then] += chance
                R[s, a] += chance * reward
    return P, R


def value_iteration(P: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """V (S,) and Q (S, 4) of the optimal policy: V ← max_a R + DISCOUNT · P V, until it stays."""
    V = torch.zeros_like(R[:, 0])
    while True:
        Q = R + DISCOUNT * P @ V                                        # (S, 4)
        new = Q.amax(-1)                                                # (S,)
        if torch.allclose(new, V, rtol=1e-13, atol=0):
            return new, Q
        V = new


# ------------------------------------------------------------------------------ exact evaluation

def with_noise(policy: Tensor, noise: float) -> Tensor:
    """The policy whose action is replaced by a random one with chance `noise`."""
    return (1 - noise) * policy + noise / 4


def chain(lake: Lake, policy: Tensor, start: Tensor) -> Tensor:
    """One step of the policy's walk as a matrix (…, S + 1, S + 2).

    Rows say where the step begins: in each cell, and last, before the start. Columns say where it
    leads: to each cell, to "won" and to "lost". The step after reaching a goal is won, the step
    after drowning is lost.
    """
    moves = (policy[..., None] * lake.P).sum(-2) * ~lake.ends[..., None]                # (…, S, S)
    over = torch.stack([lake.goals, lake.ends & ~lake.goals], -1).to(moves)             # (…, S, 2)
    over = over.expand(*moves.shape[:-1], 2)
    before = F.pad(start, (0, 2)).expand(*moves.shape[:-2], moves.shape[-1] + 2)        # (…, S + 2)
    return torch.cat([torch.cat([moves, over], -1), before[..., None, :]], -2)


def without(M: Tensor, cells: int) -> Tensor:
    """The same walk, seen by someone who ignores the first so many cells.

    Each of them is cut out, its ways in joined to its ways out. This is Gaussian elimination that
    never subtracts (Grassmann, Taksar and Heyman): a chance of 1e-20 to leave a loop keeps all its
    digits, where solving (I − Q) x = r would find the loop closed. From a cell that is truly never
    left nobody wins.
    """
    for _ in range(cells):
        out = M[..., 0, 1:]             # standing still changes when one leaves, not whereto
        total = out.sum(-1, keepdim=True)
        out = torch.where(total > 0, out / torch.where(total > 0, total, 1), 0)
        M = M[..., 1:, 1:] + M[..., 1:, :1] * out[..., None, :]
    return M


def success(lake: Lake, policy: Tensor, start: Tensor | None = None, noise: float = 0.0) -> Tensor:
    """Chance to reach a goal, (…), exactly. `start` (…, S) is a distribution over the cells."""
    M = chain(lake, with_noise(policy, noise), lake.start if start is None else start)
    return without(M, M.shape[-2] - 1)[..., 0, 0]


def seen(lake: Lake, policy: Tensor) -> Tensor:
    """Chance to see each cell in one walk from the start, (…, S)."""
    cells = list(range(policy.shape[-2]))
    found = seen_among(chain(lake, policy, lake.start), cells)
    return torch.stack([found[s] for s in cells], -1)


def seen_among(M: Tensor, cells: list[int]) -> dict[int, Tensor]:
    """Chance to see each of these cells, the first ones of M: cut out all the others.

    One half of the cells is cut out once for all cells of the other half, and so on downwards.
    """
    if len(cells) == 1:
        return {cells[0]: M[..., -1, 0]}
    n, half = len(cells), len(cells) // 2
    second = seen_among(without(M, half), cells[half:])
    # The other half comes first now; what follows the cells (won, lost) stays where it is.
    swapped = [*range(half, n), *range(half)]
    M = M[..., [*swapped, n], :][..., [*swapped, *range(n, M.shape[-1])]]
    return seen_among(without(M, n - half), cells[:half]) | second


# ------------------------------------------------------------------------------ playing

def play(lake: Lake, policy: Tensor, episodes: int, seed: int, max_steps: int = 10_000) -> int:
    """How many of so many episodes reach the goal in gymnasium's environment. policy (S, 4)."""
    env, dice = environment(lake.rows, lake.slippery), random.Random(seed)
    bounds = policy.cumsum(-1)[:, :3].tolist()      # the action: how many bounds the dice reach
    env.reset(seed=seed)
    reached = 0
    for _ in range(episodes):
        state, _ = env.reset()
        for _ in range(max_steps):
            action = bisect.bisect_right(bounds[state], dice.random())
            state, reward, ended, _, _ = env.step(action)
            if ended:
                reached += reward
                break
    return int(reached)


def sample(lakes: Lake, policy: Tensor, dice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K walks of each of N policies (N, S, 4) on N stacked lakes, cut off after T steps.

    `dice` (N, K, T, 2): uniform random numbers for the action and for the ice.
    → states, actions and mask, all (N, K, T); the mask says "the walk had not ended before".
    """
    N, K, T, _ = dice.shape
    n = torch.arange(N)[:, None].expand(N, K)
    state = lakes.start.argmax(-1)[:, None].expand(N, K)
    states, actions, mask = [], [], []
    for t in range(T):
        bounds = policy.cumsum(-1)[n, state][..., :3]                   # (N, K, 3)
        action = (bounds <= dice[:, :, t, :1]).sum(-1)                  # (N, K)
        states.append(state)
        actions.append(action)
        mask.append(~lakes.ends[n, state])
        landing = lakes.P[n, state, action].cumsum(-1)                  # (N, K, S)
        state = (landing[..., :-1] <= dice[:, :, t, 1:]).sum(-1)
    return torch.stack(states, -1), torch.stack(actions, -1), torch.stack(mask, -1)
