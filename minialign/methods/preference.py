"""Pairwise preference methods: one theme, and for each method its paper and a function `pair`.

The theme: L = mean over pairs (wanted answer w, rejected answer l) of a cost of their scores s,
plus c times the negative log-likelihood (NLL) of the wanted answer.

               score s        margin z                           cost            c · NLL of w
    DPO, SPIN  r = l − l_ref  β (r_w − r_l)                      −log σ(z)       –
    DPO-p      r              β (r_w − r_l − λ max(0, −r_w))     −log σ(z)       –
    R-DPO      r              β (r_w − r_l) + α (n_w − n_l)      −log σ(z)       –
    IPO        r or r/n       r_w − r_l                          (z − 1/2τ)²     –
    CPO        l              β (l_w − l_l)                      −log σ(z)       α · token mean, sum
    SLiC       l              l_w − l_l                          max(0, δ − z)   λ · sum
    SimPO      a = l/n        β (a_w − a_l) − γ                  −log σ(z)       –
    SimPO-SFT  a              β (a_w − a_l) − γ                  −log σ(z)       w · token mean
    ORPO       a              log O_w − log O_l,  O = eᵃ/(1−eᵃ)  −λ log σ(z)     1 · mean over w

l is the log-prob of an answer, n its length, l_ref the same log-prob under a frozen reference. All
derivations below use one line, (−log σ)′(z) = −σ(−z), and the chain rule through the margin z.

Several rejected answers to one prompt: the mean over the pairs (wanted, each of them); with one it
is the method of the paper. Answers ranked as a list: rrhf.py. Answers judged one by one: kto.py.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from minialign.methods.method import (
    Method,
    below_one,
    log1mexp,
    reference,
    share_of_negatives,
    spread,
    sums_and_lengths,
)
from minialign.methods.sft import SFT
from minialign.settings import setting


class Pairwise(Method):
    """What pairwise methods share: scores, the mean over pairs, the likelihood term.

    A method says what a pair costs (`pair`) and what likelihood is added (`likelihood`). The score
    of an answer is its log-prob l, or r = l − l_ref where the method needs the reference; with
    `per_token` it is divided by the length.
    """

    needs: ClassVar = ("rejected",)
    reads_others: ClassVar = True
    per_token: ClassVar[bool] = False                   # scores are means over tokens, not sums

    def pair(self, s_w: Tensor, s_l: Tensor, n_w: Tensor, n_l: Tensor
             ) -> tuple[Tensor, Tensor, Tensor]:
        """Cost of every pair, push on s_w = −∂cost/∂s_w, push on s_l = −∂cost/∂s_l, (K, B) each.

        Scores and lengths are (1, B) for the wanted answers, (K, B) for the rejected ones.
        """
        raise NotImplementedError

    def likelihood(self) -> tuple[float, str]:
        """Weight c of the NLL of the wanted answers, and SFT's name for how it is averaged."""
        return 0.0, "seq_mean"

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch)                               # (A, B)
        share = share_of_negatives(n, batch, l.dtype)                       # (K, B)
        n = n.to(l.dtype)
        N = batch.counts.examples

        # The score of every answer. An absent one gets the score 0 and has share 0.
        s = l                                                               # (A, B)
        if "reference" in self.needs:
            s = l - reference(self, batch, l)
        unit = torch.ones_like(n)
        if self.per_token:
            unit = n.clamp(min=1)
        s = torch.where(n > 0, s / unit, 0.0)

        # The cost and the pushes of every pair, then the mean over the pairs of an example.
        cost, up, down = self.pair(s[:1], s[1:], n[:1], n[1:])              # (K, B)
        push = torch.cat([(share * up).sum(0, keepdim=True), share * down]) / unit  # (A, B)
        each = (share * cost).sum(0)                                        # (B,)
        loss, weights = each.sum() / N, spread(push, batch) / N
        info = {
            "loss_per_example": each,
            "margin": (share * (s[:1] - s[1:])).sum(0),
            "wins": (share * (s[:1] > s[1:])).sum(0),
        }

        # The likelihood of the wanted answer is SFT, c times.
        c, reduction = self.likelihood()
        if c == 0:
            return loss, weights, info
        nll, sft_weights, sft_info = SFT(reduction).weigh(logps, batch)
        if "loss_per_example" in sft_info:
            info["loss_per_example"] = each + c * sft_info["loss_per_example"]
        else:
            del info["loss_per_example"]                # a mean over tokens is none over examples
        return loss + c * nll, weights + c * sft_weights, info


def logistic(z: Tensor) -> tuple[Tensor, Tensor]:
    """−log σ(z), and minus its slope, σ(−z).

    The logarithm is computed whole: σ(z) alone is 0 for z < −104 in float32, its logarithm −∞.
    """
    return -logsigmoid(z), torch.sigmoid(-z)


# ------------------------------------------------------------- measured from a frozen reference

@dataclass
class DPO(Pairwise):
    """Direct preference optimization (arXiv 2305.18290).

    The policy that maximises E[reward] − β KL(π ‖ π_ref) is π ∝ π_ref exp(reward/β). Solved for
    the reward: reward = β r + (a term of the prompt alone), with r = l − l_ref. In the chance that
    w beats l (Bradley–Terry), σ(reward_w − reward_l), that term cancels; minus the logarithm of the
    chance is the loss:
        z = β (r_w − r_l),         L = −(1−ε) log σ(z) − ε log σ(−z)
    ε = `label_smoothing`, the share of pairs believed to be labelled the wrong way round. By
    (−log σ)′(z) = −σ(−z), and ∂z/∂r_w = β, ∂z/∂r_l = −β:
        g = −∂L/∂z = (1−ε) σ(−z) − ε σ(z)         −∂L/∂r_w = β g          −∂L/∂r_l = −β g

    By eye:    at the start r = 0, and each answer is pushed by β (½ − ε). A token of l goes down
               exactly as hard as one of w goes up.
    Careful:   only the difference is trained: both log-probs may fall. In probabilities
               |∂L/∂p_w| : |∂L/∂p_l| = p_l : p_w, so the unlikelier answer has the larger gradient:
               soon that is the rejected one. So it is at the logits, where w · (softmax − onehot)
               enters, if the answers stand in two contexts; where they share one, the softmax
               parts cancel, and tokens that both begin with get no push at all. Sums over tokens,
               no length normalisation.
    """

    needs: ClassVar = ("rejected", "reference")

    beta: float = setting(0.1, "price of leaving the reference; small lets it go far", least=0)
    label_smoothing: float = setting(
        0.0, "share of pairs taken to be labelled the wrong way round", least=0, below=0.5)

    def pair(self, r_w, r_l, n_w, n_l):
        z = self.beta * (r_w - r_l)
        cost, g = logistic(z)
        eps = self.label_smoothing
        if eps > 0:                             # at ε = 0 the other cost may be ∞: 0 · ∞ is NaN
            swapped_cost, swapped_g = logistic(-z)
            cost = (1 - eps) * cost + eps * swapped_cost
            g = (1 - eps) * g - eps * swapped_g
        return cost, self.beta * g, -self.beta * g


@dataclass
class SPIN(DPO):
    """Self-play fine-tuning (arXiv 2401.01335): DPO whose rejected answers are the model's own.

    Objective and gradient are DPO's; the rejected answer is drawn from the reference, so no labels
    are needed. The game ends where the policy's answers cannot be told from the wanted ones.

    By eye:    right after sampling the policy is the reference: z = 0 for every pair, and a good
               sample is pushed down as hard as a bad one.
    Careful:   the reference must be the model that wrote the negatives, so a new round of play
               draws both anew.
    Differs:   β is 0.1 in released code, 5 in its last round; it draws one sample per prompt.
    """

    needs: ClassVar = ("negatives", "reference")


@dataclass
class DPOP(Pairwise):
    """DPO-positive, DPO-p (arXiv 2402.13228): DPO that is fined when w falls below the reference.

        z = β (r_w − r_l − λ max(0, −r_w)),           L = −log σ(z)
    The fine adds βλ to ∂z/∂r_w = β where it is due, r_w < 0; the rest is DPO's chain rule:
        −∂L/∂r_w = σ(−z) β (1 + λ [r_w < 0])          −∂L/∂r_l = −σ(−z) β

    By eye:    while r_w ≥ 0 this is DPO; below, w is pushed 1 + λ times as hard as l.
    Careful:   at r_w = 0, hence at the very start, the slope jumps; there we take DPO's side.
    Differs:   the fine sits inside β and inside σ. The first arXiv version printed the brackets
               wrong, and some code follows it. λ 50 and β 0.3 are said to be the paper's; released
               code has λ 0.1 to 5.
    """

    needs: ClassVar = ("rejected", "reference")

    beta: float = setting(0.3, "price of leaving the reference; small lets it go far", least=0)
    lam: float = setting(50.0, "weight of the fine for falling below the reference", least=0)

    def pair(self, r_w, r_l, n_w, n_l):
        fine = (-r_w).clamp(min=0)
        fined = (r_w < 0).to(r_w.dtype)
        z = self.beta * (r_w - r_l - self.lam * fine)
        cost, g = logistic(z)
        return cost, g * (self.beta * (1 + self.lam * fined)), -g * self.beta


@dataclass
class RDPO(Pairwise):
    """R-DPO, length-regularised DPO (arXiv 2403.19159).

    A cost α per token in DPO's reward problem, reward − α n, moves the margin of the pair:
        z = β (r_w − r_l) + α (n_w − n_l),            L = −log σ(z)                       (eq. 9)
    Lengths are constants, so the chain rule is DPO's:
        −∂L/∂r_w = β σ(−z)                            −∂L/∂r_l = −β σ(−z)

    By eye:    if the wanted answer is the longer one, z grows and the pair is trusted less: its
               length may be why it won.
    Differs:   the SimPO paper's table and some code print − α (n_w − n_l), which trusts such pairs
               more. α 0.05 to 0.1 is usual.
    """

    needs: ClassVar = ("rejected", "reference")

    beta: float = setting(0.1, "price of leaving the reference; small lets it go far", least=0)
    alpha: float = setting(0.05, "price of a token of length", least=0)

    def pair(self, r_w, r_l, n_w, n_l):
        z = self.beta * (r_w - r_l) + self.alpha * (n_w - n_l)
        cost, g = logistic(z)
        return cost, self.beta * g, -self.beta * g


@dataclass
class IPO(Pairwise):
    """Identity preference optimization (arXiv 2310.12036): a target for the margin.

    −log σ(z) rewards ever larger margins, and a label that never varies drives z → ∞. A square
    stops it at 1/2τ:
        h = r_w − r_l,     L = (h − 1/2τ)²
        −∂L/∂r_w = −2 (h − 1/2τ)                      −∂L/∂r_l = 2 (h − 1/2τ)

    By eye:    at the start h = 0: the push is 1/τ. Beyond the target it turns round, and the wanted
               answer is pushed down.
    Careful:   the formula sums, which asks the same margin of long and short answers. Divided by
               the length (`length_normalize`), scores and so pushes are means.
    Differs:   half of the code sums; TRL, after asking the authors, and HALOs divide. HALOs divides
               by the number of tokens where policy and reference differ: 0/0 at the start.
    """

    needs: ClassVar = ("rejected", "reference")

    tau: float = setting(0.1, "sets the margin aimed at, 1/(2 tau)", above=0)
    length_normalize: bool = setting(False, "mean instead of summed log-probs")

    @property
    def per_token(self):
        return self.length_normalize

    def pair(self, r_w, r_l, n_w, n_l):
        h = r_w - r_l
        miss = h - 1 / (2 * self.tau)
        return miss**2, -2 * miss, 2 * miss


# ---------------------------------------------------------------------------- without a reference

@dataclass
class CPO(Pairwise):
    """Contrastive preference optimization (arXiv 2401.08417).

    DPO with a uniform reference, whose log-prob is the same for every answer and cancels; in its
    place likelihood holds the policy:
        z = β (l_w − l_l),         L = −log σ(z) + α NLL(w)
        −∂L/∂l_w = β σ(−z) + α k                      −∂L/∂l_l = −β σ(−z)
    with SFT's push k = 1 (seq_sum) or N/Σn_w (token_mean). `pair` has the first term only.

    By eye:    without the likelihood term up and down would cancel, as in DPO; with it the wanted
               answer cannot be given up.
    Careful:   under seq_sum the same α weighs about n times as much as under token_mean.
    Differs:   TRL averages over all tokens of the batch, other code sums over the answer (`nll`).
               The authors' present code is a later method, with an adaptive penalty on l.
    """

    beta: float = setting(0.1, "how large a margin is enough, as 1/beta", least=0)
    alpha: float = setting(1.0, "weight of the likelihood term", least=0)
    nll: str = setting(
        "token_mean", "what the likelihood term averages: all tokens, or answers by their sum",
        choices=("token_mean", "seq_sum"))

    def pair(self, l_w, l_l, n_w, n_l):
        z = self.beta * (l_w - l_l)
        cost, g = logistic(z)
        return cost, self.beta * g, -self.beta * g

    def likelihood(self):
        return self.alpha, self.nll


@dataclass
class SLiC(Pairwise):
    """SLiC-HF, sequence likelihood calibration (arXiv 2305.10425): a margin of δ nats is enough.

        h = δ − l_w + l_l,         L = max(0, h) − λ l_w
        −∂L/∂l_w = [h > 0] + λ                        −∂L/∂l_l = −[h > 0]
    `pair` is the hinge, `likelihood` the rest.

    By eye:    a pair is pushed with full force until its margin is δ, then not at all; the
               likelihood term never stops.
    Careful:   at h = 0 the slope jumps; there the margin counts as reached, and nothing is pushed.
    Differs:   sums, as in the formula. Released code also has a length-normalised form, and one
               that adds per-token to per-answer numbers: a wrong shape, or silently a wrong loss.
    """

    delta: float = setting(1.0, "margin that is enough, in nats", least=0)
    lam: float = setting(0.1, "weight of the likelihood term", least=0)

    def pair(self, l_w, l_l, n_w, n_l):
        h = self.delta - (l_w - l_l)
        open_ = (h > 0).to(h.dtype)
        return h.clamp(min=0), open_, -open_

    def likelihood(self):
        return self.lam, "seq_sum"


@dataclass
class SimPO(Pairwise):
    """Simple preference optimization (arXiv 2405.14734): DPO on mean log-probs, no reference.

        z = β (a_w − a_l) − γ,     a = l/n,           L = −log σ(z)
    γ is a target for the margin. It is a constant, so the chain rule is DPO's, and a = l/n gives
    each token 1/n of it:
        −∂L/∂a_w = β σ(−z)                            −∂L/∂a_l = −β σ(−z)

    By eye:    at a tie both are pushed by β σ(γ): a tie is not enough. Tokens of short answers are
               pushed harder than those of long ones.
    Careful:   nothing holds the wanted answer up: both may fall.
    Differs:   γ is what is subtracted, as in TRL. The paper's code asks for the ratio γ/β instead
               (β 2 and ratio ¼ there are our defaults).
    """

    per_token: ClassVar[bool] = True

    beta: float = setting(2.0, "how sharply the cost answers to the margin", least=0)
    gamma: float = setting(0.5, "target margin, subtracted from beta times the difference", least=0)

    def pair(self, a_w, a_l, n_w, n_l):
        z = self.beta * (a_w - a_l) - self.gamma
        cost, g = logistic(z)
        return cost, self.beta * g, -self.beta * g


@dataclass
class SimPOSFT(SimPO):
    """SimPO plus likelihood: `sft_weight` in SimPO's code, "SimPO-SFT" (w = 1) in the DFT paper.

        L = −log σ(z) − w N l_w / Σn_w
        −∂L/∂l_w = β σ(−z)/n_w + w N/Σn_w             −∂L/∂l_l = −β σ(−z)/n_l
    for one of N pairs, whose mean is the loss. The first term is SimPO's `pair`.

    By eye:    w = 0 is SimPO; where the margin is won, z → ∞, only SFT (token mean) is left.
    Careful:   the likelihood is a mean over the tokens of the batch, the rest one over its pairs.
    """

    sft_weight: float = setting(1.0, "weight of the likelihood term", least=0)

    def likelihood(self):
        return self.sft_weight, "token_mean"


@dataclass
class ORPO(Pairwise):
    """Odds ratio preference optimization (arXiv 2403.07691).

        z = log O_w − log O_l,     O = p/(1−p),  p = eᵃ,  a = l/n,        L = −a_w − λ log σ(z)
    The slope of log O in a, 1/(1−p), is infinite at p = 1, and σ(−z) is 0 there. To see that their
    product is neither, write q = 1 − p and
        W = p_w q_l,     R = p_l q_w,     D = W + R         so that     σ(z) = W/D,  σ(−z) = R/D
        −∂L/∂a_w = 1 + λ σ(−z)/q_w = 1 + λ p_l/D
        −∂L/∂a_l = −λ σ(−z)/q_l = −λ R/(D q_l)
    `pair` is the term with λ, all in logarithms; `likelihood` the rest.

    By eye:    D ≤ 1, so ORPO = ASFT + λ log D ≤ ASFT. When w wins clearly only SFT is left, where
               ASFT goes on pushing by λ.
    Careful:   finite at p_w = 1, where released code gives NaN. At p_l = 1 the loss is infinite: we
               take the nearest p below 1 (`below_one`).
    Differs:   λ is 0.1 in TRL, 0.25 in the IFT paper, 1 in the authors' code. The likelihood is the
               mean over the answer, as in IFT's code; TRL's and the authors' include the prompt.
    """

    per_token: ClassVar[bool] = True

    lam: float = setting(0.1, "weight of the odds ratio term", least=0)

    def pair(self, a_w, a_l, n_w, n_l):
        a_l = below_one(a_l)
        log_q_w, log_q_l = log1mexp(a_w), log1mexp(a_l)
        log_W, log_R = a_w + log_q_l, a_l + log_q_w
        log_D = torch.logaddexp(log_W, log_R)
        cost = -self.lam * logsigmoid(log_W - log_R)
        up = self.lam * (a_l - log_D).exp()
        down = -self.lam * (log_R - log_q_l - log_D).exp()
        return cost, up, down

    def likelihood(self):
        return 1.0, "seq_mean"
