"""The lake: exact values, hand-made gradients, identities between methods, and what the command line says. No paper's ranking."""

import functools
import itertools
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from minialign import METHODS
from toy import compare, maps, plot, policy, study
from toy import lake as lakes
from toy.__main__ import main
from toy.report import plain
from toy.study import label_correctness

RUNNABLE = [name for name in compare.choose("all") if name != "ift_simple"]
ROWS = [*RUNNABLE, "ift_simple", *compare.CONTROLS]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the command line does: tensors this small are slower shared between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mazes():
    """Three seeds on three mazes, and the middle one alone."""
    return [compare.prepare("maze", seeds, base="noisy") for seeds in ([0, 1, 2], [1])]


@pytest.fixture(scope="module")
def slippery():
    """Three seeds on the slippery 4×4 lake, and every row of the table after a few steps."""
    setting = compare.prepare("4x4", [3, 4, 5], slippery=True, base="noisy")
    rows = {name: compare.fit(setting, compare.recipe(name, 0.5), steps=8, lr=0.02, lam=0.5)[0] for name in ROWS}
    return SimpleNamespace(setting=setting, rows=rows | {"base": setting.base})


@functools.cache
def ragged():
    """A setting whose two seeds have mazes with paths of different lengths, and data with two demonstrations each."""
    setting = compare.prepare("maze", [0, 3], base="noisy")
    both = [[lake.best, lake.worse] for lake in setting.singles]
    data = policy.trajectories(both, [paths[::-1] for paths in both])
    assert len({int(n) for n in data.mask.sum(-1).flatten()}) > 1
    return setting, policy.Data(data.states, data.actions, data.mask, policy.log_prob(setting.base, data))


# ---------------------------------------------------------------------------------------------------- the lake

def test_transitions_are_those_of_the_environment():
    for name, slips in (("4x4", True), ("two-path", False), ("corridor", True)):
        lake = lakes.make(maps.find(name), slips)
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
    lake = lakes.make(maps.find("4x4"))
    assert lake.optimal[0].tolist() == [False, True, True, False] and lake.optimal[9].tolist() == [False, True, True, False]
    assert lake.optimal[lake.ends].sum() == 0


@pytest.mark.parametrize("name, slips", [("4x4", False), ("8x8", False), ("8x8", True), ("corridor", False), ("two-path", False),
                                         ("maze", False), ("maze", True)])
def test_the_demonstrations_lead_to_the_goal_one_of_them_wrongly(name, slips):
    for seed in range(4 if name == "maze" else 1):
        lake = lakes.make(maps.find(name, seed), slips)
        for path in (lake.best, lake.worse):
            for (s, a), (then, _) in zip(path, path[1:], strict=False):
                assert lake.P[s, a, then] > 0
            assert lake.P[path[-1]] @ lake.goals.double() > 0
        assert all(lake.optimal[step] for step in lake.best) and not all(lake.optimal[step] for step in lake.worse)
        if not slips:
            assert len(lake.best) < len(lake.worse)
            assert len({s for s, _ in lake.worse}) == len(lake.worse)
            V, _ = lakes.value_iteration(*lakes.read_gymnasium(lake.rows, lake.slippery))
            assert len(lake.best) == 1 + round(np.log(V[0].item()) / np.log(lakes.DISCOUNT))


def test_a_lake_where_every_wrong_action_drowns_has_a_sub_optimal_trajectory_too():
    for rows in (("SH", "GH"), ("S", "G")):
        lake = lakes.make(rows)
        assert lake.best == [(0, 1)] and lake.worse[0][1] != 1


# ---------------------------------------------------------------------------------------------------- exact against rollouts

def roll(lake, probabilities, episodes: int, seed: int, start=None):
    """Rollouts on gymnasium's own table, all episodes at once: share that reached the goal, and share that saw each cell."""
    table = gymnasium.make("FrozenLake-v1", desc=list(lake.rows), is_slippery=lake.slippery).unwrapped.P
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
    return np.isin(state, [i for i, letter in enumerate("".join(lake.rows)) if letter == "G"]).mean(), saw.mean(0)


def agree(exact, measured, errors: float = 3, episodes: int = 10_000) -> None:
    """Within so many standard errors of a share over the episodes."""
    exact, measured = np.asarray(exact), np.asarray(measured)
    error = np.sqrt(np.maximum(exact * (1 - exact), 1 / episodes) / episodes)
    assert (abs(measured - exact) <= errors * error).all(), (exact, measured, abs(measured - exact) / error)


def test_success_is_what_ten_thousand_rollouts_find_for_every_method(slippery):
    lake, stacked = slippery.setting.singles[0], slippery.setting.lakes
    for i, trained in enumerate(slippery.rows.values()):
        p = trained.probabilities()
        agree(lakes.success(stacked, p, noise=0.1)[0], roll(lake, lakes.with_noise(p[0], 0.1), 10_000, seed=i)[0])


def test_success_and_cells_seen_agree_with_rollouts_from_anywhere(slippery):
    for lake, p in ((slippery.setting.singles[0], slippery.rows["sft"].probabilities()[0]),
                    (lakes.make(maps.find("corridor")), compare.prepare("corridor", [1]).base.probabilities()[0])):
        reached, saw = roll(lake, p, 10_000, seed=1)
        agree(lakes.success(lake, p), reached)
        agree(lakes.seen(lake, p), saw, errors=4.5)         # 16 and 49 cells at once: 3 would be exceeded by luck
        beside = lake.neighbours.double() / lake.neighbours.sum()
        agree(lakes.success(lake, p, beside), roll(lake, p, 10_000, seed=2, start=beside)[0])


def test_success_agrees_with_episodes_in_the_environment(slippery):
    p = slippery.rows["base"].probabilities()
    agree(lakes.success(slippery.setting.lakes, p)[0], lakes.play(slippery.setting.singles[0], p[0], 10_000, seed=0) / 10_000)


def test_greedy_policies_and_endless_walks_have_exact_values():
    lake = lakes.make(maps.find("4x4"))
    greedy = torch.nn.functional.one_hot(lake.expert, 4).double()
    assert lakes.success(lake, greedy) == 1 and lakes.seen(lake, greedy).sum() == len(lake.best) + 1
    wall = torch.nn.functional.one_hot(torch.full((16,), 3), 4).double()            # always up: never arrives, never drowns
    assert lakes.success(lake, wall) == 0
    almost = torch.tensor([0.0, 1e-14, 0.0, 1 - 1e-14], dtype=torch.float64).expand(4, 4)   # into the wall 1e14 times, then down
    assert lakes.success(lakes.make(("SF", "GF")), almost) == 1
    there_and_back = torch.tensor([[0, 1e-20, 1, 0], [1, 0, 0, 0]] * 2, dtype=torch.float64)    # 1e20 times
    assert lakes.success(lakes.make(("SF", "GF")), there_and_back) == 1


# ---------------------------------------------------------------------------------------------------- gradients

@pytest.mark.parametrize("kind", [policy.Table, policy.Network])
@pytest.mark.parametrize("sees", ["cells", "coordinates"])
@pytest.mark.parametrize("reads", ["path", "expected", "greedy", "uniform", "oracle"])
def test_gradients_by_hand_are_those_of_autograd(kind, sees, reads):
    known, data = ragged()
    seen = policy.coordinates(known.lakes) if sees == "coordinates" else None
    setting = compare.Setting([0, 3], known.singles, known.lakes, kind.fresh([0, 3], seen, 36), known.path, known.pairs)
    data = data if reads == "path" else policy.Data(data.states[:1], data.actions[:1], data.mask[:1])
    method = METHODS["asft"]() if reads == "path" else METHODS["sft"](reduction="seq_sum")
    weigh, kept = method.weigh, {}
    method.weigh = lambda logps, batch: kept.setdefault("out", weigh(logps, batch))
    _, gradients, _ = policy.step(setting.base, setting.lakes, data, method, reads, 0.3)
    again = setting.base.copy()
    for parameter in again.parameters:
        parameter.requires_grad_()
    weights, share, source, rows = kept["out"][1], 1.0, data.states, None
    if reads != "path":
        mixed, _ = policy.residual(setting.lakes, data, setting.base.probabilities(), reads, 0.3)
        if reads == "oracle":
            length = data.mask[0].sum(-1).flatten()[:, None]
            data, share = policy.with_oracle(setting.lakes, data, mixed)
            source, share = data.states, share / length
        else:
            rows = mixed.flatten(1, 2)
            source = torch.arange(rows.shape[1]).view(1, 1, *data.states.shape[2:]).expand_as(data.states)
    surrogate = -(weights * share * policy.score(again.forward(rows)[0], data, source)).sum()
    for mine, theirs in zip(gradients, torch.autograd.grad(surrogate, again.parameters), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_gradient_of_sft_on_a_table_is_softmax_minus_onehot():
    setting = compare.prepare("4x4", [0], kind=policy.Table)
    _, (gradient,), _ = policy.step(setting.base, setting.lakes, setting.path, METHODS["sft"](), "path", 0.0)
    wanted, p, best = torch.zeros(16, 4, dtype=torch.float64), setting.base.probabilities()[0], setting.singles[0].best
    for s, a in best:
        wanted[s] += (p[s] - torch.nn.functional.one_hot(torch.tensor(a), 4)) / len(best)
    torch.testing.assert_close(gradient[0], wanted)


# ---------------------------------------------------------------------------------------------------- identities

def run(setting, name, steps=6, data=None, lam=0.5, **how):
    row = compare.recipe(name, lam)
    data = data or setting.data(row.method, steps)
    method = row.build(data.mask.shape[1] * data.mask.shape[2])
    return policy.train(setting.base, setting.lakes, data, method, steps=steps, lr=0.02, reads=row.reads, lam=lam, **how)


def test_ift_without_residual_and_without_propagation_walks_the_path_of_sft():
    setting, data = ragged()
    one = policy.Data(data.states[:1], data.actions[:1], data.mask[:1])
    stops = {"sft": [], "ift_simple": [], "oracle labels": []}
    for name, seen in stops.items():
        def watch(_, p, seen=seen):
            seen.append(p.probabilities())

        run(setting, name, data=one, lam=0.0, watch=watch)
    torch.testing.assert_close(stops["ift_simple"], stops["sft"], rtol=0, atol=0)
    torch.testing.assert_close(stops["oracle labels"], stops["sft"])
    assert not torch.equal(stops["sft"][0], stops["sft"][-1])


@pytest.mark.parametrize("name", ROWS)
def test_seeds_side_by_side_train_as_if_alone(name, mazes):
    together, alone = mazes
    trained, off = compare.fit(together, compare.recipe(name, 0.5), steps=5, lr=0.02, lam=0.5)
    single, off_single = compare.fit(alone, compare.recipe(name, 0.5), steps=5, lr=0.02, lam=0.5)
    torch.testing.assert_close(trained.probabilities()[1:2], single.probabilities(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(off[:, 1:2], off_single, rtol=1e-7, atol=1e-9)
    for metric, x in compare.measure(together, trained).items():
        torch.testing.assert_close(x[1:2], compare.measure(alone, single)[metric], rtol=1e-5, atol=1e-8, equal_nan=True)


def test_settings_joined_train_as_if_apart():
    apart = [compare.prepare("two-path", [0, 1], base=base) for base in ("random", "noisy")]
    for name in ("sft", "ift", "dpo"):
        joined = run(compare.join(apart), name)[0].probabilities()
        alone = torch.cat([run(setting, name)[0].probabilities() for setting in apart])
        torch.testing.assert_close(joined, alone, rtol=1e-7, atol=1e-9)


def test_mixed_states_are_distributions_that_start_on_the_path():
    setting, data = ragged()
    for reads in ("expected", "greedy", "uniform"):
        mixed, off = policy.residual(setting.lakes, data, setting.base.probabilities(), reads, 0.3)
        torch.testing.assert_close(mixed.sum(-1), torch.ones_like(mixed[..., 0]))
        assert (mixed[:, :, 0].gather(-1, data.states[0][:, :, :1]) == 1).all()
        assert ((0 <= off) & (off <= 0.3)).all()
    lake = setting.singles[0]                               # by hand: how often a random action leaves the path
    random = torch.full((1, 36, 4), 0.25, dtype=torch.float64)
    _, off = policy.residual(lakes.stack([lake]), policy.trajectories([[lake.best]]), random, "expected", 1.0)
    steps = zip(lake.best, lake.best[1:], strict=False)
    torch.testing.assert_close(off[0], torch.stack([1 - lake.P[s].mean(0)[then] for (s, _), (then, _) in steps]).mean())


def test_a_table_taught_both_paths_copies_their_share():
    setting = compare.prepare("two-path", [0], kind=policy.Table)
    lake = setting.singles[0]
    data = policy.trajectories([[lake.best, lake.worse, lake.worse]])
    trained, _ = policy.train(setting.base, setting.lakes, data, METHODS["sft"]("seq_sum"), steps=500, lr=2.0, optimizer="sgd")
    assert trained.probabilities()[0, 0, lake.best[0][1]].item() == pytest.approx(1 / 3, abs=1e-3)


def test_dft_scores_its_negatives_exactly_under_the_initial_policy():
    setting = compare.prepare("4x4", [0, 1], base="noisy")
    data, p = setting.data("dft", 3), setting.base.probabilities()
    assert data.states.shape[0] == 1 + 3 * compare.NEGATIVES and data.fresh == compare.NEGATIVES
    for a, n in itertools.product(range(len(data.states)), range(2)):
        s, act, m = (x[a, n, 0] for x in (data.states, data.actions, data.mask))
        assert m[0] and not setting.lakes.ends[n, s[m]].any()
        torch.testing.assert_close(data.ref_logps[a, n, 0], p[n, s, act].log()[m].sum())
    assert not torch.equal(data.at(0).states[1:], data.at(1).states[1:]) and torch.equal(data.at(0).states[0], data.states[0])


def test_the_nearest_optimal_policy_is_nearer_than_any_other():
    setting = compare.prepare("4x4", [0], base="random")
    lake, p = setting.singles[0], setting.base.probabilities()
    generator = torch.Generator().manual_seed(0)
    nearest = compare.measure(setting, setting.base)["mse_nearest"]
    for _ in range(200):
        other = torch.rand(16, 4, generator=generator, dtype=torch.float64) ** 3 * lake.optimal
        other = other / other.sum(-1, keepdim=True)
        assert ((p[0] - other)[lake.solvable] ** 2).mean() >= nearest - 1e-12
    tied = (lake.optimal / lake.optimal.sum(-1, keepdim=True).clamp(min=1)).double()
    mixed = policy.Table(None, [(tied + 1e-12).log()[None]])
    setting._kept["optimum"] = mixed
    assert compare.measure(setting, mixed)["mse_nearest"] < 1e-12


def test_label_correctness_on_a_lake_small_enough_to_count():
    lake = lakes.make(("SFF", "FFF", "FFG"))
    by_hand = right = 0
    for (s, _), (here, action) in zip(lake.best, lake.best[1:], strict=False):
        for a in range(4):
            then = int(lake.P[s, a].argmax())
            if then != here and not lake.ends[then]:
                by_hand, right = by_hand + 1, right + bool(lake.optimal[then, action])
    assert label_correctness(lake) == pytest.approx(right / by_hand)


# ---------------------------------------------------------------------------------------------------- the command line

@pytest.fixture
def hasty(monkeypatch):
    """Initial and optimal policies that are hardly trained: these tests are about form."""
    monkeypatch.setattr(compare, "TEACHING", dict.fromkeys(compare.TEACHING, 2))


QUICK = ["--seeds", "2", "--steps", "3", "--episodes", "20", "--methods", "sft,ift_eq21,dpo"]


def test_the_json_has_one_value_per_seed_and_does_not_change(hasty, tmp_path, capsys, monkeypatch):
    for name in ("a", "b"):
        if name == "b":
            monkeypatch.setattr(plot, "comparison", lambda *_: [])      # drawn once is enough
        assert main([*QUICK, "--json", str(tmp_path / f"{name}.json"), "--out", str(tmp_path / name), "--first-seed", "7"]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found == json.loads((tmp_path / "b.json").read_text())
    assert list(found) == ["base", "sft", "ift_eq21", "dpo", *compare.CONTROLS]
    for measured in found.values():
        assert set(compare.METRICS) <= set(measured) and all(len(values) == 2 for values in measured.values())
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"lake_maps.png", "lake_dots.png", "lake_exposure.png"}
    assert " come" in capsys.readouterr().out


def test_a_file_is_a_map_and_a_path_without_neighbours_is_null(hasty, tmp_path):
    (tmp_path / "m.txt").write_text("SHG\nFFF\n")
    args = [*QUICK, "--map", str(tmp_path / "m.txt"), "--json", str(tmp_path / "j.json"), "--out", str(tmp_path), "--animate"]
    assert main([*args, "--slippery", "--policy", "table", "--methods", "sft"]) == 0
    assert json.loads((tmp_path / "j.json").read_text())["sft"]["neighbour_accuracy"] == [None, None]
    assert (tmp_path / "lake_walk.gif").read_bytes()[:3] == b"GIF"


@pytest.mark.parametrize("text, said", [
    ("", "is empty"),
    ("SFX\nFFG", "line 1, column 3: unknown letter 'X'; use only"),
    ("SFf\nFFG", "line 1, column 3: unknown letter 'f'; write 'F'"),
    ("SFF\nFG", "line 2 has 2 letters, line 1 has 3"),
    ("FFF\nFFG", "has no start; write exactly one S"),
    ("SSF\nFFG", "has 2 starts (line 1, column 1 and line 1, column 2)"),
    ("SFF\nFFF", "has no goal"),
    ("SFF\n\nFFG", "line 2 is empty"),
    ("SHF\nHFG", "no path leads from S to G"),
    ("S" + 299 * "F" + "G", "1 × 301 cells"),
])
def test_a_bad_map_gets_one_clear_sentence(tmp_path, capsys, text, said):
    (tmp_path / "m.txt").write_text(text)
    assert main([*QUICK, "--map", str(tmp_path / "m.txt"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error and "m.txt" in error and error.count("\n") == 1


@pytest.mark.parametrize("argv, said", [
    (["--map", "9x9"], "no map and no file is called '9x9'; give one of 4x4, 8x8"),
    (["--map", "."], "is a folder"),
    (["--map", ""], "no map and no file is called ''"),
    (["--methods", "sft,ppo"], "'ppo' is no method; choose from sft"),
    (["--methods", "kto"], "mismatched"),
    (["--methods", ","], "--methods is empty"),
    (["--study", "paths", "--map", "8x8"], "--map belongs to the comparison"),
    (["--json", "."], "is a folder; name a file"),
])
def test_bad_requests_say_what_to_type_instead(capsys, argv, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_run_that_diverges_says_so(mazes):
    with pytest.raises(FloatingPointError, match="SFT diverged at learning rate 1e.308; give a smaller --lr"):
        compare.fit(mazes[1], compare.recipe("sft", 0.5), steps=3, lr=1e308, lam=0.5, optimizer="sgd")


@pytest.mark.parametrize("argv", ["--seeds 0", "--lam 1.5", "--lr nan", "--lr 0", "--seeds x", "--frobnicate", "--study none",
                                  "--first-seed -1"])
def test_bad_usage_exits_with_two(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        main(argv.split())
    assert stop.value.code == 2 and "error" in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    code = "import atexit, sys, toy.__main__ as t; atexit.register(lambda: print('torch' in sys.modules)); t.main(['-h'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n")
    assert done.returncode == 0 and "--first-seed" in done.stdout


def test_an_interrupt_exits_with_130(tmp_path):
    """Sent once the first row is done: what torch imports at its first step can swallow an earlier one (press Ctrl-C again)."""
    command = [sys.executable, "-u", "-m", "toy", "--seeds", "40", "--steps", "200", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = b""
    while b" 1/" not in seen and process.poll() is None:
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and b"Traceback" not in error        # a shell calls both 130


def test_the_studies_run_and_return_plain_numbers(hasty, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "MAPS", ("two-path",))
    monkeypatch.setattr(study, "STEPS", (1, 2))
    monkeypatch.setattr(study, "DOSES", (0.0, 0.35))
    monkeypatch.setattr(study, "LABEL_ROWS", ("sft", "ift_eq21", "ift", "neighbour noise", "oracle labels"))
    quick = ["--study", "all", "--seeds", "2", "--steps", "2"]
    assert main([*quick, "--out", str(tmp_path), "--json", str(tmp_path / "j.json")]) == 0
    found = json.loads((tmp_path / "j.json").read_text())
    assert list(found) == list(study.STUDIES) and found["labels"]["maze"]["ift"]["off_path_start"][0] > 0
    assert capsys.readouterr().out.count("picture: ") == 4
    assert plain({"x": torch.tensor([1.0, float("nan")])}) == {"x": [1.0, None]}
