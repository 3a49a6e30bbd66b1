"""Marks against their definitions, and against the numbers that sacrebleu and rouge-score give for the same texts."""

import pytest

from minialign.evaluate import bleu4, final_answer, marks, rouge_l, words_13a

CANDIDATES = ["The cat sat on the mat, didn't it?", "It cost 1,000.50 dollars in 2-3 days.", "a b c d e"]
REFERENCES = ["The cat sat on a mat, didn't it?", "It cost 1,000.50 dollars, in two days.", "a b c d f"]


def test_bleu_and_rouge_are_those_of_the_usual_libraries():
    assert bleu4(CANDIDATES, REFERENCES) == pytest.approx(0.5239424276086075, abs=1e-9)     # sacrebleu, smooth_method="none"
    assert rouge_l(CANDIDATES, REFERENCES) == pytest.approx(0.8436647173489279, abs=1e-9)   # rouge-score, rougeL F1
    assert bleu4(REFERENCES, REFERENCES) == pytest.approx(1) and rouge_l(REFERENCES, REFERENCES) == 1
    assert bleu4(["x"], ["y"]) == 0 and rouge_l([""], ["y"]) == 0


def test_words_keep_numbers_and_apostrophes_whole():
    assert words_13a("It's 1,000.5, no? (2-3)") == ["It's", "1,000.5", ",", "no", "?", "(", "2", "-", "3", ")"]


@pytest.mark.parametrize("text, answer", [
    ("so 2+2=4\n#### 4", "4"), ("#### 1,234", "1234"), ("  yes  no. ", "yes no"), ("#### $5.", "$5")])
def test_the_final_answer_is_what_stands_behind_the_hashes(text, answer):
    assert final_answer(text) == answer


def test_marks_are_means_over_tokens_and_over_pairs():
    m = marks([[-2.0, -3.0], [-4.0, -1.0], [-6.0]], [[2, 1], [4, 1], [3]])
    assert m["examples"] == 3 and m["tokens"] == 9 and m["logp_per_token"] == pytest.approx(-12 / 9)
    assert m["pair_accuracy"] == 0.5 and m["margin"] == pytest.approx((1 - 3) / 2)
    assert m["pair_accuracy_per_token"] == 0.5 and m["margin_per_token"] == pytest.approx((2 + 0) / 2)
    lonely = marks([[-2.0]], [[2]])
    assert lonely["pair_accuracy"] is None and lonely["margin"] is None
