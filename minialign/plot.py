"""Pictures. A colour belongs to a method in every picture of the project; lines and bars carry their names, so there are no legends."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Colour-blind safe (after Okabe and Ito, and Tol); relatives share a hue.
COLOR = {
    "base": "#8c8c8c", "sft": "#4d4d4d", "sft x3": "#a6a6a6",
    "asft": "#d55e00", "dft": "#0072b2", "dft2": "#56b4e9", "ift": "#009e73", "ift_eq21": "#66c2a5",
    "dpo": "#cc79a7", "dpop": "#aa4499", "spin": "#882255", "ipo": "#dda0c8", "kto": "#b07aa1", "rdpo": "#e377c2",
    "orpo": "#e69f00", "cpo": "#c49c00", "simpo": "#8c6d31", "simpo_sft": "#bd9e39", "rrhf": "#7f6000", "slic": "#9c755f",
}


def save(figure, folder, name: str) -> Path:
    """Write FOLDER/NAME.png (whole or not at all) and close the figure."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    unfinished = path.with_suffix(".png.tmp")
    figure.savefig(unfinished, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    unfinished.replace(path)
    return path


def clean(axes) -> None:
    """No box around the data: left and bottom lines only, faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
