"""The lake: gymnasium's ice, optimal actions, demonstrations, exact values against rollouts."""

import itertools
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from toy import lake as lakes
from toy.rows import CONTROLS, choose, find_row, train_row
from toy.world import prepare


@pytest.fixture(scope="module")
def slippery():
    """Three seeds on the slippery 4×4 lake, and every row of the table after a few steps."""
    world = prepare("4x4", [3, 4, 5], slippery=True, base="noisy")
    rows = {"base": world.base}
    for name in [*choose("all"), *CONTROLS]:
        rows[name] = train_row(world, find_row(name, 0.5), steps=8, lr=0.02)[0]
    return SimpleNamespace(world=world, rows=rows)


def test_transitions_are_those_of_the_environment():
    for name, slips in (("4x4", True), ("two-path", False), ("corridor", True)):
        lake = lakes.make(lakes.find(name), slips)
        env = gymnasium.make("FrozenLake-v1", desc=list(lake.rows), is_slippery=slips).unwrapped
        env.reset(seed=0)
        torch.testing.assert_close(lake.P.sum(-1), torch.ones_like(lake.P[..., 0]))
        for s, a in itertools.product(range(len(lake.P)), range(4)):
            env.s = s
            state, reward, ended, *_ = env.step(a)
            assert lake.P[s, a, state] > 0
            assert reward == float(lake.goals[state] and not lake.ends[s])
            assert ended == bool(lake.ends[state])


def test_value_iteration_finds_what_trying_every_policy_finds():
    lake = lakes.make(("SFF", "FHG"), True)
    walks = [s for s in range(6) if not lake.ends[s]]
    values = {}
    for actions in itertools.product(range(4), repeat=len(walks)):
        P, r = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        for s, a in zip(walks, actions, strict=True):
            P[s], r[s] = lake.P[s, a], lake.P[s, a] @ lake.goals.double()
        values[actions] = torch.linalg.solve(torch.eye(6) - lakes.DISCOUNT * P, r)
    best = torch.stack(list(values.values())).amax(0)
    tried = torch.zeros(6, 4, dtype=torch.bool)
    for actions, value in values.items():
        if torch.allclose(value[walks], best[walks], rtol=1e-9):
            tried[walks, list(actions)] = True
    V, _ = lakes.value_iteration(*lakes.read_gymnasium(lake.rows, lake.slippery))
    torch.testing.assert_close(V[walks], best[walks])
    assert torch.equal(lake.optimal, tried)


def test_ties_are_all_the_first_steps_of_shortest_ways():
    lake = lakes.make(lakes.find("4x4"))
    assert lake.optimal[0].tolist() == [False, True, True, False]
    assert lake.optimal[9].tolist() == [False, True, True, False]
    assert lake.optimal[lake.ends].sum() == 0


@pytest.mark.parametrize("name, slips", [
    ("4x4", False), ("8x8", False), ("8x8", True), ("corridor", False), ("two-path", False),
    ("maze", False), ("maze", True),
])
def test_the_demonstrations_lead_to_the_goal_one_of_them_wrongly(name, slips):
    for seed in range(4 if name == "maze" else 1):
        lake = lakes.make(lakes.find(name, seed), slips)
        for path in (lake.best, lake.worse):
            for (s, a), (then, _) in zip(path, path[1:], strict=False):
                assert lake.P[s, a, then] > 0
            assert lake.P[path[-1]] @ lake.goals.double() > 0
        assert all(lake.optimal[step] for step in lake.best)
        assert not all(lake.optimal[step] for step in lake.worse)
        if not slips:
            assert len(lake.best) < len(lake.worse)
            assert len({s for s, _ in lake.worse}) == len(lake.worse)
            V, _ = lakes.value_iteration(*lakes.read_gymnasium(lake.rows, lake.slippery))
            assert len(lake.best) == 1 + round(np.log(V[0].item()) / np.log(lakes.DISCOUNT))


def test_a_lake_where_every_wrong_action_drowns_has_a_sub_optimal_trajectory_too():
    for rows in (("SH", "GH"), ("S", "G")):
        lake = lakes.make(rows)
        assert lake.best == [(0, 1)] and lake.worse[0][1] != 1


# ------------------------------------------------------------------------------ against rollouts

def roll(lake, probabilities, episodes: int, seed: int, start=None):
    """Rollouts on gymnasium's own table, all episodes at once.

    → the share that reached the goal, and the share that saw each cell.
    """
    env = gymnasium.make("FrozenLake-v1", desc=list(lake.rows), is_slippery=lake.slippery)
    table = env.unwrapped.P
    S = len(table)
    P = np.zeros((S, 4, S))
    for s, a in itertools.product(range(S), range(4)):
        for chance, then, _, _ in table[s][a]:
            P[s, a, then] += chance
    rng, ends = np.random.default_rng(seed), lake.ends.numpy()
    cumulative = np.einsum("sa,sat->st", probabilities.numpy(), P).cumsum(-1)
    state = rng.choice(S, size=episodes, p=(lake.start if start is None else start).numpy())
    saw = np.zeros((episodes, S), bool)
    saw[np.arange(episodes), state] = True
    walking = np.flatnonzero(~ends[state])
    for _ in range(20_000):
        state[walking] = (cumulative[state[walking], :-1] <= rng.random((len(walking), 1))).sum(-1)
        saw[walking, state[walking]] = True
        walking = walking[~ends[state[walking]]]
        if not len(walking):
            break
    assert len(walking) < episodes / 1000
    goals = [i for i, letter in enumerate("".join(lake.rows)) if letter == "G"]
    return np.isin(state, goals).mean(), saw.mean(0)


def agree(exact, measured, errors: float = 3, episodes: int = 10_000) -> None:
    """Within so many standard errors of a share over the episodes."""
    exact, measured = np.asarray(exact), np.asarray(measured)
    error = np.sqrt(np.maximum(exact * (1 - exact), 1 / episodes) / episodes)
    deviation = abs(measured - exact)
    assert (deviation <= errors * error).all(), (exact, measured, deviation / error)


def test_success_is_what_ten_thousand_rollouts_find_for_every_method(slippery):
    lake, stacked = slippery.world.singles[0], slippery.world.lakes
    for i, trained in enumerate(slippery.rows.values()):
        p = trained.probabilities()
        reached, _ = roll(lake, lakes.with_noise(p[0], 0.1), 10_000, seed=i)
        agree(lakes.success(stacked, p, noise=0.1)[0], reached)


def test_success_and_cells_seen_agree_with_rollouts_from_anywhere(slippery):
    slips = slippery.world.singles[0], slippery.rows["sft"].probabilities()[0]
    corridor = prepare("corridor", [1])
    still = corridor.singles[0], corridor.base.probabilities()[0]
    for lake, p in (slips, still):
        reached, saw = roll(lake, p, 10_000, seed=1)
        agree(lakes.success(lake, p), reached)
        agree(lakes.seen(lake, p), saw, errors=4.5)     # 16 and 49 cells: luck would exceed 3
        beside = lake.neighbours.double() / lake.neighbours.sum()
        reached, _ = roll(lake, p, 10_000, seed=2, start=beside)
        agree(lakes.success(lake, p, beside), reached)


def test_success_agrees_with_episodes_in_the_environment(slippery):
    p = slippery.rows["base"].probabilities()
    reached = lakes.play(slippery.world.singles[0], p[0], 10_000, seed=0)
    agree(lakes.success(slippery.world.lakes, p)[0], reached / 10_000)


def test_greedy_policies_and_endless_walks_have_exact_values():
    lake = lakes.make(lakes.find("4x4"))
    greedy = torch.nn.functional.one_hot(lake.expert, 4).double()
    assert lakes.success(lake, greedy) == 1 and lakes.seen(lake, greedy).sum() == len(lake.best) + 1
    # Always up: never arrives, never drowns.
    wall = torch.nn.functional.one_hot(torch.full((16,), 3), 4).double()
    assert lakes.success(lake, wall) == 0
    # Into the wall 1e14 times, then down.
    almost = torch.tensor([0.0, 1e-14, 0.0, 1 - 1e-14], dtype=torch.float64).expand(4, 4)
    assert lakes.success(lakes.make(("SF", "GF")), almost) == 1
    # There and back 1e20 times.
    there_and_back = torch.tensor([[0, 1e-20, 1, 0], [1, 0, 0, 0]] * 2, dtype=torch.float64)
    assert lakes.success(lakes.make(("SF", "GF")), there_and_back) == 1
