# %% [markdown]
# # 08 · The lake
# **The question:** what goes wrong when you only ever imitate?
#
# The lessons so far were about text, where nobody knows what the right continuation is, and where
# a model has far too many parameters to look at. This lesson and the next one are about a frozen
# lake. A walk over the ice is much like a text: where you stand is what has been read so far, and
# the step that you take is the next token. But the lake has only 64 cells. A policy on it is a
# table, its gradient is a count, and how good it is need not be measured: it is the solution of a
# linear system. So whatever goes wrong here can be seen exactly.
#
# You need lesson 03's push, and you should know what it means to solve a linear system. Twenty
# minutes, seconds of computing. Keep `toy/lake.py` and `toy/policy.py` open beside it.
#
# **Guess first.** You stand on slippery ice, in the top left corner, and want to get to the bottom
# right one. When you walk into a direction, the ice takes you there one time in three; the other
# two times you slip to the left or to the right of it. Some cells are holes. The best possible
# policy gets across 89 times in 100. A student watches it cross *once*, and then imitates every
# step that it saw, without a mistake. How often will the student get across? And a student who has
# seen ten crossings? Write two numbers down, then go on.

# %%
import torch

from lessons import check
from lessons.pictures import worlds as pictures
from minialign.methods import METHODS
from toy import lake as lakes
from toy.plot import walk
from toy.policy import Data, Table, dice, train, trajectories

args = check.options()
mine = check.mine(args)
lake = lakes.make(lakes.find("8x8"), slippery=True)
S = len(lake.start)                                 # cells
print("\n".join(lake.rows), "  S start, F frozen, H hole, G goal", sep="")

# %% [markdown]
# > **Markov decision process.** States, actions, and for every state and action the chances of the
# > next state. Here a state is a cell, an action is one of four directions, and the ice decides by
# > chance where you come to stand. “Markov” means that the chances depend on where you are, and
# > not on how you came there. A *policy* gives every action a probability in every state.
#
# `lake.P` holds these chances, read from gymnasium's own game: P[s, a, s'] is the chance that
# action a in state s leads to s'. Because everything is known, the best action of every cell can be
# computed (`toy/lake.py` does), and our teacher is the policy that always takes it.
#
# ## Step 1: why the teacher walks into walls
# In the picture below you will see the teacher do strange things. Beside a hole it turns its back
# on the hole, wherever the goal may be, and at the edge of the lake it often walks straight into
# the wall. Here is a cell where it does both, and what its four actions risk:

# %%
NAMES = ("left", "down", "right", "up")
teacher = torch.nn.functional.one_hot(lake.expert, 4).double()          # (S, 4)
holes = lake.ends & ~lake.goals
s = 8 * 5 + 0           # row 5, column 0, counted from 0: a wall on its left, a hole on its right
for a, name in enumerate(NAMES):
    drowns = float(lake.P[s, a, holes].sum())
    best = "   ← the teacher" if a == lake.expert[s] else ""
    print(f"{name:5} chance to fall into a hole: {drowns:.2f}{best}")
dry = lakes.make(lake.rows, slippery=False)         # here a step into a wall leads nowhere at all
cells = [s for s in range(S) if not lake.ends[s]]
walls = sum(int(dry.P[s, lake.expert[s], s]) for s in cells)
print(f"the teacher walks into a wall in {walls} of {len(cells)} cells")

# %% [markdown]
# You slip to either side of where you want to go, but never backwards. So the only way to be *sure*
# that you do not fall into a hole is to walk away from it. Into the wall, if there is one: then
# you stay where you are or slide along the wall, and try again. The teacher's arrows do not say
# where it will go. They say what it must not risk.
#
# ## Step 2: the likelihood of a walk, and its gradient
# The student's policy is a softmax table: four logits z_s for every cell s, and π(·|s) is the
# softmax of that row. A walk visits the cells s_1, s_2, … and takes the actions a_1, a_2, …; the
# policy chooses each action and the ice answers. How likely is the whole walk?
#
#     P(walk)      =  Π_t  π(a_t|s_t) · P(s_t+1|s_t, a_t)           (first the policy, then the ice)
#     log P(walk)  =  Σ_t log π(a_t|s_t)  +  Σ_t log P(s_t+1|s_t, a_t)     (log of a product: a sum)
#
# The second sum contains no logit, so its slope is zero. In the first sum, the log-prob of one
# action has the slope onehot(a_t) − π(·|s_t) in the row of its own cell (lesson 03, step 2), and
# the slope 0 in all other rows. SFT's loss is −log P(walk), so
#
#     ∂(−log P(walk))/∂z_s  =  Σ_{t: s_t = s} (π(·|s) − onehot(a_t))      (only visits to s count)
#                           =  n(s) π(·|s) − n(s, ·)                      (the same π every time)
#
# n(s) says how often the walk was in s, and n(s, a) how often it took action a there. So the
# gradient is a count, and one thing can be read off already: in a cell where the walk never was,
# both counts are zero, and so is the gradient. SFT has *nothing to say* about that cell.
#
# ## Exercise 1 ●○○ (10 minutes): `walk_gradient`
# Open `lessons/mine.py` and write that gradient: `walk_gradient(z, states, actions)` gets the table
# z (S, 4) and one walk, states (T,) and actions (T,), and returns ∂(−log P(walk))/∂z, (S, 4). On
# slippery ice a walk often comes back to a cell.
#
# <details><summary>Hint</summary>
#
# Fill a table of counts n(s, a) first. `count[states, actions] += 1` adds 1 only once where a
# (state, action) occurs twice; a loop over t adds as often as it should. n(s) is a sum over a row.
# </details>

# %%
verdict = check.walk_gradient(mine.walk_gradient)
right_gradient = check.is_right(verdict)
print(verdict)

# %% [markdown]
# ## Step 3: where imitation ends
# Training ends where the gradient is zero:
#
#     0  =  n(s) π(a|s) − n(s, a)     ⇔     π(a|s)  =  n(s, a) / n(s)         (where n(s) is not 0)
#
# On a table, SFT is counting. If the demonstrations take a short road half of the time and a long
# one the other half, so does the student. People write that SFT “falls into the sub-optimal path”;
# it only repeats its data. With one trap. If the loss of every walk is divided by its number of
# steps (`seq_mean`, the habit of many code bases), so is every count that the walk adds to n. A
# step of the short road then weighs more than one of the long road, and at the fork the student no
# longer repeats the data.

# %%
fork = lakes.make(lakes.find("two-path"))           # a short and a long road around a hole
both = trajectories([[fork.best, fork.worse]])
s, a = fork.best[0]
for reduction in "seq_sum", "seq_mean":
    method = METHODS["sft"](reduction=reduction)    # from the package that trains language models
    fresh = Table.fresh([0], len(fork.start))
    student, _ = train(fresh, lakes.stack([fork]), both, method, steps=200, lr=0.2)
    print(f"{reduction:8} takes the short road with chance {student.probabilities()[0, s, a]:.3f}")
one, two = 1 / len(fork.best), 1 / len(fork.worse)
print(f"steps: {len(fork.best)} and {len(fork.worse)}; 1/{len(fork.best)} / (1/{len(fork.best)} + "
      f"1/{len(fork.worse)}) = {one / (one + two):.3f}")

# %% [markdown]
# ## Step 4: how good is a policy? Without luck
# One could send a policy over the ice ten thousand times and count. There is a better way. Let v(s)
# be the chance to get to the goal from cell s. Take one step, and ask again where you are then:
#
#     v(s)  =  Σ_s' Q(s, s') v(s')  +  r(s)           (the next cell is another one, or the goal)
#
# Here Q(s, s') = Σ_a π(a|s) P(s'|s, a) is the chance that one step leads from s to s', for cells
# that one can stand on, and r(s) is the chance that the step leads right onto the goal. Holes do
# not occur: who falls into one never gets to the goal, and adds 0. As a matrix equation,
#
#     v  =  Q v + r      ⇔      (I − Q) v  =  r               (bring Q v to the left side)
#
# and I − Q has an inverse as long as every walk ends some day. The package solves this system in
# `toy.lake.success`. Does its answer satisfy the first line? And what does luck say?

# %%
stand = ~lake.ends
moves = (teacher[:, :, None] * lake.P).sum(1)       # (S, S)
Q, r = moves[stand][:, stand], moves[stand][:, lake.goals].sum(1)
everywhere = torch.eye(S, dtype=torch.float64)      # a walk from every cell
v = lakes.success(lake, teacher.expand(S, S, 4), everywhere)[stand]
print(f"largest difference of v and Q v + r: {float((v - (Q @ v + r)).abs().max()):.0e}")

best, episodes = float(lakes.success(lake, teacher)), 100 if args.fast else 3000
played = lakes.play(lake, teacher, episodes, seed=0) / episodes
luck = 2 * (best * (1 - best) / episodes) ** 0.5    # two standard deviations
print(f"the teacher gets across with chance {best:.4f}; "
      f"in {episodes} games of gymnasium {played:.4f} ± {luck:.4f}")

# %% [markdown]
# ## Exercise 2 ●●○ (15 minutes): `success`
# Write step 4: the exact chance to get from the start to a goal, for any policy on any lake.
# `success(P, policy, ends, goals, start)` gets P (S, 4, S), the policy (S, 4), which cells are ends
# (holes and goals), which are goals, and where the walk begins (1 there, 0 elsewhere); it returns
# one number.
#
# <details><summary>Hint</summary>
#
# Keep only the rows and columns of cells that are not ends, as in the cell above, and let
# `torch.linalg.solve(A, b)` find v. With the ends left in, I − Q has no inverse: P says that an end
# leads to itself for ever.
# </details>

# %%
verdict = check.success(mine.success)
right_success = check.is_right(verdict)
print(verdict)


def across(policy):
    """Chance to get across, by your function if it is right."""
    if right_success:
        return float(mine.success(lake.P, policy, lake.ends, lake.goals, lake.start))
    return float(lakes.success(lake, policy))


# %% [markdown]
# ## Step 5: watch, copy, walk
# Now the experiment. Eleven students begin with weak preferences that mean nothing (logits between
# −1 and 1). Each of them watches walks of the teacher, other walks than the other students, and
# imitates them until it makes no mistake on what it saw.

# %%
seeds = list(range(3 if args.fast else 11))
N, side_by_side = len(seeds), lakes.stack([lake] * len(seeds))
untrained = Table.fresh(seeds, S)
rolls = dice(seeds, "rollouts", 3 if args.fast else 30, 150, 2)         # all chance that is needed
states, actions, mask = lakes.sample(side_by_side, teacher.expand(N, S, 4), rolls)
students = {}                                       # {walks shown: (N, S, 4)}
for walks in (1, 3) if args.fast else (1, 2, 3, 5, 10, 30):
    shown = [x[None, :, :walks] for x in (states, actions, mask)]
    policy, _ = train(untrained, side_by_side, Data(*shown), METHODS["sft"](reduction="seq_sum"),
                      steps=60 if args.fast else 300, lr=0.1)
    students[walks] = policy.probabilities()

# %% [markdown]
# For each student we compute how often it gets across, and, of all the cells it comes to, what
# share are cells that it was never shown.

# %%
def met(student, walks):
    """Which cells a student was shown, (S,)."""
    here = states[student, :walks][mask[student, :walks]]
    return torch.zeros(S, dtype=torch.bool).index_fill(0, here, True)


chances = {}                                        # {walks shown: a number per student}
for walks, policies in students.items():
    chances[walks] = [across(policy) for policy in policies]
    comes_to = lakes.seen(side_by_side, policies) * ~lake.ends          # (N, S) chance to see it
    new = [float(comes_to[i][~met(i, walks)].sum() / comes_to[i].sum()) for i in range(N)]
    print(f"{walks:3} walks shown: {sum(chances[walks]) / N:.2f} get across; "
          f"{sum(new) / N:4.0%} of the cells they come to are new to them")

# %% [markdown]
# ## The picture: two students and their teacher
# Students differ, because the walks that they saw differ. So the maps show the *median* student:
# half of the others do better, half of them worse. If your gradient of exercise 1 is right, it has
# trained the student on the left.

# %%
few, many = min(students), max(students)
median = {n: sorted(range(N), key=lambda i: chances[n][i])[N // 2] for n in (few, many)}
first, last = students[few][median[few]], students[many][median[many]]
if right_gradient:
    z = untrained.parameters[0][median[few]].clone()
    seen = mask[median[few], 0]
    adam = torch.optim.Adam([z], lr=0.1)
    for _ in range(60 if args.fast else 300):
        z.grad = mine.walk_gradient(z, states[median[few], 0][seen], actions[median[few], 0][seen])
        adam.step()
    print(f"your student and the package's: {float((z.softmax(-1) - first).abs().max()):.0e} apart")
    first = z.softmax(-1)

# %%
maps = [(f"{few} walk shown", first, met(median[few], few)),
        (f"{many} walks shown", last, met(median[many], many)), ("the teacher", teacher, None)]
own = [name for name, yes in (("gradient", right_gradient), ("success", right_success)) if yes]
figure = pictures.the_lake(lake, maps, across, chances, best,
                           f"with your {' and your '.join(own)}" if own else "")
check.show(figure, "08")
middle = {walks: sorted(chances[walks])[N // 2] for walks in chances}
print(f"Your guess? Of students who saw {few} walk, the median gets across {middle[few]:.0%} of "
      f"the time (worst {min(chances[few]):.0%}, best {max(chances[few]):.0%});")
print("after " + ", ".join(f"{n} walks {x:.0%}" for n, x in middle.items() if n > few)
      + f"; the teacher {best:.0%}.")

# %% [markdown]
# A shaded cell is one that the policy comes to (the darker, the likelier), an arrow its likeliest
# action, red where that is a mistake. Frames mark the cells that the student was shown.
#
# * Inside the frames there is hardly a red arrow. The student has learnt what it was shown.
# * Outside, it does whatever it did before training: the gradient there was zero. And it does come
#   there, because the ice takes it. One wrong step then leads on to more cells it knows nothing of.
# * More walks help, not because the old steps are learnt better, but because the ice has pushed the
#   *teacher* about as well, and shown the student what to do there.
#
# That is all that goes wrong when you only imitate: you are right where the teacher was, and you
# have been told nothing elsewhere. With text it is worse than on ice. No two texts go the same way,
# and a good writer does not make the model's mistakes and then show the way out of them.
#
# If your `success` is right, thirty copies of the student on the left now walk over the ice: the
# animation shows the first sixty steps. Count who drowns where.

# %%
if right_success:
    W, T = (300, 60) if args.fast else (10_000, 400)
    path, _, _ = lakes.sample(lakes.stack([lake]), first[None], dice([7], "rollouts", W, T, 2))
    luck, chance = float(lake.goals[path[0, :, -1]].double().mean()), across(first)
    off = abs(luck - chance) / (chance * (1 - chance) / W) ** 0.5
    print(f"you say {chance:.4f}, {W} walks say {luck:.4f}: {off:.1f} standard deviations apart")
    crowd = path[0, :30, : 4 if args.fast else 60].T                    # (steps, 30)
    walk(crowd, lake.rows, pictures.SFT, check.OUT, "08_walk")
    print("picture: out/08_walk.gif")

# %% [markdown]
# ## Try
# * `slippery=False` in the first cell: one walk is now all there is to know. Why?
# * Let each student take its own second walk, labelled with `lake.expert`, instead of watching the
#   teacher's. Is that better straight away? Look at how early the student's walks end.
# * `steps=20` in step 5: now the student is unsure on its path as well. How much do more walks
#   help?
#
# **Next:** 09. IFT lets a policy read where its own guess would have led, so it comes to cells
# beside the path. How often does it, and what is it told there?

# %%
# region Solution: unfold when you have tried
def walk_gradient(z, states, actions):
    count = torch.zeros_like(z)                                         # n(s, a)
    for s, a in zip(states.tolist(), actions.tolist(), strict=True):
        count[s, a] += 1
    return count.sum(1, keepdim=True) * z.softmax(-1) - count


def success(P, policy, ends, goals, start):
    moves = (policy[:, :, None] * P).sum(1)                             # (S, S)
    Q, r = moves[~ends][:, ~ends], moves[~ends][:, goals].sum(1)
    v = torch.linalg.solve(torch.eye(len(Q), dtype=Q.dtype) - Q, r)
    return start[~ends] @ v
# endregion
