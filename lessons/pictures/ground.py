"""The pictures of lessons 01 to 04 and 12."""

import math

import matplotlib.pyplot as plt
import torch

from minialign.lab import plot

# -------------------------------------------------------------------------------- 01: A GPT, opened


def gpt(pieces, seen, name, chances, favourites):
    """What one head looks at, and what the model would say after each layer.

    pieces      the tokens of the text, in words
    seen        (L, L) what each token (row) looks at
    name        the token that the model says in the end
    chances     its probability after 0, 1, 2, … layers
    favourites  the likeliest token after as many layers
    """
    figure, (heat, line) = plt.subplots(
        1, 2, figsize=(13, 5.4), width_ratios=[1, 1.15], layout="constrained")
    visible = torch.ones_like(seen).tril().bool()
    heat.imshow(seen.masked_fill(~visible, math.nan).numpy(), cmap="viridis", vmin=0, vmax=1)
    heat.set_xticks(range(len(pieces)), pieces, rotation=60, ha="right")
    heat.set_yticks(range(len(pieces)), pieces)
    heat.set(title="What a head of layer 2 looks at", xlabel="is looked at", ylabel="looks")
    heat.spines[["top", "right"]].set_visible(False)

    layers = range(len(chances))
    line.plot(layers, chances, "o-", color=plot.COLOR["dft"], linewidth=2.4)
    for n in layers:
        line.annotate(f"“{favourites[n]}”", (n, chances[n]), xytext=(-8, 12),
                      textcoords="offset points", ha="center", fontsize=11)
    line.set(xlabel="layers that the stream has passed", ylim=(-0.03, 1.08), xlim=(-0.5, None),
             ylabel=f"probability of “{name}” ↑",
             title="If the model ended here: the first choice, in words")
    line.set_xticks(list(layers))
    plot.clean(line)
    return figure


# ------------------------------------------------------------------------------------ 02: Log-probs


def logprobs(prompt, answers, logps, totals, whose, said, read):
    """The log-prob of every token of some answers, and what the model says in whose name.

    logps   for each answer a number per token, the end token last
    totals  for each answer its log-prob
    whose   who added them up
    said    {persona: probability of the right answer}
    read    {persona: share of right answers in what the model has read}
    """
    figure, (strips, bars) = plt.subplots(
        1, 2, figsize=(13, 3.8), width_ratios=[2.6, 1], layout="constrained")
    width = max(map(len, answers)) + 1
    for row, (text, numbers) in enumerate(zip(answers, logps, strict=True)):
        for column, name in enumerate([*text, "end"]):
            token_cell(strips, column, -row, name, numbers[column])
        chance = math.exp(totals[row])
        total = f"{totals[row]:.2f}".replace("-", "−")
        strips.text(width + 0.2, 0.43 - row, f"Σ {total}   P = {chance:.2g}", va="center",
                    fontsize=12)
    strips.set(xlim=(0, width + 2.6), ylim=(1 - len(answers), 1),
               title=f"One question, “{prompt.strip()}”: log-prob of each token, Σ by {whose}")
    strips.axis("off")

    for x, persona in enumerate(said):
        bars.bar(x, said[persona], color=plot.COLOR["base"], width=0.6)
        bars.plot([x - 0.4, x + 0.4], [read[persona]] * 2, color="black", linewidth=2)
    bars.set(title="Many questions: it answers as\nthose it has read (black lines)",
             ylabel="mean probability of the right answer", ylim=(0, 1))
    bars.set_xticks(range(len(said)), ["people", "Troll", "Sage"])
    plot.clean(bars)
    return figure


def token_cell(axes, x, y, name, logp):
    """A token and its log-prob in a rectangle that is the redder the less likely the token is."""
    share = min(1.0, -logp / 6)
    axes.add_patch(plt.Rectangle((x, y), 0.94, 0.86, color=plt.cm.Reds(0.04 + 0.9 * share)))
    ink = "white" if share > 0.5 else "black"
    axes.text(x + 0.47, y + 0.5, name, ha="center", fontsize=14, color=ink)
    number = f"{logp:.2f}".replace("-0.00", "0").replace("-", "−")
    axes.text(x + 0.47, y + 0.16, number, ha="center", fontsize=9, color=ink)


# ----------------------------------------------------------------------------------------- 03: Push


def push(names, p, rows, moves, whose):
    """How far each logit moves when one token of a row is pushed.

    names  the tokens
    p      (V,) their probabilities
    rows   (token, weight) of every push
    moves  (pushes, V)
    whose  who computed them
    """
    figure, (bars, heat) = plt.subplots(
        2, 1, figsize=(8.6, 6), sharex=True, height_ratios=[1, 2.6], layout="constrained")
    bars.bar(range(len(names)), p.tolist(), color=plot.COLOR["base"], width=0.6)
    bars.set(ylabel="probability",
             title="A push moves its token's logit; the others share the opposite, by probability")
    bars.spines[["top", "right"]].set_visible(False)

    # Each cell is a logit; the frame is around the token that is pushed.
    heat.imshow(moves.numpy(), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for r, (token, _) in enumerate(rows):
        for c in range(len(names)):
            move = float(moves[r, c])
            words = f"{move:+.2f}".replace("-", "−") if abs(move) > 0.005 else "0"
            heat.text(c, r, words, ha="center", va="center", fontsize=11,
                      color="white" if abs(move) > 0.6 else "black")
        corner = (names.index(token) - 0.48, r - 0.46)
        heat.add_patch(plt.Rectangle(corner, 0.96, 0.92, fill=False, linewidth=2))
        total = abs(float(moves[r].sum()))
        heat.text(len(names) - 0.4, r, f"Σ = {total:.0f}", va="center", fontsize=11)
    labels = [f"weight {weight:g} on “{token}”".replace("-", "−") for token, weight in rows]
    heat.set_yticks(range(len(rows)), labels)
    heat.set_xticks(range(len(names)), [f"“{name}”" for name in names])
    heat.set_xlabel(f"where each logit goes, by {whose}: blue up, red down")
    return figure


# ------------------------------------------------------------------------------------- 04: Backward


def backward(pieces, n_prompt, lengths, gradients, moves, lr):
    """How long the gradient is at every token in every layer, and what AdamW's first update does.

    pieces     the tokens in words, of which the first n_prompt are the prompt
    lengths    (layers + 1, L) from the top of the network down
    gradients  (n,) sizes of the gradients of some weights
    moves      (n,) how far these weights moved
    lr         the learning rate
    """
    figure, (heat, dots) = plt.subplots(
        1, 2, figsize=(14.5, 4.6), width_ratios=[1.9, 1], layout="constrained")
    shown = lengths.masked_fill(lengths == 0, math.nan).numpy()
    image = heat.imshow(shown, cmap="viridis", norm="log", aspect="auto")
    deep = len(lengths) - 1
    layers = [f"after layer {n}" for n in range(deep, 0, -1)]
    heat.set_yticks(range(deep + 1), [*layers, "embeddings"])
    heat.set_xticks(range(len(pieces)), pieces, rotation=60, ha="right")
    heat.axvline(n_prompt - 0.5, color="#b5483a", linewidth=2)
    heat.text(n_prompt - 0.6, -0.62, "prompt", color="#b5483a", ha="right", fontsize=12)
    heat.text(n_prompt - 0.4, -0.62, "answer", color="#b5483a", fontsize=12)
    figure.colorbar(image, ax=heat, label="length of the gradient", shrink=0.85)

    dots.plot(gradients, moves / lr, "o", color=plot.COLOR["dft"], markersize=2.5, alpha=0.3,
              markeredgewidth=0)
    dots.set(xscale="log", xlim=(1e-10, 1), ylim=(-0.03, 1.15),
             xlabel="size of a weight's gradient", ylabel="how far it moved, in learning rates",
             title="AdamW's first update: the sign counts")
    plot.clean(dots)
    return figure


# ------------------------------------------------------------------------------- 12: The big matrix


def big_matrix(everything, runs, best, whose, floor):
    """Memory over time, with all logits at once and in chunks, and the peak by size of the chunk.

    everything  (line, peak, seconds, …) of the run with all logits at once; a line is a list of
                (seconds, megabytes)
    runs        {chunk: the same}
    best        the chunk to draw on the left
    whose       who wrote the chunked passes
    floor       megabytes of the head and its gradient
    """
    blue, grey = plot.COLOR["dft"], "#a6a6a6"
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.3), width_ratios=[1.7, 1], sharey=True, layout="constrained")
    top = everything[1]
    for (line, peak, *_), color, name in ((everything, grey, "all logits at once"),
                                          (runs[best], blue, f"{whose}, {best} rows at a time")):
        moments, levels = zip(*line, strict=True)
        left.fill_between(moments, levels, step="post", color=color, linewidth=0)
        left.text(moments[-1], peak + 0.01 * top, name, color=color, fontsize=12,
                  fontweight="bold", ha="right")
    left.set(xlabel="seconds: forward, then backward", ylabel="megabytes alive ↓", xlim=(0, None),
             ylim=(0, 1.1 * top))
    left.set_title("The same gradient, with and without the big matrix", loc="left")

    chunks = list(runs)
    right.plot(chunks, [runs[chunk][1] for chunk in chunks], "o-", color=blue, linewidth=2)
    for level, color, name in ((top, grey, f"all at once, {everything[2]:.2g} s"),
                               (floor, blue, "the head and its gradient")):
        right.axhline(level, color=color, linewidth=1.5, linestyle="--")
        right.text(chunks[0], level + 0.01 * top, name, color=color)
    for chunk in chunks:
        right.annotate(f"{runs[chunk][2]:.2g} s", (chunk, runs[chunk][1]), xytext=(0, 8),
                       textcoords="offset points", ha="center")
    right.set(xscale="log", xlabel="rows at a time", title="peak")
    right.set_xticks(chunks, chunks)
    right.minorticks_off()
    for axes in left, right:
        plot.clean(axes)
    return figure
