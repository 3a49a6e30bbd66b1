"""What readers might answer to the exercises of lessons 08, 09, 13 and 14: right and wrong."""

from dataclasses import replace

import torch

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


def discounts(c, gamma):
    steps = torch.arange(len(c))[None] - torch.arange(len(c))[:, None]
    return torch.tril(gamma ** steps.abs().to(c)).T


def detached_weights(c, gamma):
    return discounts(c, gamma) @ c / discounts(c, gamma).sum(0).dot(c)


def full_weights(c, gamma, P=1, C=1):
    D = discounts(c, gamma)
    Z = (D @ c).sum()
    return (D @ c + P * D.T @ c - C * (c @ D @ c) / Z * D.sum(0)) / Z


def count(config, **changes):
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(replace(config, **changes)).parameters())


# {grader: what solves it}
SOLVED = {
    "walk_gradient": right_walk_gradient,
    "success": lambda *lake: right_values(*lake) @ lake[4][~lake[2]],
    "residual": right_residual,
    "off_path": right_off_path,
    "propagation": lambda c, gamma: (detached_weights(c, gamma), full_weights(c, gamma), 1),
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
    "propagation": [
        (
            lambda c, gamma: (detached_weights(c, gamma), full_weights(c, gamma), 0),
            "detached and full are right. release: the",
        ),
        (
            lambda c, gamma: (full_weights(c, gamma), detached_weights(c, gamma), 1),
            "detached: those are the full weights",
        ),
        (
            lambda c, gamma: (detached_weights(c, gamma), detached_weights(c, gamma), 1),
            "full: those are the detached ones",
        ),
        (
            lambda c, gamma: (detached_weights(c, gamma), -full_weights(c, gamma), 1),
            "up to the sign",
        ),
        (
            lambda c, gamma: (detached_weights(c, gamma), full_weights(c, gamma, P=0), 1),
            "P_j is missing",
        ),
        (
            lambda c, gamma: (detached_weights(c, gamma), full_weights(c, gamma, C=0), 1),
            "Z was held fixed",
        ),
        (
            lambda c, gamma: (detached_weights(c, gamma), full_weights(c, gamma, C=-1), 1),
            "the sign of L C_j",
        ),
        (
            lambda c, gamma: (
                detached_weights(c.flip(0), gamma).flip(0),
                full_weights(c, gamma),
                1,
            ),
            "these favour late tokens",
        ),
        (lambda c, gamma: (detached_weights(c, 1.0), full_weights(c, gamma), 1), "γ is missing"),
        (
            lambda c, gamma: (c * detached_weights(c, gamma), full_weights(c, gamma), 1),
            "the loss itself",
        ),
        (
            lambda c, gamma: (len(c) * detached_weights(c, gamma), full_weights(c, gamma), 1),
            "multiplied by the number of tokens",
        ),
        (lambda c, gamma: detached_weights(c, gamma), "returns 1 value(s)"),
    ],
    "peak": [
        (lambda config, weight, moment: count(config) * weight, "the weights alone"),
        (lambda config, weight, moment: count(config) * 2 * weight, "the optimizer is missing"),
        (
            lambda config, weight, moment: count(config) * (weight + 2 * moment),
            "the gradients are missing",
        ),
        (
            lambda config, weight, moment: count(config) * (2 * weight + moment),
            "two moments per weight",
        ),
        (lambda config, weight, moment: count(config) * 4 * weight, "a dtype of their own"),
        (lambda config, weight, moment: count(config) * 16, "everything in float32?"),
        (lambda config, weight, moment: count(config), "the number of weights"),
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
