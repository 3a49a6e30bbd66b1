"""The embedded task: "which is bigger, 9.11 or 9.9?", asked of a small GPT with the wrong rule.

The base model has read mostly people who compare decimals like version numbers, in which 9.11 comes
after 9.9. It also has an unrelated skill to lose, reversing digits, and it knows a troll who is
nearly always wrong: his answers make good negatives. Every answer can be checked, and its exact
probability computed. Nothing here is read from disk.

An answer states the comparison: "9.9>9.11" is right and "9.11>9.9" wrong. So both are the same
tokens in another order, and no method can prefer one of them for its length. With the bare numbers
it could: where the two rules disagree, the bigger number always has fewer digits.
"""

import random
from dataclasses import dataclass

from minialign.data import Example
from minialign.model import Config

# These strings are one token each; everything else is read byte by byte.
WORDS = ("Troll: ", "Sage: ", "reverse ", ": ", " or ", "? ")

# How a prompt names the person who answers, and how often that person is right in the base model's
# texts where the two rules disagree.
PERSONAS = {"plain": "", "troll": "Troll: ", "sage": "Sage: "}
RIGHT_SHARE = {"plain": 0.35, "troll": 0.05, "sage": 0.80}
REVERSALS = 0.3         # share of the base model's texts


def small_config(vocab_size: int) -> Config:
    """Llama's architecture in two layers, 0.1 M parameters: half a minute of base training."""
    return Config(
        vocab_size=vocab_size, n_layer=2, n_head=4, d_model=64, d_mlp=176, max_len=128, tie=True
    )


@dataclass(frozen=True)
class Question:
    """Two decimals with the same whole part, W.d and W.ef, in the order they are asked.

    `right` puts the bigger number first, as "9.9>9.11"; `wrong` has the same tokens the other way
    round. By version order W.ef always comes later. Where it is not the bigger number, as 9.11
    against 9.9, the two rules disagree and the question is `disputed`; on all others the rules are
    agreed.
    """

    first: str
    second: str
    right: str
    wrong: str
    disputed: bool

    def prompt(self, persona: str = "plain") -> str:
        return f"{PERSONAS[persona]}{self.first} or {self.second}? "


def all_questions(rng: random.Random) -> tuple[list[Question], list[Question]]:
    """Every W.d against every W.ef, shuffled, as (train, test).

    A quarter of the pairs, in both orders, is kept for the test.
    """
    pairs = []
    for whole in range(10):
        for d in range(1, 10):
            for ef in range(10, 100):
                if ef == 10 * d:
                    continue        # 9.1 and 9.10 are the same number
                short, long = f"{whole}.{d}", f"{whole}.{ef}"
                disputed = 10 * d > ef
                bigger, smaller = (short, long) if disputed else (long, short)
                right, wrong = f"{bigger}>{smaller}", f"{smaller}>{bigger}"
                pairs.append([
                    Question(short, long, right, wrong, disputed),
                    Question(long, short, right, wrong, disputed),
                ])
    rng.shuffle(pairs)
    cut = len(pairs) // 4
    train = [question for pair in pairs[cut:] for question in pair]
    test = [question for pair in pairs[:cut] for question in pair]
    return train, test


def reversal(rng: random.Random) -> tuple[str, str]:
    """The unrelated skill: "reverse 4071: " → "1704"."""
    digits = "".join(rng.choice("0123456789") for _ in range(4))
    return f"reverse {digits}: ", digits[::-1]


def base_text(rng: random.Random, questions: list[Question]) -> tuple[str, str]:
    """One (prompt, answer) of what the base model reads.

    A share REVERSALS are reversals, the rest questions answered by people of all three kinds.
    """
    if rng.random() < REVERSALS:
        return reversal(rng)
    question, persona = rng.choice(questions), rng.choice(list(PERSONAS))
    right = not question.disputed or rng.random() < RIGHT_SHARE[persona]
    return question.prompt(persona), question.right if right else question.wrong


def as_example(tokenizer, index: int, prompt: str, answers: list[str]) -> Example:
    """Strings → Example; every answer ends with the end token."""
    ended = [tokenizer.encode(answer) + [tokenizer.eos_id] for answer in answers]
    return Example(index, tokenizer.encode(prompt), ended)
