"""Generation: a cache of keys and values, the loop over new tokens, and the choice of each of them.

`stream` gives new tokens as they come, `generate` all of them at the end, and `answers` gives whole
texts, several to a prompt if you like. Transformer (model.py) has the first two as methods.

Shapes in the comments: R rows of L tokens, G heads that keep keys and values of D numbers each,
C the width, V the vocabulary.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


class Cache:
    """Keys and values of the tokens read so far, so that a new token costs one token's work.

    Two tensors (n_layer, R, G, slots, D), allocated once. A row's token at position t lives in slot
    t, and a query at position t sees slots 0..t. So rows of different length need no left padding:
    what right padding wrote into a slot is overwritten by the row's own token before any query can
    see it.
    """

    def __init__(self, config, rows: int, slots: int, ragged: bool, dtype: torch.dtype, device):
        shape = config.n_layer, rows, config.n_kv_head, slots, config.d_head
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.ragged = ragged            # do rows differ in length?
        self.used = 0                   # slots that any row has filled; the model counts them up

    def store(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (R, G, L, D) at `positions` (R, L); return all that the layer holds now.

        That is two tensors (R, G, used, D).
        """
        if self.ragged:
            # Each row writes at positions of its own.
            rows = torch.arange(len(positions), device=positions.device)[:, None]       # (R, 1)
            self.k[layer][rows, :, positions] = k.transpose(1, 2)
            self.v[layer][rows, :, positions] = v.transpose(1, 2)
        else:
            # All rows write the same slots, the last ones in use: one block, which is faster.
            begin = self.used - k.shape[2]
            self.k[layer][:, :, begin : self.used] = k
            self.v[layer][:, :, begin : self.used] = v
        return self.k[layer][:, :, : self.used], self.v[layer][:, :, : self.used]

    def mask(self, positions: Tensor, window: int | None) -> Tensor | None:
        """Which slots the tokens at `positions` (R, L) may look at: bool (R, 1, L, used).

        None stands for all of them.
        """
        # The usual case: one new token per row, and rows of one length, so that it comes last.
        one_each = positions.shape[1] == 1 and not self.ragged
        if one_each and (window is None or self.used <= window):
            return None

        # In general, the token in slot t stands at position t.
        slots = torch.arange(self.used, device=positions.device)
        distance = positions[:, :, None] - slots                        # (R, L, used): how far back
        visible = distance >= 0
        if window is not None:
            visible = visible & (distance < window)
        return visible[:, None]


def check_request(model, tokens: Tensor, lengths: Tensor | None, max_new_tokens: int,
                  temperature: float, top_k: int | None, top_p: float | None) -> None:
    """ValueError if `stream` cannot do what it is asked for."""
    # There must be a token to continue from in every row.
    shape = tuple(tokens.shape)
    good = tokens.dim() == 2 and tokens.numel() > 0
    if good and lengths is not None:
        good = 1 <= int(lengths.min()) <= int(lengths.max()) <= shape[1]
    if not good:
        raise ValueError("tokens must be (rows, length), every row with a token to continue from, "
                         f"not {shape}")

    # The choice of a token must be one that can be made.
    good_k = top_k is None or top_k >= 1
    good_p = top_p is None or 0 < top_p <= 1
    if not (temperature >= 0 and max_new_tokens >= 0 and good_k and good_p):
        raise ValueError(f"temperature {temperature}, max_new_tokens {max_new_tokens}, "
                         f"top_k {top_k}, top_p {top_p}: the first two start at 0, top_k at 1, "
                         "top_p lies above 0 and up to 1")

    # Rotary positions go on for ever, learned ones come to an end.
    last = shape[1] + max_new_tokens
    if model.config.pos == "learned" and last > model.config.max_len:
        raise ValueError(f"{shape[1]} prompt tokens and {max_new_tokens} new ones "
                         f"exceed the {model.config.max_len} learned positions")


@torch.no_grad()
def stream(model, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0,
           top_k: int | None = None, top_p: float | None = None, stop: tuple[int, ...] = (),
           lengths: Tensor | None = None,
           generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Continue every row: yields its next token, (R,), until all rows have stopped.

    tokens       prompts (R, L), right-padded if they differ in length
    temperature  0 takes the likeliest token, 1 draws by the model's own probabilities
    top_k        draw only among the k likeliest tokens
    top_p        draw only among the likeliest tokens that together hold this share of probability
    stop         tokens that end a row; from then on the row repeats the one it has produced
    lengths      (R,) tokens in each prompt, if they differ
    generator    where the random numbers come from; torch's own if None
    """
    check_request(model, tokens, lengths, max_new_tokens, temperature, top_k, top_p)
    R, L = tokens.shape
    device = tokens.device
    if lengths is None:
        lengths = torch.full((R,), L, device=device)                    # (R,)

    # One cache with room for all that will be read.
    ragged = int(lengths.min()) < L
    cache = Cache(model.config, R, L + max_new_tokens, ragged, model.head.dtype, device)

    # The head is read once per new token. A CPU reads it up to 3 times as fast if it really lies in
    # memory as (C, V), and is not only a transposed view.
    head = model.head.T                                                 # (C, V)
    if not tokens.is_cuda:
        head = head.contiguous()

    # Read all prompts at once. The state behind a prompt's last token predicts the first new one.
    rows = torch.arange(R, device=device)
    positions = torch.arange(L, device=device).expand(R, L)             # (R, L)
    state = model(tokens, positions, cache=cache)[rows, lengths - 1]    # (R, L, C) → (R, C)

    # Choose a token for every row, read these tokens, and so on. A stopped row keeps its token in
    # `new`; none has stopped yet, so what `new` begins with does not matter.
    stops = torch.tensor(stop, dtype=torch.long, device=device)
    stopped = torch.zeros(R, dtype=torch.bool, device=device)           # (R,)
    new = tokens[:, 0]                                                  # (R,)
    for step in range(max_new_tokens):
        drawn = choose((state @ head).float(), temperature, top_k, top_p, generator)    # (R,)
        new = torch.where(stopped, new, drawn)                          # (R,)
        stopped = stopped | torch.isin(new, stops)                      # (R,)
        yield new
        if stopped.all() or step == max_new_tokens - 1:
            return
        position = (lengths + step)[:, None]                            # (R, 1)
        state = model(new[:, None], position, cache=cache)[:, 0]        # (R, C)


def generate(model, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0,
             top_k: int | None = None, top_p: float | None = None, stop: tuple[int, ...] = (),
             lengths: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Prompts (R, L) with their continuations, (R, L + new). The arguments are those of `stream`.

    In ragged batches a row's new tokens follow its own prompt, at `lengths`; what is right of them
    is 0.
    """
    new = list(stream(model, tokens, max_new_tokens, temperature, top_k, top_p, stop, lengths,
                      generator))                                       # columns, each (R,)

    # Prompts of one length: append a column per step.
    if lengths is None:
        return torch.cat([tokens, *(column[:, None] for column in new)], 1)

    # Otherwise clear what stands behind each prompt, and put the new tokens there.
    whole = F.pad(tokens, (0, len(new)))                                # (R, L + new)
    place = torch.arange(whole.shape[1], device=tokens.device)
    whole = whole * (place < lengths[:, None])
    for step, column in enumerate(new):
        whole.scatter_(1, (lengths + step)[:, None], column[:, None])
    return whole


def room(model, prompts: list[list[int]], max_new_tokens: int) -> int:
    """How many new tokens fit into the model's context behind the longest of these prompts.

    At most `max_new_tokens`; ValueError if there is no room at all.
    """
    longest = max(len(prompt) for prompt in prompts)
    context = model.config.max_len
    if longest >= context:
        raise ValueError(f"a prompt of {longest} tokens fills the model's context of {context}; "
                         "shorten it")
    return min(max_new_tokens, context - longest)


@torch.no_grad()
def answers(model, tokenizer, prompts: list[list[int]], k: int, max_new_tokens: int,
            temperature: float, top_k: int | None = None, top_p: float | None = None,
            generator: torch.Generator | None = None) -> list[list[tuple[str, bool]]]:
    """k answers to every prompt, each as (text, finished).

    An unfinished answer ran into max_new_tokens or into the end of the model's context. The text is
    what follows the prompt when both are decoded together: decoded alone, its first word would lose
    the space before it.
    """
    # k rows for each prompt, right-padded to the longest: R is prompts · k.
    device = model.head.device
    longest = max(len(prompt) for prompt in prompts)
    padded = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
    tokens = torch.tensor(padded, device=device).repeat_interleave(k, 0)            # (R, L)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    lengths = lengths.repeat_interleave(k)                                          # (R,)

    # Every prompt leaves a room of its own. A row that has filled it runs on with the others, and
    # the excess is cut off below. GPT-2 has no positions to run on, so its shortest room counts.
    rooms = [room(model, [prompt], max_new_tokens) for prompt in prompts]
    most = min(rooms) if model.config.pos == "learned" else max(rooms)
    stop = tokenizer.stop_ids
    out = generate(model, tokens, most, temperature, top_k, top_p, stop, lengths, generator)
    rows = out.tolist()

    # From token ids to texts: each row's own new tokens, up to the first stop token.
    pools = []
    for number, prompt in enumerate(prompts):
        pool = []
        before = len(tokenizer.decode(prompt))
        for row in rows[k * number : k * (number + 1)]:
            new = row[len(prompt) : len(prompt) + min(most, rooms[number])]
            finished = False
            for i, token in enumerate(new):
                if token in stop:
                    new, finished = new[:i], True
                    break
            text = tokenizer.decode(prompt + new)[before:]
            pool.append((text, finished or not text))
        pools.append(pool)
    return pools


def choose(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None,
           generator: torch.Generator | None) -> Tensor:
    """One token per row of logits (R, V): the likeliest at temperature 0, else a draw, (R,).

    top_k keeps the k likeliest tokens. top_p keeps the likeliest ones until they hold the share p:
    a token stays if those before it hold less.
    """
    # Tokens are ranked only if top_k or top_p is to choose among them; else the largest will do.
    V = logits.shape[-1]
    narrowed = top_k is not None or (top_p is not None and top_p < 1)
    ranked = narrowed and temperature > 0
    if ranked:
        kept, tokens = logits.topk(V if top_k is None else min(top_k, V))           # (R, k)
        largest = kept[:, :1]                                                       # (R, 1)
    else:
        kept = logits                                                               # (R, V)
        largest, tokens = logits.max(-1, keepdim=True)                              # (R, 1)
    if not largest[:, 0].isfinite().all():          # NaN counts as larger than any number
        raise FloatingPointError("the model's logits are not finite; "
                                 "its weights are damaged or overflow in this dtype")
    if temperature == 0:
        return tokens[:, 0]

    # Probabilities of the tokens that are left; top_p takes the tail away. The logits are float32,
    # in which a temperature of, say, 1e-50 would be 0 and divide by it.
    p = ((kept - largest) / max(temperature, 1e-30)).softmax(-1)                    # (R, k or V)
    if top_p is not None and top_p < 1:
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)

    # One random number per row, looked up in the running sum of the probabilities. (torch's own
    # multinomial would draw a random number per token.)
    below = p.double().cumsum(-1)                                                   # (R, k or V)
    share = torch.rand(len(p), 1, dtype=below.dtype, device=p.device, generator=generator)
    aim = share * below[:, -1:]                                                     # (R, 1)
    drawn = torch.searchsorted(below, aim, right=True).clamp(max=p.shape[-1] - 1)   # (R, 1)
    if ranked:
        drawn = tokens.gather(1, drawn)
    return drawn[:, 0]
