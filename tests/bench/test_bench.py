"""What bench counts, and what it says: floors against torch's counter, a run of every mode."""

import json
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minialign import METHODS
from minialign.__main__ import main
from minialign.bench import compare, counts, peers, worker
from minialign.bench.sheet import allocated
from minialign.data import Example, collate
from minialign.hf.folders import save_model
from minialign.hf.shapes import PRESETS
from minialign.hf.tokenizer import byte_tokenizer
from minialign.model import Config, Transformer
from minialign.train import gradient, head_pass
from minialign.verbs.bench import Flags

TINY = Config(vocab_size=300, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_mlp=48, max_len=64)
GPT2 = replace(TINY, norm="layer", pos="learned", mlp="gelu", bias=True)


@pytest.mark.parametrize("method, forward", [("sft", 3), ("ift", 4)])
@pytest.mark.parametrize("config", [TINY, GPT2])
def test_a_step_costs_the_multiply_adds_that_torch_counts(config, method, forward):
    """All but attention, which our count halves (it is causal) and torch's does not."""
    model, B, P, n = Transformer(config), 3, 7, 9
    examples = [Example(i, [1] * P, [[2] * n]) for i in range(B)]
    # unknown to torch's counter
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, *_, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        gradient(model, METHODS[method](), examples, B)
    counted = counter.get_flop_counts()["Global"]
    matmuls = sum(flops for op, flops in counted.items() if "attention" not in str(op))
    attention = forward * 2 * B * (P + n - 1) ** 2 * config.n_layer * config.d_model
    assert counts.step_flops(config, examples, METHODS[method].forwards) - attention == matmuls


def test_a_shared_prompt_is_counted_once():
    one = counts.step_flops(TINY, [Example(0, [1] * 40, [[2]])])
    five = counts.step_flops(TINY, [Example(0, [1] * 40, [[2]] * 5)])
    head = 3 * 2 * 4 * TINY.d_model * TINY.vocab_size
    squares = 3 * 2 * 4 * 40**2 * TINY.n_layer * TINY.d_model
    # answers of one token add no token to read, only attention and the head
    assert five - one == head + squares


def test_an_update_moves_every_byte_once():
    """14 bytes a parameter if all is bfloat16, as --lean trains; 22 with moments in float32."""
    matrices = sum(p.numel() for p in Transformer(TINY).parameters() if p.dim() == 2)
    assert counts.optimizer_bytes(TINY, 2, 2) == 14 * matrices
    assert counts.optimizer_bytes(TINY, 2, 4) == 22 * matrices


def test_the_share_of_the_peak_is_shown_where_the_peak_is_known():
    assert counts.peak_rate("NVIDIA H200", "bfloat16") == 989e12
    assert counts.peak_rate("NVIDIA H200", "float32") is None
    assert counts.peak_rate("some other card", "bfloat16") is None
    side = compare.Side("ours", [], {})
    side.turns = [{"seconds": 0.5, "floor": 0.4, "rate": 700e12}]
    side.facts = {"peak": 1, "flops": 200e12, "peak_rate": 989e12}
    assert compare.cells(side, side)["MFU"] == "0.40 (0.40–0.40)"
    side.facts["peak_rate"] = None
    assert compare.cells(side, side)["MFU"] == ""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_to_measure_is_made_in_its_dtype(folder, dtype):
    made = []
    size = Transformer(worker.config_of(spec(folder))).state_dict().values()
    held = allocated(lambda: made.append(worker.model_of(spec(folder, dtype=dtype))))
    wide = sum(x.numel() for x in size) * getattr(torch, dtype).itemsize
    assert {p.dtype for p in made[0].parameters()} == {getattr(torch, dtype)}
    assert torch.get_default_dtype() == torch.float32 and held < 1.1 * wide


def test_the_floor_of_a_token_reads_every_matrix_once():
    flops, traffic = counts.token_floor(TINY, 3, 0, 4)
    named = Transformer(TINY).named_parameters()
    matrices = sum(p.numel() for name, p in named if p.dim() == 2 and "embed" not in name)
    assert flops == 2 * 3 * matrices and traffic == 4 * matrices


def test_the_names_on_the_command_line_are_the_names_there_are():
    choices = {f.name: f.metadata.get("choices") for f in fields(Flags)}
    assert choices["preset"] is PRESETS and choices["against"] is peers.NEEDED
    assert all(set(variants) <= set(METHODS) for variants in peers.VARIANTS.values())
    assert set(peers.VARIANTS) == set(peers.NEEDED)


@pytest.fixture
def folder(tmp_path):
    """A model folder as small as they get."""
    tokenizer = byte_tokenizer([])
    model = Transformer(replace(TINY, vocab_size=tokenizer.vocab_size))
    save_model(tmp_path / "model", model, tokenizer)
    return tmp_path / "model"


def test_the_verb_prints_its_tables_and_writes_its_numbers(folder, tmp_path, capsys):
    """The whole way through its processes: two for the head, one for the memory sheet."""
    out = tmp_path / "numbers.json"
    assert main(["bench", "head", "memory", "--model", str(folder), "--rounds", "2", "--batch", "2",
                 "--len", "12", "--prompt-len", "5", "--threads", "1", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert all(words in text for words in ("head: ", "minialign", "plain torch", "optimizer"))
    numbers = json.loads(out.read_text())
    assert list(numbers) == ["head", "memory"]
    assert numbers["head"]["plain torch"]["tokens"] == 2 * 2 * 7
    turns = numbers["head"]["minialign"]["turns"]
    assert len(turns) == 2 and all(turn["seconds"] > 0 and turn["floor"] > 0 for turn in turns)


def spec(folder, **more) -> dict:
    """What compare would tell a side: two prompts of 5 tokens, two answers of 7 to each."""
    examples = [([1, 2, 3, 4, 5], [[6] * 7, [7] * 7])] * 2
    return {"who": "minialign", "method": "dft2", "preset": None, "model": str(folder),
            "folder": str(folder), "dtype": "float32", "device": "cpu", "threads": 1, "lean": False,
            "examples": examples, **more}


@pytest.mark.parametrize("mode, facts", [("head", {"tokens": 28}), ("step", {"tokens": 48}),
                                         ("generate", {"tokens": 14}), ("load", {}), ("sheet", {})])
@pytest.mark.parametrize(
    "other", [{}, {"who": "plain torch"}, {"who": "safetensors"}, {"lean": True}])
def test_every_kind_of_work_can_be_done_again_and_again(folder, mode, facts, other):
    task = worker.build(spec(folder, mode=mode, **other))
    task.work()
    task.work()
    assert facts.items() <= task.facts.items()
    assert task.floor is None or task.floor()["floor"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_measured_on_the_answers_that_it_reads(folder, method):
    task = worker.build(spec(folder, mode="step", method=method))
    task.work()
    assert task.facts["tokens"] == 2 * (1 + METHODS[method].reads_others) * (5 + 7)


def test_plain_torch_computes_what_the_head_does():
    """A comparison is worth something only if both sides do the same work."""
    batch = collate([Example(0, [1, 2], [[3, 4], [5]])])
    states, weight = torch.randn(5, 8, dtype=torch.float64), torch.randn(11, 8, dtype=torch.float64)
    _, _, _, d_states, d_head = head_pass(states, weight, METHODS["asft"](), batch)
    d_plain = worker.plain_head(states, weight, METHODS["asft"](), batch)
    torch.testing.assert_close(d_plain, (d_states, d_head))


@pytest.mark.parametrize("words, sentence", [
    (["heads"], "no mode is called heads; choose among head, step"),
    (["step", "--len", "5", "--prompt-len", "5"], "must be above --prompt-len 5"),
    (["generate", "--len", "5", "--prompt-len", "5"], "must be above --prompt-len 5"),
    (["step", "--method", "sftt"], "no method is called sftt"),
    (["step", "--against", "trl", "--peer-python", "nowhere/python"], "cannot be run"),
    (["step", "--model", "nowhere"], "nowhere"),
])
def test_what_cannot_be_measured_is_refused_in_a_sentence(words, sentence, capsys):
    assert main(["bench", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_peer_that_is_not_there_is_named_with_the_command_that_brings_it(capsys):
    without = subprocess.run([sys.executable, "-c", "import trl"], capture_output=True).returncode
    if not without:
        pytest.skip("trl is installed here")
    assert main(["bench", "step", "--against", "trl"]) == 2
    assert "-m pip install trl==" in capsys.readouterr().err


def test_asking_costs_no_torch():
    """The process that asks must stay small: a child's peak memory begins with its parent's."""
    code = "import sys, minialign.bench.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
