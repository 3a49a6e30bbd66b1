"""Models, vocabularies and chat templates that no verb can work with are refused in a sentence."""

import base64
import json
import shutil
import time

import pytest
from conftest import write
from terminal import TEMPLATE, refused, train

from minialign import load_model, save_model
from minialign.__main__ import main
from minialign.hf import vocabulary
from minialign.hf.chat import compile_template
from minialign.hf.families import config_from_hf
from minialign.hf.tokenizer import byte_tokenizer, load_tokenizer


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
