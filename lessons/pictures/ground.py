"""The pictures of lessons 01 to 04 and 12."""

import matplotlib.pyplot as plt

from minialign.lab import plot

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
             title="A push moves its token; the others share the opposite, by their probabilities")
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
