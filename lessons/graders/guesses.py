"""The graders of lessons 10 and 11."""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch

from lessons.judge import grade
from minialign.logps import add_reference
from minialign.methods import METHODS

# ------------------------------------------------------------------------------------- 11: the race


BUGS = (
    "The wanted and the rejected answers are swapped.",
    "No shift: each token is scored from the place that has just read it.",
    "The reference model is the policy itself, at every update.",
    "The learning rate is thirty times too high.",
    "The answers belong to other questions.",
    "The optimizer never takes a step.",
)


def planted(examples: list, model) -> dict[str, list[tuple]]:
    """Spoilers! {run: [(healthy method, its examples), (the one with a bug, its examples)]}. Examples have two answers each."""
    class NoShift(METHODS["sft"]):
        def prepare(self, model, parts):
            return [self.unshifted(part) for part in parts]

        def unshifted(self, batch):
            source = batch.rows.source.clone()          # the state that has read token t is the one that predicts token t + 1
            source[..., :-1] = torch.where(batch.mask[..., 1:], source[..., 1:], source[..., :-1])
            return replace(batch, rows=replace(batch.rows, source=source))

    class LiveReference(METHODS["dpo"]):
        def weigh(self, logps, batch):
            return super().weigh(logps, replace(batch, ref_logps=(logps * batch.mask).sum(-1).double()))

    paired = [replace(example) for example in examples]
    add_reference(model, paired, micro_batch=64, progress=False)
    swapped = [replace(example, answers=example.answers[::-1]) for example in examples]
    return {"A": [(METHODS["sft"](), examples), (NoShift(), examples)],
            "B": [(METHODS["dpo"](), paired), (LiveReference(), paired)],
            "C": [(METHODS["asft"](), examples), (METHODS["asft"](), swapped)]}


def bug_hunt(function: Callable) -> str:
    """Which of BUGS, by number, runs A, B and C have."""
    seen = {1: "swapped answers would make the right one fall and the wrong one rise, with a loss that falls as it should.",
            2: "a loss without the shift says nothing about what is tested: it falls, and both held-out answers go down with it.",
            3: "if the reference were the policy, the loss would compare a thing with itself and stand still.",
            4: "a rate that is too high makes a loss jump. It is smooth here.",
            5: "with answers to other questions the right and the wrong answer would fare alike, and the loss would stay high.",
            6: "without steps nothing at all would move."}
    wrong = {run: {f"look again: {words}": functools.partial(int, number) for number, words in seen.items() if number != true}
             for run, true in (("run A", 2), ("run B", 3), ("run C", 1))}
    return grade(function, [()], lambda: {"run A": 2, "run B": 3, "run C": 1}, wrong,
                 "all three, from nine curves. Draw such curves before you read code.")
