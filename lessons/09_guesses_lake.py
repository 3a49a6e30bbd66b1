# %% [markdown]
# # 09 · Live with your guesses: the lake
# **The question:** what changes if the policy must continue from its own guess?
#
# SFT always reads the right beginning of an answer and learns the right next token. Later, when the
# model speaks for itself, it reads what it has said so far, right or wrong. Lesson 08 has shown
# what happens then: beside the path it has been told nothing. *Intuitive fine-tuning* (IFT, arXiv
# 2405.11870) wants to mend this with the data of SFT alone, without negatives and without a
# reference. It has two parts. The first lets the policy read its own guesses while it learns, and
# is the subject of this lesson. The second is about which tokens answer for which losses; that is
# lesson 10.
#
# The paper explains the first part on a frozen lake, and reports that IFT comes much closer to the
# optimal policy than SFT. On a lake nothing has to be believed: you will see which cells IFT comes
# to read, how often, and which answers it is taught there. Twenty-five minutes, about one of them
# computing. Keep `toy/rows.py` open beside it.
#
# **Guess first.** A policy knows its way a little: it is mostly right and never sure. IFT now
# trains it on one good path, and at most half of what it reads can be the consequence of its own
# guesses. What share of what it reads lies *beside* the path at the first training step? And at the
# last one? Third: will the policy afterwards know more right actions beside the path than one that
# was trained with SFT? Write your guesses down.

# %%
import torch

from lessons import check
from lessons.pictures import worlds as pictures
from toy import policy as lake_policy
from toy.measure import interval, measure, read, results_table
from toy.rows import find_row, train_row
from toy.world import prepare

args = check.options()
mine = check.mine(args)
torch.manual_seed(0)

# %% [markdown]
# > **Exposure bias.** A model that is trained on right beginnings only, and used on its own, meets
# > beginnings in use that it never met in training. How much that hurts is an old question; it is
# > worth asking of every method that only imitates.
#
# ## Step 1: the residual
# Before each update IFT asks the policy for its guesses. At every place of the answer, with the
# *true* beginning before it, what would it say? Its likeliest token is the guess g_t, while y_t is
# the token that stands there. Then the policy reads a mixture of the two (eq. 17 of the paper):
#
#     e_t  =  (1−λ) E[y_t]  +  λ E[g_t]               (E[y]: the row of y in the table E)
#     g_t  =  argmax of the logits at place t−1       (they predict the token at place t: lesson 02)
#
# What it shall *say* stays as it was: the next true token. Prompt tokens are read as they are,
# because nobody asks the policy to guess a prompt. The paper calls this a temporal residual
# connection. In this lesson E is the embedding table (lesson 01), never a mean. Three remarks.
#
# * If the guess is right, g_t = y_t, the mixture is E[y_t] itself, because 1 − λ + λ = 1. So IFT
#   differs from SFT only where the policy would have said something else than the label, be that
#   wrong or as good.
# * The guess is *one* token, the likeliest. Equation 17, Algorithm 1 and the authors' code agree on
#   that. A mean of all embeddings, weighted by their probabilities, is another method.
# * No gradient runs back through the guess: a small change of a logit changes no argmax, so its
#   slope is zero.
#
# Here is one row, “9.9>9.11” behind a prompt of two tokens, with logits of our own invention.

# %%
words = ["9.11 or 9.9?", " ", "9.9", ">", "9.11", "end"]
tokens = torch.tensor([0, 1, 2, 3, 4])                                  # (L,)
is_answer = torch.tensor([False, False, True, True, True])
z = torch.randn(5, 6, dtype=torch.float64)                              # (L, V)
z[1, 4] = z[2, 3] = z[3, 2] = 4.0                       # its guesses: “9.11”, then “>”, then “9.9”
guesses = z.argmax(-1)
for t, token in enumerate(tokens.tolist()):
    line = f"place {t}: “{words[token]}”"
    if is_answer[t]:
        guess = words[guesses[t - 1]]
        line += f", the guess was “{guess}”" + ("" if guess == words[token] else ": mixed")
    print(line)

# %% [markdown]
# ## Exercise 1 ●●○ (10 minutes): `residual`
# In `lessons/mine.py`, write what IFT's policy reads. `residual(E, z, tokens, is_answer, lam)` gets
# the embedding table E (V, C), with C numbers for each of the V tokens, the logits z (L, V) at the
# L places of one row, its tokens (L,), which of them belong to the answer (L,), and λ; it returns
# the mixed embeddings (L, C).
#
# <details><summary>Hint</summary>
#
# Start from `tokens.clone()` as the guesses, and put `z[:-1].argmax(-1)` at the places from 1 on
# that belong to the answer. Where guess and token are the same, the mixture is right by itself.
# </details>

# %%
verdict = check.residual(mine.residual)
right_residual = check.is_right(verdict)
print(verdict)

# %% [markdown]
# ## Step 2: the same on the lake
# On the lake the “text” is the sequence of cells, and a cell is read one-hot: as a row of zeros
# with a 1 at its own place. So the embedding table is the identity matrix, and a mixture is a row
# with two numbers in it: 1 − λ in the demonstrated cell, λ in the cell where the guess leads. The
# guess for the cell at step t is made one cell before: where would the policy's likeliest action
# have led?
#
# And what is it told in that other cell? Its label is the action that the demonstration takes next,
# *on its own path*: “go right at step 3, wherever you are”. Nobody asked whether that is a good
# idea there. So two numbers tell what IFT can do in a place:
#
#     share   of what is read from the second cell on, how much lies off the path (the first cell
#             is where everybody starts)
#     right   in how much of that the demonstration's next action is an optimal one
#
# For the second number we count only cells from which the goal can still be reached: in a hole, no
# action is right or wrong.
#
# We take two kinds of places. A *corridor*, where one has to go down, across and up again, and
# random *mazes*, a different one for every seed. Everything else is the same: in both places the
# policy has been taught beforehand by an expert who acts at random three times in four.

# %%
seeds, lam = range(9001, 9001 + (3 if args.fast else 100)), 0.5
worlds = {place: prepare(place, seeds, base="noisy") for place in ("maze", "corridor")}


def what_is_read(world, policy, i):
    """Of seed i: the ingredients of its mixture, and what it is judged by."""
    states, actions = world.path.states[0, i, 0], world.path.actions[0, i, 0]
    T = int(world.path.mask[0, i, 0].sum())                             # steps of this path
    states, actions = states[:T], actions[:T]
    best = policy.probabilities()[i, states].argmax(-1)                 # (T,) the policy's choice

    # The row of where it leads is one-hot, so its argmax is the next cell: it stands in for logits.
    leads = world.singles[i].P[states, best]                            # (T, S)
    E = torch.eye(leads.shape[1], dtype=leads.dtype)                    # (S, S)
    return (E, leads, states, torch.arange(T) > 0, lam), (states, actions, world.singles[i].optimal)


# %% [markdown]
# ## Exercise 2 ●●○ (10 minutes): `off_path`
# Write the two numbers. `off_path(mixed, states, actions, optimal)` gets what is read, mixed
# (T, S), for the T steps of a path and the S cells of the lake; the demonstration's cells and
# actions, (T,) each; and which actions are optimal in which cell, (S, 4), none of them where the
# goal cannot be reached. It returns share and right.
#
# <details><summary>Hint</summary>
#
# Take a copy of `mixed[1:]` and set the demonstrated cells in it to 0: what is left is off the
# path. Its sum, divided by the number of rows, is the share. `optimal.T[actions[1:]]` (T−1, S) says
# in which cells the action of each step is optimal, and `optimal.any(1)` which cells have an
# optimal action at all.
# </details>

# %%
verdict = check.off_path(mine.off_path)
both_right = right_residual and check.is_right(verdict)
print(verdict)

# %% [markdown]
# With both functions right, you can follow the share yourself while IFT learns (the picture shows
# your points), and see that you read what the package reads.

# %%
points = {place: {} for place in worlds}                # {training step: share}
steps = (0, 1) if args.fast else (0, 1, 3, 9, 29)       # that the policy has made already
for place, world in worlds.items():
    for done in steps if both_right else ():
        policy, _ = train_row(world, find_row("ift_simple", lam), steps=done, lr=0.01)
        shares = []
        for i in range(len(seeds)):
            reading, judged_by = what_is_read(world, policy, i)
            shares.append(float(mine.off_path(mine.residual(*reading), *judged_by)[0]))
        points[place][done + 1] = sum(shares) / len(shares)
    if both_right:
        told = ", ".join(f"step {n} {share:.1%}" for n, share in points[place].items())
        print(f"{place}: by you, off the path: {told}")

# %% [markdown]
# ## Step 3: the experiment
# IFT shall learn the path, and so shall five others. All start from the same policies and take as
# many steps. (We use IFT's simple sum, without the second part that lesson 10 is about.)
#
# * *SFT* reads the path and nothing else.
# * *IFT* reads its mixture, with the path's actions as labels.
# * *Right labels in IFT's cells*: the cells that IFT reads, each with the action that is optimal
#   there. Nobody has such labels in practice; somebody who knows everything, an *oracle*, would.
#   The difference to IFT is what its labels cost. (One thing more differs: such a cell stands alone
#   here, where IFT reads it mixed with the demonstrated one.)
# * *Soft mix*, ours: in the place of the likeliest action, all four, weighted by the policy's
#   probabilities. A policy that is right with probability 0.4 deviates with 0.6 here, even though
#   its likeliest action is the demonstrated one, and it goes on doing so until it is sure.
# * *Right labels in the mix's cells*: that mixture with an oracle's labels.
# * *Neighbour noise*: all four actions with equal weights, whatever the policy thinks.

# %%
lines = {"sft": "SFT", "ift_simple": "IFT", "oracle labels": "right labels in IFT's cells",
         "soft mix": "soft mix (ours)", "oracle soft": "right labels in the mix's cells",
         "neighbour noise": "neighbour noise"}
goals = {"neighbour_accuracy": "right actions beside the path",
         "success_noise_0.1": "success with 10 % random actions"}
READ = ("off_path_first", "off_path_mean", "off_path_last", "labels_right")
found, shares = {}, {}
for place, world in worlds.items():
    found[place], shares[place] = {}, {}
    for name in lines:
        row = find_row(name, lam)
        policy, judged = train_row(world, row, steps=20 if args.fast else 100, lr=0.01)
        found[place][name] = measure(world, policy, *goals) | read(judged)
        shares[place][name] = judged[:, 0].mean(-1)                     # (training steps,)

# %%
for place in worlds:
    print(f"{place}, {len(seeds)} seeds, λ {lam}")
    print(results_table(found[place], [*goals, *READ], lines), "\n")

# %% [markdown]
# “Right beside” is the share of the path's neighbours where the policy's likeliest action is
# optimal. “10 % noise” is the chance to get to the goal if every tenth action is a random one, so
# that the path is left now and then. ▲ and ▼ say better and worse than SFT, judged by a 95 %
# interval of the differences to SFT of the same seeds. To the right of that stands what was read:
# the share off the path at the first training step, on average over the training, and at the last
# step; and how much of it had a right label.
#
# ## The picture: what is read, which label it gets, what it is worth
# Left, two maps. The line is the demonstration. Green are the cells that IFT reads at its first
# step while the demonstration is elsewhere (the darker, the more), and the arrow in them is the
# label that they get: red if it is wrong there, none in a hole. In the corridor, which is the same
# for all, green is the mean over all seeds; the maze is that of the seed whose guesses deviate
# most.

# %%
maps = []
for place, world in worlds.items():
    mixed = lake_policy.residual(world.lakes, world.path, world.base.probabilities(), "greedy", lam)
    off = lake_policy.deviation(world.path, mixed)[:, 0]                # (N, T, S)
    i = int(off.sum((1, 2)).argmax())
    shade = off.mean(0) if place == "corridor" else off[i]              # (T, S)
    maps.append((place, world.singles[i], shade, world.path.actions[0, i, 0]))


def gain(place, name, goal="neighbour_accuracy"):
    """Mean and half-width of a row's difference to SFT of the same seeds."""
    return interval(found[place][name][goal] - found[place]["sft"][goal])


figure = pictures.guesses_on_the_lake(maps, shares, points, gain, lines)
check.show(figure, "09")

# %%
def verdicts(place, goal):
    """What the intervals say of every row against SFT, a line per verdict."""
    said = {"more": [], "less": [], "no difference shown": []}
    for name in list(lines)[1:]:
        mean, half = gain(place, name, goal)
        verdict = "no difference shown"
        if abs(mean) > half:
            verdict = "more" if mean > 0 else "less"
        said[verdict].append(lines[name])
    return "\n".join(f"    {verdict}: {', '.join(who)}" for verdict, who in said.items() if who)


# %%
for place, rows in found.items():
    ift = {key: interval(x)[0] for key, x in rows["ift_simple"].items()}
    print(f"Your guess? {place}: off the path {ift['off_path_first']:.1%} at the first step, "
          f"{ift['off_path_last']:.1%} at the last; {ift['labels_right']:.0%} of IFT's labels "
          "there are right.")
    for goal, meaning in goals.items():
        print(f"  {meaning}, against SFT\n{verdicts(place, goal)}")

# %% [markdown]
# Read it in this order.
#
# * *How much is read?* Nobody slips on these lakes, so a guess that is the demonstrated action
#   leads nowhere else. The policy's likeliest action is soon the demonstrated one all along the
#   path, and from then on IFT reads what SFT reads and learns as SFT does (its curve falls to
#   nothing within a few steps). Only its first steps differ, and in the mazes they leave a small
#   mark, a ▼. The soft mix falls later, and the noise never.
# * *With which label?* Compare each row with its right labels: the same cells are read. In IFT's
#   own cells right labels change next to nothing, for so little is read there: what IFT lacks here
#   is exposure. In the mix's cells in the mazes the path's labels lose and the right ones gain:
#   what the mix lacks there is labels. In the corridor the path's labels are right nearly nine
#   times in ten in the mix's cells; there even they gain, and so does blind noise.
# * *For which goal?* The same two rows in the corridor gain right actions and lose a little
#   success. The first number asks for the likeliest action, the second for all probabilities, on
#   the path as well as beside it. Whoever shows you one number has chosen it.
#
# **When could IFT's residual help?** Where two things come together: wrong guesses that persist
# while it learns, *and* labels that are right in the cells where these guesses lead. Here the
# guesses do not persist. On slippery ice, where even a perfect guess deviates to the end, under
# half of IFT's labels are right: it succeeds less often than SFT, and with right labels in the same
# cells much more often (`toy/README.md` has the numbers; Try has the command).
#
# “More” says that an interval lies above zero, not that it lies far above; how far is in the table.
# And one set of seeds is one set. `toy/README.md` has the same experiment on two sets, calls a
# difference only what both of them show, and finds for IFT's simple sum: in mazes right actions
# beside the path are fewer in the first set alone, in the corridor no difference is shown. The
# paper's own claim, that IFT comes closer to the optimal policy than SFT, does not come out on the
# maps that we tried. The paper does not say which map, network or learning rate it used, so it may
# hold where it was found.
#
# ## Try
# * `prepare(place, seeds)` without `base="noisy"`: an untrained policy. How much does IFT read off
#   the path now, and for how long?
# * `prepare("8x8", seeds, slippery=True)` with twenty seeds. An action leads to three cells there,
#   so even a perfect guess deviates. Does the residual run dry? What do right labels do now?
# * `lam = 0.1`, then 0.9. Does the dose count? (Adam rescales every step; `optimizer="sgd", lr=2.0`
#   does not.)
#
# **Next:** 10, IFT on the small GPT: the second part of its loss, and the tokens that it favours.

# %%
# region Solution: unfold when you have tried
def residual(E, z, tokens, is_answer, lam):
    guesses = tokens.clone()
    guesses[1:] = torch.where(is_answer[1:], z[:-1].argmax(-1), tokens[1:])
    return (1 - lam) * E[tokens] + lam * E[guesses]


def off_path(mixed, states, actions, optimal):
    off = mixed[1:].clone()                                             # (T−1, S)
    off[torch.arange(len(off)), states[1:]] = 0
    reachable = off * optimal.any(1)
    right = off * optimal.T[actions[1:]]
    return off.sum() / len(off), right.sum() / reachable.sum()
# endregion
