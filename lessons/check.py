"""What the ten lessons share: how they are run, where pictures go, the small GPT they start from, and who checks the exercises.

A lesson begins with    args = check.options()          args.fast: a smaller run, for the tests; args.solution: solve the exercise
may start from          model, tokenizer = check.base_model(args)       the small GPT that has read answers to "9.11 or 9.9?"
draws with              check.lines(axes, x, runs, c)   every seed faint, their mean bold
and                     check.show(figure, "02")        saves out/02.png, and shows it in a notebook
asks the reader with    print(check.push(your_push))    "STILL BLANK", "NOT YET" and what is wrong in plain words, or "RIGHT"
and ends with its folded solution, checked in the same way if args.solution.

A grader is a function here with the name of its exercise. It computes the truth from the definition, on awkward inputs, and
returns one sentence. `grade` does the rest: a grader hands it the truth, and what plausible mistakes would have given instead.
The reader's function runs only to be judged; nothing here comes from a lesson. tests/test_lessons.py judges the graders.
"""

import argparse
import copy
import functools
import itertools
import math
import sys
from collections.abc import Callable
from decimal import Decimal, localcontext
from pathlib import Path

import torch
from torch import Tensor

from minialign import plot, small, tasks
from minialign.model import Transformer
from minialign.tokens import byte_tokenizer
from toy import lake as lakes

OUT = Path(__file__).parent.parent / "out"
BLANK, WRONG, RIGHT = "STILL BLANK", "NOT YET", "RIGHT"


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


# ---------------------------------------------------------------------------------------------------- how an answer is judged

def grade(function: Callable, cases: list[tuple], truth: Callable, mistakes: dict[str, dict[str, Callable]], praise: str,
          rtol: float = 1e-4) -> str:
    """Judge the reader's function; one sentence that begins with STILL BLANK, NOT YET or RIGHT.

    cases     the inputs of every call
    truth     inputs → {name: number or tensor}; the reader's function returns these values, in this order
    mistakes  {name: {what to say: inputs → the value that this mistake would give}}, the likeliest first
    praise    what to say when all is right
    """
    wanted = [truth(*copy.deepcopy(inputs)) for inputs in cases]
    names = list(wanted[0])
    answers = []
    for inputs in cases:
        try:
            values = function(*copy.deepcopy(inputs))
        except Exception as error:              # whatever the reader wrote, the lesson goes on
            if "ellipsis" in str(error).lower():
                return f"{BLANK}: fill in the “...” and run this cell again."
            return f"{WRONG}: your function stopped with {type(error).__name__}: {error}"
        values = values if isinstance(values, tuple) else (values,)
        if any(value is None or value is ... for value in values):
            return f"{BLANK}: fill in the “...” and run this cell again."
        if len(values) != len(names):
            return f"{WRONG}: your function returns {len(values)} value(s); it should return {', '.join(names)}."
        try:
            answers.append({name: number(value) for name, value in zip(names, values, strict=True)})
        except (TypeError, ValueError, RuntimeError):
            return f"{WRONG}: your function should return numbers or tensors, not {', '.join(type(v).__name__ for v in values)}."
    good = []
    for name in names:
        got, want = [answer[name] for answer in answers], [number(values[name]) for values in wanted]
        if problem := what_is_wrong(got, want, cases, mistakes.get(name, {}), rtol):
            right = f"{' and '.join(good)} {'is' if len(good) == 1 else 'are'} right. " * bool(good)
            return f"{WRONG}: {right}{name + ': ' if len(names) > 1 else ''}{problem}"
        good.append(name)
    return f"{RIGHT}: {praise}"


def what_is_wrong(got: list[Tensor], want: list[Tensor], cases: list[tuple], mistakes: dict[str, Callable],
                  rtol: float) -> str | None:
    """The mistake that explains all answers, in words; None if there is none to explain."""
    for mine, true in zip(got, want, strict=True):
        if mine.shape != true.shape:
            return f"its shape is {tuple(mine.shape)} where {tuple(true.shape)} is wanted."
    if alike(got, want, rtol):
        return None
    for sentence, mistaken in mistakes.items():
        if alike(got, [number(mistaken(*copy.deepcopy(inputs))) for inputs in cases], rtol):
            return sentence
    if not all(mine.isfinite().all() for mine in got):
        return "there is an inf or a nan in it. Do the logits or log-probs overflow somewhere on the way?"
    if alike([-mine for mine in got], want, rtol):
        return "right up to the sign."
    factors = [float((mine * true).sum() / (true * true).sum()) for mine, true in zip(got, want, strict=True)]
    if alike(got, [factor * true for factor, true in zip(factors, want, strict=True)], rtol):
        several = sorted({f"{factor:.4g}" for factor in factors})
        return f"right up to a factor: yours is {' or '.join(several)} times what it should be."
    for case, (mine, true) in enumerate(zip(got, want, strict=True), start=1):
        off = ~torch.isclose(mine, true, rtol=rtol, atol=1e-6)
        if off.any():
            at = off.nonzero()[0].tolist()
            where = f" at {at}" if at else ""
            return (f"in test {case} of {len(cases)}, {int(off.sum())} of {true.numel()} numbers are off; the first{where} is "
                    f"{float(mine[tuple(at)]):.5g} and should be {float(true[tuple(at)]):.5g}.")


def alike(a: list[Tensor], b: list[Tensor], rtol: float) -> bool:
    return all(x.shape == y.shape and torch.allclose(x, y, rtol=rtol, atol=1e-6) for x, y in zip(a, b, strict=True))


def number(value) -> Tensor:
    return torch.as_tensor(value).detach().double()


# ---------------------------------------------------------------------------------------------------- 01: score an answer

def score(function: Callable) -> str:
    """Log-prob of an answer from logits (L, V), tokens (L,) and the mask of the answer's tokens (L,)."""
    draw = torch.Generator().manual_seed(1)
    cases = []
    for prompt, answer, padding in (4, 3, 2), (2, 5, 0), (3, 1, 4):
        length = prompt + answer + padding
        z = 3 * torch.randn(length, 7, generator=draw, dtype=torch.float64) + 100
        z[prompt, 2] += 900                     # a token that is almost certain; exp(1000) overflows
        tokens = torch.randint(7, (length,), generator=draw)
        is_answer = (torch.arange(length) >= prompt) & (torch.arange(length) < prompt + answer)
        cases.append((z, tokens, is_answer))

    def logp(z, token) -> float:
        return float(z[token] - z.max() - (z - z.max()).exp().sum().log())

    def total(z, tokens, places, shift=1) -> float:
        return sum(logp(z[t - shift], tokens[t]) for t in places)

    def places(mask) -> list[int]:
        return mask.nonzero()[:, 0].tolist()

    return grade(function, cases, lambda z, tokens, mask: {"log-prob": total(z, tokens, places(mask))}, {"log-prob": {
        "you read each token from the logits at its own place. They speak about the next token: shift by one.":
            lambda z, tokens, mask: total(z, tokens, places(mask), shift=0),
        "tokens and logits are shifted well, but the mask stayed behind. It says which token is scored, so it goes with them.":
            lambda z, tokens, mask: total(z, tokens, [t + 1 for t in places(mask[:-1])]),
        "the prompt is scored as well. Its tokens are given; the mask should keep them out.":
            lambda z, tokens, mask: total(z, tokens, range(1, places(mask)[-1] + 1)),
        "prompt and padding are scored as well. Only the mask knows which tokens are the answer's.":
            lambda z, tokens, mask: total(z, tokens, range(1, len(tokens))),
        "the padding is scored as well. Only the mask knows where the answer ends.":
            lambda z, tokens, mask: total(z, tokens, range(places(mask)[0], len(tokens))),
        "the first token of the answer is missing. The last token of the prompt predicts it.":
            lambda z, tokens, mask: total(z, tokens, places(mask)[1:]),
        "that is the mean over the answer's tokens. Log-probs of parts add up; nothing is divided.":
            lambda z, tokens, mask: total(z, tokens, places(mask)) / int(mask.sum()),
        "that is the mean over the whole row, prompt and padding included. Nothing is divided here.":
            lambda z, tokens, mask: total(z, tokens, places(mask)) / len(tokens),
        "these are logits added up. A log-prob is a logit minus the logsumexp of its row.":
            lambda z, tokens, mask: sum(float(z[t - 1, tokens[t]]) for t in places(mask)),
        "that is the probability. Its logarithm was asked for, the sum and not the product.":
            lambda z, tokens, mask: torch.tensor(total(z, tokens, places(mask))).exp(),
    }}, "shifted by one, masked, and it does not overflow. That is all a method ever sees of a model.")


# ---------------------------------------------------------------------------------------------------- 02: push

def push(function: Callable) -> str:
    """∂loss/∂z for loss = −Σ weights · log-prob: logits (T, V), tokens (T,), weights (T,), 0 on padding."""
    draw = torch.Generator().manual_seed(2)
    cases = []
    for answer, padding, V in (7, 3, 5), (4, 0, 6):
        z = 2 * torch.randn(answer + padding, V, generator=draw, dtype=torch.float64)
        z[1] += 900                             # exp(900) overflows
        y = torch.randint(V, (answer + padding,), generator=draw)
        weights = torch.randn(answer + padding, generator=draw, dtype=torch.float64)
        weights[answer:] = 0
        cases.append((z, y, weights))

    def differences(z, y, weights) -> dict:
        """From the definition of a derivative, without the formula that is asked for."""
        def loss(z):
            return -(weights * (z.gather(1, y[:, None])[:, 0] - z.logsumexp(1))).sum()

        gradient, step = torch.empty_like(z), 1e-4
        for t, v in itertools.product(*map(range, z.shape)):
            nudge = torch.zeros_like(z)
            nudge[t, v] = step
            gradient[t, v] = (loss(z + nudge) - loss(z - nudge)) / (2 * step)
        return {"gradient": gradient}

    def softmax(z):
        return z.softmax(-1)

    def onehot(z, y):
        return torch.eye(z.shape[1], dtype=z.dtype)[y]

    return grade(function, cases, differences, {"gradient": {
        "right up to the sign: this is where the logits should go. The gradient points the other way, to where the loss grows.":
            lambda z, y, w: w[:, None] * (onehot(z, y) - softmax(z)),
        "the weights are missing: this is softmax − onehot, the gradient for weights of 1.":
            lambda z, y, w: softmax(z) - onehot(z, y),
        "you divided by the number of rows, padding included. The weights already hold whatever is to be divided by.":
            lambda z, y, w: w[:, None] * (softmax(z) - onehot(z, y)) / len(y),
        "you divided by the number of answer tokens. The weights already hold whatever is to be divided by.":
            lambda z, y, w: w[:, None] * (softmax(z) - onehot(z, y)) / (w != 0).sum(),
        "the weight multiplies the one-hot row alone. It belongs to the whole bracket: (softmax − onehot).":
            lambda z, y, w: softmax(z) - w[:, None] * onehot(z, y),
        "the weight multiplies the softmax alone. It belongs to the whole bracket: (softmax − onehot).":
            lambda z, y, w: w[:, None] * softmax(z) - onehot(z, y),
        "the one-hot row is missing: this pushes everything down and nothing up.":
            lambda z, y, w: w[:, None] * softmax(z),
        "only the token's own logit moves: the softmax, what all others pay, is missing.":
            lambda z, y, w: -w[:, None] * onehot(z, y),
        "these are log-probs minus onehot. The slope of logsumexp is the softmax itself.":
            lambda z, y, w: w[:, None] * (z.log_softmax(-1) - onehot(z, y)),
        "the softmax runs over time. A distribution is one row: over the vocabulary, dim −1.":
            lambda z, y, w: w[:, None] * (z.softmax(0) - onehot(z, y)),
        "only the sign of the weights is used. Their size counts as well.":
            lambda z, y, w: w.sign()[:, None] * (softmax(z) - onehot(z, y)),
    }}, "weights · (softmax − onehot). Every method here goes through this line; only the weights differ.")


# ---------------------------------------------------------------------------------------------------- 03: the chunked backward

def backward(function: Callable) -> str:
    """d_h and d_W for loss = −Σ weights · log-prob from h (N, C), W (V, C), targets, logsumexps, weights and a chunk size."""
    draw = torch.Generator().manual_seed(3)
    cases = []
    for N, C, V, chunk in (7, 3, 5, 3), (4, 2, 6, 4), (5, 4, 3, 9):
        h, W = (torch.randn(n, C, generator=draw, dtype=torch.float64) for n in (N, V))
        targets, weights = torch.randint(V, (N,), generator=draw), torch.randn(N, generator=draw, dtype=torch.float64)
        cases.append((h, W, targets, (h @ W.T).logsumexp(-1), weights, chunk))

    def loss(h, W, targets, weights):
        z = h @ W.T
        return -(weights * (z.gather(1, targets[:, None])[:, 0] - z.logsumexp(-1))).sum()

    def differences(h, W, targets, lse, weights, chunk) -> dict:
        slopes = {}
        for name, x in ("d_h", h), ("d_W", W):
            slopes[name] = torch.empty_like(x)
            for place in itertools.product(*map(range, x.shape)):
                ends = []
                for step in 1e-5, -1e-5:
                    moved = x.clone()
                    moved[place] += step
                    ends.append(loss(moved, W, targets, weights) if x is h else loss(h, moved, targets, weights))
                slopes[name][place] = (ends[0] - ends[1]) / 2e-5
        return slopes

    def mistaken(name, d_logits=lambda p, onehot, w, chunk: w[:, None] * (p - onehot), rows=lambda N, chunk: range(N)):
        """The gradient `name` of the big matrices, with other d_logits or summed over other rows."""
        def value(h, W, targets, lse, weights, chunk):
            onehot = torch.eye(len(W), dtype=W.dtype)[targets]
            d = d_logits((h @ W.T - lse[:, None]).exp(), onehot, weights, chunk)
            only = torch.zeros(len(h), 1, dtype=h.dtype)
            only[list(rows(len(h), chunk))] = 1
            return (d * only) @ W if name == "d_h" else (d * only).T @ h
        return value

    def both(name):
        return {
            "right up to the sign: weights are minus the slope of the loss, so d_logits = weights · (softmax − onehot).":
                mistaken(name, lambda p, onehot, w, chunk: -w[:, None] * (p - onehot)),
            "the weights are missing.": mistaken(name, lambda p, onehot, w, chunk: p - onehot),
            "every chunk uses the weights of the first one. They are sliced like the rows.":
                mistaken(name, lambda p, onehot, w, chunk: w[torch.arange(len(w)) % chunk, None] * (p - onehot)),
            "the one-hot rows are missing.": mistaken(name, lambda p, onehot, w, chunk: w[:, None] * p),
            "the last chunk is left out where it is shorter than the others.":
                mistaken(name, rows=lambda N, chunk: range(N // chunk * chunk)),
            "only the first chunk is there. Did the loop end early?":
                mistaken(name, rows=lambda N, chunk: range(min(chunk, N))),
        }

    return grade(function, cases, differences, {
        "d_h": both("d_h"),
        "d_W": {"only the last chunk is in it. It is a sum over all rows, so chunks add to it.":
                mistaken("d_W", rows=lambda N, chunk: range((N - 1) // chunk * chunk, N)), **both("d_W")},
    }, "every row once, whatever the chunk. A vocabulary of any size now fits.")


# ---------------------------------------------------------------------------------------------------- 04: the shared opening

def prefix(function: Callable) -> str:
    """How many tokens of a bad answer have the good answer's own log-probs: two lists of ids → a number."""
    cases = [([9, 1, 7, 2, 7, 0], [9, 1, 3, 2, 7, 7, 0]),               # parts, then looks alike again
             ([5, 5, 0], [5, 5, 5, 0]),                                 # the good one ends first
             ([8, 4, 6, 6, 0], [8, 4, 0]),                              # the bad one ends first
             ([3, 2, 0], [1, 2, 0]),                                    # nothing in common but the rest
             ([6, 7, 0], [6, 7, 0])]                                    # the same answer

    def common(good, bad) -> int:
        return max(k for k in range(min(len(good), len(bad)) + 1) if good[:k] == bad[:k])

    return grade(function, cases, lambda good, bad: {"prefix": common(good, bad)}, {"prefix": {
        "you count equal tokens wherever they stand. After the first difference even the same token has another context.":
            lambda good, bad: sum(g == b for g, b in zip(good, bad, strict=False)),
        "you count tokens that occur in both, in whatever order. The log-prob of a token depends on all tokens before it.":
            lambda good, bad: len(set(good) & set(bad)),
        "one too many: the token where they part has the same context but is another token, with a log-prob of its own.":
            lambda good, bad: common(good, bad) + 1,
        "one too few. Do you count from 0, or leave out the last token they share?": lambda good, bad: common(good, bad) - 1,
        "the end token is left out. It is a token like any other.": lambda good, bad: common(good[:-1], bad[:-1]),
        "that is the length of the shorter answer; they part before.": lambda good, bad: min(len(good), len(bad)),
    }}, "one opening, one set of log-probs. SFT cannot raise the one answer there without the other.")


# ---------------------------------------------------------------------------------------------------- 05: ASFT's weights

def asft(function: Callable) -> str:
    """−∂L/∂a_w and −∂L/∂a_l of ASFT's loss, pair by pair: a_w, a_l (B,), λ."""
    cases = [(torch.tensor(w, dtype=torch.float64), torch.tensor(l, dtype=torch.float64), lam) for w, l, lam in (
        ([-0.9, -2.5, -0.05], [-1.3, math.log(0.5), -0.2], 0.1), ([-0.4, -30.0, -1e-3], [-40.0, -1e-6, -1e-17], 0.7))]

    def loss(a_w: Decimal, a_l: Decimal, lam: Decimal) -> Decimal:
        """As the paper has it, with odds, in 60 digits."""
        odds_w, odds_l = (a.exp() / (1 - a.exp()) for a in (a_w, a_l))
        return -a_w + lam * ((1 + 1 / odds_w).ln() + (1 + odds_l).ln())

    def differences(a_w, a_l, lam) -> dict:
        pushes = {"push on the chosen answer": torch.empty_like(a_w), "push on the rejected answer": torch.empty_like(a_l)}
        with localcontext() as context:
            context.prec = 60
            lam = Decimal(str(lam))
            for b, (w, l) in enumerate(zip(map(Decimal, a_w.tolist()), map(Decimal, a_l.tolist()), strict=True)):
                h = Decimal("1e-20")
                up = (loss(w + w * h, l, lam) - loss(w - w * h, l, lam)) / (2 * w * h)
                down = (loss(w, l + l * h, lam) - loss(w, l - l * h, lam)) / (2 * l * h)
                for push, slope in zip(pushes.values(), (up, down), strict=True):
                    push[b] = -float(slope)
        return pushes

    return grade(function, cases, differences, {
        "push on the chosen answer": {
            "right up to the sign: that is the slope of the loss. A push is minus the slope, so the chosen answer goes up.":
                lambda w, l, lam: torch.full_like(w, -1 - lam),
            "that is the SFT term alone. The alignment term, −λ log σ(log O_w) = −λ a_w, adds its own.":
                lambda w, l, lam: torch.ones_like(w),
            "that is the alignment term alone. The SFT term, −a_w, adds its own.": lambda w, l, lam: torch.full_like(w, lam),
            "that is −∂L/∂p_w. The slope was asked in a = log p, which has a factor p more.":
                lambda w, l, lam: (1 + lam) / w.exp()},
        "push on the rejected answer": {
            "right up to the sign: this raises the rejected answer.": lambda w, l, lam: lam / torch.expm1(-l),
            "λ is missing.": lambda w, l, lam: -1 / torch.expm1(-l),
            "that is −∂L/∂p_l. The slope was asked in a = log p, which has a factor p more.":
                lambda w, l, lam: lam / torch.expm1(l),
            "that is −λ p; the slope of log(1 − p) also has 1 − p below.": lambda w, l, lam: -lam * l.exp(),
            "you used the chosen answer's log-prob in it.": lambda w, l, lam: -lam / torch.expm1(-w),
            "that is as hard as the push up, as in DPO. Here each answer is judged alone.":
                lambda w, l, lam: torch.full_like(l, -1 - lam),
            "right, but for probabilities within rounding of 1: there 1 − eᵃ is 0. Use torch.expm1.":
                lambda w, l, lam: -lam * l.exp() / (1 - l.exp())},
    }, "up for ever, down by the odds: nothing at p = 0, λ at ½, without bound at 1.")


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
