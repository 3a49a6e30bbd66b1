"""Writing: the old file or the new one, never half of either."""

import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from minialign.files import replacing, write_tensors, write_text
from minialign.verbs.flags import exit_status


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a" / "f.txt", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a" / "f.txt") as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["f.txt"] and (tmp_path / "a" / "f.txt").read_text() == "old"


def test_folders_and_devices_are_not_replaced(tmp_path):
    for path in tmp_path, "/dev/null":
        with pytest.raises(ValueError, match="name a file"):
            write_text(path, "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_files_are_readable_as_the_umask_says(tmp_path):
    write_text(tmp_path / "t", "x")
    write_tensors(tmp_path / "s", {"w": torch.ones(2)[::1]})
    assert (tmp_path / "t").stat().st_mode == (tmp_path / "s").stat().st_mode
    assert torch.equal(load_file(tmp_path / "s")["w"], torch.ones(2))


@pytest.mark.parametrize("error, status, words", [
    (ValueError("give a file"), 2, "error: give a file"), (FileNotFoundError("no such file: x"), 2, "no such file: x"),
    (OSError(28, "No space left on device"), 1, "No space"), (FloatingPointError("update 3: loss nan"), 1, "update 3"),
    (KeyboardInterrupt(), 130, "interrupted"), (KeyboardInterrupt("stopped after update 3"), 130, "stopped after update 3"),
])
def test_errors_become_one_sentence_and_a_status(error, status, words, capsys):
    def work():
        raise error

    assert exit_status("prog", work) == status
    assert words in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_status("prog", lambda: 1 / 0)
    assert exit_status("prog", lambda: None) == 0
