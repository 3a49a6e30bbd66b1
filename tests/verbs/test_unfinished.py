"""What is unfinished, locked or killed at a place where a command writes: it waits, goes, or stays.
"""

import stat

import pytest
from terminal import refused, train

from minialign import load_model, save_model
from minialign.__main__ import main
from minialign.files import UNFINISHED, locked, replacing
from minialign.hf.folders import SAVING
from minialign.lab import small


def test_a_folder_that_another_run_uses_is_refused(folder, pairs, tmp_path, capsys):
    out = tmp_path / "run"
    with locked(out):
        refused(train(folder, pairs, out), capsys, "another run is using this folder")
    assert not out.exists()
    assert main(train(folder, pairs, out)) == 0


def test_a_pool_that_another_run_is_drawing_is_refused(folder, pairs, tmp_path, capsys):
    pool = tmp_path / "pool.jsonl"
    words = ["sample", "--model", folder, "--data", pairs, "--out", str(pool)]
    pool.touch()
    with locked(pool.parent):
        from minialign.files import lock

        with open(pool, "a") as file:
            lock(file.fileno(), pool)
            refused(words, capsys, "another run is using this file")
    assert main(words) == 0


def test_two_that_want_one_base_model_train_it_once(tmp_path, monkeypatch):
    monkeypatch.setattr(small, "COURSES", (2,))
    path = small.base_path(3, tmp_path)

    def tick():
        # The second comes while the first is training, and may not begin to train as well.
        with pytest.raises(ValueError, match="another run"), \
                locked(path.with_name(UNFINISHED + path.stem)):
            pass

    small.base_model(3, tmp_path, tick)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_process_left_unfinished_goes_and_what_a_living_one_holds_stays(tmp_path):
    left = tmp_path / f"{UNFINISHED}0123"
    left.mkdir()
    (left / "huge").write_bytes(b"x")
    with replacing(tmp_path / "a") as living:
        with replacing(tmp_path / "b") as other:
            assert living.exists() and not left.exists()
            other.write_text("b")
        living.write_text("a")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


def test_libraries_put_their_own_unfinished_files_into_the_private_folder_too(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "w") as unfinished:
        (unfinished.parent / ".tmpXYZ").write_text("as safetensors does")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_start_that_was_killed_while_it_wrote_config_json_can_be_started_again(
    folder, pairs, tmp_path
):
    out = tmp_path / "run"
    (out / f"{UNFINISHED}0123").mkdir(parents=True)
    (out / f"{UNFINISHED}0123" / "config.json").write_text("{")
    assert main(train(folder, pairs, out)) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "checkpoint.safetensors", "config.json", "log.jsonl", "model"]


def test_permissions_survive_replacing(tmp_path):
    (tmp_path / "secret").write_text("old")
    (tmp_path / "secret").chmod(0o600)
    with replacing(tmp_path / "secret") as unfinished:
        unfinished.write_text("new")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_link_in_the_place_of_our_own_folder_is_refused(tmp_path, folder):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / SAVING).symlink_to(elsewhere)
    with pytest.raises(ValueError, match="is a link"):
        save_model(tmp_path / "model", *load_model(folder))
    assert not list(elsewhere.iterdir())
