"""The vocabulary head: log-probs of given tokens from hidden states, and the way back. Here live all the logits there are.

`fused_pass` is for training: score → weigh → push, one example's logits at a time, nothing computed twice.
`linear_logps` is the same mathematics as a differentiable function, with a hand-written backward that recomputes chunk by chunk.
Both use: log-prob = z_y − logsumexp z, and ∂(log-prob)/∂z = onehot − softmax.
"""

import torch
from torch import Tensor

from minialign.data import Batch, Rows
from minialign.model import wide

CHUNK_ELEMENTS = 2**24      # logits a chunk may hold: 64 MB in float32


def score(hidden: Tensor, weight: Tensor, targets: Tensor, logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """hidden (N, C), weight (V, C), targets (N,) → log-probs of the targets (N,) and of all tokens (N, V), to push with.

    No graph. `logits` (N, V) is memory to use; in float32 the log-probs take the logits' own place.
    """
    z = torch.mm(hidden, weight.T, out=logits)                          # (N, V)
    if z.dtype == wide(z[:0]).dtype:
        log_p = torch.log_softmax(z, -1, out=z)
    else:
        log_p = torch.log_softmax(z, -1, dtype=torch.float32)
    return log_p.gather(1, targets[:, None])[:, 0], log_p


def push(log_p: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """∂loss/∂logits = weights · (softmax − onehot), (N, V), in the memory of log_p. The one gradient every method shares."""
    d_logits = log_p.exp_()
    d_logits.scatter_add_(1, targets[:, None], torch.full_like(targets, -1, dtype=d_logits.dtype)[:, None])
    return d_logits.mul_(weights.to(d_logits.dtype)[:, None])


def fused_pass(model, method, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Add the gradient of the method's loss to the parameters' `.grad`.

    Returns the loss (), the log-probs (A, B, T) and info, its per-example numbers (B,) joined. Logits are alive for one example
    at a time (for several at once if all theirs together are small).
    """
    batch = method.prepare(model, batch)
    rows, head = batch.rows, model.head
    hidden = model(method.inputs(model, batch), rows.positions, rows.texts)         # (R, L, C)
    states = hidden.detach().flatten(0, 1)                                          # (R·L, C)
    loss, logps, info, d_states, d_head = head_pass(states, head.detach(), method, batch, head.requires_grad)
    if d_head is not None:
        head.grad = d_head.to(head.dtype) if head.grad is None else head.grad.add_(d_head)
    hidden.backward(d_states.view_as(hidden).to(hidden.dtype))                      # the chain rule goes on into the network
    return loss, logps, info


def head_pass(states: Tensor, head: Tensor, method, batch: Batch, learn_head: bool = True):
    """Score → weigh → push for hidden states (R·L, C): loss, log-probs, info, and the gradients of the states and of the head.

    The logits' memory is taken once and used again for every part: fresh memory costs about as much as a pass over it.
    """
    rows, cuts = batch.rows, parts(batch, len(head))
    d_states = torch.zeros_like(states, dtype=wide(states[:0]).dtype)
    d_head = torch.zeros_like(head, dtype=d_states.dtype) if learn_head else None
    logps = torch.zeros(batch.mask.shape, dtype=d_states.dtype, device=head.device)
    memory = head.new_empty(max(int(batch.mask[:, begin:end].sum()) for begin, end in cuts), len(head))
    loss, infos = 0.0, []
    for begin, end in cuts:
        here = slice(begin, end)
        mask = batch.mask[:, here]                                                  # (A, b, T)
        source, targets = rows.source[:, here][mask], rows.y[:, here][mask]         # (N,)
        h, logits = states[source], memory[: len(targets)]                          # (N, C), (N, V)
        logps[:, here][mask], log_p = score(h, head, targets, logits)
        part_loss, weights, info = method.weigh(logps[:, here], batch.part(begin, end))
        d_logits = logits.copy_(push(log_p, targets, weights[mask]))                # in float32 all three are one
        del log_p                                                                   # and in bf16 the next part needs its memory
        d_states.index_add_(0, source, (d_logits @ head).to(d_states.dtype))
        if learn_head and d_head.dtype == d_logits.dtype:
            d_head.addmm_(d_logits.T, h)
        elif learn_head:
            d_head += d_logits.T @ h
        loss, infos = loss + part_loss, infos + [info]
    return loss, logps, {name: torch.cat([info[name] for info in infos]) for name in infos[0]}, d_states, d_head


def parts(batch: Batch, V: int) -> list[tuple[int, int]]:
    """Cut the examples into runs whose logits together stay below CHUNK_ELEMENTS; an example is never cut."""
    cuts, held = [0], 0
    for b, tokens in enumerate(batch.mask.sum((0, 2)).tolist()):
        held += tokens * V
        if held > CHUNK_ELEMENTS and b > cuts[-1]:
            cuts.append(b)
            held = tokens * V
    return list(zip(cuts, cuts[1:] + [len(batch)], strict=True))


class LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk):
        logps, lse = (torch.empty(len(hidden), dtype=wide(hidden[:0]).dtype, device=hidden.device) for _ in range(2))
        for i in range(0, len(hidden), chunk):
            z = wide(hidden[i : i + chunk] @ weight.T)                              # (chunk, V)
            lse[i : i + chunk] = z.logsumexp(-1)
            logps[i : i + chunk] = z.gather(1, targets[i : i + chunk, None])[:, 0] - lse[i : i + chunk]
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.chunk = chunk
        return logps

    @staticmethod
    def backward(ctx, upstream):
        hidden, weight, targets, lse = ctx.saved_tensors
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if want_hidden else None
        d_weight = torch.zeros_like(weight, dtype=lse.dtype) if want_weight else None
        for i in range(0, len(hidden), ctx.chunk):
            part = slice(i, i + ctx.chunk)
            log_p = wide(hidden[part] @ weight.T).sub_(lse[part, None])             # (chunk, V), computed again
            d_logits = push(log_p, targets[part], -upstream[part]).to(weight.dtype)
            if want_hidden:
                d_hidden[part] = d_logits @ weight
            if want_weight:
                d_weight += d_logits.T @ hidden[part]
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None


def linear_logps(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """log softmax(hidden @ weightᵀ)[targets], differentiable, without ever holding the N × V logits.

    hidden (N, C), weight (V, C), targets (N,) int → (N,) float32 (float64 for float64 input). Rows go through `chunk` at a time;
    all that is kept for the backward pass is one logsumexp per row.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (hidden, weight, targets))
        raise ValueError(f"linear_logps takes hidden (N, C), weight (V, C), targets (N,); got {shapes}")
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS // len(weight))
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(weight):
        raise ValueError(f"targets must be token ids from 0 to {len(weight) - 1}; leave out positions that are not trained")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it is a number of rows, at least 1")
    return LinearLogps.apply(hidden, weight, targets, chunk)


def greedy(hidden: Tensor, weight: Tensor) -> Tensor:
    """The likeliest token after each hidden state: (N, C), (V, C) → (N,). Chunked; no graph."""
    chunk = max(1, CHUNK_ELEMENTS // len(weight))
    return torch.cat([(part @ weight.T).argmax(-1) for part in hidden.detach().split(chunk)])


def batch_logps(model, batch: Batch, rows: Rows | None = None) -> Tensor:
    """Log-probs (A, B, T) of a batch's response tokens (or of other rows', KTO's) under the model,
    differentiable; 0 where no token is.
    """
    rows = batch.rows if rows is None else rows
    hidden = model(rows.tokens, rows.positions, rows.texts).flatten(0, 1)        # (R·L, C)
    logps = linear_logps(hidden[rows.source[rows.mask]], model.head, rows.y[rows.mask])
    return torch.zeros(rows.mask.shape, dtype=logps.dtype, device=logps.device).masked_scatter(rows.mask, logps)
