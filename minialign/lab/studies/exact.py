"""DFT's running average u against the sum over all answers that it estimates, without a network.

u only decides how hard the negatives are pushed. To compare estimators, and not the policies they
lead to, one policy is trained with the exact gradient. It is a table of 500 answers per prompt, and
all estimators watch it with the same negatives.
"""

import math
from functools import partial

import torch

from minialign.data import Batch
from minialign.lab import plot
from minialign.lab.plot import COLOR, average
from minialign.lab.race import Difference
from minialign.lab.studies.dft import FloorOnly
from minialign.lab.studies.lab import HOLDS, Findings, Lab, verdict
from minialign.methods import METHODS
from minialign.stats import show

PROMPTS, ANSWERS, NEGATIVES, LR, TAU = 128, 500, 2, 0.5, 1.0
VISITS, PAPER = 30, 3       # visits to every example: here, and in the paper's runs
GAMMAS = (1.0, 0.9, 0.5)


def exact_log_u(log_p: torch.Tensor, tau: float) -> torch.Tensor:
    """log Σ_y P(y)^(1/τ), the whole sum: (n, V) → (n,). At τ = 1 it is 0 whatever the policy."""
    return (log_p / tau).logsumexp(-1)


def watch_policy(seed: int, tau: float = TAU, visits: int = VISITS) -> dict[str, list]:
    """{estimator: [[error of log u of every prompt] at every visit]}, the policy being trained."""
    draw = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(PROMPTS, ANSWERS, generator=draw, dtype=torch.float64)     # logits (n, V)
    ref = z.log_softmax(-1)                                             # the policy at the start
    wanted = torch.multinomial(ref.exp(), 1, generator=draw)            # (n, 1)
    estimators = {f"γ {g:g}": METHODS["dft"](tau, g, PROMPTS) for g in GAMMAS}
    estimators["floor, no memory"] = FloorOnly(tau, 0.9, PROMPTS)
    errors = {name: [] for name in estimators}
    mask = torch.ones(1 + NEGATIVES, PROMPTS, 1, dtype=torch.bool)
    for _ in range(visits):
        # Every estimator sees the same fresh negatives, drawn from the reference.
        log_p = z.log_softmax(-1)
        drawn = torch.multinomial(ref.exp(), NEGATIVES, replacement=True, generator=draw)
        y = torch.cat([wanted, drawn], 1)                               # (n, A)
        batch = Batch(mask=mask, index=torch.arange(PROMPTS), ref_logps=ref.gather(1, y).T)
        truth = exact_log_u(log_p, tau)                                 # (n,)
        for name, method in estimators.items():
            _, _, info = method.weigh(log_p.gather(1, y).T[..., None], batch)
            errors[name].append((info["log_u"] - truth).tolist())

        # The policy takes a step with −∂F/∂s, summed over all answers, through the softmax.
        push = torch.zeros_like(z).scatter_(1, wanted, 1.0) - (log_p / tau).softmax(-1)
        z = z + LR * (push - log_p.exp() * push.sum(-1, keepdim=True))
    return errors


def rms(errors: list[float]) -> float:
    return math.sqrt(sum(e * e for e in errors) / len(errors))


def exact_u(lab: Lab) -> Findings:
    watched = [watch_policy(seed) for seed in lab.seeds]
    data, lines = {}, {}
    for name in watched[0]:
        visits = [[rms(errors) for errors in one_seed[name]] for one_seed in watched]
        lines[name] = [list(enumerate(errors, start=1)) for errors in visits]
        data[name] = {
            "error_first": [errors[0] for errors in visits],
            "error_paper": [errors[PAPER - 1] for errors in visits],
            "error_last": [errors[-1] for errors in visits],
            "bias_last": [average(one_seed[name][-1]) for one_seed in watched],
        }
    early = Difference(data["γ 0.9"], data["γ 1"], "error_paper")
    late = Difference(data["γ 0.9"], data["γ 1"], "error_last")
    floor = Difference(data["γ 0.9"], data["floor, no memory"], "error_last")
    found = verdict(early.below() and late.below(), early.above() or late.above())
    if found == HOLDS and not floor.below():
        found = "holds, but a floor without memory does no worse"
    sentence = (
        f"After the {PAPER} visits of the paper's runs log u is off by "
        f"{show(data['γ 1']['error_paper'])} nats (root mean square) at γ = 1, and γ = 0.9 changes "
        f"that by {early}; after {VISITS} visits by {show(data['γ 1']['error_last'])} and {late}. "
        f"Against a constant floor without memory γ = 0.9 then is off by {floor} more."
    )
    panel = "", "error of log u (root mean square) ↓", lines
    colors = {"γ 1": COLOR["spin"], "γ 0.9": COLOR["dft"], "γ 0.5": COLOR["ift"],
              "floor, no memory": COLOR["dft2"]}
    draw = partial(
        plot.curves, [[panel]], f"How well does u know its sum over {ANSWERS} answers?", colors,
        xlabel="visits to an example", mark=(PAPER, "the paper's runs end here"),
    )
    return Findings(data, found, sentence, draw, {
        "error_first": ("error, visit 1", 3),
        "error_paper": (f"visit {PAPER}", 3),
        "error_last": (f"visit {VISITS}", 3),
        "bias_last": (f"mean error, visit {VISITS}", 3),
    }, tests={
        f"γ 0.9 over γ 1, visit {PAPER}": early,
        f"γ 0.9 over γ 1, visit {VISITS}": late,
        "γ 0.9 over a floor without memory": floor,
    })
