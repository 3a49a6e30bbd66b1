"""What readers might answer to the exercises of lessons 08, 09, 13 and 14: right and wrong."""

from dataclasses import replace

import torch

from minialign.methods import METHODS
from minialign.methods.method import spread, sums_and_lengths
from minialign.model import Transformer


def right_values(P, policy, ends, goals, *_):
    moves = (policy[:, :, None] * P).sum(1)
    Q = moves[~ends][:, ~ends]
    return torch.linalg.lstsq(
        torch.eye(len(Q), dtype=Q.dtype) - Q, moves[~ends][:, goals].sum(1)[:, None]
    ).solution[:, 0]


def right_walk_gradient(z, states, actions):
    z = z.clone().requires_grad_()
    (-z.log_softmax(1)[states, actions].sum()).backward()
    return z.grad


def counted_once(z, states, actions):
    count = torch.zeros_like(z)
    count[states, actions] += 1
    return count.sum(1, keepdim=True) * z.softmax(1) - count


def visits(z, states):
    return torch.bincount(states, minlength=len(z))[:, None].to(z)


def right_residual(E, z, tokens, is_answer, lam, shift=1, guessed=None):
    guessed = torch.eye(len(E)).double()[z.argmax(1)] @ E if guessed is None else guessed
    mixed = (1 - lam) * E[tokens] + lam * guessed.roll(shift, 0)
    return torch.where(is_answer[:, None], mixed, E[tokens])


def right_off_path(mixed, states, actions, optimal, first=1, labels=None):
    labels = actions if labels is None else labels
    off = mixed * (1 - torch.eye(mixed.shape[1])[states])
    right, solvable = optimal[:, labels].T, optimal.any(1)
    off, right = off[first:], right[first:]
    return off.sum(1).mean(), (off * right).sum() / (off * solvable).sum()


class Wanted:
    """SFT by sums, and a fixed push down on the mean of the negatives: keeps all laws."""

    def weigh(self, logps, batch):
        l, _ = sums_and_lengths(logps, batch)
        push = torch.cat([torch.ones_like(l[:1]), torch.full_like(l[1:], -1 / len(l[1:]))])
        N = batch.counts.examples
        return -(push * l).sum() / N, spread(push, batch) / N, {}


def changed(of):
    """The class above with one thing wrong: of(loss, weights, logps, batch) → what it returns."""
    class Changed(Wanted):
        def weigh(self, logps, batch):
            return of(*super().weigh(logps, batch)[:2], logps, batch)
    return Changed


class Remembers(Wanted):
    """It stops in a helper of its own."""

    def weigh(self, logps, batch):
        return self.average[batch.index]


def count(config, **changes):
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(replace(config, **changes)).parameters())


# {grader: what solves it}
SOLVED = {
    "walk_gradient": right_walk_gradient,
    "success": lambda *lake: right_values(*lake) @ lake[4][~lake[2]],
    "residual": right_residual,
    "off_path": right_off_path,
    "method": Wanted,
    "n_parameters": lambda config: count(config),
    "peak": lambda config, weight, moment: count(config) * (2 * weight + 2 * moment),
}

# {grader: [(what a reader might write, a piece of what must be said)]}
WRONG = {
    "walk_gradient": [
        (lambda *x: -right_walk_gradient(*x), "up to the sign"),
        (counted_once, "counted once"),
        (lambda z, s, a: right_walk_gradient(z, s, a) + (1 - visits(z, s)) * (
            visits(z, s) > 0) * z.softmax(1), "n(s) is missing"),
        (lambda z, s, a: right_walk_gradient(z, s, a) + (1 - visits(z, s)) * z.softmax(1),
         "never visits"),
        (lambda z, s, a: right_walk_gradient(z, s, a) / len(s), "number of steps"),
        (lambda z, s, a: right_walk_gradient(z, s, a) / visits(z, s).clamp(min=1),
         "visits of each cell"),
        (lambda z, s, a: visits(z, s) * z.softmax(1), "the counts are missing"),
        (lambda z, s, a: right_walk_gradient(z, s, a) - visits(z, s) * z.softmax(1),
         "the policy is missing"),
        (lambda z, s, a: right_walk_gradient(z, s, a)[s], "its shape is"),
    ],
    "success": [
        (
            lambda P, p, ends, goals, start: right_values(P, p, ends, ends) @ start[~ends],
            "holes count as goals",
        ),
        (
            lambda P, p, ends, goals, start: right_values(P, p, ends, ends & ~goals) @ start[~ends],
            "chance to drown",
        ),
        (
            lambda P, p, ends, goals, start: right_values(P, p, ends, goals).mean(),
            "all cells one can stand on",
        ),
        (
            lambda P, p, ends, goals, start: right_values(P, p, ends, goals).sum() / len(start),
            "ends included",
        ),
        (lambda P, p, ends, goals, start: right_values(P, p, ends, goals)[0], "at the first cell"),
        (
            lambda P, p, ends, goals, start: right_values(0.99 * P, p, ends, goals) @ start[~ends],
            "discounted",
        ),
        (
            lambda P, p, *lake: (
                right_values((p[:, :, None] * P).sum(1).T[:, None], 0 * p[:, :1] + 1, *lake)
                @ lake[2][~lake[0]]
            ),
            "rows and columns",
        ),
        (
            lambda P, p, ends, goals, start: (
                right_values(P, 0 * p + 0.25, ends, goals) @ start[~ends]
            ),
            "the same chance",
        ),
        (
            lambda P, p, *lake: (
                right_values(P, torch.eye(4).double()[p.argmax(1)], *lake) @ lake[2][~lake[0]]
            ),
            "likeliest",
        ),
        (lambda P, p, ends, goals, start: right_values(P, p, ends, goals), "its shape is"),
        (
            lambda P, p, ends, goals, start: torch.linalg.solve(
                torch.eye(len(start)).double() - (p[:, :, None] * P).sum(1), goals.double()
            )[0],
            "Keep the rows and columns of ~ends",
        ),
    ],
    "residual": [
        (lambda *row: right_residual(*row, shift=0), "shift by one"),
        (lambda E, z, y, m, lam: right_residual(E, z, y, torch.arange(len(y)) > 0, lam),
         "prompt and padding are mixed"),
        (lambda E, z, y, m, lam: right_residual(E, z, y, m, lam, guessed=z.softmax(1) @ E),
         "by their probabilities"),
        (lambda E, z, y, m, lam: right_residual(E, z, y, m, 1 - lam), "are swapped"),
        (lambda E, z, y, m, lam: right_residual(E, z, y, m, 1.0), "the guess alone"),
        (lambda E, z, y, m, lam: E[y], "nothing is mixed"),
        (lambda E, z, y, m, lam: (1 - lam) * y + lam * z.argmax(1), "its shape is"),
    ],
    "off_path": [
        (lambda *walk: right_off_path(*walk, first=0), "first cell counts as well"),
        (lambda m, s, a, o: (right_off_path(m, s, a, o)[0] * (len(s) - 1),
                             right_off_path(m, s, a, o)[1]), "a sum over the steps"),
        (lambda m, s, a, o: (right_off_path(m, s, a, o)[0] * (len(s) - 1) / len(s),
                             right_off_path(m, s, a, o)[1]), "you divided by T"),
        (lambda *walk: (1 - right_off_path(*walk)[0], right_off_path(*walk)[1]), "*on* the path"),
        (lambda *walk: (right_off_path(*walk)[0], right_off_path(*walk, first=0)[1]),
         "share is right. right: the first cell"),
        (lambda m, s, a, o: right_off_path(m, s, a, o, labels=a.roll(1)), "the step before"),
        (lambda *walk: (right_off_path(*walk)[0], 1 - right_off_path(*walk)[1]), "wrong labels"),
        (lambda m, s, a, o: (right_off_path(m, s, a, o)[0],
                             right_off_path(m, s, a, o)[1]
                             * (m * (1 - torch.eye(m.shape[1])[s]) * o.any(1))[1:].sum()
                             / (m * (1 - torch.eye(m.shape[1])[s]))[1:].sum()),
         "cannot be reached have no right label"),
        (lambda *walk: right_off_path(*walk)[0], "returns 1 value(s)"),
    ],
    "method": [
        (changed(lambda L, w, l, b: (L, -w, {})), "right up to the sign"),
        (changed(lambda L, w, l, b: (L, 2 * w, {})), "weights are 2 times"),
        (changed(lambda L, w, l, b: (L, w * (torch.arange(4) < 1)[:, None, None], {})),
         "wanted answers are right, those on the negatives are not"),
        (changed(lambda L, w, l, b: (L, w + w.roll(1, 0), {})), "central differences"),
        (changed(lambda L, w, l, b: (L, w + ~b.mask, {})), "pushes on places where no answer is"),
        (changed(lambda L, w, l, b: (L + l.sum(), w, {})), "what stands outside of the answers"),
        (changed(lambda L, w, l, b: (L - l[1, 0, 0], w + (l == l[1, 0, 0]), {})),
         "the negatives change places"),
        (changed(lambda L, w, l, b: (L + (l < -9e3).sum() / 0.0 * 0 if (l < -9e3).any() else L, w,
                                     {})), "a log-prob of −10,000"),
        (changed(lambda L, w, l, b: (L * 3 / len(b), w * 3 / len(b), {})), "do not add up"),
        (changed(lambda L, w, l, b: (L, w.sum(-1), {})), "the weights has the shape (4, 3)"),
        (changed(lambda L, w, l, b: (b.mask[0] * l[0], w, {})), "the loss has the shape (3, 6)"),
        (changed(lambda L, w, l, b: (L, w)), "returns three things"),
        (changed(lambda L, w, l, b: (float(L), w, {})), "not float"),
        (Remembers, "of answers_worlds.py: AttributeError"),
        (lambda: METHODS["dft"](n_examples=3), "1 of the 6 laws broken"),
        (lambda: 7, "7 is no method"),
    ],
    "n_parameters": [
        (lambda config: count(config, n_layer=1), "one layer only"),
        (lambda config: count(config, mlp="gelu"), "three matrices"),
        (lambda config: count(config, n_kv_head=config.n_head), "n_kv_head heads"),
        (lambda config: count(config, tie=False), "count it once"),
        (lambda config: count(config, n_layer=0), "the tables alone"),
        (lambda config: count(config, vocab_size=1), "the tables are missing"),
        (lambda config: count(config) / 1e9, "up to a factor"),
    ],
    "peak": [
        (lambda config, weight, moment: count(config) * weight, "the parameters alone"),
        (lambda config, weight, moment: count(config) * 2 * weight, "the optimizer is missing"),
        (
            lambda config, weight, moment: count(config) * (weight + 2 * moment),
            "the gradients are missing",
        ),
        (
            lambda config, weight, moment: count(config) * (2 * weight + moment),
            "two moments per parameter",
        ),
        (lambda config, weight, moment: count(config) * 4 * weight, "a dtype of their own"),
        (lambda config, weight, moment: count(config) * 16, "everything in float32?"),
        (lambda config, weight, moment: count(config), "the number of parameters"),
        (
            lambda config, weight, moment: count(config, n_layer=1) * (2 * weight + 2 * moment),
            "one layer only",
        ),
        (
            lambda config, weight, moment: count(config, mlp="gelu") * (2 * weight + 2 * moment),
            "three matrices",
        ),
        (
            lambda config, weight, moment: (
                count(config, n_kv_head=config.n_head) * (2 * weight + 2 * moment)
            ),
            "n_kv_head heads",
        ),
        (
            lambda config, weight, moment: count(config, tie=False) * (2 * weight + 2 * moment),
            "count it once",
        ),
        (
            lambda config, weight, moment: count(config) * (2 * weight + 2 * moment) / 2**30,
            "in GiB or GB",
        ),
        (
            lambda config, weight, moment: count(config) * (2 * weight + 2 * moment) / 1e9,
            "in GiB or GB",
        ),
        (
            lambda config, weight, moment: 1.5 * count(config) * (2 * weight + 2 * moment),
            "up to a factor",
        ),
    ],
}
