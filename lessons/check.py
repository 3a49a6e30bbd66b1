"""What the lessons share: how they are run, the reader's functions, and who checks them.

A lesson begins with    args = check.options()      args.fast: a smaller run, for the tests
                        mine = check.mine(args)     the reader's functions, from mine.py
may start from          model, tokenizer = check.base_model(args)       the small GPT that has read
                                                    answers to "9.11 or 9.9?"
lets it talk with       check.talk(model, tokenizer, prompts)
shows a picture with    check.show(figure, "03")    saved as out/03.png, and shown in a notebook
and asks the reader     print(check.push(mine.push))    "STILL BLANK", "RIGHT", or "NOT YET" and
                                                    what is wrong, in plain words

A grader has the name of its exercise. It computes the truth from the definition, on awkward inputs,
and hands it to `judge.grade` together with what plausible mistakes would have given instead; back
comes one sentence. Nothing here comes from a lesson. The graders are in graders/.
"""

import argparse
import copy
import functools
import itertools
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from lessons.graders.backward import (
    adamw,
    head_backward,
    head_forward,
    norm_backward,
    softmax_backward,
)
from lessons.graders.ground import causal_mask, log_softmax, push, rotate, score, unlikelihood
from lessons.graders.guesses import BUGS, bug_hunt, difference, ift, planted, pull
from lessons.graders.methods import asft, dft, dpo, keep, prefix, sft, silent_bug
from lessons.graders.worlds import (
    n_parameters,
    off_path,
    peak,
    residual,
    success,
    walk_gradient,
)
from lessons.graders.yours import method
from lessons.judge import BLANK, RIGHT, WRONG
from minialign.generate import answers
from minialign.hf.tokenizer import byte_tokenizer
from minialign.lab import plot, small, tasks
from minialign.model import Transformer

HERE = Path(__file__).parent
OUT = HERE.parent / "out"           # where pictures go
CACHE = OUT / "cache"               # where the small GPT is kept


# ------------------------------------------------------------------------------ how a lesson is run


def in_notebook() -> bool:
    """Whether a notebook or an editor's interactive window runs this."""
    return "ipykernel" in sys.modules


def options(
    fast: bool = False, solution: bool = False, model: str | None = None
) -> argparse.Namespace:
    """How to run a lesson: as the arguments say, or as the flags of its command line do.

    fast      seconds instead of a minute: smaller, and with less to see
    solution  the exercises solved
    model     for a lesson that takes a model folder: which one, unless the command line names one

    A notebook has no command line: there, change the arguments in the lesson's first cell.
    """
    torch.set_num_threads(1)                # these models are too small for a second thread to help
    if in_notebook():
        return argparse.Namespace(fast=fast, solution=solution, model=model)
    parser = argparse.ArgumentParser(
        description="A lesson of minialign. Read it in an editor, or step through its cells.",
        allow_abbrev=False)
    parser.add_argument("--fast", action="store_true", default=fast,
                        help="seconds instead of a minute: smaller, and with less to see")
    parser.add_argument("--solution", action="store_true", default=solution,
                        help="run with the exercises solved")
    if model is not None:
        parser.add_argument("model", nargs="?", default=model,
                            help="a model folder, or a model that ships with minialign")
    return parser.parse_args()


def show(figure, name: str) -> None:
    """Save the picture as out/NAME.png; in a notebook, show it as well."""
    path = plot.save(figure, OUT, name)
    print(f"picture: out/{path.name}")
    if in_notebook():
        from IPython.display import Image, display
        display(Image(str(path), width=900))


# --------------------------------------------------------------------------------- the reader's own


def mine(args) -> "Mine":
    """The reader's functions: `mine.push` is the function `push` of mine.py."""
    return Mine(solved=args.solution)


class Mine:
    """The functions of mine.py, as the file is at this moment; or all of them solved.

    The file is read whenever a function is asked for. So in a notebook it is enough to save mine.py
    and to run the cell again.
    """

    def __init__(self, solved: bool = False):
        self.solved = solved

    def __getattr__(self, name: str):
        path = HERE / "mine.py"
        try:
            functions = runpy.run_path(str(path))
        except Exception as error:              # whatever the reader wrote, the lesson goes on
            return stopped(error)
        if self.solved:
            for lesson in sorted(HERE.glob("[01][0-9]_*.py")):
                exec(compile(solution_of(lesson), str(lesson), "exec"), functions)
        if name not in functions:
            raise AttributeError(f"lessons/mine.py has no {name!r}; restore it with "
                                 "git checkout lessons/mine.py")
        return functions[name]


OURS = Mine(solved=True)            # what a lesson goes on with where a blank is not filled in yet


def stopped(error: Exception) -> Callable:
    """A function that raises this error, for a grader to report."""
    def raises(*inputs):
        raise error
    return raises


def solution_of(lesson: Path) -> str:
    """The source of a lesson's solutions, on the lines that it has in the file.

    They stand between the comments `# region Solution` and `# endregion` at its end. A lesson that
    is still being written may have none.
    """
    source = lesson.read_text(encoding="utf-8")
    found = re.search(r"^# region Solution.*?\n(.*?)^# endregion", source, re.DOTALL | re.MULTILINE)
    if found is None:
        return ""
    lines_before = source[: found.start(1)].count("\n")
    return "\n" * lines_before + found[1]


def is_right(verdict: str) -> bool:
    """Whether a grader has said that the answer is right."""
    return verdict.startswith(RIGHT)


# ------------------------------------------------------------------------------------ the small GPT


def base_model(args, seed: int = 0):
    """The small GPT before any fine-tuning, and its tokenizer.

    It is trained in about a minute the first time, and then comes from out/cache. With --fast it
    has read a sixteenth of what it should have, and knows little.
    """
    if not args.fast:
        if not small.base_path(seed, CACHE).exists():
            print("training the small GPT, about a minute; next time it comes from out/cache")
        return small.base_model(seed, CACHE)
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


def talk(model, tokenizer, prompts: list[str], k: int = 3, longest: int = 24, seed: int = 0):
    """Print k sampled answers to each prompt, as the model would give them (temperature 1).

    An answer that did not come to its end within `longest` tokens ends in “…”.
    """
    draw = torch.Generator(model.head.device).manual_seed(seed)
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    pools = answers(model, tokenizer, ids, k, longest, temperature=1.0, generator=draw)
    for prompt, pool in zip(prompts, pools, strict=True):
        said = [text if finished else text + "…" for text, finished in pool]
        print(f"  {prompt}  " + "   ".join(f"“{text}”" for text in said))
