"""Generation: the cache of keys and values, the loop over new tokens, and the choice of one.

`stream` and `generate` are methods of Transformer (model.py). Token ids in, token ids out: texts are sample.py's and talk.py's.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


class Cache:
    """Keys and values of the tokens read so far, for generation: two tensors (n_layer, R, G, slots, D), allocated once.

    A row's token at position t lives in slot t, and a query at position t sees slots 0..t. So rows of different length need no
    left padding: what right padding wrote into a slot is overwritten by that row's own token before any query can see it.
    """

    def __init__(self, config, rows: int, slots: int, ragged: bool, dtype=torch.float32, device="cpu"):
        shape = config.n_layer, rows, config.n_kv_head, slots, config.d_head
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.ragged = ragged                                            # do rows differ in length?
        self.used = 0                                                   # slots that any row has filled

    def store(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k, v (R, G, L, D) at `positions` (R, L); returns what the layer holds now, (R, G, used, D) each."""
        if self.ragged:
            rows = torch.arange(len(positions), device=positions.device)[:, None]
            self.k[layer][rows, :, positions] = k.transpose(1, 2)
            self.v[layer][rows, :, positions] = v.transpose(1, 2)
        else:
            self.k[layer][:, :, self.used - k.shape[2] : self.used] = k
            self.v[layer][:, :, self.used - v.shape[2] : self.used] = v
        return self.k[layer][:, :, : self.used], self.v[layer][:, :, : self.used]


@torch.no_grad()
def stream(model, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None,
           top_p: float | None = None, stop: tuple[int, ...] = (), lengths: Tensor | None = None,
           generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Continue prompts (R, L), right-padded to `lengths` (R,) if ragged;
    yields the next token of every row, (R,), until all have stopped.

    temperature 0 is greedy. A row that has produced a token of `stop` repeats it from then on.
    """
    R, L = tokens.shape if tokens.dim() == 2 else (0, 0)
    lengths = torch.full((R,), L, device=tokens.device) if lengths is None else lengths
    if L == 0 or not 1 <= int(lengths.min()) <= int(lengths.max()) <= L:
        raise ValueError(f"tokens must be (rows, length), every row with a token to continue from, not {tuple(tokens.shape)}")
    if not (temperature >= 0 and max_new_tokens >= 0 and (top_k is None or top_k >= 1) and (top_p is None or 0 < top_p <= 1)):
        raise ValueError(f"temperature {temperature}, max_new_tokens {max_new_tokens}, top_k {top_k}, top_p {top_p}: "
                         "the first two start at 0, top_k at 1, top_p lies above 0 and up to 1")
    if model.config.pos == "learned" and tokens.shape[1] + max_new_tokens > model.config.max_len:
        raise ValueError(f"{tokens.shape[1]} prompt tokens and {max_new_tokens} new ones "
                         f"exceed the {model.config.max_len} learned positions")
    stops = torch.tensor(stop, dtype=torch.long, device=tokens.device)
    cache = Cache(model.config, R, L + max_new_tokens, int(lengths.min()) < L, model.head.dtype, tokens.device)
    head = model.head.T if tokens.is_cuda else model.head.T.contiguous()  # (C, V): a CPU reads it up to 3 times as fast so
    hidden = model(tokens, torch.arange(L, device=tokens.device).expand(R, L), cache=cache)             # (R, L, C)
    hidden = hidden[torch.arange(R, device=tokens.device), lengths - 1]  # (R, C)
    stopped, new = torch.zeros(R, dtype=torch.bool, device=tokens.device), tokens[:, 0]
    for step in range(max_new_tokens):
        new = torch.where(stopped, new, choose((hidden @ head).float(), temperature, top_k, top_p, generator))   # (R,)
        stopped = stopped | torch.isin(new, stops)
        yield new
        if stopped.all() or step == max_new_tokens - 1:
            return
        hidden = model(new[:, None], (lengths + step)[:, None], cache=cache)[:, 0]                      # (R, C)


def generate(model, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None,
             top_p: float | None = None, stop: tuple[int, ...] = (), lengths: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
    """Prompts (R, L) with their continuations, (R, L + new). Arguments as in `stream`.

    In ragged batches a row's new tokens follow its own prompt, at `lengths`; what is right of them is 0.
    """
    new = list(stream(model, tokens, max_new_tokens, temperature, top_k, top_p, stop, lengths, generator))
    if lengths is None:
        return torch.cat([tokens, *(column[:, None] for column in new)], 1)
    whole = F.pad(tokens, (0, len(new)))
    whole = whole * (torch.arange(whole.shape[1], device=tokens.device) < lengths[:, None])
    for step, column in enumerate(new):
        whole.scatter_(1, (lengths + step)[:, None], column[:, None])
    return whole


def choose(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None,
           generator: torch.Generator | None) -> Tensor:
    """One token per row of logits (R, V): the likeliest at temperature 0, else a draw.

    top_k keeps the k likeliest tokens; top_p keeps the likeliest ones whose mass, without the last of them, stays below p.
    """
    ranked = temperature > 0 and (top_k is not None or (top_p is not None and top_p < 1))
    best, tokens = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1])) if ranked else logits.max(-1, keepdim=True)
    if not best[:, 0].isfinite().all():                                 # the largest: NaN counts as larger than any number
        raise FloatingPointError("the model's logits are not finite; its weights are damaged or overflow in this dtype")
    if temperature == 0:
        return tokens[:, 0]
    p = (((best if ranked else logits) - best[:, :1]) / max(temperature, 1e-30)).softmax(-1)            # (R, k), or (R, V)
    if top_p is not None and top_p < 1:
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)
    # One random number per row, looked up in the running sum; torch.multinomial would draw one per token.
    below = p.double().cumsum(-1)
    aim = torch.rand(len(p), 1, dtype=below.dtype, device=p.device, generator=generator) * below[:, -1:]
    drawn = torch.searchsorted(below, aim, right=True).clamp(max=p.shape[-1] - 1)                       # (R, 1)
    return (tokens.gather(1, drawn) if ranked else drawn)[:, 0]
