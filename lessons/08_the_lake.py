# %% [markdown]
# # 08 · The lake
# **The question:** what goes wrong when you only ever imitate?
#
# A walk over ice is a text: the cell is what has been read so far, the action is the next token. But ice is small enough to be
# known completely: a policy is a table, its gradient a count, its value the solution of a linear system. No luck, no network.
# You need lesson 03's push and what a matrix inverse is. Fifteen minutes, seconds of computing. Keep `toy/lake.py` and
# `toy/policy.py` open beside it. (IFT, arXiv 2405.11870, explains itself on this lake; that is lesson 09.)
#
# **Guess first.** On gymnasium's slippery 8×8 lake an action goes where it should one time in three, else to either side. The
# best possible policy gets across 89 times in 100. A student watches it cross *once* and copies every step without a mistake.
# How often will the student get across? And after ten walks? Write two numbers down.

# %%
import matplotlib.pyplot as plt
import torch

from lessons import check
from minialign.lab import plot
from minialign.methods import METHODS
from toy import lake as lakes
from toy.plot import policy_map, walk
from toy.policy import Data, Table, dice, step, train, trajectories

args = check.options()
mine = check.mine(args)
lake = lakes.make(lakes.find("8x8"), slippery=True) # P (S, 4, S) from gymnasium's own table, and the solution
S, N = len(lake.start), 3 if args.fast else 10      # cells; students, each of whom watches other walks
side_by_side = lakes.stack([lake] * N)              # toy/ trains N policies as one tensor program
seeds = list(range(N))
sft = METHODS["sft"](reduction="seq_sum")           # the method of lesson 05, from the package that trains language models

# %% [markdown]
# ## Step 1: the likelihood of a walk, and its gradient
# Cells s, actions a; π(a|s) = softmax of row z_s of a table z (S, 4). The ice adds its own chances P(s'|s, a):
#
#     P(walk) = Π_t π(a_t|s_t) P(s_t+1 | s_t, a_t)            log P(walk) = Σ_t log π(a_t|s_t) + what no z can change
#     ∂(−log P)/∂z_s = Σ_{t: s_t = s} (π(·|s) − onehot(a_t)) = n(s) π(·|s) − n(s, ·)
#
# n(s) is how often the walk was in s, n(s, a) how often it did a there. A cell where it never was has gradient *zero*.

# %%
untrained = Table.fresh(seeds, S)                   # logits uniform within ±1: weak preferences of no meaning
teacher = torch.nn.functional.one_hot(lake.expert, 4).double()
rolls = dice(seeds, "rollouts", 3 if args.fast else 30, 150, 2)         # (N, walks, steps, 2): all chance there is
states, actions, mask = lakes.sample(side_by_side, teacher.expand(N, S, 4), rolls)


def shown(walks):
    """The first so many walks of the teacher, as data: one wanted answer each."""
    return Data(states[None, :, :walks], actions[None, :, :walks], mask[None, :, :walks])


_, (gradient,), _ = step(untrained, side_by_side, shown(1), sft, reads="path", lam=0.0)
count = torch.zeros(S, 4, dtype=torch.float64)
count.index_put_((states[0, 0][mask[0, 0]], actions[0, 0][mask[0, 0]]), torch.tensor(1.0).double(), accumulate=True)
by_hand = count.sum(1, keepdim=True) * untrained.probabilities()[0] - count
print(f"score, weigh, push against n(s) π − n(s, a): {float((gradient[0] - by_hand).abs().max()):.0e} apart")
print(f"cells with a gradient: {int((gradient[0] != 0).any(1).sum())} of {int((~lake.ends).sum())} cells one can stand on")

# %% [markdown]
# ## Step 2: where it ends
# The gradient vanishes at π(a|s) = n(s, a)/n(s): on a table, SFT is counting. So if two teachers take two roads equally often, it
# takes each half the time; a note on the IFT paper says "SFT falls into the sub-optimal path", but it only repeats its data. With
# one trap: `seq_mean` (IFT's code) divides by the length of a walk, and a step of the short road counts more.

# %%
fork = lakes.make(lakes.find("two-path"))           # a short and a long road around a hole
both = trajectories([[fork.best, fork.worse]])
for reduction in "seq_sum", "seq_mean":
    student, _ = train(Table.fresh([0], len(fork.start)), lakes.stack([fork]), both, METHODS["sft"](reduction=reduction),
                       steps=200, lr=0.2)
    print(f"{reduction:8} takes the short road ({len(fork.best)} steps, the other {len(fork.worse)}) with chance "
          f"{float(student.probabilities()[0, fork.best[0][0], fork.best[0][1]]):.3f}")

# %% [markdown]
# ## Step 3: the value of a policy, without luck
# v(s) = chance to reach the goal G from s. One step on, it is an average of v; at G it is 1, in a hole 0:
#
#     v(s) = Σ_s' Q(s, s') v(s') + r(s)       Q(s, s') = Σ_a π(a|s) P(s'|s, a)  between cells one can stand on;  r(s) = Q(s, G)
#     v = Q v + r     ⇔     (I − Q) v = r
#
# `toy.lake.success` solves it. Does its v satisfy the first line? And does gymnasium, playing, agree?

# %%
moves = (teacher[:, :, None] * lake.P).sum(1)                           # (S, S)
v = lakes.success(lake, teacher.expand(S, S, 4), torch.eye(S, dtype=torch.float64))      # a walk from every cell
stand = ~lake.ends
Q, r = moves[stand][:, stand], moves[stand][:, lake.goals].sum(1)
print(f"largest |v − (Q v + r)|: {float((v[stand] - (Q @ v[stand] + r)).abs().max()):.0e}")
episodes = 100 if args.fast else 3000
best, played = float(lakes.success(lake, teacher)), lakes.play(lake, teacher, episodes, seed=0) / episodes
print(f"the teacher gets across with chance {best:.4f}; in {episodes} episodes {played:.4f} "
      f"± {2 * (best * (1 - best) / episodes) ** 0.5:.4f}")

# %% [markdown]
# ## Step 4: watch, copy, walk

# %%
students = {}
for walks in (1, 3) if args.fast else (1, 2, 3, 5, 10, 30):
    students[walks] = train(untrained, side_by_side, shown(walks), sft, steps=60 if args.fast else 300, lr=0.1)[0].probabilities()
across = {walks: lakes.success(side_by_side, p) for walks, p in students.items()}                       # {walks: (N,)}
new = {}
for walks, p in students.items():
    met = torch.stack([torch.zeros(S).index_fill(0, states[i, :walks][mask[i, :walks]], 1.0) for i in seeds])
    seen = lakes.seen(side_by_side, p) * ~lake.ends                     # (N, S): chance to stand on each cell at all
    new[walks] = (seen * (1 - met)).sum(1) / seen.sum(1)
    print(f"{walks:3} walks shown: gets across {across[walks].mean():.3f}; of the cells it comes to, {new[walks].mean():.0%} "
          "are cells it was never shown")

# %% [markdown]
# ## The picture

# %%
few, many = min(students), max(students)
figure, (*maps, curve) = plt.subplots(1, 4, figsize=(17, 4.6), width_ratios=[1, 1, 1, 0.9], layout="constrained")
panels = [(f"one walk shown (framed):\n{across[few][0]:.0%} get across", students[few][0], few, plot.COLOR["sft"]),
          (f"{many} walks shown:\n{across[many][0]:.0%} get across", students[many][0], many, plot.COLOR["sft"]),
          (f"the teacher:\n{best:.0%} get across", teacher, 0, "#d9a400")]
for axes, (title, policy, walks, color) in zip(maps, panels, strict=True):
    policy_map(axes, lake.rows, policy, lake.optimal, lakes.seen(lake, policy), color)
    for s in set(states[0, :walks][mask[0, :walks]].tolist()):
        axes.add_patch(plt.Rectangle((s % 8 - 0.46, s // 8 - 0.46), 0.92, 0.92, fill=False, edgecolor="#7b3294", linewidth=2))
    axes.set_title(title, fontsize=13, fontweight="bold")
maps[0].set_xlabel("shade: chance to come there; red arrow: a mistake")
curve.axhline(best, color="#d9a400", linewidth=2)
curve.text(1, best + 0.01, "teacher", color="#a07a00", va="bottom")
curve.plot(list(across), [p.mean() for p in across.values()], "-", color=plot.COLOR["sft"], linewidth=2.4)
for walks, p in across.items():
    curve.plot([walks] * N, p, "o", color=plot.COLOR["sft"], alpha=0.4, markersize=5, markeredgewidth=0)
curve.set(xscale="log", ylim=(0, 1), xlabel="walks shown", ylabel="chance to get across ↑", title="every dot a student")
curve.set_xticks(list(across), [str(walks) for walks in across])
plot.clean(curve)
check.show(figure, "08")
print(f"Your guess? After one walk {across[few].mean():.2f}, after {many} {across[many].mean():.2f}; the teacher {best:.2f}.")

# %% [markdown]
# On the walk it saw, the student makes no mistake. But the ice moves it, and nobody showed it what to do *there*: it does
# whatever it did before training, and one wrong step leads on to more cells it has never seen. That is all that goes wrong:
# imitation is right where the teacher was, and silent elsewhere. More walks cure it here, because ice pushes the teacher about as
# well. Texts are worse off: no two go the same way, and a writer does not fall into the model's mistakes and write the way out.
#
# ## Exercise ●●○ (15 minutes)
# Write step 3: the exact chance to reach the goal from the start, for any policy on any lake.
#
# <details><summary>Hint</summary>Keep only rows and columns of cells that are not ends; `torch.linalg.solve(A, b)`. r is the part
# of those rows that leads onto a goal.</details>

# %%
def ask(function):
    """Judge the answer; if it is right, hold it against luck, and send thirty students over the ice."""
    verdict = check.success(function)
    print(verdict)
    if verdict.startswith(check.RIGHT):
        chance = float(function(lake.P, students[few][0], lake.ends, lake.goals, lake.start))
        W = 300 if args.fast else 10_000
        path, _, _ = lakes.sample(lakes.stack([lake]), students[few][:1], dice([7], "rollouts", W, 60 if args.fast else 400, 2))
        luck, sd = float(lake.goals[path[0, :, -1]].double().mean()), (chance * (1 - chance) / W) ** 0.5
        print(f"you say {chance:.4f}; {W} walks say {luck:.4f}, {abs(luck - chance) / sd:.1f} standard deviations away")
        crowd = path[0, :30, : 4 if args.fast else 60].T                # (steps, 30)
        print("and here they go:", walk(crowd, lake.rows, plot.COLOR["sft"], check.OUT, "08_walk"))


ask(mine.success)

# %% [markdown]
# ## Try
# * `slippery=False`: one walk is now all there is to know. Why? Then give `success` a `noise=0.2`, for student and teacher.
# * Let each student take its own second walk, labelled with `lake.expert`, instead of watching the teacher's. Is that better
#   straight away? Look at how early the student's walks end.
# * `steps=20`: the student is unsure on the path as well. How much do more walks help now?
#
# **Next:** 09. IFT reads cells beside the path when its own guess leads there. How often does it, and what is it told there?

# %%
# region Solution: unfold when you have tried
def success(P, policy, ends, goals, start):
    moves = (policy[:, :, None] * P).sum(1)                             # (S, S)
    Q, r = moves[~ends][:, ~ends], moves[~ends][:, goals].sum(1)
    return start[~ends] @ torch.linalg.solve(torch.eye(len(Q), dtype=Q.dtype) - Q, r)
# endregion
