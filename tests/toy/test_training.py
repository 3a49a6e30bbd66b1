"""Policies in training: gradients by hand, identities between methods. No paper's ranking."""

import functools
import itertools

import pytest
import torch

from minialign.methods import METHODS
from toy import lake as lakes
from toy import policy
from toy.measure import measure
from toy.rows import CONTROLS, choose, find_row, train_row
from toy.world import NEGATIVES, World, imitate, prepare


@pytest.fixture(scope="module")
def mazes():
    """Three seeds on three mazes, and the middle one alone."""
    return [prepare("maze", seeds, base="noisy") for seeds in ([0, 1, 2], [1])]


@functools.cache
def ragged():
    """Two mazes with paths of different lengths, and data with two demonstrations of each."""
    world = prepare("maze", [0, 3], base="noisy")
    both = [[lake.best, lake.worse] for lake in world.singles]
    data = policy.trajectories(both, [paths[::-1] for paths in both])
    assert len({int(n) for n in data.mask.sum(-1).flatten()}) > 1
    reference = policy.log_prob(world.base, data)
    return world, policy.Data(data.states, data.actions, data.mask, reference)


# ------------------------------------------------------------------------------ gradients

@pytest.mark.parametrize("kind", [policy.Table, policy.Network])
@pytest.mark.parametrize("reads, oracle", [
    ("path", False), ("greedy", False), ("soft", False), ("uniform", False), ("greedy", True),
    ("soft", True),
])
def test_gradients_by_hand_are_those_of_autograd(kind, reads, oracle):
    known, data = ragged()
    world = World([0, 3], known.singles, kind.fresh([0, 3], 36))
    method = METHODS["asft"]()
    if reads != "path":
        data = policy.Data(data.states[:1], data.actions[:1], data.mask[:1])
        method = METHODS["sft"](reduction="seq_sum")
    weigh, kept = method.weigh, {}
    method.weigh = lambda logps, batch: kept.setdefault("out", weigh(logps, batch))
    _, gradients, _ = policy.step(world.base, world.lakes, data, method, reads, 0.3, oracle)
    again = world.base.copy()
    for parameter in again.parameters:
        parameter.requires_grad_()
    weights, share, source, rows = kept["out"][1], 1.0, data.states, None
    if reads != "path":
        mixed = policy.residual(world.lakes, data, world.base.probabilities(), reads, 0.3)
        if oracle:
            length = data.mask[0].sum(-1).flatten()[:, None]
            data, share = policy.with_oracle(world.lakes, data, mixed)
            source, share = data.states, share / length
        else:
            rows = mixed.flatten(1, 2)
            source = torch.arange(rows.shape[1]).view(1, 1, *data.states.shape[2:])
            source = source.expand_as(data.states)
    surrogate = -(weights * share * policy.score(again.forward(rows)[0], data, source)).sum()
    expected = torch.autograd.grad(surrogate, again.parameters)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_gradient_of_sft_on_a_table_is_softmax_minus_onehot():
    world, table = prepare("4x4", [0]), policy.Table.fresh([0], 16)
    sft = METHODS["sft"]()
    _, (gradient,), _ = policy.step(table, world.lakes, world.path, sft, "path", 0.0)
    wanted = torch.zeros(16, 4, dtype=torch.float64)
    p, best = table.probabilities()[0], world.singles[0].best
    for s, a in best:
        wanted[s] += (p[s] - torch.nn.functional.one_hot(torch.tensor(a), 4)) / len(best)
    torch.testing.assert_close(gradient[0], wanted)


# ------------------------------------------------------------------------------ identities

def test_ift_without_residual_and_without_propagation_walks_the_path_of_sft():
    world, data = ragged()
    both = World(world.seeds, world.singles, world.base)
    both.path = policy.Data(data.states[:1], data.actions[:1], data.mask[:1])
    stops = {"sft": [], "ift_simple": [], "oracle labels": []}
    for name, seen in stops.items():
        for steps in range(7):
            trained, _ = train_row(both, find_row(name, 0.0), steps=steps, lr=0.02)
            seen.append(trained.probabilities())
    torch.testing.assert_close(stops["ift_simple"], stops["sft"], rtol=0, atol=0)
    torch.testing.assert_close(stops["oracle labels"], stops["sft"])
    assert not torch.equal(stops["sft"][0], stops["sft"][-1])


@pytest.mark.parametrize("name", [*choose("all"), *CONTROLS])
def test_seeds_side_by_side_train_as_if_alone(name, mazes):
    together, alone = mazes
    trained, off = train_row(together, find_row(name, 0.5), steps=5, lr=0.02)
    single, off_single = train_row(alone, find_row(name, 0.5), steps=5, lr=0.02)
    middle = trained.probabilities()[1:2]
    torch.testing.assert_close(middle, single.probabilities(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(off[..., 1:2], off_single, rtol=1e-7, atol=1e-9)
    expected = measure(alone, single)
    for metric, x in measure(together, trained).items():
        torch.testing.assert_close(x[1:2], expected[metric], rtol=1e-5, atol=1e-8, equal_nan=True)


def test_mixed_states_are_distributions_that_start_on_the_path():
    world, data = ragged()
    for reads in ("greedy", "soft", "uniform"):
        mixed = policy.residual(world.lakes, data, world.base.probabilities(), reads, 0.3)
        off, _, _ = policy.judged(world.lakes, data, policy.deviation(data, mixed))
        torch.testing.assert_close(mixed.sum(-1), torch.ones_like(mixed[..., 0]))
        assert (mixed[:, :, 0].gather(-1, data.states[0][:, :, :1]) == 1).all()
        assert ((0 <= off) & (off <= 0.3)).all()
    # By hand: how often a random action leaves the path.
    lake = world.singles[0]
    random = torch.full((1, 36, 4), 0.25, dtype=torch.float64)
    shown = policy.trajectories([[lake.best]])
    off, _, _ = read_off_path([lake], shown, random, "soft", 1.0)
    steps = zip(lake.best, lake.best[1:], strict=False)
    left = [1 - lake.P[s].mean(0)[then] for (s, _), (then, _) in steps]
    torch.testing.assert_close(off[0], torch.stack(left).mean())


def read_off_path(singles, data, probabilities, reads, lam):
    """What is judged of the first step of a policy with these probabilities."""
    stacked = lakes.stack(singles)
    mixed = policy.residual(stacked, data, probabilities, reads, lam)
    return policy.judged(stacked, data, policy.deviation(data, mixed))


def test_the_greedy_guess_leaves_the_path_where_the_likeliest_action_does():
    world = prepare("4x4", range(5))
    p = world.base.probabilities()
    off, _, _ = read_off_path(world.singles, world.path, p, "greedy", 0.5)
    best = world.singles[0].best
    for n in range(5):
        leaves = []
        for (s, _), (then, _) in zip(best, best[1:], strict=False):
            leaves.append(int(world.singles[0].P[s, p[n, s].argmax()].argmax()) != then)
        assert off[n].item() == pytest.approx(0.5 * sum(leaves) / len(leaves))
    assert 0 < off.sum()


def test_where_the_greedy_guess_is_the_demonstration_ift_is_sft():
    start = prepare("4x4", [0, 1])
    taught = imitate(start.base, start.lakes, start.lakes.expert[:, None], 100)
    world = World(start.seeds, start.singles, taught)
    trained = {}
    for name in ("sft", "ift_simple", "oracle labels", "soft mix"):
        trained[name], judged = train_row(world, find_row(name, 0.5), steps=5, lr=0.02)
        assert (judged[:, 0] > 0).all() == (name == "soft mix")
    sft = trained["sft"].probabilities()
    torch.testing.assert_close(trained["ift_simple"].probabilities(), sft, rtol=0, atol=0)
    torch.testing.assert_close(trained["oracle labels"].probabilities(), sft)
    assert not torch.allclose(trained["soft mix"].probabilities(), sft)


def test_a_table_taught_both_paths_copies_their_share():
    lake = lakes.make(lakes.find("two-path"))
    data = policy.trajectories([[lake.best, lake.worse, lake.worse]])
    sft = METHODS["sft"]("seq_sum")
    trained, _ = policy.train(policy.Table.fresh([0], 15), lakes.stack([lake]), data, sft,
                              steps=500, lr=2.0, optimizer="sgd")
    assert trained.probabilities()[0, 0, lake.best[0][1]].item() == pytest.approx(1 / 3, abs=1e-3)


def test_dft_scores_its_negatives_exactly_under_the_initial_policy():
    world = prepare("4x4", [0, 1], base="noisy")
    data, p = world.data(METHODS["dft"].needs, 3), world.base.probabilities()
    assert data.states.shape[0] == 1 + 3 * NEGATIVES and data.fresh == NEGATIVES
    for a, n in itertools.product(range(len(data.states)), range(2)):
        s, act, m = (x[a, n, 0] for x in (data.states, data.actions, data.mask))
        assert m[0] and not world.lakes.ends[n, s[m]].any()
        torch.testing.assert_close(data.ref_logps[a, n, 0], p[n, s, act].log()[m].sum())
    assert not torch.equal(data.at(0).states[1:], data.at(1).states[1:])
    assert torch.equal(data.at(0).states[0], data.states[0])


def test_the_nearest_optimal_policy_is_nearer_than_any_other():
    world = prepare("4x4", [0], base="random")
    lake, p = world.singles[0], world.base.probabilities()
    generator = torch.Generator().manual_seed(0)
    nearest = measure(world, world.base)["mse_nearest"]
    for _ in range(200):
        other = torch.rand(16, 4, generator=generator, dtype=torch.float64) ** 3 * lake.optimal
        other = other / other.sum(-1, keepdim=True)
        assert ((p[0] - other)[lake.solvable] ** 2).mean() >= nearest - 1e-12
    tied = (lake.optimal / lake.optimal.sum(-1, keepdim=True).clamp(min=1)).double()
    mixed = policy.Table([(tied + 1e-12).log()[None]])
    world.optimum = mixed
    assert measure(world, mixed)["mse_nearest"] < 1e-12


def test_right_labels_on_a_lake_small_enough_to_count():
    lake = lakes.make(("SFF", "FFF", "FFG"))
    by_hand = right = 0
    for (s, _), (here, action) in zip(lake.best, lake.best[1:], strict=False):
        for a in range(4):
            then = int(lake.P[s, a].argmax())
            if then != here and not lake.ends[then]:
                by_hand, right = by_hand + 1, right + bool(lake.optimal[then, action])
    anywhere = torch.full((1, 9, 4), 0.25, dtype=torch.float64)
    shown = policy.trajectories([[lake.best]])
    _, reachable, labelled = read_off_path([lake], shown, anywhere, "uniform", 1.0)
    assert (labelled / reachable).item() == pytest.approx(right / by_hand)
