"""What must be refused, survived or kept: every test here once failed."""

import base64
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import read, write
from safetensors.torch import load_file, save_file
from terminal import TEMPLATE, command

from minialign import load_model, save_model
from minialign.__main__ import main
from minialign.files import UNFINISHED, locked, replacing
from minialign.hf import vocabulary
from minialign.hf.chat import compile_template
from minialign.hf.families import config_from_hf
from minialign.hf.folders import SAVING
from minialign.hf.tokenizer import byte_tokenizer, load_tokenizer
from minialign.lab import small


def train(folder, data, out, *more):
    return ["train", "--model", str(folder), "--method", "sft", "--data", str(data),
            "--out", str(out), *more]


def refused(words, capsys, *sentence, status=2):
    """The command ends with that status, says the words, and shows no traceback."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == status
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for words in sentence:
        assert words in said, said


# ------------------------------------------------------------------------------ folders and locks


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


# ------------------------------------------------------------------------------------------- runs


def test_a_run_is_not_resumed_on_another_base_model(folder, pairs, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    words = train(base, pairs, tmp_path / "run", "--lora-rank", "2")
    assert main(words) == 0
    model, tokenizer = load_model(base)
    with torch.no_grad():
        model.model["layers"][0].mlp.up_proj.weight[3, 3] += 1
    save_model(base, model, tokenizer)
    refused([*words, "--resume"], capsys, "the model given as --model has changed")


def test_a_last_update_that_ends_in_infinity_saves_nothing(folder, pairs, tmp_path, capsys):
    model, tokenizer = load_model(folder)
    with torch.no_grad():
        # The one update multiplies what is large already by 10³⁰.
        model.model["layers"][0].self_attn.v_proj.weight.mul_(1e12)
        model.model["layers"][0].self_attn.o_proj.weight.mul_(1e-12)
    save_model(tmp_path / "base", model, tokenizer)
    words = train(tmp_path / "base", pairs, tmp_path / "run", "--lr", "9e14", "--warmup", "0")
    refused([*words, "--weight-decay", "9e14"], capsys, "no longer finite", status=1)
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def broadcast(state):
    name = "model.model.norm.weight"
    return state | {name: state[name][:1].clone()}


def whole_numbers(state):
    return {name: x.to(torch.int8) if name.startswith("model.") else x for name, x in state.items()}


def not_finite(state):
    return state | {"model.model.norm.weight": state["model.model.norm.weight"] * math.nan}


@pytest.mark.parametrize("damage", [broadcast, whole_numbers, not_finite])
def test_a_checkpoint_of_other_shapes_or_numbers_is_refused(
    folder, pairs, tmp_path, capsys, damage
):
    words = train(folder, pairs, tmp_path / "run", "--method", "dft2", "--batch", "4")
    words[words.index("sft")] = "sft"
    assert main(train(folder, pairs, tmp_path / "run", "--batch", "4")) == 0
    file = tmp_path / "run" / "checkpoint.safetensors"
    save_file(damage(load_file(file)), file, {"step": "3"})
    refused(train(folder, pairs, tmp_path / "run", "--batch", "4", "--resume"), capsys,
            "is not a checkpoint of this run")


@pytest.mark.parametrize("damage", [
    lambda p: {name: x[:1].clone() for name, x in p.items()},
    lambda p: {name: x * math.nan for name, x in p.items()},
    lambda p: {name: x.half() for name, x in p.items()}])
def test_a_cached_base_model_of_other_shapes_or_numbers_is_made_anew(
    tmp_path, monkeypatch, damage
):
    monkeypatch.setattr(small, "COURSES", (1,))
    first, _ = small.base_model(5, tmp_path)
    path = small.base_path(5, tmp_path)
    good = load_file(path)
    save_file(damage(good), path)
    again, _ = small.base_model(5, tmp_path)
    assert torch.equal(again.head, first.head)
    assert all(torch.equal(x, good[name]) for name, x in load_file(path).items())


@pytest.mark.parametrize("change", [
    lambda stored: stored | {"ref_logps": stored["ref_logps"][1:] + stored["ref_logps"][:1]},
    lambda stored: stored | {"ref_logps": [row[:1] for row in stored["ref_logps"]]},
    lambda stored: "[" * 100_000])
def test_a_damaged_reference_is_computed_again(folder, pairs, tmp_path, change):
    words = train(folder, pairs, tmp_path / "run", "--batch", "4")
    words[words.index("sft")] = "dpo"
    assert main(words) == 0
    file = tmp_path / "run" / "reference.json"
    whole = file.read_text()
    changed = change(json.loads(whole))
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    assert main([*words, "--resume"]) == 0
    assert file.read_text() == whole


@pytest.mark.parametrize("name", ["config.json", "log.jsonl"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe{", b'{"a": 1, "a": 2}'])
def test_damaged_records_of_a_run_are_named(folder, pairs, tmp_path, capsys, name, content):
    assert main(train(folder, pairs, tmp_path / "run")) == 0
    (tmp_path / "run" / name).write_bytes(content)
    refused(train(folder, pairs, tmp_path / "run", "--resume"), capsys, f"{name} ",
            "start again with another --out")


# ------------------------------------------------------------------------------------------ pools


@pytest.fixture
def pool(folder, tmp_path):
    """Many rows of data, a pool for them, and the command that trains on both."""
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(40)]
    data, out = write(tmp_path / "data.jsonl", rows), tmp_path / "pool.jsonl"
    sample = ["sample", "--model", folder, "--data", data, "--out", str(out), "--k", "1"]
    assert main([*sample, "--max-new-tokens", "6"]) == 0
    words = train(folder, data, tmp_path / "run", "--negatives", str(out))
    words[words.index("sft")] = "dft"
    return out, words


@pytest.mark.parametrize("l", [50.0, 1e299, -1e299, 0.5])
def test_log_probs_that_no_answer_has_are_refused(pool, capsys, l):
    path, words = pool
    rows = read(path)
    rows[-1]["ref_logps"] = [l]
    write(path, rows)
    refused(words, capsys, "line 40", "log-prob")


def test_rows_of_another_model_are_found_wherever_they_stand(pool, capsys):
    path, words = pool
    rows = read(path)
    for row in rows[4:]:
        row["ref_logps"] = [l - 9 for l in row["ref_logps"]]
    write(path, rows)
    refused(words, capsys, "are not those of --model")
    rows = [row | {"ref_logps": [l + 9 for l in row["ref_logps"]]} for row in rows[4:]]
    rows[-1]["draw"] = "0123456789abcdef-0123456789ab"
    write(path, read(path)[:4] + rows)
    refused(words, capsys, "line 40", "are not those of --model")


# ------------------------------------------------------------------------- models and vocabularies


def test_a_tokenizer_larger_than_the_model_is_a_sentence_in_every_verb(
    folder, pairs, tmp_path, capsys
):
    model, _ = load_model(folder)
    larger = byte_tokenizer(["1+1="])
    save_model(tmp_path / "model", model, larger)
    data = write(tmp_path / "d.jsonl", [{"prompt": "1+1=", "completion": "2"}])
    for words in (["evaluate", "--data", data], ["generate", "--prompt", "1+1="],
                  ["sample", "--data", data, "--out", str(tmp_path / "p")],
                  ["train", "--method", "sft", "--data", data, "--out", str(tmp_path / "r")]):
        refused([*words, "--model", str(tmp_path / "model")], capsys, "257 embeddings")


def ranks(tokens):
    return b"".join(base64.b64encode(t) + b" %d\n" % i for t, i in tokens)


BYTES = [(bytes([byte]), byte) for byte in range(256)]


@pytest.mark.parametrize("tokens", [
    BYTES[:-1] + [(b"ab", 255)],                    # a byte is missing
    BYTES + [(b"ab", 255)], BYTES + [(b"ab", -1)], BYTES + [(b"ab", 300)], BYTES + [(b"", 256)],
    BYTES + [(b"a", 256)]])
def test_rank_files_are_whole_or_refused(tmp_path, monkeypatch, tokens):
    family = vocabulary.BARE[50256]
    for n in 256, 257:
        monkeypatch.setitem(vocabulary.BARE, n, family)
    (tmp_path / "x.tiktoken").write_bytes(ranks(tokens))
    with pytest.raises(ValueError, match="x.tiktoken is damaged"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("added", [{"": 256}, {"<a>": 5}, {"<a>": 256, "<b>": 256}, {"<a>": -1}])
def test_special_tokens_are_neither_empty_nor_in_the_place_of_others(
    tmp_path, monkeypatch, added
):
    monkeypatch.setitem(vocabulary.BARE, 256, vocabulary.BARE[50256])
    (tmp_path / "x.tiktoken").write_bytes(ranks(BYTES))
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(ValueError, match="special token"):
        load_tokenizer(tmp_path)


def test_a_panic_of_a_library_is_a_sentence():
    class PanicException(BaseException):
        pass

    with pytest.raises(ValueError, match="file x is damaged: index"), \
            vocabulary.in_words("file x is damaged"):
        raise PanicException("index out of range")
    with pytest.raises(KeyboardInterrupt), vocabulary.in_words("file x is damaged"):
        raise KeyboardInterrupt


def test_dropout_in_a_tokenizer_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    file = tmp_path / "m" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["dropout"] = 0.1
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="at random"):
        load_tokenizer(tmp_path / "m")


LLAMA = {
    "model_type": "llama", "hidden_act": "silu", "vocab_size": 50, "max_position_embeddings": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4,
}
SCALED = {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
          "original_max_position_embeddings": 16}


@pytest.mark.parametrize("change", [
    {"num_hidden_layers": 10_000}, {"rms_norm_eps": 1e299}, {"rms_norm_eps": 2},
    {"rope_theta": 1e299}, {"rope_scaling": SCALED | {"low_freq_factor": 4.0}},
    {"rope_scaling": SCALED | {"low_freq_factor": 8.0}}])
def test_absurd_configs_are_refused_at_once(change):
    assert config_from_hf(LLAMA | {"rope_scaling": SCALED})
    with pytest.raises(ValueError):
        config_from_hf(LLAMA | change)


# -------------------------------------------------------------------------------------- templates


def with_template(folder, path, template):
    shutil.copytree(folder, path)
    (path / "chat_template.jinja").write_bytes(template)
    return path


def test_a_template_that_drops_the_answer_is_refused(folder, tmp_path, capsys):
    data = write(tmp_path / "d.jsonl", [{"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "the answer"}]}])
    only_users = "{% if m.role == 'user' %}{{ m.content }}{% endif %}"
    drops = TEMPLATE.replace("{{ m.content }}", only_users)
    model = with_template(folder, tmp_path / "drops", drops.encode())
    refused(train(model, data, tmp_path / "run"), capsys, "line 1", "does not write the text")
    model = with_template(folder, tmp_path / "keeps", TEMPLATE.encode())
    assert main(train(model, data, tmp_path / "run")) == 0


LOOP = "{% for i in range(99999) %}"


@pytest.mark.parametrize("template", [
    LOOP + LOOP + "{% endfor %}{% endfor %}", LOOP + LOOP + "x{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{{ 'x' * 10**10 }}", "{{ 10**(10**9) }}", "{{ '%1000000000d' % 1 }}", "{{ 'x'.ljust(10**9) }}",
    "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x %}{{ n.x }}{{ n.x }}"
    "{% endset %}{% endfor %}",
    "{{ messages|tojson(indent=10**9) }}", "{{ range(99999)|join('x'*100000) }}",
    "{{ raise_exception('') }}"])
def test_templates_that_never_end_or_write_gigabytes_are_refused(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    began = time.process_time()
    with pytest.raises(ValueError, match="refuses these messages: .+"):
        tokenizer.render([{"role": "user", "content": "a"}])
    assert time.process_time() - began < 20
    compile_template.cache_clear()


def test_a_template_that_is_no_text_is_named(folder, tmp_path, capsys):
    model = with_template(folder, tmp_path / "m", b"\xff\xfe")
    refused(["generate", "--model", model, "--prompt", "a"], capsys, "chat_template.jinja", "UTF-8")


# ------------------------------------------------------------------------------------- small ones


@pytest.mark.parametrize("more, sentence", [
    (["--device", "hpu"], "cannot be used here"),
    (["--method", "ift", "--lam", "1e300"], "lam"),
    (["--lora-rank", "2", "--lora-targets", ""], "no layer is called ''"),
    (["--lora-targets", ""], "give --lora-rank"),
    (["--data", "/dev/zero"], "a pipe or a device")])
def test_odd_flags_are_a_sentence(folder, pairs, tmp_path, capsys, more, sentence):
    refused(train(folder, pairs, tmp_path / "run", *more), capsys, sentence)
    assert not (tmp_path / "run").exists()


def test_a_pipe_is_no_data_file(folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    for verb in ["evaluate"], ["sample", "--out", str(tmp_path / "p")]:
        refused([*verb, "--model", folder, "--data", tmp_path / "fifo"], capsys, "a pipe")


def test_a_text_that_no_model_could_read_is_refused(folder, tmp_path, capsys):
    rows = [{"prompt": "a" * 10_000_001, "completion": "b"}]
    data = write(tmp_path / "d.jsonl", rows)
    refused(["evaluate", "--model", folder, "--data", data], capsys, "10,000,001 characters")


def test_control_characters_of_data_do_not_reach_the_terminal(folder, tmp_path, capsys):
    rows = [{"prompt": "a\x1b]0;title\x07", "completion": "b\x9b31m"}]
    data = write(tmp_path / "d.jsonl", rows)
    assert main(["evaluate", "--model", folder, "--data", data, "--generate", "1"]) == 0
    assert main(["generate", "--model", folder, "--prompt", "a\x1b[2J"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x9b" not in said and "\x07" not in said


# ---------------------------------------------------------------------------- processes, terminals


def children(pid):
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_go_when_their_parent_does(tmp_path, how):
    process = subprocess.Popen(
        command("compare", "--seeds", "2", "--out", str(tmp_path / "out")),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers = []
    for _ in range(600):
        workers = children(process.pid)
        if len(workers) >= 3:                       # a manager, a tracker, and a worker at least
            break
        time.sleep(0.1)
    time.sleep(3)
    workers = children(process.pid)
    process.send_signal(how)
    assert process.wait(timeout=30) == (-9 if how == signal.SIGKILL else 130)
    for _ in range(100):
        if not any(alive(pid) for pid in workers):
            return
        time.sleep(0.1)
    raise AssertionError("workers are left")


def test_a_terminal_that_is_not_utf8_loses_nothing():
    code = ("import sys, minialign.lab.race as race\n"
            "race.run = lambda *_: print('Δ log-prob')\n"
            "from minialign.__main__ import main\n"
            "sys.exit(main(['compare']))")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0 and done.stdout == b"? log-prob\n"


def test_a_race_writes_its_numbers_before_it_prints(tmp_path, monkeypatch):
    from minialign.lab import race

    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr(race, "race", lambda *_: {})
    monkeypatch.setattr(race, "report", broken)
    with pytest.raises(BrokenPipeError):
        race.run([0], ["sft"], str(tmp_path / "n.json"), str(tmp_path))
    assert json.loads((tmp_path / "n.json").read_text()) == {}
