"""The graders of lessons 08, 09, 13 and 14."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lessons.judge import grade
from minialign.bench import sheet as memory
from minialign.model import Config, Transformer
from minialign.train import Recipe
from toy import lake as lakes

# ------------------------------------------------------------------------------------- 08: the lake


def walk_gradient(function: Callable) -> str:
    """∂(−log P(walk))/∂z (S, 4) of logits z (S, 4), states (T,) and actions (T,) of the walk."""
    draw = torch.Generator().manual_seed(6)
    walks = ((5, [0, 1, 1, 3, 1, 0], [2, 0, 3, 1, 3, 2]), (3, [2, 2, 1], [0, 1, 3]))
    cases = []
    for S, states, actions in walks:
        z = 1.5 * torch.randn(S, 4, generator=draw, dtype=torch.float64)
        cases.append((z, torch.tensor(states), torch.tensor(actions)))

    def loss(z, states, actions) -> Tensor:
        return -z.log_softmax(-1)[states, actions].sum()

    def differences(z, states, actions) -> dict:
        """From the definition of a derivative, without the formula that is asked for."""
        slope, h = torch.empty_like(z), 1e-5
        for s, a in itertools.product(*map(range, z.shape)):
            nudge = torch.zeros_like(z)
            nudge[s, a] = h
            rise = loss(z + nudge, states, actions) - loss(z - nudge, states, actions)
            slope[s, a] = rise / (2 * h)
        return {"gradient": slope}

    def counts(z, states, actions, often=True) -> Tensor:
        """n(s, a); or without `often`, whether the walk ever did a in s."""
        count = torch.zeros_like(z)
        count.index_put_((states, actions), torch.ones_like(z[0, 0]), accumulate=often)
        return count

    def mistaken(of: Callable, often: bool = True) -> Callable:
        """What comes out of another formula in π and the counts."""
        return lambda z, *walk: of(z.softmax(-1), counts(z, *walk, often=often))

    def visits(n: Tensor) -> Tensor:
        return n.sum(1, keepdim=True)

    return grade(function, cases, differences, {"gradient": {
        "right up to the sign: the logits should go there, the gradient points away from it.":
            mistaken(lambda p, n: n - visits(n) * p),
        "a step that occurs twice was counted once: `count[states, actions] += 1` adds 1 only once "
        "to each place. Use a loop, or index_put_ with accumulate=True.":
            mistaken(lambda p, n: visits(n) * p - n, often=False),
        "n(s) is missing: every visit to a cell subtracts π(·|s) once.":
            mistaken(lambda p, n: (n > 0).any(1, keepdim=True) * p - n),
        "cells that the walk never visits have a gradient too. There n(s) is 0.":
            mistaken(lambda p, n: p - n),
        "you divided by the number of steps. The log-prob of a walk is a sum, nothing is divided.":
            mistaken(lambda p, n: (visits(n) * p - n) / n.sum()),
        "you divided by the visits of each cell. Nothing is divided here: a cell seen often counts "
        "often.":
            mistaken(lambda p, n: torch.where(visits(n) > 0, p - n / visits(n).clamp(min=1), 0)),
        "the counts are missing: this pushes every action down and none up.":
            mistaken(lambda p, n: visits(n) * p),
        "the policy is missing: what one action gains, the others must lose.":
            mistaken(lambda p, n: -n),
    }}, "a count. Where nobody went it is zero, and that is what this lesson is about.")


def success(function: Callable) -> str:
    """Chance to reach a goal, of P (S, 4, S), a policy (S, 4), ends and goals (S,), start (S,)."""
    draw = torch.Generator().manual_seed(7)
    cases = []
    for rows in ("SFFF", "FHFH", "FFFF", "HFGF"), ("FFSH", "GFFF", "FHFG"), ("FSFFG", "FHFHF"):
        lake = lakes.make(rows, slippery=True)
        z = 1.5 * torch.randn(lake.P.shape[:2], generator=draw, dtype=torch.float64)
        cases.append((lake.P, z.softmax(-1), lake.ends, lake.goals, lake.start))

    def values(P, policy, ends, goals, _, discount=1.0) -> Tensor:
        """From every cell one can stand on: 4096 moves; an end keeps whoever is there."""
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

    def uniform(policy) -> Tensor:
        return torch.full_like(policy, 0.25)

    verdict = grade(function, cases, lambda *lake: {"success": chance(*lake)}, {"success": {
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
            lambda P, policy, *rest: chance(P, greedy(policy), *rest),
        "you gave all four actions the same chance. The policy says how likely each is.":
            lambda P, policy, *rest: chance(P, uniform(policy), *rest),
        "rows and columns are swapped: a row is where you stand, a column where you get.":
            lambda P, policy, *rest: chance(*swapped(P, policy), *rest),
    }}, "one linear system in place of ten thousand walks.", rtol=1e-3)
    if "singular" in verdict:
        return (f"{verdict.rstrip()} The matrix I − Q has no inverse while it holds the ends: a "
                "hole or a goal leads to itself for ever. Keep the rows and columns of ~ends.")
    return verdict


# ----------------------------------------------------------------------- 09: live with your guesses


def residual(function: Callable) -> str:
    """What IFT reads (L, C), of E (V, C), logits (L, V), tokens and is_answer (L,), and λ."""
    draw = torch.Generator().manual_seed(9)
    cases = []
    for prompt, answer, padding, lam in (3, 4, 2, 0.3), (2, 3, 0, 0.8), (1, 5, 1, 0.2):
        length = prompt + answer + padding
        E = torch.randn(6, 4, generator=draw, dtype=torch.float64)
        z = 2 * torch.randn(length, 6, generator=draw, dtype=torch.float64)
        tokens = torch.randint(6, (length,), generator=draw)
        places = torch.arange(length)
        cases.append((E, z, tokens, (places >= prompt) & (places < prompt + answer), lam))

    def read(E, z, tokens, is_answer, lam, shift=1, soft=False, everywhere=False) -> Tensor:
        """Place by place, as the equation says; or with one thing wrong."""
        rows = []
        for t, token in enumerate(tokens.tolist()):
            row = E[token]
            if t >= shift and (is_answer[t] or everywhere):
                guessed = E[int(z[t - shift].argmax())]
                if soft:
                    guessed = z[t - shift].softmax(-1) @ E
                row = (1 - lam) * row + lam * guessed
            rows.append(row)
        return torch.stack(rows)

    def mistaken(**changes) -> Callable:
        return lambda *row: read(*row, **changes)

    return grade(function, cases, lambda *row: {"embeddings": read(*row)}, {"embeddings": {
        "you took the guess at a place from the logits of that place. They speak about the next "
        "token: shift by one.": mistaken(shift=0),
        "prompt and padding are mixed as well. Only tokens of the answer are.":
            mistaken(everywhere=True),
        "you mixed over all tokens, by their probabilities. The guess is one token, the likeliest.":
            mistaken(soft=True),
        "λ and 1 − λ are swapped: λ is the share of the guess.":
            lambda E, z, tokens, is_answer, lam: read(E, z, tokens, is_answer, 1 - lam),
        "that is the guess alone. It takes the place of the token only to the share λ.":
            lambda E, z, tokens, is_answer, lam: read(E, z, tokens, is_answer, 1.0),
        "nothing is mixed: these are the tokens' own embeddings.":
            lambda E, z, tokens, is_answer, lam: E[tokens],
    }}, "what it would have said itself, one place further on.")


def off_path(function: Callable) -> str:
    """Share off the path and share of right labels there, of what is read (T, S)."""
    draw = torch.Generator().manual_seed(10)
    cases = []
    for T, S in (5, 9), (4, 6):
        states = torch.randperm(S, generator=draw)[:T]
        actions = torch.randint(4, (T,), generator=draw)
        mixed = torch.rand(T, S, generator=draw, dtype=torch.float64) ** 4
        mixed = mixed / mixed.sum(-1, keepdim=True)
        optimal = torch.rand(S, 4, generator=draw) < 0.4
        optimal[-2:] = False                        # the goal cannot be reached from there
        cases.append((mixed, states, actions, optimal))

    def told(mixed, states, actions, optimal, first=1, shift=0, holes=False) -> dict:
        """Cell by cell, as the two numbers are defined; or with one thing wrong."""
        off = reachable = right = 0.0
        for t in range(first, len(states)):
            for s in range(mixed.shape[1]):
                if s == states[t]:
                    continue
                off += float(mixed[t, s])
                if holes or optimal[s].any():
                    reachable += float(mixed[t, s])
                    right += float(mixed[t, s] * optimal[s, actions[t - shift]])
        return {"share": off / (len(states) - first), "right": right / reachable, "sum": off,
                "amount": right}

    def mistaken(name: str, **changes) -> Callable:
        return lambda *walk: told(*walk, **changes)[name]

    def truth(*walk) -> dict:
        numbers = told(*walk)
        return {"share": numbers["share"], "right": numbers["right"]}

    return grade(function, cases, truth, {
        "share": {
            "the first cell counts as well. It is where the walk starts; nobody has guessed it.":
                mistaken("share", first=0),
            "that is a sum over the steps: divide it by their number, T − 1.": mistaken("sum"),
            "that is what lies *on* the path.": lambda *walk: 1 - told(*walk)["share"],
            "you divided by T. The first cell does not count, T − 1 are left.":
                lambda *walk: told(*walk)["sum"] / len(walk[1]),
        },
        "right": {
            "that is how much has a right label. Divide it by what lies off the path and counts.":
                mistaken("amount"),
            "cells from which the goal cannot be reached have no right label. Leave them out of "
            "the denominator.": mistaken("right", holes=True),
            "you took the action of the step before. What stands in row t gets actions[t].":
                mistaken("right", shift=1),
            "the first cell counts as well.": mistaken("right", first=0),
            "that is the share of wrong labels.": lambda *walk: 1 - told(*walk)["right"],
        },
    }, "how much, and with which label: that is all one has to know about the residual.")



# ------------------------------------------------------------------------------------- 13: for real

SHAPES = (
    Config(vocab_size=32_000, n_layer=32, n_head=32, d_model=4096, d_mlp=11_008),
    Config(vocab_size=32_000, n_layer=40, n_head=32, n_kv_head=2, d_model=4096, d_mlp=2048),
    Config(vocab_size=128_256, n_layer=16, n_head=32, n_kv_head=8, d_model=2048, d_mlp=8192,
           tie=True),
)


def counted(config, tied=True, grouped=True, matrices=3, layers=True, projections=2) -> float:
    """The number of a Llama's parameters, by somebody who got one thing wrong."""
    C, D = config.d_model, config.d_head
    shared = config.n_kv_head if grouped else config.n_head
    attention = projections * C * D * (config.n_head + shared)
    layer = attention + matrices * C * config.d_mlp
    tables = config.vocab_size * C * (1 if tied and config.tie else 2)
    return float(tables + (config.n_layer if layers else 1) * layer)


MISCOUNTED = {
    "one layer only: there are n_layer of them.": {"layers": False},
    "a SwiGLU MLP has three matrices: gate, up and down.": {"matrices": 2},
    "keys and values have n_kv_head heads, not n_head.": {"grouped": False},
    "a tied head is the embedding table itself: count it once.": {"tied": False},
    "q and o are two matrices, and so are k and v.": {"projections": 1},
}


def n_parameters(function: Callable) -> str:
    """The number of parameters of a Llama, to 1 %, of a Config."""
    cases = [(config,) for config in SHAPES]

    def truth(config) -> dict:
        """The model itself, on a device where nothing is allocated."""
        with torch.device("meta"):
            model = Transformer(config)
        return {"number": float(sum(p.numel() for p in model.parameters()))}

    mistakes = {
        "the tables are missing: the embedding, and the head if it is not tied.":
            lambda config: counted(replace(config, vocab_size=0)),
        "these are the tables alone.": lambda config: counted(config) - counted(
            replace(config, vocab_size=0)),
    }
    for words, change in MISCOUNTED.items():
        mistakes[words] = functools.partial(counted, **change)
    return grade(function, cases, truth, {"number": mistakes},
                 "to 1 %, and the norms do not matter.", rtol=0.01)


def peak(function: Callable) -> str:
    """Bytes at the peak of full fine-tuning with AdamW, of a Config, bytes per parameter (and per
    gradient), bytes per moment."""
    cases = [(SHAPES[0], 2, 4), (SHAPES[1], 2, 2), (SHAPES[2], 4, 4)]
    load = memory.Load(tokens=48, attended=64, responses=32, scored=32)
    names = {2: "bfloat16", 4: "float32"}

    def sheet(config, weight, moment) -> dict:
        parts = memory.sheet(config, load, Recipe(moments=names[moment]), names[weight])
        return {"peak": float(sum(parts.values()))}

    def each(bytes_each: Callable) -> Callable:
        """What somebody would get who holds other bytes for every parameter."""
        return lambda config, w, m: counted(config) * bytes_each(w, m)

    mistakes = {
        "the parameters alone: learning needs a gradient and two moments for each of them.":
            each(lambda w, m: w),
        "the optimizer is missing: AdamW keeps two moments per parameter.":
            each(lambda w, m: 2 * w),
        "the gradients are missing: one number per parameter, in the parameters' dtype.":
            each(lambda w, m: w + 2 * m),
        "AdamW keeps two moments per parameter, of the gradient and of its square.":
            each(lambda w, m: 2 * w + m),
        "your moments have the size of the parameters. They have a dtype of their own.":
            each(lambda w, m: 4 * w),
        "everything in float32? Parameters, gradients and moments have the sizes that are given.":
            each(lambda w, m: 16),
        "that is the number of parameters. How many bytes does each of them cost?":
            each(lambda w, m: 1),
        "that is in GiB or GB. In bytes, please.": lambda *case: sheet(*case)["peak"] / 1.05e9,
    }
    for words, change in MISCOUNTED.items():
        mistakes[words] = lambda config, w, m, change=change: (
            counted(config, **change) * (2 * w + 2 * m))
    return grade(function, cases, sheet, {"peak": mistakes},
                 "within 10 %, before a single byte was allocated.", rtol=0.1)
