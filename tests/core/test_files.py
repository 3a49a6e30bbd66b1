"""Writing: the old file or the new one, never half of either."""

import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from minialign.bench.sheet import allocated
from minialign.files import can_write, replacing, write_json, write_tensors, write_text


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a" / "f.txt", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a" / "f.txt") as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["f.txt"]
    assert (tmp_path / "a" / "f.txt").read_text() == "old"


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


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_permissions_follow_the_umask_of_the_moment(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "t", "x")
        write_tensors(tmp_path / "s", {"w": torch.ones(2)})
    finally:
        os.umask(before)
    for name in "t", "s":
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_json_goes_to_a_file_or_to_standard_output(tmp_path, capsys):
    value = {"a": [1, 2.5, None], "b": "ü"}
    write_json(tmp_path / "new" / "f.json", value)
    text = (tmp_path / "new" / "f.json").read_text()
    assert json.loads(text) == value and text.count("\n") == 1 and text.endswith("\n")
    assert not capsys.readouterr().out
    write_json("-", value)
    assert capsys.readouterr().out == text
    write_json("-", value, indent=1)
    assert json.loads(capsys.readouterr().out) == value


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "f", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "f", {1, 2})
    assert [file.name for file in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "[1]\n"


def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path):
    can_write(tmp_path / "made", tmp_path / "also" / "f.json")
    assert (tmp_path / "made").is_dir() and (tmp_path / "also").is_dir()
    can_write(None, "-")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot make the folder"):
        can_write(tmp_path / "file" / "folder")
    with pytest.raises(ValueError, match="is a folder; name a file"):
        can_write(file=tmp_path / "made")


def test_tensors_are_written_as_safetensors_writes_them(tmp_path):
    """Byte for byte, whatever their dtype, shape and layout in memory."""
    draw = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    dtypes = torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool
    tensors = {f"ü.{dtype}": draw.to(dtype) for dtype in dtypes}
    tensors |= {"number": torch.tensor(7), "empty": torch.zeros(0, 3), "view": draw.T[1:, 2:]}
    write_tensors(tmp_path / "s", tensors, {"step": "3"})
    loaded = load_file(tmp_path / "s")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], x) for name, x in tensors.items())
    with safe_open(tmp_path / "s", "pt") as file:
        assert file.metadata() == {"step": "3"}
    whole = {name: x.contiguous() for name, x in tensors.items() if len(x.shape) == 2}
    for some in {"w": draw}, whole:
        write_tensors(tmp_path / "s", some, {"format": "pt"})
        theirs, ours = save(some, {"format": "pt"}), (tmp_path / "s").read_bytes()
        assert len(theirs) == len(ours)
    write_tensors(tmp_path / "s", {"w": draw, "u": draw + 1}, {"format": "pt"})
    assert (tmp_path / "s").read_bytes() == save({"w": draw, "u": draw + 1}, {"format": "pt"})


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    """Those that must be copied first, as everything on a GPU, or here what lies in another way."""
    tensors = {f"w{i}": torch.zeros(500, 200).T for i in range(8)}
    assert allocated(lambda: write_tensors(tmp_path / "s", tensors)) <= 1.1 * 4 * 500 * 200


def test_files_are_flushed_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """Windows flushes no other."""
    fcntl = pytest.importorskip("fcntl")
    modes = []
    monkeypatch.setattr(os, "fsync", lambda fd: modes.append(fcntl.fcntl(fd, fcntl.F_GETFL)))
    write_text(tmp_path / "t", "x")
    assert [mode & os.O_ACCMODE for mode in modes] == [os.O_RDWR]
