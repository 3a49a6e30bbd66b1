"""Marks against their definitions, and against what sacrebleu and rouge-score give."""

import pytest

from minialign.evaluate import (
    bleu4,
    common_subsequence,
    compare_answers,
    final_answer,
    marks,
    rouge_l,
    words_13a,
)
from minialign.generate import answers

CANDIDATES = [
    "The cat sat on the mat, didn't it?",
    "It cost 1,000.50 dollars in 2-3 days.",
    "a b c d e",
]
REFERENCES = [
    "The cat sat on a mat, didn't it?",
    "It cost 1,000.50 dollars, in two days.",
    "a b c d f",
]


def test_bleu_and_rouge_are_those_of_the_usual_libraries():
    sacrebleu = 0.5239424276086075              # smooth_method="none"
    rouge_score = 0.8436647173489279            # rougeL, F1
    assert bleu4(CANDIDATES, REFERENCES) == pytest.approx(sacrebleu, abs=1e-9)
    assert rouge_l(CANDIDATES, REFERENCES) == pytest.approx(rouge_score, abs=1e-9)
    assert bleu4(REFERENCES, REFERENCES) == pytest.approx(1)
    assert rouge_l(REFERENCES, REFERENCES) == 1
    assert bleu4(["x"], ["y"]) == 0 and rouge_l([""], ["y"]) == 0


def test_words_keep_numbers_and_apostrophes_whole():
    words = ["It's", "1,000.5", ",", "no", "?", "(", "2", "-", "3", ")"]
    assert words_13a("It's 1,000.5, no? (2-3)") == words


def test_a_common_subsequence_may_have_gaps_on_both_sides():
    assert common_subsequence(list("abcbdab"), list("bdcaba")) == 4         # "bcba"
    assert common_subsequence(list("bdcaba"), list("abcbdab")) == 4
    assert common_subsequence(["a"], ["b"]) == 0 and common_subsequence([], ["b"]) == 0


@pytest.mark.parametrize("text, answer", [
    ("so 2+2=4\n#### 4", "4"),
    ("#### 1,234", "1234"),
    ("  yes  no. ", "yes no"),
    ("#### $5.", "$5"),
])
def test_the_final_answer_is_what_stands_behind_the_hashes(text, answer):
    assert final_answer(text) == answer


def test_marks_are_means_over_tokens_and_over_pairs():
    m = marks([[-2.0, -3.0], [-4.0, -1.0], [-6.0]], [[2, 1], [4, 1], [3]])
    assert m["examples"] == 3 and m["tokens"] == 9 and m["logp_per_token"] == pytest.approx(-12 / 9)
    assert m["pair_accuracy"] == 0.5 and m["margin"] == pytest.approx((1 - 3) / 2)
    assert m["pair_accuracy_per_token"] == 0.5
    assert m["margin_per_token"] == pytest.approx((2 + 0) / 2)
    lonely = marks([[-2.0]], [[2]])
    assert lonely["pair_accuracy"] is None and lonely["margin"] is None


def test_without_wanted_answers_and_pairs_there_is_nothing_to_mark():
    nothing = marks([[0.0, -2.0]], [[0, 2]])
    assert nothing["examples"] == 1 and nothing["tokens"] == 0
    others = [value for name, value in nothing.items() if name not in ("examples", "tokens")]
    assert len(others) == 6 and set(others) == {None}


class Letters:
    """A tokenizer for the tiny models: a token is a character behind a space; 1 to 9 stop."""

    stop_ids = tuple(range(1, 10))

    def decode(self, ids):
        return "".join(f" {chr(96 + n)}" for n in ids)


def test_a_model_agrees_with_itself_whatever_the_batch(model):
    prompts = [[11, 12], [13], [14, 15, 16]]
    pools = answers(model, Letters(), prompts, 1, 12, temperature=0.0)
    own = [pool[0][0] for pool in pools]
    for batch_size in 1, 2, 3:
        compared, generated = compare_answers(model, Letters(), prompts, own, batch_size, 12, False)
        assert generated == own
        assert compared == {"exact_match": 1, "bleu4": pytest.approx(1), "rouge_l": 1}
    swapped, _ = compare_answers(model, Letters(), prompts, own[1:] + own[:1], 3, 12, False)
    assert swapped["exact_match"] < 1 and swapped["rouge_l"] < 1
