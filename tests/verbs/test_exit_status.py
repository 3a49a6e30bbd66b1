"""What a verb leaves behind: one sentence and an exit status."""

import pytest

from minialign.verbs.flags import exit_status


@pytest.mark.parametrize("error, status, words", [
    (ValueError("give a file"), 2, "error: give a file"),
    (FileNotFoundError("no such file: x"), 2, "no such file: x"),
    (OSError(28, "No space left on device"), 1, "No space"),
    (FloatingPointError("update 3: loss nan"), 1, "update 3"),
    (TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
               "float64."), 2, "give --device cpu"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (KeyboardInterrupt("stopped after update 3"), 130, "stopped after update 3"),
])
def test_errors_become_one_sentence_and_a_status(error, status, words, capsys):
    def work():
        raise error

    assert exit_status("prog", work) == status
    assert words in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_status("prog", lambda: 1 / 0)
    with pytest.raises(TypeError):
        exit_status("prog", lambda: len(1))
    assert exit_status("prog", lambda: None) == 0
