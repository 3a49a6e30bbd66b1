"""Training: score → weigh → push, then the step of the optimizer.

Every method here sees the model only through the log-probs of tokens that are already in the batch.
So the whole gradient of its loss is one number per token, weights = −∂loss/∂logps, and three steps
are all there is:

    score    hidden states → the log-probs of the response tokens
    weigh    log-probs → the loss and one weight per token: the method, arithmetic by hand
    push     weights → ∂loss/∂logits = weights · (softmax − onehot) → head and network

`head_pass` is these three steps, `fused_pass` adds the network before and after them, `gradient`
adds up the forward passes of one update, and `fit` is the loop over updates. What makes a run
survive an interrupt (files, checkpoints, resuming) is verbs/train.py.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minialign import parallel
from minialign.data import Batch, Counts, Example, collate, laid_out, longest_text
from minialign.logps import CHUNK_ELEMENTS, logit_gradient, score
from minialign.methods.method import Method
from minialign.model import wide
from minialign.optim import AdamW, cosine
from minialign.settings import check_settings, setting

# ------------------------------------------------------------------------------- score, weigh, push


def head_pass(states: Tensor, head: Tensor, method: Method, batch: Batch, learn_head: bool = True):
    """From hidden states to the loss, and back to the gradients of the states and of the head.

    states   (L, C) the network's hidden states, detached
    head     (V, C) the vocabulary head, detached
    →        loss (), logps (A, B, T), info {name: (B,)}, d_states (L, C), d_head (V, C) or None

    Examples go through a few at a time, so that few logits are ever alive, and no logit is computed
    twice. This is exact because an example's weights depend on that example alone and on what is
    known beforehand: the counts, and whatever the method's `prepare` found out (KTO's drift).
    """
    parts = split_by_logits(batch, len(head))
    d_states = torch.zeros_like(states, dtype=wide(states[:0]).dtype)                   # (L, C)
    d_head = torch.zeros_like(head, dtype=d_states.dtype) if learn_head else None       # (V, C)
    most = max(int(part.mask.sum()) for part in parts)
    memory = d_states.new_empty(most, len(head))                            # (most, V)
    loss, all_logps, infos = 0.0, [], []

    for part in parts:
        mask = part.mask                                                                # (A, b, T)
        source, targets = part.rows.source[mask], part.rows.y[mask]                     # (N,), (N,)

        # Score: the log-prob of every response token, and of every token it could have been.
        h = states[source]                                                              # (N, C)
        token_logps, log_p = score(h, head, targets, memory[: len(targets)])          # (N,), (N, V)
        logps = d_states.new_zeros(mask.shape)                                          # (A, b, T)
        logps[mask] = token_logps

        # Weigh: the method turns them into its loss and one weight per token, by hand.
        part_loss, weights, info = method.weigh(logps, part)                         # (), (A, b, T)

        # Push: weights · (softmax − onehot) is the gradient at the logits. Logits are h · headᵀ, so
        # it goes on to each factor through the other one. Then the logits are forgotten.
        d_logits = logit_gradient(log_p, targets, weights[mask]).to(head.dtype)         # (N, V)
        d_states.index_add_(0, source, (d_logits @ head).to(d_states.dtype))
        if learn_head and d_head.dtype == d_logits.dtype:
            d_head.addmm_(d_logits.T, h)
        elif learn_head:
            d_head += d_logits.T @ h

        loss = loss + part_loss
        all_logps.append(logps)
        infos.append(info)

    info = {name: torch.cat([one[name] for one in infos]) for name in infos[0]}         # (B,) each
    return loss, torch.cat(all_logps, 1), info, d_states, d_head


def split_by_logits(batch: Batch, V: int) -> list[Batch]:
    """Cut a batch into runs of examples with up to CHUNK_ELEMENTS logits together.

    An example is never cut: one that has more logits by itself goes alone.
    """
    cuts, held = [0], 0
    for b, tokens in enumerate(batch.mask.sum((0, 2)).tolist()):
        held += tokens * V
        if held > CHUNK_ELEMENTS and b > cuts[-1]:
            cuts.append(b)
            held = tokens * V
    cuts.append(len(batch))
    return [batch.part(begin, end) for begin, end in zip(cuts, cuts[1:], strict=False)]


def fused_pass(model, method: Method, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Add the gradient of the method's loss on `batch` to the parameters' `.grad`.

    Returns the loss (), the log-probs (A, B, T), and info, numbers (B,) of every example.
    """
    # Forward, one pass for all answers of all prompts: tokens or embeddings → hidden states.
    rows = batch.rows
    hidden = model(method.inputs(model, batch), rows.positions, rows.texts)             # (1, L, C)

    # Score, weigh, push, outside of autograd: `states` are numbers without a history.
    states, head = hidden.detach().flatten(0, 1), model.head                    # (L, C), (V, C)
    loss, logps, info, d_states, d_head = head_pass(
        states, head.detach(), method, batch, learn_head=head.requires_grad)
    if d_head is not None:
        head.grad = d_head.to(head.dtype) if head.grad is None else head.grad.add_(d_head)
        del d_head                      # a wide copy, where the head is bfloat16: 2 GiB for an 8 B

    # Backward: from ∂loss/∂hidden on, the chain rule is autograd's business.
    hidden.backward(d_states.view_as(hidden).to(hidden.dtype))
    return loss, logps, info


# --------------------------------------------------------------------------------------- one update


def gradient(model, method: Method, chosen: list[Example], micro_batch: int,
             pass_tokens: int | None = None) -> tuple[float, dict[str, float]]:
    """Add the exact gradient of one update's loss to `.grad`, in however many forward passes.

    Returns the loss, and means: of the method's own numbers over examples, and over tokens
    "logp_wanted" and "logp_others", the log-probs of the wanted answers and of the others that the
    method reads. Every pass divides by the counts of the whole update, so the passes add up, and
    nothing has to be rescaled.
    """
    answers = sum(bool(answer) for e in chosen for answer in e.answers)
    counts = Counts(len(chosen), answers, sum(len(e.answers[0]) for e in chosen))

    # All examples, unless several processes train together: then each takes its share of them.
    mine = parallel.mine(sorted(chosen, key=longest_text))
    parts = []
    for examples in parallel.even_out(passes(mine, micro_batch, pass_tokens)):
        parts.append(collate(examples, counts).to(model.head.device))

    # What must be asked of the policy first: IFT's guesses, KTO's drift. Most methods ask nothing.
    parts = method.prepare(model, parts)

    sums = Counter()                                        # what is not there yet is 0
    for part in parts:
        loss, logps, info = fused_pass(model, method, part)
        sums["loss"] += float(loss)
        for name, which in ("wanted", slice(0, 1)), ("others", slice(1, None)):
            sums[f"logp_{name}"] += float(logps[which].sum())
            sums[f"tokens_{name}"] += int(part.mask[which].sum())
        for name, values in info.items():
            sums[name] += float(values.sum())

    # What the other processes have found, and what the method remembers of their examples.
    sums = parallel.added(sums)
    parallel.share_memory(method.state_dict(), [e.index for e in mine])

    # From sums to means.
    loss = sums.pop("loss")
    sums.pop("loss_per_example", None)                      # its mean is the loss itself
    per_token = {}
    for name in "wanted", "others":
        total, n = sums.pop(f"logp_{name}"), sums.pop(f"tokens_{name}")
        if n > 0:
            per_token[f"logp_{name}"] = total / n
    means = {name: total / len(chosen) for name, total in sums.items()}
    return loss, means | per_token


def passes(
    examples: list[Example], micro_batch: int, pass_tokens: int | None = None
) -> list[list[Example]]:
    """Cut an update into forward passes over texts of like lengths.

    A pass has at most `micro_batch` prompts. It reads at most `pass_tokens` tokens, each prompt
    once for all its answers; an example that is longer goes alone.
    """
    parts, held = [], 0
    for e in sorted(examples, key=longest_text):
        tokens = laid_out(e)
        full = not parts or len(parts[-1]) == micro_batch
        if full or (pass_tokens is not None and held + tokens > pass_tokens):
            parts.append([])
            held = 0
        parts[-1].append(e)
        held += tokens
    return parts


# ----------------------------------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Recipe:
    """How to train, apart from the method. ValueError for what makes no sense."""

    epochs: int = setting(1, "passes over the data", least=1)
    batch: int = setting(32, "prompts per update", least=1)
    micro_batch: int | None = setting(
        None, "most prompts per forward pass: fewer need less memory, the result is the same; 8 "
              "unless given, or with pass_tokens as many as fit", least=1)
    pass_tokens: int | None = setting(
        None, "most tokens per forward pass, each prompt counted once: short examples then "
              "go in larger passes than long ones", least=1)
    lr: float = setting(
        1e-3, "peak learning rate; 5e-7 to 2e-6 for a 7 B model, around 5e-4 for a tiny one",
        above=0)
    warmup: float = setting(
        0.1, "share of the updates in which the learning rate rises; then it falls along a cosine "
             "to 0", least=0, below=1)
    weight_decay: float = setting(0.0, "decoupled weight decay on matrices", least=0)
    clip: float = setting(
        1.0, "gradients longer than this are shortened to it", above=0, most=math.inf)
    beta1: float = setting(
        0.9, "AdamW's memory of gradients; 0 makes it RMSprop, and saves that memory",
        least=0, below=1)
    beta2: float = setting(0.95, "AdamW's memory of their squares", least=0, below=1)
    moments: str = setting(
        "float32", "in what AdamW keeps both; bfloat16 halves their memory",
        choices=("float32", "bfloat16"))
    inside_backward: bool = setting(
        False, "update each parameter as soon as its gradient is there and keep no gradient: an "
               "update is then one pass, and not clipped")
    negatives: int | None = setting(
        None, "negatives per prompt and epoch, taken in turn from the example's pool; all of them "
              "unless given", least=1)
    seed: int = setting(0, "order of the data, and all else that is drawn", least=0, most=10**9)

    def __post_init__(self):
        check_settings(self)
        if self.micro_batch is None:
            most = 8 if self.pass_tokens is None else self.batch
            object.__setattr__(self, "micro_batch", most)       # the dataclass is frozen
        in_one_pass = self.batch <= self.micro_batch and self.pass_tokens is None
        if self.inside_backward and not (in_one_pass and self.clip == math.inf):
            raise ValueError(
                "inside_backward updates in one pass, before the whole gradient is known: "
                f"micro_batch must be at least batch ({self.batch}), pass_tokens unset, clip inf")

    def updates(self, n_examples: int) -> int:
        """Updates that a run over so many examples takes."""
        return self.epochs * math.ceil(n_examples / self.batch)


class Diverged(FloatingPointError):
    """The loss or the gradient is no longer a finite number.

    The parameters are still those before this update, unless they moved during it
    (inside_backward). What a method remembers, DFT's u, has moved
    on: go back to the last checkpoint.
    """


def fit(
    model,
    method: Method,
    examples: list[Example],
    recipe: Recipe,
    optimizer: AdamW | None = None,
    start: int = 0,
) -> Iterator[dict]:
    """Train; a generator that yields one record after every update.

    A record is {"step", "epoch", "loss", "lr", "gradient_norm", "tokens", "seconds", and what
    `gradient` returns besides the loss}. `optimizer` and `start` continue an interrupted run.
    Diverged is raised before an update that would spoil the parameters (with inside_backward right
    after it: then only a checkpoint is good).
    """
    optimizer = optimizer or build_optimizer(model, recipe)
    updates = recipe.updates(len(examples))
    warmup = round(recipe.warmup * updates)
    for step, (epoch, chosen) in enumerate(batches(examples, recipe, method, start), start=start):
        began = time.perf_counter()
        lr = recipe.lr * cosine(step, updates, warmup)

        # The gradient of the whole update. With inside_backward the parameters move while it is
        # computed.
        moving = nullcontext()
        if recipe.inside_backward:
            moving = optimizer.inside_backward(lr)
        with moving as norms:
            loss, info = gradient(model, method, chosen, recipe.micro_batch, recipe.pass_tokens)
        if recipe.inside_backward:
            norm = float(torch.stack(norms).norm())
        else:
            norm = float(optimizer.gradient_norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            hint = "the model, the data or their dtype is at fault"
            if step > 0:
                hint = "a lower learning rate may help"
            raise Diverged(f"update {step + 1}: loss {loss}, gradient norm {norm} ({hint}); "
                           f"examples {[e.index for e in chosen]}")

        # The step of the optimizer, with gradients that are too long shortened.
        if not recipe.inside_backward:
            optimizer.step(lr, min(1.0, recipe.clip / (norm + 1e-12)))

        yield {
            "step": step + 1,
            "epoch": epoch,
            "loss": loss,
            "lr": lr,
            "gradient_norm": norm,
            "tokens": sum(len(answer) for e in chosen for answer in e.answers),
            "seconds": time.perf_counter() - began,
            **info,
        }


def build_optimizer(model, recipe: Recipe) -> AdamW:
    """AdamW over the model's trainable parameters, as the recipe wants it."""
    return AdamW(
        parallel.parameters(model),
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
        seed=recipe.seed,
        moments=getattr(torch, recipe.moments),
    )


def batches(
    examples: list[Example], recipe: Recipe, method: Method, start: int = 0
) -> Iterator[tuple[int, list[Example]]]:
    """(epoch, examples) of every update from number `start` on.

    Each epoch has an order of its own, which is a function of the seed alone.
    """
    per_epoch = math.ceil(len(examples) / recipe.batch)
    for step in range(start, recipe.updates(len(examples))):
        epoch, i = divmod(step, per_epoch)
        draw = torch.Generator().manual_seed(1_000_003 * recipe.seed + epoch)
        order = torch.randperm(len(examples), generator=draw).tolist()
        chosen = order[i * recipe.batch : (i + 1) * recipe.batch]
        yield epoch, [pick_answers(examples[j], method, epoch, recipe.negatives) for j in chosen]


def pick_answers(example: Example, method: Method, epoch: int, negatives: int | None) -> Example:
    """The answers that a method looks at in this epoch.

    That is the wanted one alone, or with it the epoch's share of the pool, taken in turn and round
    again.
    """
    pool = len(example.answers) - 1
    chosen = [0]
    if method.reads_others:
        k = min(negatives or pool, pool)
        chosen += [1 + (epoch * k + j) % pool for j in range(k)]
    picked = {"answers": [example.answers[i] for i in chosen]}
    if example.ref_logps is not None:
        picked["ref_logps"] = [example.ref_logps[i] for i in chosen]
    if example.rewards is not None:
        picked["rewards"] = [example.rewards[i] for i in chosen]
    return replace(example, **picked)
