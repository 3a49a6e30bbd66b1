# %% [markdown]
# # 06 · Absolutely
# **The question:** why does the chosen answer fall under DPO, and what does ASFT do about it?
#
# Somebody has looked at pairs of answers and chosen one of each pair. Direct preference
# optimization (DPO, arXiv 2305.18290) trains on such pairs: the chosen answer shall become likely
# *compared with* the rejected one. Plot the two log-probs, and the one of the chosen answer may
# fall. ASFT (aligned supervised fine-tuning, arXiv 2409.10571; Anchored SFT is another method)
# trains each likelihood by itself instead, absolutely. You derive both losses and their weights,
# train with them, and find out where the chosen answer falls and what holds it.
#
# You need lessons 03 and 05. Forty minutes. Open beside it: `minialign/methods/preference.py`.
#
# **Guess first.** At the start a model gives the chosen answer a probability of 0.29, the rejected
# one 0.66, and all others together 0.05, on average. Three methods train it on many such pairs: SFT
# (which reads the chosen answers alone), DPO and ASFT. And at the end? Write 3 × 3 numbers down.

# %%
import copy
import math
from dataclasses import replace

import torch

from lessons import check, own
from lessons.pictures import methods as pictures
from minialign.data import Batch
from minialign.lab import arena
from minialign.lab.places import PLACES, places, split
from minialign.logps import add_reference, batch_logps
from minialign.methods import METHODS
from minialign.train import Recipe, fit

args = check.options()
mine = check.mine(args)
torch.manual_seed(0)

# %% [markdown]
# ## Step 1: DPO's loss, in three moves
# > **Policy and reference.** The policy π is the model in training: it gives every answer y to a
# > prompt a probability π(y). The reference π_ref, a copy from before training, never changes.
#
# > **KL divergence.** KL(π ‖ π_ref) = Σ_y π(y) log(π(y) / π_ref(y)): how much likelier, in nats,
# > the policy finds its own answers than the reference does, on average. It is 0 if the two are
# > equal and above 0 otherwise.
#
# *First move: who would be the best policy?* Suppose each answer had a reward R(y), a number. We
# would like a policy with much reward that stays near the reference, at a price β per nat:
#
#     J(π)  =  Σ_y π(y) R(y)  −  β KL(π ‖ π_ref)
#           =  −β Σ_y π(y) [ log(π(y) / π_ref(y)) − R(y)/β ]         (write out the KL, take −β out)
#           =  −β Σ_y π(y) log( π(y) / (π_ref(y) e^{R(y)/β}) )       (R/β = log e^{R/β})
#
# Divide π_ref e^{R/β} by its sum over all answers, and it is a policy, since it adds up to 1: let
# Z := Σ_y π_ref(y) e^{R(y)/β} and π* := π_ref e^{R/β} / Z. Then
#
#           =  −β Σ_y π(y) log( π(y) / (Z π*(y)) )                   (π_ref e^{R/β} = Z π*)
#           =  β log Z  −  β KL(π ‖ π*)                (log Z is the same for every y; Σ_y π(y) = 1)
#
# The first term does not depend on π, and the second is largest where the KL is 0. So the best
# policy is π*: the reference, with every answer reweighted by the exponential of its reward. Three
# answers, and ten thousand other policies:

# %%
reward = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
reference = torch.tensor([0.30, 0.65, 0.05], dtype=torch.float64)
beta = 0.5


def J(policy):
    return (policy * reward).sum(-1) - beta * (policy * (policy / reference).log()).sum(-1)


Z = (reference * (reward / beta).exp()).sum()
best = reference * (reward / beta).exp() / Z
others = torch.rand(10_000, 3, dtype=torch.float64)
others = others / others.sum(-1, keepdim=True)
print(f"π* = {best.numpy().round(3)}:  J = {J(best):.6f},  β log Z = {beta * Z.log():.6f}")
print(f"the best of ten thousand others: J = {J(others).max():.6f}")

# %% [markdown]
# *Second move: turn it round.* Nobody has rewards. But if a policy π is the best one for some
# reward, then that reward can be read off from it. Solve π = π_ref e^{R/β} / Z for R:
#
#     R(y)  =  β log(π(y) / π_ref(y)) + β log Z  =  β s + β log Z          with s := l − l_ref
#
# where l = log π(y) is the answer's log-prob, and s, DPO's score, says by how much it has moved
# since the start. Every policy is the best one for a reward of its own: that is the paper's trick.
#
# *Third move: compare.* From here on the subscript w means the chosen (wanted) answer, and the
# subscript l the rejected one, that lost; so l_l is the rejected answer's log-prob. Bradley and
# Terry (1952) say how people choose between two things with rewards R_w and R_l: they take the
# first with probability σ(R_w − R_l), σ(x) = 1/(1 + e⁻ˣ). In the difference, β log Z cancels (it is
# the same for all answers to one prompt). What is left is the margin m, and the loss is minus the
# logarithm of the probability of what people chose (eq. 7):
#
#     m  =  R_w − R_l  =  β (s_w − s_l)               L  =  −log σ(m)
#
# ## Step 2: DPO's weights
# The slope of σ is σ (1 − σ), and 1 − σ(m) = σ(−m). So
#
#     ∂L/∂m    =  −σ′(m) / σ(m)  =  −(1 − σ(m))  =  −σ(−m)
#     −∂L/∂l_w =   β σ(−m)                          (∂m/∂l_w = β: l_w stands in s_w)
#     −∂L/∂l_l =  −β σ(−m)                          (∂m/∂l_l = −β)
#
# and every token of an answer gets the push on its answer, since l = Σ_t l_t. As hard down as up.
# And the loss knows nothing but a difference: lower both log-probs by 50, which makes both answers
# impossible, and it does not notice:

# %%
one = Batch(mask=torch.ones(2, 1, 1, dtype=torch.bool), ref_logps=torch.tensor([[-1.2], [-0.43]]))
for lower in 0.0, 50.0:
    logps = torch.tensor([-0.5, -4.0]).view(2, 1, 1) - lower                # (A, B, T)
    loss, weights, _ = METHODS["dpo"](beta=0.1).weigh(logps, one)
    m = 0.1 * float((logps[0] + 1.2) - (logps[1] + 0.43))
    up, down = weights.flatten().tolist()
    print(f"log-probs {logps.flatten().tolist()}:  loss {loss:.4f}  weights {up:+.4f} {down:+.4f}  "
          f"β σ(−m) = {0.1 / (1 + math.exp(m)):.4f}")

# %% [markdown]
# ## Exercise 1 ●○○ (5 minutes): `dpo`
# Step 2 in code, in `lessons/mine.py`: from the log-probs of both answers, under policy and
# reference, the push on each. If your function is right, it will do the training below.
#
# <details><summary>Hint</summary>
#
# `torch.sigmoid(-m)`. β occurs twice, inside of m and in front.
# </details>

# %%
dpo_verdict = check.dpo(mine.dpo)
print(dpo_verdict)

# %% [markdown]
# ## Step 3: ASFT's loss and its weights
# Let a = l/n be the mean log-prob of an answer's n tokens, p = eᵃ the (geometric) mean of their
# probabilities, and O = p/(1 − p) the *odds*: 1 for a coin, 9 for p = 0.9, without bound near 1.
# ASFT adds to SFT what a classifier would say about each answer alone: this one yes, that one no.
#
#     L  =  −a_w  +  λ [ −log σ(log O_w) − log σ(−log O_l) ]
#
# The sigmoid undoes the logarithm of the odds:
#
#     σ(log O)   =  1 / (1 + e^{−log O})  =  1 / (1 + 1/O)         (what σ is; e^{−log O} = 1/O)
#                =  O / (1 + O)                                    (multiply above and below by O)
#                =  [p/(1 − p)] / [1/(1 − p)]  =  p                (1 + O = (1 − p + p)/(1 − p))
#     σ(−log O)  =  1 − σ(log O)  =  1 − p                         (σ(−x) = 1 − σ(x))
#
# Put both in, with log p_w = a_w, and no odds are left:
#
#     L  =  −(1 + λ) a_w  −  λ log(1 − p_l)
#
# Likelihood for the chosen answer; for the rejected one the *unlikelihood* of lesson 03. The
# slopes, by ∂p/∂a = p because p = eᵃ:
#
#     −∂L/∂a_w  =  1 + λ
#     −∂L/∂a_l  =  λ · ∂/∂a_l log(1 − p_l)  =  −λ p_l / (1 − p_l)
#
# and each of the n tokens of an answer gets 1/n of it. Each answer is pushed by what is known of it
# alone. The loss as a paper types it and autograd, and then the short form, in float32:

# %%
for a_l in -1.0, -1e-3, -1e-8:
    a = torch.tensor([-0.5, a_l], requires_grad=True)
    log_odds = (a.exp() / (1 - a.exp())).log()
    typed = -a[0] - 0.1 * (log_odds[0].sigmoid().log() + (-log_odds[1]).sigmoid().log())
    slopes = [round(-float(slope), 4) for slope in torch.autograd.grad(typed, a)[0]]
    loss, weights, _ = METHODS["asft"](lam=0.1).weigh(a.detach().view(2, 1, 1), one)
    short = [round(float(w), 4) for w in weights.flatten()]
    print(f"a_l = {a_l:6g}: typed {float(typed.detach()):.4f} {slopes},  short {loss:.4f} {short}")

# %% [markdown]
# At −1e-8 the typed form is no number any more, because 1 − eᵃ has lost all its digits. One
# release cuts p off at 1 − 1e-7: a push of the wrong size. (The paper's β, 0.1, is our λ.)
#
# ## Exercise 2 ●●○ (10 minutes): `asft`
# ASFT's two pushes, from the mean log-probs. Mind what happens at p → 0, ½ and 1.
#
# <details><summary>Hint</summary>
#
# p/(1 − p) = 1/(1/p − 1) = 1/(e⁻ᵃ − 1), and `torch.expm1(x)` is eˣ − 1 with all its digits.
# </details>

# %%
asft_verdict = check.asft(mine.asft)
print(asft_verdict)

# %% [markdown]
# ## Step 4: is the rejected answer pushed harder?
# The ASFT paper (section 4.1) says yes, of DPO, and compares the slopes in the *probabilities*.
# Since ∂l/∂p = 1/p, for answers of one token and by size,
#
#     |∂L/∂p_w| = β σ(−m) / p_w        |∂L/∂p_l| = β σ(−m) / p_l     rejected ÷ chosen = p_w / p_l
#
# In *log-probs* the two are equal, always: that was step 2. But a gradient enters the network at
# neither of these. It enters at the *logits* (lesson 03), as weight · (softmax − onehot), and there
# it depends on where the two answers stand. Let `up` and `down` be the sizes of the two weights.
#
# * *In two contexts*, two rows of logits: a token of probability p moves its row by
#   weight · (onehot − softmax). That is a long arrow where p is small and a short one where p is
#   almost 1 already. So the unlikelier answer has the larger push again. (We give both rows the
#   same probabilities, to have one table.)
# * *In one context*, one row: the two answers begin alike and part at this token. Their arrows add
#   up, to up · (onehot_w − softmax) − down · (onehot_l − softmax). The logit of w rises by
#   up · (1 − p_w) + down · p_w, and that of l falls by up · p_l + down · (1 − p_l). If up = down,
#   the softmax parts cancel, and both move equally far.
#
# With three logits, for w, for l, and for the rest:

# %%
def ratios(up, down, p_w, p_l):
    """Rejected ÷ chosen: in p, in log p, at the logits of two contexts and of one."""
    rest = 1 - p_w - p_l
    length_w, length_l = math.hypot(1 - p_w, p_l, rest), math.hypot(p_w, 1 - p_l, rest)
    together = (up * p_l + down * (1 - p_l)) / (up * (1 - p_w) + down * p_w)
    return down / p_l / (up / p_w), down / up, down * length_l / (up * length_w), together


print(f"{'rejected ÷ chosen':28} {'in p':>8} {'in log p':>8} {'logits: 2':>9} {'1 context':>9}")
for p_w, p_l in (0.30, 0.65), (0.65, 0.30), (0.95, 0.01):
    fading = 0.1 * p_l / (1 - p_l)
    for name, up, down in ("DPO", 1, 1), ("ASFT", 1.1, fading), ("ASFT's second term", 0.1, fading):
        numbers = "".join(f"{x:9.3f}" for x in ratios(up, down, p_w, p_l))
        print(f"{name:18} {p_w:.2f} {p_l:.2f}{numbers}")

# %% [markdown]
# Read DPO's rows. When the chosen answer has won (0.95 against 0.01), the rejected one's slope in p
# is 95 times the chosen one's, its push at the logits of two contexts 21 times, and in one context
# the two are equal. “Is it balanced?” has no answer until you say in which coordinate.
#
# What ASFT does shows in log p: its push on the rejected answer fades with the odds p_l/(1 − p_l).
# (In p it does not: the slope there is divided by p_l, which shrinks as fast. And in one context
# 0.214 is what up · p_l leaves: the *chosen* answer's push.) DPO's β σ(−m) fades only when the
# margin m = β (s_w − s_l) is large. With β = 0.1, a margin of 3 takes 30 nats. The chosen answer
# brings about 1.2 of them, since log 0.29 = −1.2 and a log-prob ends at 0. The rest must come from
# pushing the rejected answer down, on and on.
#
# ## Step 5: train
# Pairs from the small GPT's world: “9.9>9.11” is right and chosen, “9.11>9.9” is rejected. The two
# answers have the same tokens in another order, so each falls into three stretches, here called
# *places*. The shared **opening** “9.” is the same text behind the same prompt. At the **fork**,
# “9” against “1”, both answers still stand in one context. **Behind** it each has its own.

# %%
base, tokenizer = check.base_model(args)
data = {}
for seed in [0] if args.fast else [0, 1, 2]:
    pairs = arena.fine_tuning_data(tokenizer, seed, 0.0, None)[: 64 if args.fast else 384]
    add_reference(base, pairs, micro_batch=64, progress=False)      # one number per answer, once
    asked = arena.Exam(tokenizer, seed).curve                       # pairs that nobody trains on
    with torch.no_grad():
        ref_logps = batch_logps(base, asked).sum(-1).double()
    data[seed] = pairs, replace(asked, ref_logps=ref_logps)

# %%
@torch.no_grad()
def look(model, method, asked):
    """Log-probs (3 places, 2 answers), pushes per token (2,), P(chosen, rejected, neither)."""
    logps = batch_logps(model, asked)                                       # (2, B, T)
    _, weights, _ = method.weigh(logps, asked)
    pushes = weights.sum((1, 2)) / asked.mask.sum((1, 2)) * len(asked)      # (2,)
    chosen, rejected = logps.sum(-1).exp().mean(1).tolist()
    return split(logps, asked).mean(-1), pushes, (chosen, rejected, 1 - chosen - rejected)

# %%
def train(method, seed):
    """Train a copy of the small GPT → the model, and (update, what is measured) as it goes."""
    (pairs, asked), model = data[seed], copy.deepcopy(base)
    points = [(0, *look(model, method, asked))]
    recipe = Recipe(epochs=1 if args.fast else 4, micro_batch=32, lr=1e-3, seed=seed)
    for record in fit(model, method, pairs, recipe):
        if record["step"] % 4 == 0 or args.fast:
            points.append((record["step"], *look(model, method, asked)))
    return model, points

# %% [markdown]
# All start from the same model, read the same pairs in the same order, and take the same steps.
# Each line is a seed: other questions. An answer that is not one of the two is *neither*.

# %%
methods = {"sft": METHODS["sft"](), "dpo": own.method("dpo", mine.dpo, dpo_verdict),
           "asft": own.method("asft", mine.asft, asft_verdict)}
runs, tuned = {}, {"before": base}
for name, method in methods.items():
    runs[name] = []
    for seed in data:
        tuned[name], points = train(method, seed)
        runs[name].append(points)
        (w0, l0), (w1, l1) = (points[i][1].sum(0).tolist() for i in (0, -1))
        print(f"{name:4}  log-probs: chosen {w0:5.2f} → {w1:5.2f}   "
              f"rejected {l0:5.2f} → {l1:6.2f}   P(neither) {points[-1][3][2]:.3f}")

# %% [markdown]
# And what do the models say, in words? Three answers drawn from each, to two questions:

# %%
asked_aloud = ["9.11 or 9.9? ", "4.7 or 4.25? "]
for name, model in tuned.items():
    print(name)
    check.talk(model, tokenizer, asked_aloud)

# %% [markdown]
# ## Step 6: where it falls
# Split the change of the chosen answer's log-prob by place, seed by seed:

# %%
def change(points):
    """Of the chosen answer's log-prob from first to last, at every place: (3,) nats."""
    return (points[-1][1] - points[0][1])[:, 0]


print(f"{'change of the chosen answer':28}" + "".join(f"{place:>9}" for place in PLACES))
for name in methods:
    for points in runs[name]:
        print(f"{name:28}" + "".join(f"{x:+9.2f}" for x in change(points)))

# %% [markdown]
# At the fork DPO's chosen answer *rises*: there the two answers compete for one distribution, and
# the chosen one wins. It falls elsewhere. And there nothing pushes it down. On the opening the two
# pushes meet on the same tokens in the same context and cancel exactly. Behind the fork the chosen
# answer's tokens are pushed *up*. So what pulls them down must come from pushes on other tokens,
# through the parameters that all share. To test it, train with DPO's pushes *at the fork alone*:
# equal and opposite, on two logits of one row, and no other token of any answer is pushed at all.

# %%
class AtTheFork(METHODS["dpo"]):
    """DPO without its pushes on the opening and behind the fork."""

    def weigh(self, logps, batch):
        loss, weights, info = super().weigh(logps, batch)
        return loss, weights * places(batch)[PLACES.index("fork")], info


for seed in data:
    _, points = train(AtTheFork(), seed)
    print(f"{'dpo, at the fork alone':28}" + "".join(f"{x:+9.2f}" for x in change(points))
          + f"   P(neither) {points[-1][3][2]:.3f}")

# %% [markdown]
# Two balanced pushes, and the text *behind* them is ruined; the opening falls too. A logit cannot
# be moved alone: the step goes into matrices that make every other logit as well. The full DPO,
# which pushes the chosen answer up behind the fork too, loses less. But these pushes come late: at
# its own logit a push up is worth weight · (1 − p), nearly nothing while p is near 1, as it is for
# the copied digits. And DPO goes on at the fork.
#
# ## The picture
# Above, the log-probs, with arrows as long as the push per token, on one scale for all panels.
# Below, what the chosen answer has won or lost at each place.

# %%
whose = [name for name, verdict in (("DPO", dpo_verdict), ("ASFT", asft_verdict))
         if check.is_right(verdict)]
check.show(pictures.absolutely(runs, change, PLACES, whose), "06")

# %%
def means(run, when):
    """Over questions and seeds: P(chosen), P(rejected), P(neither)."""
    return torch.tensor([points[when][3] for points in run]).mean(0).tolist()


print("Your guess? Mean probabilities     chosen   rejected    neither")
for name, when in ("sft", 0), ("sft", -1), ("dpo", -1), ("asft", -1):
    numbers = "".join(f"{x:11.3f}" for x in means(runs[name], when))
    print(f"  {'after ' + name if when else 'before':26}" + numbers)

# %% [markdown]
# * *The arrows.* SFT's never change, and there are none on the rejected answer. DPO's two are
#   equally long at every moment, and shrink together as the margin grows. ASFT's push on the
#   rejected answer begins as the longest of all. Its p is a mean over nine tokens, of which the
#   model knows eight: about e^{−0.43/9} = 0.95, odds of 20. (For the one token of step 4, 0.65 has
#   odds of 1.9.) Soon it is a small part of the push on the chosen answer.
# * *SFT stands beside them.* The rejected answer falls under SFT too, at the fork, through the
#   softmax, and the chosen one stays up. So it need not be ASFT's second term that holds it up:
#   ASFT *contains* SFT, a push up on every token that nothing cancels. The second term adds a
#   rejected answer that falls further, and costs a little: more goes to neither than under SFT.
# * *Falling is not losing.* Of the two answers DPO prefers the right one by far, and the chosen
#   answer's mean *probability* rises while its mean log-prob falls: a logarithm counts most where
#   an answer is all but lost. What DPO costs is what goes to neither.
#
# *Without a reference* one saves a pass over the data before training, `add_reference` above. The
# price: nothing ties the policy to where it began.
#
# ## Try
# * `METHODS["dpo"](beta=1.0)`: a margin of a few nats is enough. What changes, and where?
# * "orpo", "simpo" or "ipo" in `methods`. Where does each let go? (`methods/preference.py` begins
#   with a table.) `python -m minialign study fall` takes the fall further apart, on more seeds.
#
# **Next:** 07 pushes down what the model itself would say. No pairs needed.

# %%
# region Solution: unfold when you have tried
def dpo(l_w, l_l, ref_w, ref_l, beta):
    margin = beta * ((l_w - ref_w) - (l_l - ref_l))
    push = beta * torch.sigmoid(-margin)
    return push, -push


def asft(a_w, a_l, lam):
    return torch.full_like(a_w, 1 + lam), -lam / torch.expm1(-a_l)
# endregion
