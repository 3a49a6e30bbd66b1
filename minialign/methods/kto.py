"""KTO: single answers marked good or bad, no pairs.

Each is judged against how far the policy has drifted from the reference on the whole.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from minialign import parallel
from minialign.data import Example, collate
from minialign.logps import add_reference, batch_logps
from minialign.methods.method import Method, reference, spread, sums_and_lengths
from minialign.settings import setting


@dataclass
class KTO(Method):
    """Kahneman–Tversky optimization (arXiv 2402.01306).

    r = l − l_ref, the log-ratio of an answer to a frozen reference, says what an answer is worth.
    People feel gains and losses against a reference point, and either ever less the larger it is;
    hence a sigmoid around z₀. The point is the policy's mean drift, its KL divergence from the
    reference, estimated on prompts with the answer to another prompt (`kl_logps`, `kl_ref_logps`):
        z₀ = max(0, mean(l_kl − l_ref,kl)) ≈ KL(π ‖ π_ref)             a constant: no gradient
        good answers (answer 0):     u = β (r − z₀),     L = λ_D (1 − σ(u))
        bad answers (all others):    v = β (z₀ − r),     L = λ_U (1 − σ(v))
    and the loss is the mean over all answers, good and bad together. By σ′ = σ(u) σ(−u):
        good: −∂L/∂l = λ_D β σ(u) σ(−u)              bad: −∂L/∂l = −λ_U β σ(v) σ(−v)

    By eye:    at the start r = z₀ = 0 and an answer is pushed by λβ/4, the most there is. Far from
               z₀, on either side, it is left alone: won, or given up.
    Careful:   gradient through z₀ would couple all answers (one release has it, and pushes twice as
               hard). An absent answer (empty mask) counts for nothing. With K bad answers per good
               one, λ_D between K and 1.5 K balances them (DFT paper).
    Differs:   the drift here is estimated on the next example's first answer, so on wanted answers
               only, wherever there are any. HALOs leaves answers with r = 0 out of its mean.
    """

    needs: ClassVar = ("reference",)
    reads_others: ClassVar = True
    allows_unpaired: ClassVar = True
    forwards: ClassVar = 2              # the drift takes a pass over the mismatched answers

    beta: float = setting(0.1, "how sharply gains and losses saturate, per nat", least=0)
    lambda_d: float = setting(1.0, "weight of good (desirable) answers", least=0)
    lambda_u: float = setting(1.0, "weight of bad (undesirable) answers", least=0)

    # By example number: its prompt with another prompt's answer, and that answer's reference.
    mismatched: dict[int, Example] = field(init=False, repr=False, default_factory=dict)

    def prepare_data(self, model, examples, max_len=None, progress=True):
        """References, and for every prompt the next example's first answer, cut to `max_len`."""
        if len(examples) < 2:
            raise ValueError(
                "kto judges answers against the drift on other prompts' answers; "
                "it needs at least two examples"
            )
        super().prepare_data(model, examples, max_len, progress)
        self.mismatched = {}
        for e, other in zip(examples, examples[1:] + examples[:1], strict=True):
            answer = next(answer for answer in other.answers if answer)
            if max_len is not None:
                answer = answer[: max(1, max_len - len(e.prompt))]
            self.mismatched[e.index] = Example(e.index, e.prompt, [answer])
        add_reference(model, list(self.mismatched.values()), progress=progress)

    @torch.no_grad()
    def prepare(self, model, parts):
        """The drift over the whole update, known before the first of its parts is weighed."""
        if not self.mismatched:                 # never prepared: `weigh` says what is missing
            return parts
        logps, ref_logps = [], []
        for part in parts:
            pairs = collate([self.mismatched[i] for i in part.index.tolist()])
            pairs = pairs.to(model.head.device)
            logps.append(batch_logps(model, pairs).sum((0, 2)))             # (b,)
            ref_logps.append(pairs.ref_logps[0])                            # (b,)
        drift = {
            "kl_logps": parallel.joined(torch.cat(logps)),                  # (B',)
            "kl_ref_logps": parallel.joined(torch.cat(ref_logps)),          # (B',)
        }
        return [replace(part, extra=part.extra | drift) for part in parts]

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch, wanted=False)                 # (A, B)
        present = n > 0                                                     # (A, B)
        kl_logps, kl_ref_logps = batch.extra.get("kl_logps"), batch.extra.get("kl_ref_logps")
        if kl_logps is None or kl_ref_logps is None or len(kl_logps) == 0:
            raise ValueError(
                "KTO needs log-probs of mismatched answers under policy and reference (kl_logps, "
                "kl_ref_logps) to estimate the drift; 'minialign train' pairs prompts with other "
                "prompts' answers by itself"
            )

        # The reference point, one constant for the whole update.
        z_0 = (kl_logps - kl_ref_logps).to(l).mean().clamp(min=0).detach()  # ()
        r = torch.where(present, l - reference(self, batch, l), 0.0)        # (A, B)

        # Good answers have + and λ_D, bad ones − and λ_U: u and v in one.
        sign, lam = -torch.ones_like(r), torch.full_like(r, self.lambda_u)
        sign[0], lam[0] = 1, self.lambda_d
        u = self.beta * sign * (r - z_0)                                    # (A, B)
        loss = lam * torch.sigmoid(-u)                                      # 1 − σ(u)
        push = sign * lam * self.beta * torch.sigmoid(u) * torch.sigmoid(-u)

        # The mean over all answers that are present.
        N = batch.counts.answers
        loss = torch.where(present, loss, 0.0)                              # (A, B)
        push = torch.where(present, push, 0.0)
        return loss.sum() / N, spread(push, batch) / N, {"kl": z_0.expand(len(batch))}

