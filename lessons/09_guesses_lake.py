# %% [markdown]
# # 09 · Live with your guesses
# **The question:** what changes if the model must continue from what it would have said?
#
# SFT reads the right prefix, always; once it speaks for itself, it reads its own. IFT (arXiv 2405.11870) mixes the two during
# training, and makes early tokens answer for late ones. No negatives, no reference: the data of SFT. You derive its gradient,
# find the place where paper and code disagree, and see on the lake of lesson 08 what it reads there, and with which labels.
# Twenty-five minutes, about one of them computing. Keep `minialign/methods/ift.py` open beside it.
#
# **Guess first.** An answer of eight tokens; the model is surprised by the first (loss 3) and sure of the rest (0.1 each). SFT
# pushes all eight up equally. IFT lets a token answer for the losses after it. Which tokens will it push up hardest? And could it
# push one of them *down*, in an answer that is right? Write it down.

# %%
import copy
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from lessons import check
from minialign.data import Batch, collate
from minialign.lab import plot
from minialign.lab.arena import RECIPE, Exam, fine_tuning_data
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.train import fit
from toy.measure import interval, measure, read, results_table
from toy.plot import color_of
from toy.rows import find_row, train_row
from toy.world import prepare

args = check.options()
mine = check.mine(args)
model, tokenizer = check.base_model(args)

# %% [markdown]
# ## Step 1: the residual
# Ask the policy for its likeliest token g_t at every place of the answer, without a graph. Then read (eq. 17)
#
#     e_t = (1−λ) E[y_t] + λ E[g_t]           (E embeds; prompt tokens stay as they are; the *targets* stay the true tokens)
#
# In the paper the guess is an action, a = π(s): one token, not a soft average over all; Algorithm 1 and the code agree. (The code
# reads E from a frozen copy. Ours learns as in SFT, so that λ = 0 is SFT.)

# %%
examples = fine_tuning_data(tokenizer, 0, 0.0, None)[: 64 if args.fast else 512]
ift = METHODS["ift"](lam=0.5)
wanted = collate([replace(e, answers=e.answers[:1], rewards=None) for e in examples])
(batch,) = ift.prepare(model, [wanted])
rows = batch.rows
differ = ((rows.guesses != rows.y) & rows.mask)[0]                      # (B, T): where the guess is not the label
i = int(differ.sum(-1).argmax())
for name, ids in ("label", rows.y[0, i]), ("guess", rows.guesses[0, i]):
    tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in ids[rows.mask[0, i]].tolist()]
    print(f"{tokenizer.decode(examples[i].prompt)}  {name}: {'  '.join(tokens)}")
with torch.no_grad():
    mixed = (ift.inputs(model, batch) != model.embed(rows.tokens)).any(-1)
print(f"of all answer tokens the model guesses {1 - float(differ.sum() / rows.mask.sum()):.0%} right already; "
      f"what it reads changes at {int(mixed.sum())} of {mixed.numel()} places")

# %% [markdown]
# Where the guess is the label, nothing is mixed: there the residual changes nothing. The more of its guesses are right, the less
# there is of it.
#
# ## Step 2: propagation, and a gradient worth deriving
# With token losses c_t = −log-prob of y_t, Algorithm 1 multiplies each by the losses that follow. As the code has it (on paper
# the decay is α^(N−t), outside the sum, and nothing is normalised):
#
#     S_t = Σ_{i≥t} γ^(i−t) c_i        Z = Σ_t S_t        L = Σ_t c_t S_t / Z =: A/Z
#
# c_j stands in A twice: as the factor of S_j, and inside every S_t with t ≤ j. In Z only the latter. So
#
#     ∂A/∂c_j = S_j + P_j,   P_j = Σ_{t≤j} γ^(j−t) c_t         ∂Z/∂c_j = C_j = Σ_{t≤j} γ^(j−t)
#     ∂L/∂c_j = (∂A/∂c_j − (A/Z) ∂Z/∂c_j) / Z = (S_j + P_j − L C_j) / Z
#
# and ∂L/∂c_j = −∂L/∂logp_j is the weight. Autograd as witness; the sum over i is a triangular matrix:

# %%
c = torch.tensor([3.0] + [0.1] * 7, dtype=torch.float64)
t = torch.arange(8)
discount = torch.where(t[None] >= t[:, None], 0.95 ** (t[None] - t[:, None]).double(), 0.0)            # row t, column i
leaf = c.clone().requires_grad_()
S = discount @ leaf
L = (leaf * S).sum() / S.sum()
one = Batch(mask=torch.ones(1, 1, 8, dtype=torch.bool))
_, weights, _ = METHODS["ift"](gamma=0.95).weigh(-c[None, None], one)
print(f"weigh against autograd: {float((weights[0, 0] - torch.autograd.grad(L, leaf)[0]).abs().max()):.0e} apart")
print("8 × weights:", (8 * weights[0, 0]).numpy().round(2))

# %% [markdown]
# The first token is pushed up hardest, and late, well-predicted tokens are pushed **down**: their C_j is large, so raising c_j
# raises Z, the common denominator, so much that L falls. Nobody means that. Treat S_t/Z as constants (`detach_weights`) and it
# is gone; the release does not (its author: the coefficient must take part in the graph).
#
# ## Step 3: where the paper disagrees with itself
# Eq. 21 prints a double sum. Count how often c_i occurs in it: once for every n ≤ i.
#
#     L = Σ_n Σ_{i≥n} c_i = Σ_i (i + 1) c_i           (i = 0, 1, …)
#
# That favours **late** tokens; Algorithm 1, which multiplies c_t by what follows, **early** ones. Not the same method. Both are
# here: `ift_eq21` and `ift`. (γ = 0 is a special case of the release: plain SFT, and not the limit γ → 0.)

# %%
forms = {"γ = 0: SFT": METHODS["ift"](gamma=0.0), "γ = 0.5": METHODS["ift"](gamma=0.5), "γ = 0.95": METHODS["ift"](gamma=0.95),
         "γ = 0.95, detached": METHODS["ift"](gamma=0.95, detach_weights=True), "eq. 21": METHODS["ift_eq21"]()}
weight = {name: method.weigh(-c[None, None], one)[1][0, 0] for name, method in forms.items()}
weight["eq. 21"] = weight["eq. 21"] / weight["eq. 21"].sum()            # a sum, not a mean: brought to the scale of the others
for name, w in weight.items():
    print(f"{name:20}", (8 * w).numpy().round(2))

# %% [markdown]
# ## Step 4: on the lake, where truth is known
# A guess there is the cell where the policy's own likeliest action leads. The *label* of that cell stays the demonstration's next
# action: "go right at step 3, wherever you are". How often that is right depends on the map, so take two, a wide corridor and
# mazes, and one kind of start for both: a policy taught by an expert who acts at random three times in four ("noisy").
#
# Two questions: how much does IFT read off the path, and what is it told there? So there are more rows beside IFT, all ours:
#
# * *right labels in IFT's cells* (`oracle labels`): the cells that IFT's guess reads, with the right label. (One thing
#   more differs: such a cell stands alone there, where IFT reads it mixed into the demonstrated one.)
# * *soft mix*: in place of the likeliest action, an average of all four, weighted by their probabilities. A policy that is right
#   with probability 0.4 deviates with 0.6, although its likeliest action is the demonstrated one.
# * *right labels in the mix's cells* (`oracle soft`): the cells that the mix reads, with the right label.
# * *neighbour noise*: an average of all four with equal weights, which knows nothing of the policy.
#
# Before you run it: what share of its input will IFT read off the path at the first training step? At the last? (At λ = 0.5 it can
# be half at most.)

# %%
seeds = range(9001, 9001 + (3 if args.fast else 100))                   # one of the two sets of seeds of toy/README.md
lines = {"sft": "SFT", "ift_simple": "IFT (simple sum)", "oracle labels": "right labels in IFT's cells",
         "soft mix": "soft mix (ours)", "oracle soft": "right labels in the mix's cells", "neighbour noise": "neighbour noise"}
places, ice, off_path = ("maze", "corridor"), {}, {}
goals = {"neighbour_accuracy": "right actions beside the path", "success_noise_0.1": "success with 10 % random actions"}
for place in places:
    world, ice[place] = prepare(place, seeds, base="noisy"), {}
    for name in lines:
        policy, judged = train_row(world, find_row(name, 0.5), steps=20 if args.fast else 100, lr=0.01)    # judged (steps, 3, N)
        ice[place][name] = measure(world, policy, *goals) | read(judged)
        off_path[place, name] = judged[:, 0].mean(-1)                   # (steps,)
    print(f"{place}, noisy start, {len(seeds)} seeds, λ 0.5")
    print(results_table(ice[place], [*goals, "off_path_first", "off_path_mean", "off_path_last", "labels_right"], lines), "\n")

# %% [markdown]
# "Right beside" is the share of the path's neighbours where the likeliest action is right; "10 % noise" the success if every tenth
# action is random. ▲ and ▼: better and worse than SFT of the same seeds, by a 95 % interval. Right of them, the share of the
# input that lies off the path, at the first step, on average, at the last; and how many of the labels are right there, where the
# goal can still be reached at all (of an oracle's all are, by design).
#
# ## Step 5: on the small GPT
# "9.11 or 9.9?" with 30 % wrong labels, right answers on questions it was not tuned on; one base model, three draws of the data.

# %%
def tune(method, seed):
    """Fine-tune a copy of the small GPT → chance of the right answer, exactly, on 400 other questions."""
    copied, few = copy.deepcopy(model), 32 if args.fast else 512
    for _ in fit(copied, method, fine_tuning_data(tokenizer, seed, 0.3, None)[:few], replace(RECIPE, seed=seed)):
        pass
    with torch.no_grad():
        return float(batch_logps(copied, Exam(tokenizer, seed).disputed).sum(-1)[0].exp().mean())


gammas, doses = ((0.0, 0.95), (0.0, 0.2)) if args.fast else ((0.0, 0.5, 0.95), (0.0, 0.2, 0.5, 1.0))
gpt = {}
for gamma in gammas:
    for lam in doses:
        gpt[gamma, lam] = [tune(METHODS["ift"](lam=lam, gamma=gamma), seed) for seed in range(1 if args.fast else 3)]
    print(f"γ = {gamma:4}: " + ",  ".join(f"λ {lam} {sum(gpt[gamma, lam]) / len(gpt[gamma, lam]):.3f}" for lam in doses))

# %% [markdown]
# ## The picture

# %%
ink = {0.0: plot.COLOR["sft"], 0.5: "#7bccb0", 0.95: plot.COLOR["ift"]}
figure, (first, exposure, worth, last) = plt.subplots(1, 4, figsize=(18, 4.4), width_ratios=[1.2, 0.8, 1, 1], layout="constrained")
colors = [*ink.values(), plot.COLOR["ift"], plot.COLOR["ift_eq21"]]
styles = {"γ = 0.95, detached": ":", "eq. 21": "--"}
first.axhspan(-20, 0, color="#fbe3df")
for (name, w), color in zip(weight.items(), colors, strict=True):
    first.plot(range(8), 8 * w, styles.get(name, "-"), marker="o", markersize=4, color=color, linewidth=2.2)
first.text(0, -11.5, "pushed down,\nthough right", color="#b5483a", fontsize=11)
first.set(ylim=(-13, 9), xlim=(-0.3, 7.2), title="A surprise, then easy tokens: who is pushed?",
          xlabel="each token's loss", ylabel="8 × weight (SFT: 1)")
first.set_xticks(range(8), [f"{x:g}" for x in c.tolist()])
ends = [(7.2, 8 * float(w[-1]), name, color) for (name, w), color in zip(weight.items(), colors, strict=True)]
plot.label_ends(first, ends, size=9)
for name in "ift_simple", "soft mix", "neighbour noise":
    for place, style in zip(places, ("-", ":"), strict=True):
        share = off_path[place, name]
        exposure.plot(range(1, len(share) + 1), share, style, color=color_of(name), linewidth=2.4,
                   label=lines[name] if style == "-" else None)
exposure.set(xscale="log", ylim=(0, 0.5), xlabel="training step", ylabel="share off the path",
          title="What is read\n(mazes solid, corridor dotted)")
exposure.set_xticks([1, 10, len(share)], ["1", "10", str(len(share))])
exposure.legend(frameon=False, fontsize=9, loc="upper right")
plot.clean(exposure)


def gain(place, name, goal="neighbour_accuracy"):
    """Mean and half-width of a row's difference to SFT of the same seeds."""
    return interval(ice[place][name][goal] - ice[place]["sft"][goal])


worth.axvline(0, color=plot.COLOR["sft"], linewidth=1, linestyle=":")
for y, name in enumerate(list(lines)[1:]):
    for place, marker, shift in zip(places, "so", (-0.13, 0.13), strict=True):
        mean, half = gain(place, name)
        worth.errorbar(mean, y + shift, xerr=half, fmt=marker, color=color_of(name), linewidth=2.2, markersize=7,
                        markerfacecolor=color_of(name) if marker == "s" else "white")
worth.set_yticks(range(len(lines) - 1), list(lines.values())[1:], fontsize=9)
worth.set(ylim=(len(lines) - 1.5, -0.6), xlabel="right actions beside the path, minus SFT's →",
           title="What it is worth\n(mazes ■, corridor ○)")
plot.clean_rows(worth)
sft = sum(gpt[0.0, 0.0]) / len(gpt[0.0, 0.0])
for gamma in gammas:
    ys = torch.tensor([gpt[gamma, lam] for lam in doses])
    last.plot(doses, ys, "o", color=ink[gamma], alpha=0.5, markersize=4, markeredgewidth=0)
    last.plot(doses, ys.mean(1), color=ink[gamma], linewidth=2.4)
last.axhline(sft, color=ink[0.0], linewidth=1, linestyle=":")
last.text(0.02, sft, "SFT", color=ink[0.0], va="bottom")
last.set(xlim=(0, 1), ylim=(0.4, 0.8) if not args.fast else (0, 1), xlabel="λ", ylabel="chance of the right answer ↑",
         title="IFT on the small GPT")
most = doses[-1]
plot.label_ends(last, [(most, sum(gpt[g, most]) / len(gpt[g, most]), f"γ = {g:g}", ink[g]) for g in gammas], size=10)
plot.clean(last)
check.show(figure, "09")
down = sum(w < 0 for w in weight["γ = 0.95"].tolist())
hardest = int(weight["γ = 0.95"].argmax()) + 1
print(f"Your guess? Up hardest: token {hardest}; pushed down: {down} of 8, in an answer that is right.")
for place in places:
    ift, mix = ({key: interval(x)[0] for key, x in ice[place][name].items()} for name in ("ift_simple", "soft mix"))
    print(f"{place}: {ift['off_path_first']:.1%} of what IFT reads lies off the path at the first step, "
          f"{ift['off_path_mean']:.1%} on average, {ift['off_path_last']:.1%} at the last;\n  "
          f"{ift['labels_right']:.0%} of its labels there are right. The mix: "
          f"{mix['off_path_first']:.1%}, {mix['off_path_mean']:.1%}, {mix['off_path_last']:.1%}; {mix['labels_right']:.0%}.")
    for goal, words in goals.items():
        said = {"more": [], "less": [], "no difference shown": []}
        for name in list(lines)[1:]:
            mean, half = gain(place, name, goal)
            said["more" if mean > half else "less" if mean < -half else "no difference shown"].append(lines[name])
        print(f"  {words}, against SFT: " + "; ".join(f"{verdict}: {', '.join(who)}" for verdict, who in said.items() if who))
chance = {key: sum(values) / len(values) for key, values in gpt.items()}
paper, best = (gammas[-1], doses[1]), max(chance, key=chance.get)
print(f"On the GPT: SFT {sft:.3f}; γ = {paper[0]:g}, λ = {paper[1]:g} (the paper's) {chance[paper]:.3f}; "
      f"the best of all, chosen after looking, γ = {best[0]:g}, λ = {best[1]:g}: {chance[best]:.3f}.")

# %% [markdown]
# Read the lake's lines in this order. *How much:* where nothing slips, a guess that is the demonstrated action leads nowhere
# else; as long as that holds all along the path, the residual is nothing and IFT (simple sum) is SFT, whatever the labels beside
# the path are worth. *With which label:* compare each row with its right labels. *For which goal:* right actions beside the path
# and success are two numbers, and a row can gain one and lose the other. And "more" says on which side of zero an interval lies,
# not how far away: that is in the table.
#
# One set of seeds is one set: what a second one does not repeat, `toy/README.md` does not call a difference. It also has the ice
# that slips, where even a perfect guess deviates. `python -m toy --study labels --first-seed 31001` is step 4 on the other set.
#
# ## Exercise ●●○ (15 minutes)
# From losses c and γ > 0: the weights if S_t/Z are constants, the weights if they carry gradient, and which one is the release.
#
# <details><summary>Hint</summary>Build the triangular matrix of step 2. Its rows give S, its columns P, its column sums
# C.</details>

# %%
print(check.propagation(mine.propagation))

# %% [markdown]
# ## Try
# * `c = [0.1] * 7 + [3.0]`: the surprise comes last. Who answers for it now?
# * `prepare(place, seeds)` without `base="noisy"`: an untrained policy. How much does IFT read off the path now, and for how long?
# * `prepare("8x8", seeds, slippery=True)`, with twenty seeds: an action leads to three places. Does the residual run dry? What do
#   right labels in IFT's cells do now?
# * `find_row(name, 0.1)`, then 0.9. Does the dose count? Adam rescales each parameter's gradient; `optimizer="sgd", lr=2.0` does
#   not.
#
# **Next:** 11, everybody at once.

# %%
# region Solution: unfold when you have tried
def propagation(c, gamma):
    t = torch.arange(len(c))
    discount = torch.where(t[None] >= t[:, None], gamma ** (t[None] - t[:, None]).to(c), 0.0)
    S, P, C = discount @ c, c @ discount, discount.sum(0)
    Z = S.sum()
    return S / Z, (S + P - (c * S).sum() / Z * C) / Z, 1
# endregion
