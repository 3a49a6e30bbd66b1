"""What the ten lessons share: how they are run, where pictures go, the small GPT they start from, and who checks the exercises.

A lesson begins with    args = check.options()          args.fast: a smaller run, for the tests; args.solution: solve the exercise
may start from          model, tokenizer = check.base_model(args)       the small GPT that has read answers to "9.11 or 9.9?"
draws with              check.lines(axes, x, runs, c)   every seed faint, their mean bold
and                     check.show(figure, "03")        saves out/03.png, and shows it in a notebook
asks the reader with    print(check.push(your_push))    "STILL BLANK", "NOT YET" and what is wrong in plain words, or "RIGHT"
and ends with its folded solution, checked in the same way if args.solution.

A grader has the name of its exercise. It computes the truth from the definition, on awkward inputs, and hands it to `judge.grade`
together with what plausible mistakes would have given instead; back comes one sentence. Nothing here comes from a lesson.
graders_1.py holds those of lessons 02 to 06, graders_2.py of 07 to 13; tests/test_lessons.py judges all of them.
"""

import argparse
import copy
import functools
import itertools
import sys
from pathlib import Path

import torch
from graders_1 import asft, backward, prefix, push, score
from graders_2 import BUGS, bug_hunt, peak, planted, propagation, silent_bug, success
from judge import BLANK, RIGHT, WRONG

from minialign.hf.tokenizer import byte_tokenizer
from minialign.lab import plot, small, tasks
from minialign.model import Transformer

__all__ = ["BLANK", "BUGS", "RIGHT", "WRONG", "asft", "backward", "base_model", "bug_hunt", "lines", "options",
           "peak", "planted", "prefix", "propagation", "push", "score", "show", "silent_bug", "success"]
OUT = Path(__file__).parent.parent / "out"


# ---------------------------------------------------------------------------------------------------- how a lesson is run

def options(takes_model: bool = False) -> argparse.Namespace:
    """The two flags of every lesson, and a model folder for the one that wants it; a notebook has none of them."""
    parser = argparse.ArgumentParser(description="A lesson of minialign. Read it in an editor, or step through its cells.",
                                     allow_abbrev=False)
    parser.add_argument("--fast", action="store_true", help="seconds instead of a minute: smaller, and less to see")
    parser.add_argument("--solution", action="store_true", help="show the exercise solved")
    if takes_model:
        parser.add_argument("model", nargs="?", help="a Hugging Face model folder; one of random weights unless given")
    torch.set_num_threads(1)                    # these models are too small for a second thread to help
    return parser.parse_args([] if "ipykernel" in sys.modules else None)


def show(figure, name: str) -> None:
    """Save the picture as out/NAME.png; in a notebook, show it as well."""
    path = plot.save(figure, OUT, name)
    print(f"picture: {path}")
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display
        display(Image(str(path), width=900))


def lines(axes, x: list[float], runs: list[list[float]], color: str, style: str = "-") -> list[float]:
    """Every seed's curve faint, their mean bold; returns the mean."""
    for run in runs:
        axes.plot(x, run, style, color=color, linewidth=0.8, alpha=0.4)
    mean = [sum(values) / len(values) for values in zip(*runs, strict=True)]
    axes.plot(x, mean, style, color=color, linewidth=2.5)
    return mean


def base_model(args, seed: int = 0):
    """The small GPT before any fine-tuning, and its tokenizer. Half a minute the first time, then from out/cache.

    With --fast it has read a sixteenth of what it should have, and knows little.
    """
    if not args.fast:
        if not small.base_path(seed, OUT / "cache").exists():
            print("training the small GPT, about half a minute; next time it comes from out/cache")
        return small.base_model(seed, OUT / "cache")
    model, tokenizer = hasty_model(seed)
    return copy.deepcopy(model), tokenizer


@functools.lru_cache
def hasty_model(seed: int):
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(tasks.WORDS)
    model = Transformer(tasks.small_config(tokenizer.vocab_size))
    for _ in itertools.islice(small.base_training(model, tokenizer, seed), 64):
        pass
    return model, tokenizer
