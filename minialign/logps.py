"""The vocabulary head: log-probs of given tokens from hidden states, and the way back.

In training, only the functions of this file make logits or turn them into gradients. `score` and
`logit_gradient` are two of the three steps that train.py puts together: score → weigh → push.
`linear_logps` is the same mathematics as a differentiable function, for everything else. Both rest
on two lines, for logits z and a target token y:

    log-prob of y = z_y − logsumexp z            ∂(log-prob of y)/∂z = onehot(y) − softmax(z)

Letters for shapes: N tokens to score, C width of the model, V vocabulary; A, B, T as in data.py.
"""

from dataclasses import replace

import torch
from torch import Tensor

from minialign import parallel
from minialign.data import Batch, Example, collate
from minialign.model import wide
from minialign.progress import tracked

CHUNK_ELEMENTS = 2**24      # logits to work on at a time: 64 MB in float32


# ---------------------------------------------------------------------------- two steps of training


def score(
    hidden: Tensor, head: Tensor, targets: Tensor, memory: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probs of the target tokens, and of all tokens.

    hidden   (N, C) hidden states, each of which predicts one target; no graph is built
    head     (V, C) the vocabulary head
    targets  (N,) int
    memory   (N, V) float32 or wider, to compute in, since allocating it takes as long as the
             arithmetic
    →        the targets' log-probs (N,), and log_p (N, V), in `memory` if that was given; both
             float32 or wider
    """
    if memory is None:
        memory = wide(hidden.new_empty(0)).new_empty(len(hidden), len(head))
    log_p = memory                                # (N, V): first the logits, then their log-softmax
    if log_p.dtype == hidden.dtype:
        torch.mm(hidden, head.T, out=log_p)
    else:
        log_p.copy_(hidden @ head.T)           # bfloat16 products, summed in float32 from here on
    torch.log_softmax(log_p, -1, out=log_p)
    return log_p.gather(1, targets[:, None])[:, 0], log_p


def logit_gradient(log_p: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """∂loss/∂logits = weights · (softmax − onehot), (N, V), in the memory of `log_p`.

    The one gradient that all methods share. A token with a weight above 0 is pushed up: its logit
    has a gradient below 0, and the optimizer walks against the gradient.

    log_p    (N, V) log-probs of all tokens
    targets  (N,) int
    weights  (N,) −∂loss/∂(log-prob of the target)
    """
    d_logits = log_p.exp_()                                             # softmax
    d_logits.scatter_add_(1, targets[:, None], -torch.ones_like(d_logits[:, :1]))       # − onehot
    return d_logits.mul_(weights.to(d_logits.dtype)[:, None])


# ------------------------------------------------------------ the same as a differentiable function


def linear_logps(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None
) -> Tensor:
    """log softmax(hidden @ weightᵀ)[targets], differentiable, never holding the N × V logits.

    hidden   (N, C)
    weight   (V, C)
    targets  (N,) int
    chunk    rows that go through at a time; what fits into CHUNK_ELEMENTS logits unless given
    →        (N,) float32 (float64 for float64 input)

    Beside its inputs it keeps only one logsumexp per row for the backward pass. ValueError for
    shapes that do not fit, targets outside the vocabulary, and a chunk below 1.
    """
    fits = hidden.dim() == 2 and weight.dim() == 2 and hidden.shape[1] == weight.shape[1]
    if not fits or targets.shape != hidden.shape[:1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (hidden, weight, targets))
        wanted = "hidden (N, C), weight (V, C), targets (N,)"
        raise ValueError(f"linear_logps takes {wanted}; got {shapes}")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(weight):
        raise ValueError(f"targets must be token ids from 0 to {len(weight) - 1}; "
                         "leave out positions that are not trained")
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS // len(weight))
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it is a number of rows, at least 1")
    return LinearLogps.apply(hidden, weight, targets, chunk)


class LinearLogps(torch.autograd.Function):
    """The forward and the backward pass of `linear_logps`, chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk):
        """Log-probs (N,) of the targets; no two chunks' logits are alive at the same time."""
        logps = torch.empty(len(hidden), dtype=wide(hidden[:0]).dtype, device=hidden.device)
        lse = torch.empty_like(logps)                               # logsumexp of each row's logits
        for i in range(0, len(hidden), chunk):
            part = slice(i, i + chunk)
            z = wide(hidden[part] @ weight.T)                           # (chunk, V)
            lse[part] = z.logsumexp(-1)
            logps[part] = z.gather(1, targets[part, None])[:, 0] - lse[part]
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.chunk = chunk
        return logps

    @staticmethod
    def backward(ctx, upstream):
        """The gradients of hidden (N, C) and weight (V, C) for upstream = ∂loss/∂logps (N,)."""
        hidden, weight, targets, lse = ctx.saved_tensors
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if want_hidden else None
        d_weight = torch.zeros_like(weight, dtype=lse.dtype) if want_weight else None
        for i in range(0, len(hidden), ctx.chunk):
            part = slice(i, i + ctx.chunk)

            # The chunk's log-probs once more: its logits, less the logsumexp that was kept.
            log_p = wide(hidden[part] @ weight.T).sub_(lse[part, None])                 # (chunk, V)
            d_logits = logit_gradient(log_p, targets[part], -upstream[part]).to(weight.dtype)

            # Logits are hidden · weightᵀ, so their gradient goes to each factor through the other
            # one.
            if want_hidden:
                d_hidden[part] = d_logits @ weight
            if want_weight:
                d_weight += d_logits.T @ hidden[part]
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None


# ------------------------------------------------------------------ what a model says about a batch


def batch_logps(model, batch: Batch) -> Tensor:
    """Log-probs (A, B, T) of the response tokens of `batch.rows`; 0 where there is no token.

    Differentiable, in float32 or wider.
    """
    rows = batch.rows
    hidden = model(rows.tokens, rows.positions, rows.texts).flatten(0, 1)               # (L, C)
    logps = linear_logps(hidden[rows.source[rows.mask]], model.head, rows.y[rows.mask])     # (N,)
    blank = torch.zeros(rows.mask.shape, dtype=logps.dtype, device=logps.device)
    return blank.masked_scatter(rows.mask, logps)


def greedy(hidden: Tensor, weight: Tensor) -> Tensor:
    """The likeliest token after each hidden state: (N, C), (V, C) → (N,) int. No graph."""
    chunk = max(1, CHUNK_ELEMENTS // len(weight))
    return torch.cat([(part @ weight.T).argmax(-1) for part in hidden.detach().split(chunk)])


@torch.no_grad()
def add_reference(
    model, examples: list[Example], micro_batch: int = 16, progress: bool = True
) -> None:
    """Fill in `ref_logps`: the summed log-prob of every answer under the model as it is now.

    This is the frozen reference that some methods measure from. It is asked once, before training,
    and need not stay in memory. What is known already, from the file of a pool, stays.
    """
    def ask(part: list[Example]) -> list[list[float]]:
        # Ask for the answers whose log-prob is not known: all others count as absent.
        asked = []
        for e in part:
            unknown = unknown_answers(e)
            answers = [answer if a in unknown else [] for a, answer in enumerate(e.answers)]
            asked.append(replace(e, answers=answers, ref_logps=None))
        sums = batch_logps(model, collate(asked).to(model.head.device)).sum(-1)     # (A, B)
        return sums.cpu().double().T.tolist()

    todo = [e for e in examples if unknown_answers(e)]
    parts = [todo[i : i + micro_batch] for i in range(0, len(todo), micro_batch)]
    shown = tracked(parts, "reference", show=progress)
    for part, sums in zip(shown, parallel.dealt(ask, parts), strict=True):
        for e, new in zip(part, sums, strict=True):
            known = e.ref_logps or [None] * len(e.answers)
            e.ref_logps = [new[a] if l is None else l for a, l in enumerate(known)]


def unknown_answers(example: Example) -> list[int]:
    """The numbers of the answers that are present and whose reference log-prob is not known."""
    known = example.ref_logps or [None] * len(example.answers)
    return [a for a, answer in enumerate(example.answers) if answer and known[a] is None]
