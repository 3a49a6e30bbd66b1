"""The command line as its user meets it: every verb on a tiny model folder, interrupts in the middle,
and one clear sentence for every mistake.
"""

import json
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SHAPES

from minialign import METHODS, __main__, load_model, save_model
from minialign.__main__ import METHOD_NAMES, Train, build_parser, main
from minialign.generate import answers
from minialign.hf.encoding import encode_answer
from minialign.hf.lora import load_adapters, merge
from minialign.hf.tokenizer import byte_tokenizer
from minialign.model import Config, Transformer
from minialign.verbs import generate as talk

ROWS = [{"prompt": f"{a}+{b}=", "chosen": f"{a + b}", "rejected": f"{a + b + 1}"} for a in range(3) for b in range(4)]


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    shape = {"vocab_size": tokenizer.vocab_size, "n_layer": 1, "n_head": 2, "d_model": 16, "d_mlp": 16, "max_len": 64}
    save_model(path, Transformer(Config(**shape, **{k: v for k, v in SHAPES["llama"].items() if k != "n_kv_head"})), tokenizer)
    return str(path)


@pytest.fixture
def pairs(tmp_path):
    return write(tmp_path / "pairs.jsonl", ROWS)


def test_from_a_folder_and_a_file_to_a_trained_folder(folder, pairs, tmp_path, capsys):
    """sample → train with the negatives → evaluate → generate, all through the same door as a user."""
    pool, out = str(tmp_path / "pool.jsonl"), str(tmp_path / "run")
    sample = ["sample", "--model", folder, "--data", pairs, "--out", pool, "--k", "3", "--max-new-tokens", "5"]
    assert main([*sample, "--system", "Badly: "]) == 0
    rows = read(pool)
    assert [r["prompt"] for r in rows] == [r["prompt"] for r in ROWS]
    assert all(len(r[key]) == 3 for r in rows for key in ("negatives", "finished", "ref_logps", "augmented_ref_logps"))
    train = ["train", "--model", folder, "--method", "dft", "--data", pairs, "--negatives", pool, "--k", "1", "--out", out]
    assert main([*train, "--epochs", "3", "--batch", "5", "--lr", "1e-2", "--tau", "0.9"]) == 0
    log = read(f"{out}/log.jsonl")
    assert [r["step"] for r in log] == list(range(1, 10)) and "log_u" in log[0]
    assert json.loads(Path(out, "config.json").read_text())["tau"] == 0.9
    capsys.readouterr()
    evaluate = ["evaluate", "--model", f"{out}/model", "--data", pairs, "--json"]
    assert main([*evaluate, "--generate", "2", "--max-new-tokens", "4"]) == 0
    marks = json.loads(capsys.readouterr().out)
    assert marks["examples"] == 12 and 0 <= marks["pair_accuracy"] <= 1 and marks["exact_match"] is not None
    assert main(["generate", "--model", f"{out}/model", "--prompt", "1+1=", "--greedy", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("1+1=")


def test_the_pool_holds_the_log_probs_of_its_own_texts(folder, pairs, tmp_path):
    pool = tmp_path / "pool.jsonl"
    sample = ["sample", "--model", folder, "--data", pairs, "--out", str(pool), "--k", "2"]
    assert main([*sample, "--max-new-tokens", "4", "--batch", "4"]) == 0
    model, tokenizer = load_model(folder)
    for row in read(pool):
        for text, finished, l in zip(row["negatives"], row["finished"], row["ref_logps"], strict=True):
            prompt, answer = tokenizer.encode(row["prompt"]), tokenizer.encode(text) + [tokenizer.eos_id] * finished
            with torch.no_grad():
                log_p = model.logits(torch.tensor([prompt + answer])).log_softmax(-1)[0, len(prompt) - 1 : -1]
            assert l == pytest.approx(log_p.gather(1, torch.tensor(answer)[:, None]).sum().item(), abs=1e-4)


def test_conversations_go_the_same_way(folder, tmp_path, capsys):
    """Messages through the chat template. At the first update the policy still is the reference: each negative weighs 1/K"""
    shutil.copytree(folder, tmp_path / "chat")
    template = TEMPLATE.replace("\n", "<|end|>")
    (tmp_path / "chat" / "chat_template.jinja").write_text(template)
    data = write(tmp_path / "data.jsonl", [{"messages": [{"role": "user", "content": row["prompt"]},
                                                         {"role": "assistant", "content": row["chosen"]}]} for row in ROWS])
    pool, out, chat = str(tmp_path / "pool.jsonl"), str(tmp_path / "run"), str(tmp_path / "chat")
    assert main(["sample", "--model", chat, "--data", data, "--out", pool, "--max-new-tokens", "5", "--system", "Be bad."]) == 0
    assert main(["train", "--model", chat, "--method", "dft", "--data", data, "--negatives", pool, "--out", out]) == 0
    assert read(f"{out}/log.jsonl")[0]["push_down"] == pytest.approx(1, abs=1e-5)
    capsys.readouterr()
    assert main(["generate", "--model", f"{out}/model", "--prompt", "1+1=", "--max-new-tokens", "3"]) == 0
    assert not capsys.readouterr().out.startswith("1+1="), "an answer, and not the rest of the question"


TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"


def test_a_conversation_remembers_until_the_context_is_full_or_an_empty_line(folder, tmp_path, capsys, monkeypatch):
    shutil.copytree(folder, tmp_path / "chat")
    file = tmp_path / "chat" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    lines, asked = iter(["hi", "more", "", "z" * 99, "x" * 9, "y" * 30]), []
    monkeypatch.setattr("builtins.input", lambda _: next_or_end(lines))
    monkeypatch.setattr(talk, "say", lambda model, tokenizer, ids, *_: asked.append(tokenizer.decode(ids)) or "ok")
    assert main(["generate", "--model", str(tmp_path / "chat"), "--chat", "--system", "be"]) == 0
    assert asked == ["s:be\nu:hi\na:", "s:be\nu:hi\na:ok\nu:more\na:", f"s:be\nu:{'x' * 9}\na:", f"s:be\nu:{'y' * 30}\na:"]
    errors = capsys.readouterr().err
    assert "forgotten" in errors and "a prompt of 109 tokens fills the model's context of 64" in errors


def next_or_end(lines):
    for line in lines:
        return line
    raise EOFError


def command(*words):
    return [sys.executable, "-m", "minialign", *words]


def wait_for(path, lines, process):
    """Until the file has that many lines, or the process is done."""
    for _ in range(600):
        if process.poll() is not None or (path.exists() and path.read_text().count("\n") >= lines):
            return
        time.sleep(0.05)


def stopped(words, out, how, lines) -> str:
    """Start, wait for some more lines of output than are there, stop at a random moment; what it said on standard error."""
    there = out.read_text().count("\n") if out.exists() else 0
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(out, there + lines, process)
    time.sleep(random.uniform(0, 0.2))
    process.send_signal(how)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), errors
    return errors


@pytest.mark.parametrize("stops", [(signal.SIGKILL, signal.SIGKILL), (signal.SIGINT, signal.SIGTERM)])
def test_a_run_that_is_stopped_and_resumed_ends_bit_for_bit_like_one_that_was_not(folder, pairs, tmp_path, stops):
    words = ["train", "--model", folder, "--method", "ift", "--data", pairs, "--epochs", "200", "--batch", "4",
             "--checkpoint-every", "7", "--threads", "1", "--out"]
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert main([*words, str(straight)]) == 0
    for again, how in enumerate(stops):
        errors = stopped([*words, str(run), *["--resume"] * again], run / "log.jsonl", how, 40)
        assert not (run / "model").exists() and (run / "checkpoint.safetensors").exists()
        assert how == signal.SIGKILL or "--resume" in errors and "Traceback" not in errors
    assert main([*words, str(run), "--resume"]) == 0
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run, straight)]
    losses = [[row["loss"] for row in read(folder / "log.jsonl")] for folder in (run, straight)]
    assert weights[0] == weights[1] and losses[0] == losses[1]


def test_a_pool_whose_drawing_is_killed_twice_ends_like_one_that_was_not(folder, tmp_path):
    data = write(tmp_path / "data.jsonl", [{"prompt": f"{i}+{i}=", "completion": "?"} for i in range(300)])
    words = ["sample", "--model", folder, "--data", data, "--k", "2", "--max-new-tokens", "20", "--batch", "3", "--out"]
    assert main([*words, str(tmp_path / "whole.jsonl")]) == 0
    for _ in range(2):
        stopped([*words, str(tmp_path / "killed.jsonl")], tmp_path / "killed.jsonl", signal.SIGKILL, 10)
    assert main([*words, str(tmp_path / "killed.jsonl")]) == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_adapters_are_trained_resumed_merged_and_kept_as_peft_does(folder, pairs, tmp_path):
    words = ["train", "--model", folder, "--method", "dpo", "--data", pairs, "--lora-rank", "2",
             "--lora-targets", "q_proj,up_proj", "--dtype", "bfloat16", "--lr", "1e-2", "--out", str(tmp_path / "run")]
    assert main([*words, "--checkpoint-every", "1"]) == 0 and main([*words, "--resume"]) == 0
    model, _ = load_model(folder, "bfloat16")
    load_adapters(tmp_path / "run" / "adapter", model)
    merge(model)
    merged, _ = load_model(tmp_path / "run" / "model", "bfloat16")
    torch.testing.assert_close(dict(model.named_parameters()), dict(merged.named_parameters()), rtol=0, atol=0)
    assert (tmp_path / "run" / "checkpoint.safetensors").stat().st_size < Path(folder, "model.safetensors").stat().st_size


def test_a_machine_too_small_says_what_needs_less(folder, pairs, tmp_path, capsys, monkeypatch):
    assert main(["sample", "--model", folder, "--data", pairs, "--out", str(tmp_path / "pool.jsonl"), "--k", str(10**12)]) == 1
    assert "out of memory" in (errors := capsys.readouterr().err) and "--batch" in errors and "Traceback" not in errors


def test_a_pool_with_the_log_probs_of_another_model_is_refused(folder, pairs, tmp_path, capsys):
    model, tokenizer = load_model(folder)
    with torch.no_grad():
        model.head.mul_(30)
    save_model(tmp_path / "other", model, tokenizer)
    pool = tmp_path / "pool.jsonl"
    assert main(["sample", "--model", folder, "--data", pairs, "--out", str(pool), "--max-new-tokens", "4"]) == 0
    words = ["train", "--method", "dft", "--data", pairs, "--negatives", str(pool), "--out", str(tmp_path / "run"), "--model"]
    assert main([*words, str(tmp_path / "other")]) == 2
    assert "are not those of --model" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main([*words, folder]) == 0


def test_a_disk_too_full_for_the_run_is_refused_before_it_starts(folder, pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    words = ["train", "--model", folder, "--method", "sft", "--data", pairs, "--out", str(tmp_path / "run")]
    assert main(words) == 2 and not (tmp_path / "run").exists()
    assert "GiB of disk" in capsys.readouterr().err
    assert main([*words, "--checkpoint-every", "0"]) == 0 and not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_pool_that_was_cut_off_is_continued_to_the_same_file(folder, pairs, tmp_path):
    words = ["sample", "--model", folder, "--data", pairs, "--k", "2", "--max-new-tokens", "6", "--batch", "3", "--out"]
    assert main([*words, str(tmp_path / "whole.jsonl")]) == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for kept in 0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole):
        (tmp_path / "cut.jsonl").write_bytes(whole[:kept])
        assert main([*words, str(tmp_path / "cut.jsonl")]) == 0
        assert (tmp_path / "cut.jsonl").read_bytes() == whole


def test_resuming_another_run_is_refused(folder, pairs, tmp_path, capsys):
    words = ["train", "--model", folder, "--method", "sft", "--data", pairs, "--out", str(tmp_path / "run")]
    assert main(words) == 0
    for change, sentence in [(["--lr", "1e-2", "--resume"], "--lr was 0.0005 and is now 0.01"),
                             ([], "is not empty; add --resume")]:
        assert main([*words, *change]) == 2
        assert sentence in capsys.readouterr().err
    moved = write(tmp_path / "moved.jsonl", ROWS)
    assert main([moved if word == pairs else word for word in words] + ["--resume"]) == 0, "the same data elsewhere are the same"
    write(tmp_path / "pairs.jsonl", ROWS[:-1])
    assert main([*words, "--resume"]) == 2
    assert "the file given as --data has changed" in capsys.readouterr().err


@pytest.mark.parametrize("words, sentence", [
    (["train", "--method", "sft", "--model", "{folder}", "--data", "{pairs}", "--out", "{tmp}/r", "--tau", "1"],
     "sft has no --tau; its hyper-parameters: --reduction"),
    (["train", "--method", "sft", "--model", "nowhere", "--data", "{pairs}", "--out", "{tmp}/r"], "nowhere"),
    (["train", "--method", "sft", "--model", "{folder}", "--data", "none.jsonl", "--out", "{tmp}/r"], "no such file: none.jsonl"),
    (["train", "--method", "asft", "--model", "{folder}", "--data", "{plain}", "--out", "{tmp}/r"], "asft needs pairs"),
    (["train", "--method", "dft2", "--model", "{folder}", "--data", "{plain}", "--out", "{tmp}/r"], "minialign sample"),
    (["train", "--method", "sft", "--model", "{folder}", "--data", "{broken}", "--out", "{tmp}/r"],
     "broken.jsonl line 2: not JSON"),
    (["train", "--method", "ift", "--model", "{folder}", "--data", "{pairs}", "--out", "{tmp}/r", "--lam", "3"], "lam is 3.0"),
    (["train", "--method", "sft", "--model", "{folder}", "--data", "{pairs}", "--out", "{tmp}/r", "--device", "cuda:99"], "cuda"),
    (["evaluate", "--model", "{folder}", "--data", "{tmp}"], "is a folder; give a JSONL file"),
    (["generate", "--model", "{folder}"], "give either --prompt TEXT"),
    (["generate", "--model", "{folder}", "--chat"], "has no chat template"),
    (["train", "--method", "sft", "--model", "{folder}", "--data", "{pairs}", "--out", "{tmp}/r", "--inside-backward"],
     "give --micro-batch as large as --batch (32)"),
    (["train", "--method", "sft", "--model", "{folder}", "--data", "{pairs}", "--out", "{tmp}/r", "--lora-alpha", "3"],
     "give --lora-rank too"),
    (["train", "--method", "sft", "--model", "{folder}", "--data", "{pairs}", "--out", "{tmp}/r", "--lora-rank", "2",
      "--lora-targets", "q_proj,qkv"], "no layer is called 'qkv'"),
    (["train", "--method", "sft", "--model", "{folder}", "--data", "{pairs}", "--out", "{pairs}"], "pairs.jsonl is a file; name"),
    (["train", "--method", "sft", "--model", "{folder}", "--data", "{pairs}", "--out", "{pairs}/r"], "is a file; name"),
    (["train", "--method", "sft", "--model", "{tmp}", "--data", "{pairs}", "--out", "{tmp}/r"], "has no config.json"),
    (["generate", "--model", "{finished}", "--prompt", "a"], "is the folder of a run; its model is"),
    (["generate", "--model", "{finished}/adapter", "--prompt", "a"], "is an adapter; give the merged model"),
    (["generate", "--model", "{torn}", "--prompt", "a"], "error: {torn}/config.json: not JSON"),
    (["generate", "--model", "{folder}", "--prompt", "a" * 99], "a prompt of 99 tokens fills the model's context of 64"),
    (["sample", "--model", "{folder}", "--data", "{long}", "--out", "{tmp}/r"], "long.jsonl line 2: a prompt of 99 tokens fills"),
    (["sample", "--model", "{folder}", "--data", "{chat}", "--out", "{tmp}/r"], "chat.jsonl line 1: this model folder has"),
    (["compare", "--methods", "sft,magic"], "no method magic; choose from sft, asft"),
])
def test_every_mistake_gets_one_sentence_and_status_2(words, sentence, folder, pairs, tmp_path, capsys):
    plain = write(tmp_path / "plain.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n')
    for place in "finished", "finished/model", "finished/adapter", "torn":
        (tmp_path / place).mkdir()
    for file, content in [("finished/config.json", '{"method": "sft"}'), ("finished/model/config.json", "{}"),
                          ("finished/adapter/adapter_config.json", "{}"), ("torn/config.json", "{")]:
        (tmp_path / file).write_text(content)
    long = write(tmp_path / "long.jsonl", [{"prompt": "a" * n, "completion": "b"} for n in (9, 99)])
    chat = write(tmp_path / "chat.jsonl", [{"messages": [{"role": role, "content": "a"} for role in ("user", "assistant")]}])
    names = {"folder": folder, "pairs": pairs, "plain": plain, "broken": broken, "tmp": tmp_path, "long": long, "chat": chat,
             "finished": tmp_path / "finished", "torn": tmp_path / "torn"}
    assert main([word.format(**names) for word in words]) == 2
    said = capsys.readouterr()
    errors = said.err.strip()
    assert sentence.format(**names) in errors and "Traceback" not in errors and said.out == ""
    assert len([line for line in errors.splitlines() if "error:" in line]) == 1
    assert not (tmp_path / "r").exists(), "nothing half-written is left"


@pytest.mark.parametrize("words", [
    [], ["fly"], ["train"], ["train", "--metod", "sft"],
    ["train", "--model", "m", "--data", "d", "--out", "o", "--method", "ppo"],
    ["train", "--model", "m", "--data", "d", "--out", "o", "--method", "sft", "--epochs", "0"],
    ["compare", "--seeds", "many"], ["compare", "--seeds", "0"], ["generate", "--model", "m", "--prompt", "p", "--top-p", "1.5"],
    ["sample", "--model", "m", "--data", "d", "--out", "o", "--k", "0"],
])
def test_unknown_words_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


def test_help_answers_without_importing_torch():
    for words in [["-h"], *([verb, "-h"] for verb in __main__.VERBS)]:
        code = (f"import sys; from minialign.__main__ import main\ntry: main({words})\n"
                "except SystemExit: pass\nassert 'torch' not in sys.modules")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout


def test_the_command_line_knows_every_method_and_every_hyper_parameter():
    assert set(METHOD_NAMES) == set(METHODS)
    flags = {f.name for f in fields(Train)}
    for name, method in METHODS.items():
        for f in fields(method):
            assert not f.init or f.name == "n_examples" or f.name in flags, f"{name} has {f.name}, train has no flag for it"
    names = [f.name for f in fields(Train)]
    hyper = names[names.index("resume") + 1 :]
    known = {f.name for method in METHODS.values() for f in fields(method)}
    assert set(hyper) <= known and all(f.default is None for f in fields(Train) if f.name in hyper and f.default is not MISSING)


def test_sample_never_touches_a_file_that_is_not_its_own_pool(folder, pairs, tmp_path, capsys):
    """Somebody's notes, the data itself, a pool of other settings, a broken model: exit 2 and not a byte changed."""
    notes, pool = tmp_path / "notes.txt", tmp_path / "pool.jsonl"
    notes.write_text("one line without an end")
    words = ["sample", "--data", pairs, "--k", "2", "--max-new-tokens", "4", "--out"]
    for path in notes, Path(pairs):
        before = path.read_bytes()
        assert main([*words, str(path), "--model", folder]) == 2 and path.read_bytes() == before
    assert main([*words, str(pool), "--model", folder]) == 0
    before = pool.read_bytes()
    for other in (["--model", "nowhere"], ["--model", folder, "--seed", "7"], ["--model", folder, "--temperature", "0"]):
        assert main([*words, str(pool), *other]) == 2 and pool.read_bytes() == before
    assert "choose another --out" in capsys.readouterr().err


def test_drawn_tokens_are_the_tokens_that_are_trained_on(shared_data):
    """Text written to the pool and read back gives the very tokens that were drawn, the space before the first word included."""
    model, tokenizer = load_model(shared_data / "weights" / "stories260K")
    prompt = "Once upon a time, there was a little girl named Lily."
    ids = tokenizer.encode(prompt)
    draw = {"temperature": 0.7, "top_k": 50, "top_p": None, "generator": None}
    rows = model.generate(torch.tensor([ids] * 8), 24, stop=tokenizer.stop_ids,
                          **{**draw, "generator": torch.Generator().manual_seed(0)})[:, len(ids) :].tolist()
    (pool,) = answers(model, tokenizer, [ids], 8, 24, **{**draw, "generator": torch.Generator().manual_seed(0)})
    for row, (text, finished) in zip(rows, pool, strict=True):
        row = row[: next((i for i, t in enumerate(row) if t in tokenizer.stop_ids), len(row))]
        assert encode_answer(tokenizer, prompt, text, finished)[: len(row)] == row


def test_a_long_prompt_shortens_nobody_elses_answer(folder):
    model, tokenizer = load_model(folder)
    prompts = [tokenizer.encode("a" * n) for n in (3, 60, 9)]           # the context is 64
    draw = 1, 20, 0.0, None, None, None
    together = answers(model, tokenizer, prompts, *draw)
    assert together == [pool for prompt in prompts for pool in answers(model, tokenizer, [prompt], *draw)]
    assert [len(text) > 4 for ((text, _),) in together] == [True, False, True]


@pytest.mark.parametrize("damage, sentence", [
    (lambda run: (run / "config.json").write_text("[]"), "config.json is damaged"),
    (lambda run: (run / "log.jsonl").write_text((run / "log.jsonl").read_text()[:-30]), "does not hold the 3 updates"),
    (lambda run: (run / "checkpoint.safetensors").write_bytes(b"x" * 50), "is not a checkpoint of this run"),
])
def test_a_damaged_run_is_not_continued(folder, pairs, tmp_path, capsys, damage, sentence):
    words = ["train", "--model", folder, "--method", "dpo", "--data", pairs, "--batch", "4", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    (tmp_path / "run" / "reference.json").write_text("")                # this one is computed again
    assert main([*words, "--resume"]) == 0
    damage(tmp_path / "run")
    assert main([*words, "--resume"]) == 2 and sentence in capsys.readouterr().err


def test_weights_that_are_not_numbers_are_a_failed_run(folder, pairs, tmp_path, capsys):
    model, tokenizer = load_model(folder)
    with torch.no_grad():
        model.head.fill_(float("nan"))
    save_model(tmp_path / "nan", model, tokenizer)
    bad = ["--model", str(tmp_path / "nan")]
    for words in (["evaluate", "--data", pairs], ["generate", "--prompt", "a"],
                  ["sample", "--data", pairs, "--out", str(tmp_path / "p.jsonl")],
                  ["train", "--method", "sft", "--data", pairs, "--out", str(tmp_path / "r")]):
        assert main([words[0], *bad, *words[1:]]) == 1
        assert "Traceback" not in capsys.readouterr().err


def test_every_command_of_the_readme_is_one_that_the_program_takes():
    text = (Path(__file__).parent.parent / "README.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("python -m minialign ") and not re.search("DIR|NAME", line)]
    commands = [shlex.split(re.split(r" {3,}(?=\w+ )", line)[0], comments=True)[3:] for line in lines]     # without their remarks
    assert len(commands) > 10
    for words in commands:
        build_parser().parse_args(words)
