"""Hundreds of bad inputs: each must end in one sentence and status 2, soon, without a traceback.

A case is a name, an area, and a function that makes a command line in an empty folder. A few change
nothing that matters and may also succeed; all others must be refused. Run with
`pytest -m corpus -s tests/corpus/test_bad_inputs.py`, which prints the counts.
"""

import base64
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import ROWS, write
from safetensors.torch import load_file, save_file

from minialign import load_model
from minialign.__main__ import main
from minialign.hf import vocabulary

pytestmark = pytest.mark.corpus
LIMIT = 60                  # seconds, after which a case counts as hanging on a slow machine
ROOM = 8 * 2**30            # bytes that a case may allocate more than there were, about
CASES = []                  # (area, name, function, may it succeed?)


def case(area, name, make, lenient=False):
    CASES.append((area, name, make, lenient))


class Place:
    """An empty folder with a model, data, a finished run and a pool to damage."""

    def __init__(self, path, source):
        self.path, self.model, self.data = path, path / "model", path / "data.jsonl"
        for name in "model", "run":
            shutil.copytree(source / name, path / name)
        for name in "data.jsonl", "pool.jsonl":
            shutil.copy(source / name, path / name)

    def evaluate(self, *more):
        return ["evaluate", "--model", self.model, "--data", self.data, *more]

    def train(self, *more, method="dpo", out="new"):
        return ["train", "--model", self.model, "--data", self.data, "--method", method,
                "--out", self.path / out, "--batch", "4", *more]

    def resume(self, *more):
        return self.train("--resume", *more, out="run")

    def pooled(self, *more):
        return self.train("--negatives", self.path / "pool.jsonl", *more, method="dft")

    def sample(self, *more):
        return ["sample", "--model", self.model, "--data", self.data,
                "--out", self.path / "pool.jsonl", "--max-new-tokens", "4", *more]


# -------------------------------------------------------------------------- bytes and JSON, damaged

BAD_JSON = {
    "empty": b"", "a list": b"[]", "a number": b"3", "null": b"null", "torn": b'{"a": ',
    "not utf-8": b'\xff\xfe{"a": 1}', "deep list": b"[" * 50_000,
    "deep object": b'{"a":' * 50_000, "twice": b'{"model_type": "llama", "model_type": "gpt2"}',
    "huge integer": b'{"a": ' + b"9" * 10_000 + b"}", "nul": b"\0" * 100, "words": b"hello",
    "utf-16": '{"a": 1}'.encode("utf-16")[:-1], "html": b"<!DOCTYPE html><html></html>",
    "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "single quotes": b"{'a': 1}", "comment": b'{"a": 1 // one\n}', "two": b'{"a": 1}{"b": 2}',
}


def put(name, content):
    def make(p):
        (p.model / name).write_bytes(content)
        return p.evaluate()
    return make


for what, content in BAD_JSON.items():
    for name in "config.json", "tokenizer_config.json", "generation_config.json":
        case("config", f"{name} {what}", put(name, content))
    case("tokenizer", f"tokenizer.json {what}", put("tokenizer.json", content))
    case("safetensors", f"the file is {what}", put("model.safetensors", content))

    def as_index(p, content=content):
        (p.model / "model.safetensors").rename(p.model / "model-00001-of-00001.safetensors")
        (p.model / "model.safetensors.index.json").write_bytes(content)
        return p.evaluate()
    case("safetensors", f"the index is {what}", as_index)

    def as_record(p, content=content):
        (p.path / "run" / "config.json").write_bytes(content)
        return p.resume()
    case("run folders", f"config.json {what}", as_record)

    def as_log(p, content=content):
        (p.path / "run" / "log.jsonl").write_bytes(content)
        return p.resume()
    case("run folders", f"log.jsonl {what}", as_log)

    def as_reference(p, content=content):
        (p.path / "run" / "reference.json").write_bytes(content)
        return p.resume()
    case("run folders", f"reference.json {what} is computed again", as_reference, lenient=True)

    def as_row(p, content=content):
        p.data.write_bytes(p.data.read_bytes() + content + b"\n")
        return p.evaluate()
    case("data", f"a row is {what}", as_row, lenient=what in ("empty",))

    def as_pool_row(p, content=content):
        path = p.path / "pool.jsonl"
        path.write_bytes(path.read_bytes() + content + b"\n")
        return p.pooled()
    case("pools", f"a row is {what}", as_pool_row, lenient=what in ("empty",))

    def continued(p, content=content):
        path = p.path / "pool.jsonl"
        path.write_bytes(content + b"\n" + path.read_bytes())
        return p.sample()
    case("pools", f"continued behind {what}", continued)


# ------------------------------------------------------------------------------------- config.json

WRONG = {"absent": ..., "null": None, "text": "x", "a list": [1], "0": 0, "-1": -1, "true": True,
         "1.5": 1.5, "1e299": 1e299, "10**12": 10**12, "NaN": float("nan")}
NUMBERS = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
           "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta"]
MAY = {("max_position_embeddings", ""), ("rope_theta", "1.5"), ("rms_norm_eps", "true")}


def config(**changes):
    def make(p):
        raw = json.loads((p.model / "config.json").read_text())
        for key, value in changes.items():
            if value is ...:
                raw.pop(key, None)
            else:
                raw[key] = value
        (p.model / "config.json").write_text(json.dumps(raw))
        return p.evaluate()
    return make


for key in NUMBERS:
    for what, value in WRONG.items():
        case("config", f"{key} {what}", config(**{key: value}), lenient=(key, what) in MAY)
for what, value in WRONG.items():
    if what not in ("absent", "null"):
        case("config", f"num_key_value_heads {what}", config(num_key_value_heads=value))
        case("config", f"head_dim {what}", config(head_dim=value))
        case("config", f"rope_scaling {what}", config(rope_scaling=value),
             lenient=what in ("0",))
        scaled = {"rope_type": "linear", "factor": value}
        case("config", f"rope factor {what}", config(rope_scaling=scaled), lenient=what == "1.5")
    case("config", f"model_type {what}", config(model_type=value))
    case("config", f"hidden_act {what}", config(hidden_act=value))
for key, value in {
    "model_type": "bert", "hidden_act": "relu", "quantization_config": {"bits": 4},
    "num_hidden_layers": 10_000, "tie_word_embeddings": "yes", "attn_logit_softcapping": 30.0,
    "attention_bias": True, "mlp_bias": True, "hidden_size": 17, "num_attention_heads": 3,
    "vocab_size": 256, "intermediate_size": 17, "rms_norm_eps": 5.0,
    "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_parameters": 5,
}.items():
    case("config", f"{key} {value}", config(**{key: value}))
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
for key in LLAMA3:
    for what, value in WRONG.items():
        lenient = what == "true" and False
        lenient |= what == "1.5" and key in ("factor", "low_freq_factor", "high_freq_factor")
        lenient |= key == "high_freq_factor" and what == "10**12"
        lenient |= key == "factor" and what == "10**12"
        lenient |= key == "rope_type" and what in ("absent",)
        scaled = {k: v for k, v in (LLAMA3 | {key: value}).items() if v is not ...}
        case("config", f"llama3 {key} {what}", config(rope_scaling=scaled), lenient=lenient)


# ------------------------------------------------------------------------------------- safetensors


def tensors(change):
    def make(p):
        file = p.model / "model.safetensors"
        state = load_file(file)
        state = {name: x.clone() for name, x in state.items()}
        change(state)
        save_file(state, file, {"format": "pt"})
        return p.evaluate()
    return make


def dropped(name):
    return lambda state: state.pop(name)


def changed(name, how):
    def change(state):
        state[name] = how(state[name])
    return change


NAMES = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
         "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight",
         "model.layers.0.input_layernorm.weight"]
SHAPES = {
    "one row": lambda x: x[:1].clone(), "longer": lambda x: torch.cat([x, x]),
    "a scalar": lambda x: x.flatten()[0].clone(), "empty": lambda x: x[:0].clone(),
    "one dimension more": lambda x: x[None].clone(), "int8": lambda x: x.to(torch.int8),
    "bool": lambda x: x > 0, "int64": lambda x: x.long(), "float8": lambda x: x.to(
        torch.float8_e4m3fn),
}
for name in NAMES:
    case("safetensors", f"without {name}", tensors(dropped(name)))
    for what, how in SHAPES.items():
        def contiguous(x, how=how):
            return how(x).contiguous()
        case("safetensors", f"{name} {what}", tensors(changed(name, contiguous)))
case("safetensors", "one too many", tensors(lambda s: s.update(extra=torch.ones(3))))
case("safetensors", "a second layer",
     tensors(lambda s: s.update({"model.layers.1.mlp.up_proj.weight": torch.ones(3)})))


def cut(share):
    def make(p):
        file = p.model / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        return p.evaluate()
    return make


def header(change):
    """The safetensors file with another header: a length, or bytes."""
    def make(p):
        file = p.model / "model.safetensors"
        content = file.read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        file.write_bytes(change(content, size))
        return p.evaluate()
    return make


for share in 0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999:
    case("safetensors", f"cut to {share}", cut(share))
for size in 0, 1, 7, 10**6, 2**40, 2**63, 2**64 - 1:
    case("safetensors", f"header of {size} bytes",
         header(lambda c, _, size=size: struct.pack("<Q", size) + c[8:]))
for what, content in BAD_JSON.items():
    case("safetensors", f"header {what}", header(
        lambda c, s, new=content: struct.pack("<Q", len(new)) + new + c[8 + s :]))
for seed in range(20):
    def flipped(content, size, seed=seed):
        place = 8 + random.Random(seed).randrange(size)
        return content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :]
    case("safetensors", f"a flipped byte in the header, {seed}", header(flipped), lenient=True)


# --------------------------------------------------------------------------------------- tokenizer


def tokenizer_json(change):
    def make(p):
        file = p.model / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return p.evaluate()
    return make


def without(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]
    return change


def with_value(value, *keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value
    return change


case("tokenizer", "without a model", tokenizer_json(without("model")))
case("tokenizer", "without a vocab", tokenizer_json(without("model", "vocab")))
for what, value in WRONG.items():
    if value is ...:
        continue
    case("tokenizer", f"model {what}", tokenizer_json(with_value(value, "model")))
    case("tokenizer", f"vocab {what}", tokenizer_json(with_value(value, "model", "vocab")))
    case("tokenizer", f"merges {what}", tokenizer_json(with_value(value, "model", "merges")),
         lenient=True)
    case("tokenizer", f"added_tokens {what}", tokenizer_json(with_value(value, "added_tokens")))
    case("tokenizer", f"id of a token {what}", tokenizer_json(
        with_value(value, "model", "vocab", "a")))
    case("tokenizer", f"id of the end {what}", tokenizer_json(
        with_value(value, "added_tokens", 0, "id")), lenient=True)
    case("tokenizer", f"dropout {what}", tokenizer_json(with_value(value, "model", "dropout")),
         lenient=what in ("null", "0"))
    case("tokenizer", f"pre_tokenizer {what}", tokenizer_json(with_value(value, "pre_tokenizer")),
         lenient=what == "null")

    def named(p, value=value):
        (p.model / "tokenizer_config.json").write_text(json.dumps({"eos_token": value}))
        return p.evaluate()
    case("tokenizer", f"eos_token {what}", named, lenient=what in ("null", "text"))

    def numbered(p, value=value):
        (p.model / "tokenizer_config.json").write_text("{}")
        (p.model / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        return p.evaluate()
    case("tokenizer", f"eos_token_id {what}", numbered,
         lenient=what in ("null", "0", "a list"))

    def decoder(p, value=value):
        content = {"eos_token": "<|end|>", "added_tokens_decoder": {"256": value}}
        (p.model / "tokenizer_config.json").write_text(json.dumps(content))
        return p.evaluate()
    case("tokenizer", f"an added token {what}", decoder)
for key in "", "x", "-1", "1.5", "9" * 400:
    def added(p, key=key):
        token = {"content": "<new>", "special": True}
        content = {"eos_token": "<|end|>", "added_tokens_decoder": {key: token}}
        (p.model / "tokenizer_config.json").write_text(json.dumps(content))
        return p.evaluate()
    case("tokenizer", f"an added token with the id {key[:5]!r}", added, lenient=key == "9" * 400)

BYTES = [(bytes([byte]), byte) for byte in range(256)]


def rank_file(lines):
    def make(p):
        (p.model / "tokenizer.json").unlink()
        (p.model / "x.tiktoken").write_bytes(lines)
        return p.evaluate()
    return make


def spelled(tokens):
    return b"".join(base64.b64encode(token) + b" " + str(i).encode() + b"\n" for token, i in tokens)


for what, tokens_ in {
    "a byte less": BYTES[:-1], "a rank twice": BYTES[:-1] + [(b"\xff", 0)],
    "a negative rank": BYTES[:-1] + [(b"\xff", -1)], "a gap": BYTES[:-1] + [(b"\xff", 300)],
    "an empty token": BYTES[:-1] + [(b"", 255)], "huge": BYTES[:-1] + [(b"\xff", 10**30)],
    "a token twice": BYTES + [(b"a", 256)], "a word for a byte": BYTES[:-1] + [(b"ab", 255)],
    "256 words": [(b"ab%d" % i, i) for i in range(256)],
}.items():
    case("tokenizer", f"ranks: {what}", rank_file(spelled(tokens_)))
for what, lines in {"no base64": b"!!! 0\n", "no ranks": b"YQ==\n", "three columns": b"YQ== 0 1\n",
                    "empty": b"", "nul": b"\0" * 50, "a float": b"YQ== 1.5\n",
                    "sentencepiece": b"\n\x05hello"}.items():
    case("tokenizer", f"ranks: {what}", rank_file(lines))
for seed in range(20):
    whole = spelled(BYTES)
    case("tokenizer", f"ranks cut at {seed}", rank_file(
        whole[: random.Random(seed).randrange(len(whole) - 2)]))
for what, content in {
    "empty text": {"": 256}, "on a byte": {"<a>": 5}, "negative": {"<a>": -1}, "text": {"<a>": "x"},
    "twice": {"<a>": 256, "<b>": 256}, "huge": {"<a>": 10**30}, "a float": {"<a>": 256.5},
    "null": {"<a>": None},
}.items():
    def special(p, content=content):
        (p.model / "added_tokens.json").write_text(json.dumps(content))
        (p.model / "tokenizer_config.json").write_text("{}")
        return rank_file(spelled(BYTES))(p)
    case("tokenizer", f"special: {what}", special)


# --------------------------------------------------------------------------------------- templates

LOOP = "{% for i in range(99999) %}"
GROW = ("{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = @ %}{% endfor %}"
        "{{ n.x }}")
TEMPLATES = [
    LOOP + LOOP + "{% endfor %}{% endfor %}", LOOP + LOOP + "x{% endfor %}{% endfor %}",
    LOOP * 3 + "{% endfor %}" * 3, LOOP * 15 + "{% endfor %}" * 15,
    "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(0) }}", "{{ 'x' * 10**10 }}", "{{ 10**(10**9) }}",
    "{{ 'x'|center(10**9) }}", "{{ '%1000000000d' % 1 }}", "{{ '%*d' % (10**9, 1) }}",
    *(GROW.replace("@", how) for how in (
        "n.x ~ n.x", "n.x + n.x", "n.x * 2", "n.x.replace('x', n.x ~ 'xx')", "[n.x, n.x]|join",
        "n.x.join([n.x, n.x, n.x])", "(n.x, n.x)|join('x')", "n.x.__add__(n.x)")),
    "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{{ 'x'.ljust(10**9) }}", "{{ 'x'.zfill(10**9) }}", "{{ lipsum(10**9) }}", "{{ lipsum() }}",
    "{{ raise_exception('') }}", "{{ raise_exception('no') }}", "{{ 1/0 }}", "{% if %}", "{{",
    "{% for %}", "{% endfor %}", "{% block a %}", "{% include 'x' %}", "{% import 'x' as y %}",
    "{% extends 'x' %}", "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}",
    "{{ messages.clear() }}", "{{ cycler.__init__.__globals__ }}", "{{ self.__init__ }}x",
    "{{ messages[99].content }}", "{{ messages[0].nothing.more }}", "{{ nothing() }}",
    "{{ messages|tojson(indent=10**9) }}", "{{ range(10**9)|list }}", "{{ 'a'|nofilter }}",
    "{{ range(99999)|join('x'*100000) }}", "{{ [1]*10**9 }}", "{{ 'a' + 1 }}", "{{ [] + 'a' }}",
    "{{ messages|map(attribute='content')|list|batch(10**9, 1)|list }}",
    "{{ '{:1000000000}'.format(1) }}", "{{ '{0.__class__}'.format(1) }}", "{{ " + "(" * 9999,
    "{{ " + "[" * 3000 + "]" * 3000 + " }}", "{{ " + "-" * 9999 + "1 }}", "{% if 1 %}" * 500,
    "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}", "{{ 'x'|indent(10**9) }}",
    "", "constant", "{{ messages[0].content }}", "{{ messages|length }}",
    "{% for m in messages %}{{ m.role }}{% endfor %}", "{{ messages[-1].role }}:",
    "{% for m in messages %}{{ m.content[:2] }}{% endfor %}",
    "{% for m in messages %}{{ m.content|upper }}{% endfor %}",
    "{% for m in messages %}{{ m.content|reverse }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "{% if add_generation_prompt %}a{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
]
CHAT = [{"messages": [{"role": "user", "content": "what is one plus one"},
                      {"role": "assistant", "content": "that makes two"}]}]
for number, template in enumerate(TEMPLATES):
    def templated(p, template=template):
        (p.model / "chat_template.jinja").write_text(template)
        write(p.data, CHAT)
        return p.evaluate()
    case("templates", f"{number}: {template[:40]}", templated)
for what, content in {"utf-16": "{{ 1 }}".encode("utf-16"), "latin": b"\xe4{{ 1 }}"}.items():
    def encoded(p, content=content):
        (p.model / "chat_template.jinja").write_bytes(content)
        return p.evaluate()
    case("templates", what, encoded)
for what, value in WRONG.items():
    if value not in (..., None, "x"):
        def keyed(p, value=value):
            (p.model / "tokenizer_config.json").write_text(
                json.dumps({"eos_token": "<|end|>", "chat_template": value}))
            write(p.data, CHAT)
            return p.evaluate()
        case("templates", f"chat_template {what}", keyed)


# ----------------------------------------------------------------------------------- data and pools

ASK, SAY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
BAD_ROWS = [
    {}, {"x": 1}, {"prompt": "a"}, {"completion": "b"}, {"prompt": "a", "chosen": "b"},
    {"prompt": 1, "completion": "b"}, {"prompt": None, "completion": "b"},
    {"prompt": "a", "completion": 1}, {"prompt": "a", "completion": ""},
    {"prompt": "a", "completion": "  "}, {"prompt": "a", "completion": ["b"]},
    {"prompt": "a", "completion": {"b": 1}}, {"prompt": "a", "completion": "\ud800"},
    {"prompt": "\ud800", "completion": "b"}, {"prompt": "a", "completion": "b<|end|>c"},
    {"prompt": "a", "completion": "b", "label": "yes"},
    {"prompt": "a", "completion": "b", "label": 3}, {"messages": []}, {"messages": [ASK]},
    {"messages": [SAY]}, {"messages": ASK}, {"messages": "a"}, {"messages": [ASK, SAY]},
    {"messages": [ASK, {"role": "assistant"}]}, {"messages": [ASK, {"content": "b"}]},
    {"messages": [1, 2]}, {"messages": [ASK, {"role": 1, "content": "b"}]},
    {"messages": [[ASK, SAY]]}, {"text": ""}, {"text": 5}, {"text": ["a"]}, {"text": None},
    {"prompt": "a", "responses": [], "rewards": []},
    {"prompt": "a", "responses": ["b"], "rewards": [1, 2]},
    {"prompt": "a", "responses": ["b", "c"], "rewards": [1, None]},
    {"prompt": "a", "responses": ["b", "c"], "rewards": [1, float("nan")]},
    {"prompt": "a", "responses": ["b", "c"], "rewards": [1, float("inf")]},
    {"prompt": "a", "responses": ["b", "c"], "rewards": [1, "2"]},
    {"prompt": "a", "responses": ["b", "c"], "rewards": [1, 10**400]},
    {"prompt": "a", "responses": ["b", "c"], "rewards": [1, True]},
    {"prompt": "a", "responses": "bc", "rewards": [1, 2]},
    {"prompt": "a", "responses": [1, 2], "rewards": [1, 2]},
    {"prompt": [ASK], "chosen": [SAY], "rejected": "b"}, {"prompt": [ASK], "completion": [SAY]},
    {"prompt": "a", "chosen": [SAY], "rejected": [SAY]}, {"prompt": "a" * 10_000_001,
                                                          "completion": "b"},
    {"prompt": "a", "completion": "b" * 10_000_001}, {"conversations": []},
    {"conversations": [{"from": "alien", "value": "x"}]}, {"conversations": "a"},
    {"conversations": [{"from": "human"}]}, {"chosen": "a", "rejected": "b"},
    {"prompt": [], "completion": []}, {"prompt": [[]], "completion": [[]]},
    {"prompt": "a", "completion": "b", "tools": 5, "messages": 3, "text": 1, "chosen": 2},
]
for number, row in enumerate(BAD_ROWS):
    for first in True, False:
        def with_row(p, row=row, first=first):
            rows = [*ROWS[:2]]
            rows.insert(0 if first else 2, row)
            write(p.data, rows)
            return p.evaluate()
        case("data", f"row {number} {'first' if first else 'last'}: {str(row)[:40]}", with_row,
             lenient=number == len(BAD_ROWS) - 1)

POOL_ROWS = {
    "ref_logps": [50.0, 0.5, 1e299, -1e299, "x", None, [], [1], float("nan"), float("inf"), True,
                  10**400, -0.001 + 5],
    "finished": ["x", 1, None, [], [1]], "negatives": [1, None, [], "", {"a": 1}],
    "prompt": [1, None, [], {}, [1], ""],
}
for key, values in POOL_ROWS.items():
    for value in values:
        for place in 0, 5, -1:
            def with_pool_row(p, key=key, value=value, place=place):
                path = p.path / "pool.jsonl"
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                old = rows[place][key]
                rows[place][key] = [value] + old[1:] if isinstance(old, list) else value
                write(path, rows)
                return p.pooled()
            lenient = key == "ref_logps" and value is None
            case("pools", f"{key} {str(value)[:9]} in row {place}", with_pool_row, lenient)
for what, change in {
    "of another model": lambda i, row: row | {"ref_logps": [l - 20 for l in row["ref_logps"]]},
    "of another model after the fourth": lambda i, row: row | (
        {"ref_logps": [l - 20 for l in row["ref_logps"]]} if i > 3 else {}),
    "with another digest": lambda i, row: row | {"draw": "0123456789abcdef-0123"},
    "with another digest at the end": lambda i, row: row | (
        {"draw": "0123456789abcdef-0123"} if i == 11 else {}),
    "of other prompts": lambda i, row: row | {"prompt": "other"},
}.items():
    def all_changed(p, change=change):
        path = p.path / "pool.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write(path, [change(i, row) for i, row in enumerate(rows)])
        return p.pooled()
    case("pools", what, all_changed)


# -------------------------------------------------------------------------------------- run folders


def checkpoint(change):
    def make(p):
        file = p.path / "run" / "checkpoint.safetensors"
        state = {name: x.clone() for name, x in load_file(file).items()}
        change(state)
        save_file(state, file, {"step": "3"})
        return p.resume()
    return make


KEPT = ["model.model.norm.weight", "optimizer.m.model.norm.weight", "optimizer.steps",
        "optimizer.generator", "optimizer.v.lm_head.weight"]
for name in KEPT:
    case("run folders", f"checkpoint without {name}", checkpoint(dropped(name)))
    for what, how in {
        "broadcast": lambda x: x.flatten()[:1].clone(), "int8": lambda x: x.to(torch.int8),
        "longer": lambda x: torch.cat([x.flatten(), x.flatten()]), "half": lambda x: x.half(),
        "NaN": lambda x: x * float("nan"), "empty": lambda x: x.flatten()[:0].clone(),
    }.items():
        case("run folders", f"checkpoint {name} {what}", checkpoint(changed(name, how)))
case("run folders", "checkpoint with one too many", checkpoint(
    lambda s: s.update(extra=torch.ones(1))))
for share in 0.0, 0.01, 0.5, 0.9, 0.999:
    def torn(p, share=share):
        file = p.path / "run" / "checkpoint.safetensors"
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        return p.resume()
    case("run folders", f"checkpoint cut to {share}", torn)
for name in "checkpoint.safetensors", "config.json", "log.jsonl":
    def a_folder(p, name=name):
        (p.path / "run" / name).unlink()
        (p.path / "run" / name).mkdir()
        return p.resume()
    case("run folders", f"{name} is a folder", a_folder)
for step in "-1", "0.5", "x", "", "999", "1e3":
    def stepped(p, step=step):
        file = p.path / "run" / "checkpoint.safetensors"
        save_file(load_file(file), file, {"step": step})
        return p.resume()
    case("run folders", f"checkpoint of step {step!r}", stepped)


def another_base(p):
    file = p.model / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"] = state["model.norm.weight"] + 1
    save_file(state, file, {"format": "pt"})
    return p.resume()


case("run folders", "another base model", another_base)
case("run folders", "a run that is there", lambda p: p.train(out="run"))
case("run folders", "nothing to resume", lambda p: p.train("--resume"))


# ------------------------------------------------------------------------------------ command lines

VALUES = ["", "x", "-1", "nan", "inf", "1e300", "-1e300", "10**9", "99999999999999999999", "0x10"]
for flag in ("--lr", "--epochs", "--batch", "--micro-batch", "--warmup", "--weight-decay", "--clip",
             "--beta1", "--beta2", "--seed", "--max-len", "--lora-rank", "--lora-alpha",
             "--beta", "--checkpoint-every", "--threads", "--pass-tokens"):
    for value in VALUES:
        lenient = (flag == "--clip" and value == "inf")
        case("command lines", f"{flag} {value!r}",
             lambda p, flag=flag, value=value: p.train(f"{flag}={value}"), lenient)
for words in (
    [], ["nothing"], ["train"], ["--help-me"], ["evaluate"], ["sample"], ["bench", "nothing"],
    ["compare", "--methods", "x"], ["compare", "--methods", ""], ["compare", "--seeds", "0"],
    ["study"], ["study", "x"], ["generate"], ["generate", "--model", "nowhere", "--prompt", "a"],
):
    case("command lines", f"{words}", lambda p, words=words: words)
for more in (["--device", "hpu"], ["--device", "xla"], ["--device", ""], ["--device", "cuda:99"],
             ["--device", "meta"], ["--lora-targets", ""],
             ["--lora-rank", "2", "--lora-targets", ""],
             ["--lora-rank", "2", "--lora-targets", "x"], ["--method", "x"], ["--dtype", "int8"],
             ["--data", "/dev/zero"], ["--data", "/dev/null"], ["--data", "nowhere"],
             ["--model", "/dev/null"], ["--model", "nowhere"], ["--out", "/dev/null"],
             ["--out", "/proc/x"], ["--method", "ift", "--lam", "1e300"],
             ["--method", "dft", "--tau", "0"], ["--data", "/"], ["--negatives", "/dev/zero"]):
    case("command lines", " ".join(more), lambda p, more=more: p.train(*more))


# ---------------------------------------------------------------------------------------- judgement


class Hang(BaseException):
    """A case took longer than LIMIT."""


def stop(*_):
    raise Hang


def outcome(words) -> str:
    """refused, accepted, traceback or hang."""
    said, errors = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            try:
                status = main([str(word) for word in words])
            except SystemExit as exit:              # argparse
                status = exit.code
    except Hang:
        return "hang"
    except BaseException:
        return "traceback: " + traceback.format_exc()[-600:]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if "Traceback" in errors.getvalue():
        return "traceback: " + errors.getvalue()[-600:]
    if status == 0:
        return "accepted"
    sentence = errors.getvalue().strip().split("\n")[-1]
    return "refused" if sentence else "traceback: no words"


@pytest.fixture(scope="module")
def little_memory():
    """What wants gigabytes fails, instead of taking the machine with it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def source(tmp_path_factory, folder):
    """What every case begins with: a model, data, a pool, a finished run."""
    place = tmp_path_factory.mktemp("source")
    shutil.copytree(folder, place / "model")
    write(place / "data.jsonl", ROWS)
    here = os.getcwd()
    os.chdir(place)
    try:
        assert main(["sample", "--model", "model", "--data", "data.jsonl", "--out", "pool.jsonl",
                     "--max-new-tokens", "4"]) == 0
        assert main(["train", "--model", "model", "--data", "data.jsonl", "--method", "dpo",
                     "--batch", "4", "--out", "run"]) == 0
    finally:
        os.chdir(here)
    return place


def test_every_bad_input_is_refused_in_a_sentence(
    source, tmp_path, capfd, monkeypatch, little_memory
):
    family = vocabulary.BARE[50256]
    for n in 255, 256, 257:
        monkeypatch.setitem(vocabulary.BARE, n, family)
    counts, wrong = Counter(), []
    for number, (area, name, make, lenient) in enumerate(CASES):
        path = tmp_path / str(number)
        path.mkdir()
        place = Place(path, source)
        monkeypatch.chdir(path)
        # The run was begun with this model, wherever it lies now.
        record = path / "run" / "config.json"
        raw = json.loads(record.read_text())
        raw["model"] = str(place.model)
        record.write_text(json.dumps(raw))
        found = outcome(make(place))
        kind = found.partition(":")[0]
        if kind == "accepted" and lenient:
            kind = "accepted, as it may be"
        counts[area, kind] += 1
        if kind in ("accepted", "traceback", "hang"):
            wrong.append(f"{area}: {name}: {found}")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(path)
    with capfd.disabled():
        print("\n" + report(counts))
        print("\n".join(wrong[:60]))
    assert not wrong and len(CASES) >= 500


def report(counts: Counter) -> str:
    """A table of the counts, an area in each line."""
    kinds = ("refused", "accepted, as it may be", "traceback", "hang", "accepted")
    titles = ("refused", "may pass", "traceback", "hang", "silently")
    lines = [f"{'area':<14}{'cases':>8}" + "".join(f"{title:>11}" for title in titles)]
    areas = list(dict.fromkeys(area for area, _ in counts))
    for area in (*areas, "all"):
        these = [sum(n for (a, k), n in counts.items() if k == kind and area in (a, "all"))
                 for kind in kinds]
        lines.append(f"{area:<14}{sum(these):>8}" + "".join(f"{n:>11}" for n in these))
    return "\n".join(lines)


def test_the_undamaged_place_works(source, tmp_path):
    """Else every refusal above would prove nothing."""
    place = Place(tmp_path, source)
    raw = json.loads((tmp_path / "run" / "config.json").read_text())
    raw["model"] = str(place.model)
    (tmp_path / "run" / "config.json").write_text(json.dumps(raw))
    for words in (place.evaluate(), place.resume(), place.pooled(), place.sample()):
        assert outcome(words) == "accepted", words
    assert load_model(place.model) and Path(tmp_path, "run", "model").is_dir()
