"""What the ten lessons share: how they are run, where pictures go, the small GPT they start from, and who checks the exercises.

A lesson begins with    args = check.options()          args.fast: a smaller run, for the tests; args.solution: solve the exercise
may start from          model, tokenizer = check.base_model(args)       the small GPT that has read answers to "9.11 or 9.9?"
draws with              check.lines(axes, x, runs, c)   every seed faint, their mean bold
and                     check.show(figure, "02")        saves out/02.png, and shows it in a notebook
asks the reader with    print(check.push(your_push))    "STILL BLANK", "NOT YET" and what is wrong in plain words, or "RIGHT"
and ends with its folded solution, checked in the same way if args.solution.

A grader has the name of its exercise. It computes the truth from the definition, on awkward inputs, and hands it to `judge.grade`
together with what plausible mistakes would have given instead; back comes one sentence. Nothing here comes from a lesson.
graders_1.py holds those of lessons 01 to 05; tests/test_lessons.py judges all of them.
"""

import argparse
import copy
import functools
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from graders_1 import asft, backward, prefix, push, score
from judge import BLANK, RIGHT, WRONG, grade
from torch import Tensor

from minialign import plot, small, tasks
from minialign.methods import METHODS
from minialign.model import Transformer
from minialign.tokens import byte_tokenizer
from minialign.train import add_reference
from toy import lake as lakes

__all__ = ["BLANK", "RIGHT", "WRONG", "asft", "backward", "base_model", "lines", "options", "prefix", "push", "score", "show"]
OUT = Path(__file__).parent.parent / "out"


# ---------------------------------------------------------------------------------------------------- how a lesson is run

def options() -> argparse.Namespace:
    """The two flags of every lesson; a notebook has neither."""
    parser = argparse.ArgumentParser(description="A lesson of minialign. Read it in an editor, or step through its cells.",
                                     allow_abbrev=False)
    parser.add_argument("--fast", action="store_true", help="seconds instead of a minute: smaller, and less to see")
    parser.add_argument("--solution", action="store_true", help="show the exercise solved")
    torch.set_num_threads(1)                    # these models are too small for a second thread to help
    return parser.parse_args([] if "ipykernel" in sys.modules else None)


def show(figure, name: str) -> None:
    """Save the picture as out/NAME.png; in a notebook, show it as well."""
    path = plot.save(figure, OUT, name)
    print(f"picture: {path}")
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display
        display(Image(str(path), width=900))


def lines(axes, x: list[float], runs: list[list[float]], color: str, style: str = "-") -> list[float]:
    """Every seed's curve faint, their mean bold; returns the mean."""
    for run in runs:
        axes.plot(x, run, style, color=color, linewidth=0.8, alpha=0.4)
    mean = [sum(values) / len(values) for values in zip(*runs, strict=True)]
    axes.plot(x, mean, style, color=color, linewidth=2.5)
    return mean


def base_model(args, seed: int = 0):
    """The small GPT before any fine-tuning, and its tokenizer. Half a minute the first time, then from out/cache.

    With --fast it has read a sixteenth of what it should have, and knows little.
    """
    if not args.fast:
        if not small.base_path(seed, OUT / "cache").exists():
            print("training the small GPT, about half a minute; next time it comes from out/cache")
        return small.base_model(seed, OUT / "cache")
    model, tokenizer = hasty_model(seed)
    return copy.deepcopy(model), tokenizer


@functools.lru_cache
def hasty_model(seed: int):
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(tasks.WORDS)
    model = Transformer(tasks.small_config(tokenizer.vocab_size))
    for _ in itertools.islice(small.base_training(model, tokenizer, seed), 64):
        pass
    return model, tokenizer


# ---------------------------------------------------------------------------------------------------- 06: discriminate

def silent_bug(function: Callable) -> str:
    """Autograd's push down on a negative where u was not held fixed, as a multiple of eq. 8's: of gamma, tau and K."""
    cases = [(0.9, 0.7, 3), (0.35, 1.0, 2), (0.6, 1.4, 5)]

    def autograd(gamma, tau, K) -> dict:
        draw = torch.Generator().manual_seed(K)
        s, log_ref = (torch.randn(K, generator=draw, dtype=torch.float64) for _ in range(2))
        s.requires_grad_()
        w = (s / tau - log_ref).exp()
        u = (1 - gamma) * 0.8 + gamma * w.mean()
        slope = torch.autograd.grad(tau * u.log(), s)[0]                # F has no other s_j in it
        return {"factor": (slope / (w / (K * u)).detach()).mean()}

    return grade(function, cases, autograd, {"factor": {
        "no factor would mean no bug. u itself depends on s_j: follow it through the line that updates u.":
            lambda gamma, tau, K: 1.0,
        "upside down: autograd sees only a part of what u would have to change, so its push is too small.":
            lambda gamma, tau, K: 1 / gamma,
        "that is the share of the old u, which does not depend on s_j at all. Which share does?":
            lambda gamma, tau, K: 1 - gamma,
        "the τ in front of the logarithm and the 1/τ inside the exponential cancel; one of them is missing.":
            lambda gamma, tau, K: gamma / tau,
        "you kept the τ in front of the logarithm and lost the 1/τ inside the exponential.":
            lambda gamma, tau, K: gamma * tau,
        "the mean's 1/K is in ω_j already (eq. 8), so it does not show in the ratio.":
            lambda gamma, tau, K: gamma / K,
        "right up to the sign: ω_j counts pushes down as positive, and so does this ratio.":
            lambda gamma, tau, K: -gamma,
    }}, "γ. With γ = 0.9 nobody would notice 10 % less push; the release stops the gradient, and so do we.")


# ---------------------------------------------------------------------------------------------------- 07: the lake

def success(function: Callable) -> str:
    """Chance to reach a goal, of P (S, 4, S), a policy (S, 4), ends and goals (S,), start (S,)."""
    draw = torch.Generator().manual_seed(7)
    cases = []
    for rows in ("SFFF", "FHFH", "FFFF", "HFGF"), ("FFSH", "GFFF", "FHFG"), ("FSFFG", "FHFHF"):
        lake = lakes.make(rows, slippery=True)
        cases.append((lake.P, (1.5 * torch.randn(lake.P.shape[:2], generator=draw, dtype=torch.float64)).softmax(-1),
                      lake.ends, lake.goals, lake.start))

    def values(P, policy, ends, goals, _, discount=1.0) -> Tensor:
        """From every cell one can stand on: move, and move again, 4096 times; an end keeps whoever is there."""
        moves = discount * (policy[:, :, None] * P).sum(1)
        moves = torch.where(ends[:, None], torch.eye(len(ends), dtype=moves.dtype), moves)
        return (torch.linalg.matrix_power(moves, 4096) @ goals.to(moves))[~ends]

    def chance(P, policy, ends, goals, start, **changes) -> Tensor:
        return values(P, policy, ends, goals, start, **changes) @ start[~ends]

    def swapped(P, policy) -> tuple[Tensor, Tensor]:
        """A lake whose moves are the transposed ones: its first action is all there is."""
        moves = (policy[:, :, None] * P).sum(1).mT
        return torch.stack([moves] * 4, 1), torch.full_like(policy, 0.25)

    def greedy(policy) -> Tensor:
        return torch.eye(4, dtype=policy.dtype)[policy.argmax(-1)]

    return grade(function, cases, lambda *lake: {"success": chance(*lake)}, {"success": {
        "holes count as goals in it: r is what leads onto a *goal*.":
            lambda P, policy, ends, goals, start: chance(P, policy, ends, ends, start),
        "that is the chance to drown: r is what leads onto a *goal*.":
            lambda P, policy, ends, goals, start: chance(P, policy, ends, ends & ~goals, start),
        "you averaged over all cells, ends included. A walk begins at the start.":
            lambda *lake: values(*lake).sum() / len(lake[4]),
        "you averaged over all cells one can stand on. A walk begins at the start.":
            lambda *lake: values(*lake).mean(),
        "that is v at the first cell. This walk does not begin there; `start` says where.":
            lambda *lake: values(*lake)[0],
        "you discounted by 0.99 per step. Success is success, however late.":
            lambda *lake: chance(*lake, discount=0.99),
        "you always took the likeliest action. The policy is a chance for each.":
            lambda P, policy, ends, goals, start: chance(P, greedy(policy), ends, goals, start),
        "you gave all four actions the same chance. The policy says how likely each is.":
            lambda P, policy, ends, goals, start: chance(P, torch.full_like(policy, 0.25), ends, goals, start),
        "rows and columns of the moves are swapped: a row is where you stand, a column where you get.":
            lambda P, policy, ends, goals, start: chance(*swapped(P, policy), ends, goals, start),
    }}, "one linear system in place of ten thousand walks.", rtol=1e-3)


# ---------------------------------------------------------------------------------------------------- 08: live with your guesses

def propagation(function: Callable) -> str:
    """Weights of IFT's propagated loss, of token losses c (T,) and gamma: S/Z detached, with gradient, and which is used."""
    draw = torch.Generator().manual_seed(8)
    cases = [(3 * torch.rand(T, generator=draw, dtype=torch.float64) ** 3 + 0.05, gamma) for T, gamma in ((7, 0.95), (5, 0.4))]

    def tails(c, gamma) -> Tensor:
        """S_t, summed as it is written."""
        return torch.stack([sum(gamma ** (i - t) * c[i] for i in range(t, len(c))) for t in range(len(c))])

    def both(c, gamma) -> dict:
        c = c.clone().requires_grad_()
        S = tails(c, gamma)
        loss = (c * S).sum() / S.sum()
        return {"detached": (S / S.sum()).detach(), "full": torch.autograd.grad(loss, c)[0], "release": 1}

    def full(of: Callable) -> Callable:
        """A mistake in (S + P − L C) / Z, made of its parts."""
        def mistaken(c, gamma):
            S, P, C = tails(c, gamma), tails(c.flip(0), gamma).flip(0), tails(torch.ones_like(c), gamma).flip(0)
            return of(S, P, C, (c * S).sum() / S.sum()) / S.sum()
        return mistaken

    return grade(function, cases, both, {
        "detached": {
            "that is c · S / Z, the loss itself. Its slope in c_t, with S_t / Z held fixed, was asked for.":
                lambda c, gamma: c * tails(c, gamma) / tails(c, gamma).sum(),
            "the normalisation is missing: divide by Z = Σ S_t.":
                lambda c, gamma: tails(c, gamma),
            "these favour late tokens: you summed over i ≤ t. A token answers for what follows it.":
                lambda c, gamma: tails(c.flip(0), gamma).flip(0) / tails(c, gamma).sum(),
            "these favour late tokens, by their own sums. A token answers for what follows it.":
                lambda c, gamma: tails(c.flip(0), gamma).flip(0) / tails(c.flip(0), gamma).sum(),
            "γ is missing: what follows further away counts less.":
                lambda c, gamma: tails(c, 1.0) / tails(c, 1.0).sum(),
            "those are the full weights. With S_t / Z held fixed, only the factor c_t has a slope.":
                lambda c, gamma: both(c, gamma)["full"],
        },
        "full": {
            "those are the detached ones. S_t and Z depend on c_j as well.":
                full(lambda S, P, C, L: S),
            "P_j is missing: c_j is inside S_t for every t ≤ j.":
                full(lambda S, P, C, L: S - L * C),
            "Z was held fixed: it depends on c_j as well, which brings the term −L C_j.":
                full(lambda S, P, C, L: S + P),
            "the sign of L C_j: raising the denominator lowers the loss.":
                full(lambda S, P, C, L: S + P + L * C),
            "−L C_j lacks the C_j: c_j is in Z once for every t ≤ j, discounted.":
                full(lambda S, P, C, L: S + P - L),
        },
        "release": {
            "the release lets the gradient through the weights: an issue of its repository asks, and the author confirms it.":
                lambda c, gamma: 0,
        },
    }, "both. With the gradient, late and easy tokens can be pushed down; the release does that, `detach_weights` does not.")


# ---------------------------------------------------------------------------------------------------- 09: the race

BUGS = (
    "The wanted and the rejected answers are swapped.",
    "No shift: each token is scored from the place that has just read it.",
    "The reference model is the policy itself, at every update.",
    "The learning rate is thirty times too high.",
    "The answers belong to other questions.",
    "The optimizer never takes a step.",
)


def planted(examples: list, model) -> dict[str, list[tuple]]:
    """Spoilers! {run: [(healthy method, its examples), (the one with a bug, its examples)]}. Examples have two answers each."""
    class NoShift(METHODS["sft"]):
        def prepare(self, model, batch):
            source = batch.rows.source.clone()          # the state that has read token t is the one that predicts token t + 1
            source[..., :-1] = torch.where(batch.mask[..., 1:], source[..., 1:], source[..., :-1])
            return replace(batch, rows=replace(batch.rows, source=source))

    class LiveReference(METHODS["dpo"]):
        def weigh(self, logps, batch):
            return super().weigh(logps, replace(batch, ref_logps=(logps * batch.mask).sum(-1).double()))

    paired = [replace(example) for example in examples]
    add_reference(model, paired, micro_batch=64, progress=False)
    swapped = [replace(example, answers=example.answers[::-1]) for example in examples]
    return {"A": [(METHODS["sft"](), examples), (NoShift(), examples)],
            "B": [(METHODS["dpo"](), paired), (LiveReference(), paired)],
            "C": [(METHODS["asft"](), examples), (METHODS["asft"](), swapped)]}


def bug_hunt(function: Callable) -> str:
    """Which of BUGS, by number, runs A, B and C have."""
    seen = {1: "swapped answers would make the right one fall and the wrong one rise, with a loss that falls as it should.",
            2: "a loss without the shift says nothing about what is tested: it falls, and both held-out answers go down with it.",
            3: "if the reference were the policy, the loss would compare a thing with itself and stand still.",
            4: "a rate that is too high makes a loss jump. It is smooth here.",
            5: "with answers to other questions the right and the wrong answer would fare alike, and the loss would stay high.",
            6: "without steps nothing at all would move."}
    wrong = {run: {f"look again: {words}": functools.partial(int, number) for number, words in seen.items() if number != true}
             for run, true in (("run A", 2), ("run B", 3), ("run C", 1))}
    return grade(function, [()], lambda: {"run A": 2, "run B": 3, "run C": 1}, wrong,
                 "all three, from nine curves. Draw such curves before you read code.")
