"""Generation: a cache of keys and values, the loop over new tokens, and the choice of each of them.

`stream` gives new tokens as they come, `generate` all of them at the end, and `answers` gives whole
texts, several to a prompt if you like. Transformer (model.py) has the first two as methods.

Shapes in the comments: R rows of L tokens, G heads that keep keys and values of D numbers each,
C the width, V the vocabulary.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Prompts are read so many tokens at a time, for what a layer computes must be held for all of them.
READ_TOKENS = 2**14

# After so many new tokens the loop looks how many rows have stopped. To look, a GPU must finish
# what it was given, while it should always have more to do. A CPU computes nothing in vain.
CPU_LOOKS_EVERY = 1
GPU_LOOKS_EVERY = 16

# Rows that have stopped leave the batch once no more than this share of it goes on: to take them
# out moves what the cache holds of the others, which should not be done for a row at a time.
GOING_ON = 0.75


class Cache:
    """Keys and values of the tokens read so far, so that a new token costs one token's work.

    Two tensors (n_layer, R, G, slots, D), allocated once. A row's token at position t lives in slot
    t, and a query at position t sees slots 0..t. So rows of different length need no left padding:
    what right padding wrote into a slot is overwritten by the row's own token before any query can
    see it.

    ragged  do rows differ in length? Then there is always a mask, and
    block   attention reads whole blocks of so many slots, so that its shapes seldom change
    """

    def __init__(self, config, rows: int, slots: int, ragged: bool, dtype: torch.dtype, device,
                 block: int = 1):
        shape = config.n_layer, rows, config.n_kv_head, slots, config.d_head
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.ragged, self.block = ragged, block
        self.used = 0                   # slots that any row has filled; the model counts them up
        self.slots = torch.arange(slots, device=device)

    @property
    def shown(self) -> int:
        """How many slots attention reads: those in use, and in ragged batches their last block."""
        if not self.ragged:
            return self.used
        return min(-(-self.used // self.block) * self.block, len(self.slots))

    def store(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (R, G, L, D) at `positions` (R, L); return all that the layer holds now.

        That is two tensors (R, G, shown, D).
        """
        if self.ragged:
            # Each row writes at positions of its own.
            place = positions[:, None, :, None].expand_as(k)                # (R, G, L, D)
            self.k[layer].scatter_(2, place, k)
            self.v[layer].scatter_(2, place, v)
        else:
            # All rows write the same slots, the last ones in use: one block, which is faster.
            begin = self.used - k.shape[2]
            self.k[layer][:, :, begin : self.used] = k
            self.v[layer][:, :, begin : self.used] = v
        return self.k[layer][:, :, : self.shown], self.v[layer][:, :, : self.shown]

    def mask(self, positions: Tensor, window: int | None) -> Tensor | None:
        """What attention adds to its scores, for tokens at `positions` (R, L): (R, 1, L, shown).

        0 where a token may look, −∞ elsewhere. None stands for zeros. (True and False would do, but
        torch would turn them into such numbers again in every layer.)
        """
        # The usual case: one new token per row, and rows of one length, so that it comes last.
        one_each = positions.shape[1] == 1 and not self.ragged
        if one_each and (window is None or self.used <= window):
            return None

        # In general, the token in slot t stands at position t.
        distance = positions[:, :, None] - self.slots[: self.shown]     # (R, L, shown), backwards
        hidden = distance < 0
        if window is not None:
            hidden = hidden | (distance >= window)
        added = torch.zeros(hidden.shape, dtype=self.k.dtype, device=hidden.device)
        return added.masked_fill_(hidden, -torch.inf)[:, None]

    def keep(self, kept: Tensor) -> None:
        """Go on with some of the rows, whose numbers are `kept`, in rising order.

        They move to the front of the memory that is there, layer by layer: a new cache would need
        room beside the old one.
        """
        for name in "k", "v":
            held = getattr(self, name)                              # (n_layer, R, G, slots, D)
            for layer in held[:, :, :, : self.used]:
                layer[: len(kept)] = layer[kept]
            setattr(self, name, held[:, : len(kept)])

    def take_over(self, begin: int, read: "Cache", repeat: int) -> None:
        """Copy what another cache holds, each row of it `repeat` times, to rows from `begin` on."""
        rows = slice(begin, begin + repeat * read.k.shape[1])
        for ours, theirs in (self.k, read.k), (self.v, read.v):
            part = ours[:, rows, :, : read.used]                    # (n_layer, rows, G, used, D)
            part.unflatten(1, (-1, repeat)).copy_(theirs[:, :, None, :, : read.used])
        self.used = read.used


def read_prompts(model, tokens: Tensor, lengths: Tensor, cache: Cache, repeat: int) -> Tensor:
    """Fill the cache with prompts (P, L); return the state behind each of them, (P · repeat, C).

    A prompt is read once, however many rows continue it. A few prompts go at a time.
    """
    L = tokens.shape[1]
    few = max(1, READ_TOKENS // L)
    states = []
    for begin in range(0, len(tokens), few):
        part = tokens[begin : begin + few]                                          # (few, L)
        last = lengths[begin : begin + few] - 1                                     # (few,)
        read = Cache(model.config, len(part), L, False, model.head.dtype, tokens.device)
        hidden = model(part, cache=read)                                            # (few, L, C)
        states.append(hidden[torch.arange(len(part), device=tokens.device), last])
        cache.take_over(begin * repeat, read, repeat)
    return torch.cat(states).repeat_interleave(repeat, 0)


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


@torch.inference_mode()
def stream(model, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0,
           top_k: int | None = None, top_p: float | None = None, stop: tuple[int, ...] = (),
           lengths: Tensor | None = None, generator: torch.Generator | None = None,
           repeat: int = 1) -> Iterator[Tensor]:
    """Continue every prompt: yields the next token of every row, (R,), until all have stopped.

    tokens       prompts (P, L), right-padded if they differ in length
    temperature  0 takes the likeliest token, 1 draws by the model's own probabilities
    top_k        draw only among the k likeliest tokens
    top_p        draw only among the likeliest tokens that together hold this share of probability
    stop         tokens that end a row; from then on the row repeats the one it has produced. A GPU
                 goes on for up to GPU_LOOKS_EVERY tokens when all have stopped
    lengths      (P,) tokens in each prompt, if they differ
    generator    where the random numbers come from; torch's own if None
    repeat       rows that continue each prompt, one behind the other: R = P · repeat
    """
    check_request(model, tokens, lengths, max_new_tokens, temperature, top_k, top_p)
    P, L = tokens.shape
    R, device = P * repeat, tokens.device
    look_every = GPU_LOOKS_EVERY if tokens.is_cuda else CPU_LOOKS_EVERY
    if lengths is None:
        lengths = torch.full((P,), L, device=device)                    # (P,)

    # One cache with room for all that will be read. The state behind a prompt predicts a token.
    ragged = int(lengths.min()) < L
    block = look_every if ragged else 1
    cache = Cache(model.config, R, L + max_new_tokens, ragged, model.head.dtype, device, block)
    state = read_prompts(model, tokens, lengths, cache, repeat)         # (R, C)
    position = lengths.repeat_interleave(repeat)[:, None]               # (R, 1)
    choice = temperature, top_k, top_p
    return new_tokens(model, cache, state, position, max_new_tokens, choice, stop, generator,
                      look_every)


@torch.inference_mode()
def new_tokens(model, cache: Cache, state: Tensor, position: Tensor, max_new_tokens: int,
               choice: tuple, stop: tuple[int, ...], generator: torch.Generator | None,
               look_every: int) -> Iterator[Tensor]:
    """The loop of `stream`: choose a token for every row, read these tokens, and so on.

    state     (R, C) behind the prompts, which the cache holds
    position  (R, 1) where the first new tokens will stand
    choice    (temperature, top_k, top_p)
    """
    temperature, top_k, top_p = choice

    # The head is read once per new token. A CPU reads it up to 3 times as fast if it really lies in
    # memory as (C, V), and is not only a transposed view.
    head = model.head.T                                                 # (C, V)
    if not head.is_cuda:
        head = head.contiguous()

    # At first all rows are in the batch and none has stopped. Later r of them are, those that
    # `rows` counts. `last` holds a token of every row, and what it begins with does not matter.
    R, device = len(state), state.device
    stops = torch.tensor(stop, dtype=torch.long, device=device)
    rows = torch.arange(R, device=device)                               # (r,)
    stopped = torch.zeros(R, dtype=torch.bool, device=device)           # (r,)
    last = torch.zeros(R, dtype=torch.long, device=device)              # (R,)
    checksum = torch.zeros((), device=device)

    # A random number is drawn for every row, in the batch or not, so that none depends on which of
    # the others have stopped.
    share = None
    for step in range(1, max_new_tokens + 1):
        logits = (state @ head).float()                                 # (r, V)
        if temperature > 0:
            share = torch.rand(R, 1, dtype=torch.float64, device=device, generator=generator)[rows]
        drawn, largest = choose(logits, temperature, top_k, top_p, share)           # (r,), (r,)
        new = torch.where(stopped, last[rows], drawn)                   # (r,)
        last = last.index_copy(0, rows, new)                            # (R,)
        stopped = stopped | (new[:, None] == stops).any(1)              # (r,)
        checksum = checksum + largest.sum()             # not finite once a logit is not

        # Look at the numbers only now and then.
        ends, going = step == max_new_tokens, len(rows)
        if ends or step % look_every == 0:
            if not math.isfinite(checksum):
                raise FloatingPointError("the model's logits are not finite; "
                                         "its weights are damaged or overflow in this dtype")
            going -= int(stopped.sum())
        yield last
        if ends or going == 0:
            return

        # Rows that have stopped leave the batch.
        if going <= GOING_ON * len(rows):
            kept = (~stopped).nonzero()[:, 0]                           # (going,)
            cache.keep(kept)
            rows, stopped, position, new = rows[kept], stopped[kept], position[kept], new[kept]
        state = model(new[:, None], position, cache=cache)[:, 0]        # (r, C)
        position = position + 1


def generate(model, tokens: Tensor, max_new_tokens: int, temperature: float = 1.0,
             top_k: int | None = None, top_p: float | None = None, stop: tuple[int, ...] = (),
             lengths: Tensor | None = None, generator: torch.Generator | None = None,
             repeat: int = 1) -> Tensor:
    """Prompts (P, L) with their continuations, (R, L + new). The arguments are those of `stream`.

    In ragged batches a row's new tokens follow its own prompt, at `lengths`; what is right of them
    is 0.
    """
    new = list(stream(model, tokens, max_new_tokens, temperature, top_k, top_p, stop, lengths,
                      generator, repeat))                               # columns, each (R,)

    # A column behind one in which all rows have stopped says nothing.
    stops = torch.tensor(stop, dtype=torch.long, device=tokens.device)
    while len(new) > 1 and torch.isin(new[-2], stops).all():
        new.pop()

    # Prompts of one length: append a column per step.
    tokens = tokens.repeat_interleave(repeat, 0)                        # (R, L)
    if lengths is None:
        return torch.cat([tokens, *(column[:, None] for column in new)], 1)

    # Otherwise clear what stands behind each prompt, and put the new tokens there.
    lengths = lengths.repeat_interleave(repeat)                         # (R,)
    whole = F.pad(tokens, (0, len(new)))                                # (R, L + new)
    place = torch.arange(whole.shape[1], device=tokens.device)
    whole = whole * (place < lengths[:, None])
    for step, column in enumerate(new):
        whole.scatter_(1, (lengths + step)[:, None], column[:, None])
    return whole


def room(config, prompts: list[list[int]], max_new_tokens: int) -> int:
    """How many new tokens fit into the model's context behind the longest of these prompts.

    At most `max_new_tokens`; ValueError if there is no room at all.
    """
    longest = max(len(prompt) for prompt in prompts)
    context = config.max_len
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
    # Prompts are right-padded to the longest; k rows continue each of them.
    device = model.head.device
    longest = max(len(prompt) for prompt in prompts)
    padded = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
    tokens = torch.tensor(padded, device=device)                                    # (P, L)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)      # (P,)

    # Every prompt leaves a room of its own. A row that has filled it runs on with the others, and
    # the excess is cut off below. GPT-2 has no positions to run on, so its shortest room counts.
    rooms = [room(model.config, [prompt], max_new_tokens) for prompt in prompts]
    most = min(rooms) if model.config.pos == "learned" else max(rooms)
    stop = tokenizer.stop_ids
    out = generate(model, tokens, most, temperature, top_k, top_p, stop, lengths, generator, k)
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
           share: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token per row of logits (R, V), (R,): the likeliest at temperature 0, else a draw.

    With it comes each row's largest logit, (R,): it is not finite if the choice makes no sense.
    top_k keeps the k likeliest tokens. top_p keeps the likeliest ones until they hold the share p:
    a token stays if those before it hold less. What decides a draw is `share` (R, 1) in float64: a
    random number between 0 and 1 for each row.
    """
    if temperature == 0:
        largest, tokens = logits.max(-1)                                            # (R,), (R,)
        return tokens, largest

    # Tokens are ranked only if top_k or top_p is to choose among them.
    V = logits.shape[-1]
    ranked = top_k is not None or (top_p is not None and top_p < 1)
    if ranked:
        kept, tokens = logits.topk(V if top_k is None else min(top_k, V))           # (R, k)
        largest = kept[:, :1]                                                       # (R, 1)
    else:
        kept, largest = logits, logits.amax(-1, keepdim=True)                       # (R, V), (R, 1)

    # Probabilities of the tokens that are left; top_p takes the tail away. The logits are float32,
    # in which a temperature of, say, 1e-50 would be 0 and divide by it.
    p = ((kept - largest) / max(temperature, 1e-30)).softmax(-1)                    # (R, k or V)
    if top_p is not None and top_p < 1:
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)

    # The random number is looked up in the running sum of the probabilities. (torch's own
    # multinomial would draw a random number per token.)
    below = p.double().cumsum(-1)                                                   # (R, k or V)
    aim = share * below[:, -1:]                                                     # (R, 1)
    drawn = torch.searchsorted(below, aim, right=True).clamp(max=p.shape[-1] - 1)   # (R, 1)
    if ranked:
        drawn = tokens.gather(1, drawn)
    return drawn[:, 0], largest[:, 0]
