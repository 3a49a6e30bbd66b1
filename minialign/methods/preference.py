"""Pairwise preference methods: one theme, L = f(z) + c · NLL. What varies: score s, margin z, its cost f, likelihood.

                   score s          margin z                             cost f         + NLL of the wanted answer
    DPO, SPIN      r = l − l_ref    β (s_w − s_l)                        −log σ(z)      –
    DPO-p          r                β (s_w − s_l − λ max(0, −s_w))       −log σ(z)      –
    R-DPO          r                β (s_w − s_l) + α (n_w − n_l)        −log σ(z)      –
    IPO            r or r/n         s_w − s_l                            (z − 1/2τ)²    –
    CPO            l                β (s_w − s_l)                        −log σ(z)      α · mean over tokens, or sum
    SLiC           l                s_w − s_l                            max(0, δ − z)  λ · sum
    SimPO (-SFT)   a = l/n          β (s_w − s_l) − γ                    −log σ(z)      – (w · mean over tokens)
    ORPO           a                log O_w − log O_l,  O = eᵃ/(1−eᵃ)    −λ log σ(z)    1 · mean over the answer

l = log-prob of an answer (w wanted, l rejected), n its length, l_ref the same under a frozen reference. The chain rule gives
    −∂L/∂s_w = −f′(z) ∂z/∂s_w           −∂L/∂s_l = −f′(z) ∂z/∂s_l           where f = −log σ has −f′(z) = σ(−z),
so a row above is a whole method. Several negatives to one prompt: the loss is the mean over the pairs (wanted, each negative
present); with one negative that is the method of the paper. Answers ranked as a list: rrhf.py; judged one by one: kto.py.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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


class Pairwise(Method):
    """The theme. A variation says how an answer is scored, what margin a pair has, what it costs, what likelihood is added."""

    needs = ("rejected",)
    reads_others = True
    per_token = False       # scores are means over tokens, not sums

    def margin(self, s_w: Tensor, s_l: Tensor, n_w: Tensor, n_l: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """z (K, B), ∂z/∂s_w, ∂z/∂s_l from scores and lengths: w (1, B), l (K, B)."""
        raise NotImplementedError

    def f(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f(z) and −f′(z). −log σ(z) is computed whole: σ alone is 0 for z < −104 in float32, and its logarithm −∞."""
        return -F.logsigmoid(z), torch.sigmoid(-z)

    def likelihood(self) -> tuple[float, str]:
        """Weight and reduction of the SFT term."""
        return 0.0, "seq_mean"

    def pair(self, s_w: Tensor, s_l: Tensor, n_w: Tensor, n_l: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f, −∂f/∂s_w, −∂f/∂s_l of every pair, (K, B) each: the chain rule."""
        z, dz_w, dz_l = self.margin(s_w, s_l, n_w, n_l)
        f, push = self.f(z)
        return f, push * dz_w, push * dz_l

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch)                           # (A, B)
        share = share_of_negatives(n, batch, l.dtype)                   # (K, B)
        n = n.to(l.dtype)
        unit = n.clamp(min=1) if self.per_token else torch.ones_like(n)
        s = (l - reference(self, batch, l) if "reference" in self.needs else l) / unit
        s = torch.where(n > 0, s, 0.0)                                  # (A, B); an absent answer gets some score and share 0
        f, up, down = self.pair(s[:1], s[1:], n[:1], n[1:])             # (K, B)
        push = torch.cat([(share * up).sum(0, keepdim=True), share * down]) / unit     # −∂L/∂l  (A, B)
        N = batch.counts.examples
        each = (share * f).sum(0)                                       # (B,)
        loss, weights = each.sum() / N, spread(push, batch) / N
        info = {"loss_per_example": each, "margin": (share * (s[:1] - s[1:])).sum(0), "wins": (share * (s[:1] > s[1:])).sum(0)}
        c, reduction = self.likelihood()
        if c:
            nll, pull, sft_info = SFT(reduction).weigh(logps, batch)
            loss, weights = loss + c * nll, weights + c * pull
            if "loss_per_example" in sft_info:
                info["loss_per_example"] = each + c * sft_info["loss_per_example"]
            else:
                del info["loss_per_example"]                            # a mean over tokens is no mean over examples
        return loss, weights, info


# -------------------------------------------------------------------------------------------- measured from a frozen reference

@dataclass
class DPO(Pairwise):
    """Direct preference optimization (arXiv 2305.18290).

    The policy that maximises E[reward] − β KL(π ‖ π_ref) is π ∝ π_ref exp(reward/β), so reward = β r + (a term of the prompt).
    In the Bradley–Terry chance that w beats l, σ(reward_w − reward_l), that term cancels. Minus its logarithm is the loss:
        z = β (r_w − r_l),     r = l − l_ref,         L = −(1−ε) log σ(z) − ε log σ(−z)
    ε = `label_smoothing`: the share of pairs believed to be labelled the wrong way round. By (log σ)′(z) = σ(−z):
        g = −∂L/∂z = (1−ε) σ(−z) − ε σ(z)             −∂L/∂l_w = β g            −∂L/∂l_l = −β g
    By eye:    at the start r = 0, and each answer is pushed by β (½ − ε). A token of l goes down exactly as hard as one of w
               goes up.
    Careful:   only the difference is trained: both log-probs may fall. In probabilities |∂L/∂p_w| : |∂L/∂p_l| = p_l : p_w, so the
               unlikelier answer has the larger gradient: soon the rejected one, down. Sums, no length normalisation.
    """

    needs = ("rejected", "reference")
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; from 0.5 on labels would mean nothing, or the opposite")

    def margin(self, s_w, s_l, n_w, n_l):
        return self.beta * (s_w - s_l), self.beta, -self.beta

    def f(self, z):
        (f, push), (swapped, pull) = super().f(z), super().f(-z)
        eps = self.label_smoothing
        if eps == 0:
            return f, push                      # 0 · ∞ would be NaN for an answer of probability 0
        return (1 - eps) * f + eps * swapped, (1 - eps) * push - eps * pull


@dataclass
class SPIN(DPO):
    """Self-play fine-tuning (arXiv 2401.01335): DPO whose rejected answers are the reference's own. No labels.

    Objective and gradient are DPO's. The game ends where the policy's own answers cannot be told from the wanted ones.
    By eye:    right after sampling, policy = reference: z = 0 for every pair, however bad or good the sample.
    Careful:   the reference must be the model that wrote the negatives; a new iteration draws both anew. At first a good sample
               is pushed down as hard as a bad one. β is 0.1 in released code, 5 in its last iteration. One sample per prompt
               there.
    """

    needs = ("negatives", "reference")


@dataclass
class DPOP(Pairwise):
    """DPO-positive, DPO-p (arXiv 2402.13228): DPO that is fined when the wanted answer falls below the reference.

        z = β (r_w − r_l − λ max(0, −r_w)),           L = −log σ(z)
        −∂L/∂l_w = β σ(−z) (1 + λ [r_w < 0])          −∂L/∂l_l = −β σ(−z)
    By eye:    while r_w ≥ 0 this is DPO; below, the wanted answer is pushed 1 + λ times as hard as the rejected one.
    Careful:   the fine sits inside β and inside σ; the first arXiv version printed the brackets wrong, and some code follows it.
               At r_w = 0, hence at the very start, the slope jumps; there we take DPO's side. λ 50 and β 0.3 are said to be the
               paper's (released code: λ 0.1 to 5).
    """

    needs = ("rejected", "reference")
    beta: float = 0.3
    lam: float = 50.0

    def margin(self, s_w, s_l, n_w, n_l):
        z = self.beta * (s_w - s_l - self.lam * (-s_w).clamp(min=0))
        return z, self.beta * (1 + self.lam * (s_w < 0).to(s_w.dtype)), -self.beta


@dataclass
class RDPO(Pairwise):
    """R-DPO, length-regularised DPO (arXiv 2403.19159).

    A cost α per token in DPO's reward problem, reward − α n, moves the margin of the pair:
        z = β (r_w − r_l) + α (n_w − n_l),            L = −log σ(z)                                                (eq. 9)
        −∂L/∂l_w = β σ(−z)                            −∂L/∂l_l = −β σ(−z)
    By eye:    if the wanted answer is the longer one, z grows and the pair is trusted less: its length may be why it won.
    Careful:   the SimPO paper's table and some code print − α (n_w − n_l), which trusts such pairs more. α 0.05 to 0.1 is usual.
    """

    needs = ("rejected", "reference")
    beta: float = 0.1
    alpha: float = 0.05

    def margin(self, s_w, s_l, n_w, n_l):
        return self.beta * (s_w - s_l) + self.alpha * (n_w - n_l), self.beta, -self.beta


@dataclass
class IPO(Pairwise):
    """Identity preference optimization (arXiv 2310.12036): a target for the margin instead of "the more the better".

    −log σ(z) rewards ever larger margins, and a label that never varies drives z → ∞. A square stops it at 1/2τ:
        h = r_w − r_l,     L = (h − 1/2τ)²,           −∂L/∂r_w = −2 (h − 1/2τ)          −∂L/∂r_l = 2 (h − 1/2τ)
    By eye:    at the start h = 0: the push is 1/τ. Beyond the target it turns round, and the wanted answer is pushed down.
    Careful:   sums or means? The formula and half of the code sum, which asks the same margin of long and short answers; TRL,
               after asking the authors, and HALOs divide each r by its length: `length_normalize`. Then pushes are divided by n
               too. HALOs divides by the number of tokens where policy and reference differ: 0/0 at the start.
    """

    needs = ("rejected", "reference")
    tau: float = 0.1
    length_normalize: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.tau == 0:
            raise ValueError("tau is 0; the target margin 1/2τ would be infinite")

    @property
    def per_token(self):
        return self.length_normalize

    def margin(self, s_w, s_l, n_w, n_l):
        return s_w - s_l, 1.0, -1.0

    def f(self, z):
        miss = z - 1 / (2 * self.tau)
        return miss**2, -2 * miss


# -------------------------------------------------------------------------------------------- without a reference

@dataclass
class CPO(Pairwise):
    """Contrastive preference optimization (arXiv 2401.08417): DPO with a uniform reference, held in place by likelihood.

        z = β (l_w − l_l),         L = −log σ(z) + α NLL(w)
        −∂L/∂l_w = β σ(−z) + α k                      −∂L/∂l_l = −β σ(−z)               k = 1 (seq_sum) or N/Σn_w (token_mean)
    By eye:    without the likelihood term up and down would cancel, as in DPO; with it the wanted answer cannot be given up.
    Careful:   `nll`: TRL averages over all tokens of the batch, other code sums over the answer: α weighs n times as much.
               The authors' present code is a later method with an adaptive penalty on the rejected answer.
    """

    beta: float = 0.1
    alpha: float = 1.0
    nll: str = "token_mean"

    def __post_init__(self):
        super().__post_init__()
        if self.nll not in ("token_mean", "seq_sum"):
            raise ValueError(f"nll is {self.nll!r}; choose token_mean or seq_sum")

    def margin(self, s_w, s_l, n_w, n_l):
        return self.beta * (s_w - s_l), self.beta, -self.beta

    def likelihood(self):
        return self.alpha, self.nll


@dataclass
class SLiC(Pairwise):
    """SLiC-HF, sequence likelihood calibration (arXiv 2305.10425): a margin of δ nats is enough.

        h = δ − l_w + l_l,         L = max(0, h) − λ l_w
        −∂L/∂l_w = [h > 0] + λ                        −∂L/∂l_l = −[h > 0]
    By eye:    a pair is pushed with full force until its margin is δ, then not at all; the likelihood term never stops.
    Careful:   sums, as in the formula. Released code also has a length-normalised form, and one that adds per-token to per-answer
               numbers: a wrong shape, or silently a wrong loss.
    """

    delta: float = 1.0
    lam: float = 0.1

    def margin(self, s_w, s_l, n_w, n_l):
        return s_w - s_l, 1.0, -1.0

    def f(self, z):
        h = self.delta - z
        return h.clamp(min=0), (h > 0).to(z.dtype)

    def likelihood(self):
        return self.lam, "seq_sum"


@dataclass
class SimPO(Pairwise):
    """Simple preference optimization (arXiv 2405.14734): DPO on mean log-probs, no reference, with a target margin.

        z = β (a_w − a_l) − γ,     a = l/n,           L = −log σ(z)
        −∂L/∂a_w = β σ(−z)                            −∂L/∂a_l = −β σ(−z)               then 1/n per token
    By eye:    at a tie both are pushed by β σ(γ): a tie is not enough. Tokens of short answers are pushed harder than of long
               ones.
    Careful:   γ is what is subtracted. The paper's code asks for the ratio γ/β instead (β 2, ratio ¼: our defaults), TRL for γ.
               Nothing holds the wanted answer up: both may fall.
    """

    per_token = True
    beta: float = 2.0
    gamma: float = 0.5

    def margin(self, s_w, s_l, n_w, n_l):
        return self.beta * (s_w - s_l) - self.gamma, self.beta, -self.beta


@dataclass
class SimPOSFT(SimPO):
    """SimPO plus likelihood (`sft_weight` in the SimPO code; w = 1 is the row "SimPO-SFT" of the DFT paper).

        L = −log σ(z) − w N l_w / Σn_w,              −∂L/∂l_w = β σ(−z)/n_w + w N/Σn_w              (each times 1/N)
    By eye:    w = 0 is SimPO; where the margin is won, z → ∞, only SFT (token mean) is left.
    Careful:   the likelihood is a mean over the tokens of the batch, the rest a mean over its pairs.
    """

    sft_weight: float = 1.0

    def likelihood(self):
        return self.sft_weight, "token_mean"


@dataclass
class ORPO(Pairwise):
    """Odds ratio preference optimization (arXiv 2403.07691).

        z = log O_w − log O_l,     O = p/(1−p),  p = eᵃ,  a = l/n,          L = −a_w − λ log σ(z)
    The slope of log O in a, 1/(1−p), is infinite at p = 1, and σ(−z) is 0 there. Their product is neither: with q = 1 − p and
        W = p_w q_l,  R = p_l q_w,  D = W + R:        σ(z) = W/D,   σ(−z) = R/D,     L = −a_w − λ log σ(log W − log R)
        −∂L/∂a_w = 1 + λ σ(−z)/q_w = 1 + λ p_l/D                      −∂L/∂a_l = −λ σ(−z)/q_l = −λ R/(D q_l)
    By eye:    D ≤ 1, so ORPO = ASFT + λ log D ≤ ASFT. When w wins clearly, only SFT is left, where ASFT goes on pushing by λ.
    Careful:   finite at p_w = 1, where released code gives NaN. At p_l = 1 the loss is infinite: we take the nearest p below 1
               (`below_one`). λ is 0.1 in TRL, 0.25 in the IFT paper, 1 in the authors' code. The likelihood term is the mean
               over the answer, as in IFT's code; TRL's and the authors' run over the prompt as well.
    """

    per_token = True
    lam: float = 0.1

    def pair(self, a_w, a_l, n_w, n_l):
        a_l = below_one(a_l)
        log_q_w, log_q_l = log1mexp(a_w), log1mexp(a_l)                 # q = 1 − p
        log_W, log_R = a_w + log_q_l, a_l + log_q_w
        log_D = torch.logaddexp(log_W, log_R)
        f = -self.lam * F.logsigmoid(log_W - log_R)
        return f, self.lam * (a_l - log_D).exp(), -self.lam * (log_R - log_q_l - log_D).exp()

    def likelihood(self):
        return 1.0, "seq_mean"
