"""Laws of the vocabularies and of chat templates, on folders made here and on real tokenizers where
MINIALIGN_DATA has them.
"""

import base64
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from minialign.hf.tokenizer import byte_tokenizer, load_tokenizer
from minialign.hf.vocabulary import byte_letters

WORDS = ("Troll: ", ": ", " or ", "? ", "é中", "a.b*")
BYTES = byte_tokenizer(WORDS)
PIECES = st.one_of(st.text(max_size=5),
                   st.sampled_from([*WORDS, "<|end|>", "Troll:", "roll: ", "e\u0301"]))


def word_folder(folder: Path, tokenizer_config: dict | None = None, /, **files: dict) -> Path:
    """A model folder whose words are <s>=0 </s>=1 a=2 b=3 c=4 and whose own rule puts <s> in front.

    `files` become NAME.json.
    """
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "<unk>": 5},
                                         unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B",
                                                           special_tokens=[("<s>", 0)])
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    files["tokenizer_config"] = tokenizer_config or {"bos_token": "<s>", "eos_token": "</s>"}
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


# ---- our own vocabulary


@pytest.fixture(scope="module")
def saved_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    BYTES.save(folder)
    return load_tokenizer(folder)


def test_a_byte_is_its_own_id_and_every_byte_has_a_letter():
    text = "naïve 中\x00\n"
    assert byte_tokenizer().encode(text) == list(text.encode())
    assert len(set(byte_letters())) == 256


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES).map("".join))
def test_the_saved_byte_vocabulary_is_the_same_vocabulary(saved_bytes, text):
    ids = BYTES.encode(text)
    for tokenizer in (BYTES, saved_bytes):
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert tokenizer.decode(ids) == text.replace("<|end|>", "")


def test_the_saved_byte_vocabulary_knows_its_end(saved_bytes):
    for tokenizer in (BYTES, saved_bytes):
        assert (tokenizer.eos_id, tokenizer.stop_ids, tokenizer.bos_id) == (256, (256,), None)
        assert tokenizer.vocab_size == 257 + len(WORDS)


def test_words_are_one_token_and_the_longest_wins():
    ids = BYTES.encode("Troll: 9 or 8? Troll:")
    assert ids == [257, ord("9"), 259, ord("8"), 260, *b"Troll:"]


def test_ids_past_the_vocabulary_have_no_text(saved_bytes):
    for tokenizer in (byte_tokenizer(), saved_bytes):
        assert tokenizer.decode([104, 105, 999]) == "hi"


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(ValueError, match="not valid Unicode"):
        byte_tokenizer().encode("\ud83d")


# ---- tokenizer.json


def test_the_rule_in_the_file_adds_bos_and_nothing_overrides_it(tmp_path):
    for flag in (True, False):
        config = {"bos_token": "<s>", "add_bos_token": flag, "add_eos_token": flag}
        tokenizer = load_tokenizer(word_folder(tmp_path, config))
        assert tokenizer.encode("a b") == [0, 2, 3]
        assert tokenizer.encode("a b", add_special_tokens=False) == [2, 3]


def test_truncation_and_padding_stored_in_the_file_are_ignored(tmp_path):
    assert load_tokenizer(word_folder(tmp_path)).encode("a b c a b c") == [0, 2, 3, 4, 2, 3, 4]


def test_a_special_token_spelled_out_in_text_becomes_that_token(tmp_path):
    tokenizer = load_tokenizer(word_folder(tmp_path))
    assert tokenizer.encode("a</s>b") == [0, 2, 1, 3]
    assert tokenizer.decode([0, 2, 1, 3]) == "a b"
    assert tokenizer.decode([0, 2, 1, 3], skip_special_tokens=False) == "<s> a </s> b"


@pytest.mark.parametrize("config, files, bos, eos, stops", [
    ({"bos_token": "<s>", "eos_token": "</s>"}, {}, 0, 1, (1,)),
    ({"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}}, {}, 0, 1, (1,)),
    ({"model_max_length": 9}, {"special_tokens_map": {"eos_token": "</s>"}}, None, 1, (1,)),
    ({"model_max_length": 9}, {"config": {"bos_token_id": 0, "eos_token_id": 1}}, 0, 1, (1,)),
    ({"bos_token": None, "eos_token": "</s>"}, {"config": {"bos_token_id": 0, "eos_token_id": 1}},
     None, 1, (1,)),
    ({"eos_token": "</s>"}, {"generation_config": {"eos_token_id": 4}}, None, 1, (1, 4)),
    ({"eos_token": "</s>"},
     {"generation_config": {"eos_token_id": [0, 4]}, "config": {"eos_token_id": 3}}, None, 1,
     (0, 1, 4)),
    ({"model_max_length": 9}, {}, None, None, ()),
])
def test_where_begin_end_and_stops_come_from(tmp_path, config, files, bos, eos, stops):
    tokenizer = load_tokenizer(word_folder(tmp_path, config, **files))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (bos, eos, stops)


@pytest.mark.parametrize("config, files", [
    ({"eos_token": "</s>", "pad_token": "<pad>"}, {}),
    ({"eos_token": "</s>",
      "added_tokens_decoder": {"6": {"content": "<pad>", "special": True, "normalized": False}}},
      {}),
    ({"eos_token": "</s>"}, {"added_tokens": {"<pad>": 6}}),
])
def test_special_tokens_named_only_beside_the_file_are_one_token(tmp_path, config, files):
    tokenizer = load_tokenizer(word_folder(tmp_path, config, **files))
    assert tokenizer.encode("a <pad>", add_special_tokens=False) == [2, 6]
    assert tokenizer.vocab_size == 7


def test_saving_copies_every_file_byte_for_byte(tmp_path):
    folder = word_folder(tmp_path / "from", generation_config={"eos_token_id": [1, 4]},
                         special_tokens_map={"eos_token": "</s>"})
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "chat_templates").mkdir()
    (folder / "chat_templates" / "tool_use.jinja").write_text("tools")
    (folder / "model.safetensors").write_text("not a tokenizer file")
    tokenizer = load_tokenizer(folder)
    # What was read is kept, not looked up again.
    shutil.move(folder, tmp_path / "gone")
    tokenizer.save(tmp_path / "to")
    there = {file.relative_to(tmp_path / "to"): file.read_bytes()
             for file in (tmp_path / "to").rglob("*") if file.is_file()}
    (tmp_path / "gone" / "model.safetensors").unlink()
    assert there == {f.relative_to(tmp_path / "gone"): f.read_bytes()
                     for f in (tmp_path / "gone").rglob("*") if f.is_file()}
    assert load_tokenizer(tmp_path / "to").stop_ids == (1, 4)


# ---- bare files, where there is no tokenizer.json


def ranks(size: int) -> list[bytes]:
    """`size` tokens in the order of their merges: bytes, pairs, and pairs with one byte more."""
    letters = [bytes([b]) for b in range(256)]
    pairs = [a + b for a in letters for b in letters]
    triples = (pair + letter for pair in pairs[ord("0") << 8:] for letter in letters)
    return list(itertools.islice(itertools.chain(letters, pairs, triples), size))


def write_ranks(file: Path, tokens: list[bytes]) -> Path:
    lines = [base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)]
    file.write_bytes(b"".join(lines))
    return file.parent


@pytest.fixture(scope="module")
def gpt2_like(tmp_path_factory):
    """One vocabulary of GPT-2's size three times: tokenizer.json (BPE by merges), vocab.json and
    ranks.
    """
    letters, tokens = byte_letters(), ranks(50256)
    spelled = ["".join(letters[b] for b in token) for token in tokens]
    vocab = {token: i for i, token in enumerate([*spelled, "<|endoftext|>"])}
    backend = Tokenizer(models.BPE(vocab, [(token[0], token[1]) for token in spelled[256:]]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<|endoftext|>"])
    folders = [tmp_path_factory.mktemp(name) for name in ("json", "vocab", "ranks")]
    backend.save(str(folders[0] / "tokenizer.json"))
    (folders[1] / "vocab.json").write_text(json.dumps(vocab))
    write_ranks(folders[2] / "gpt2.tiktoken", tokens)
    return [load_tokenizer(folder) for folder in folders]


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_bare_files_read_as_their_tokenizer_json(gpt2_like, text):
    reference, *bare = gpt2_like
    for tokenizer in bare:
        assert tokenizer.encode(text) == reference.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bare_gpt2_files_know_their_special_token(gpt2_like):
    for tokenizer in gpt2_like[1:]:
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (50256, 50256, 50257)
        assert tokenizer.encode("<|endoftext|>") == [50256]


def test_llama3_ranks_begin_with_bos_and_cut_digits_in_threes(tmp_path):
    tokenizer = load_tokenizer(write_ranks(tmp_path / "tokenizer.model", tokens := ranks(128000)))
    assert tokenizer.encode("0000") == [128000, tokens.index(b"000"), ord("0")]
    assert tokenizer.encode("<|eot_id|>", add_special_tokens=False) == [128009]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (128000, 128001, 128256)


def test_qwen_ranks_normalise_and_cut_every_digit(tmp_path):
    tokenizer = load_tokenizer(write_ranks(tmp_path / "qwen.tiktoken", ranks(151643)))
    assert tokenizer.encode("0000") == [ord("0")] * 4
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")
    assert tokenizer.encode("<|im_start|>") == [151644]


@pytest.mark.parametrize("files, error, words", [
    ({}, FileNotFoundError, "no tokenizer"),
    ({"tokenizer.json": b"{"}, ValueError, "damaged"),
    ({"tokenizer.json": b""}, ValueError, "damaged"),
    ({"tokenizer.json": b"{}", "tokenizer_config.json": b"[]"}, ValueError, "JSON object"),
    ({"tokenizer.json": b"{}", "tokenizer_config.json": b"{'"}, ValueError, "not JSON"),
    (BYTES.files | {"tokenizer_config.json": b'{"eos_token": 3}'}, ValueError,
     "holds what it should not"),
    (BYTES.files | {"generation_config.json": b'{"eos_token_id": "x"}'}, ValueError,
     "holds what it should not"),
    ({"tokenizer.model": b"\n\x0e\n\x05<unk>"}, ValueError, "SentencePiece.*tokenizer.json"),
    ({"tokenizer.model": b"\x00\x01\x02"}, ValueError, "damaged"),
    ({"tokenizer.model": b"QQ== 0\nQg== 1\n"}, ValueError, "2 ordinary tokens"),
    ({"vocab.json": b'{"a": 0}', "merges.txt": b""}, ValueError, "1 ordinary tokens"),
    ({"vocab.json": "{\"▁a\": 0}".encode()}, ValueError, "no byte-level vocabulary"),
    ({"vocab.json": b"[1]"}, ValueError, "damaged"),
    ({"tekken.json": b"{}"}, ValueError, "tekken.json is in Mistral's own format and needs a tok"),
])
def test_what_cannot_be_read_is_told_in_one_sentence(tmp_path, files, error, words):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=words) as raised:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        load_tokenizer("nowhere")


# ---- chat templates


def render(tmp_path, template, messages, generate=False):
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    return load_tokenizer(word_folder(tmp_path, config)).render(messages, generate)


HI = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize("template, text", [
    ("{{ bos_token }}{% for m in messages %}{{ m.role }}|{{ m['content'] }}|{% endfor %}"
     "{{ eos_token }}",
     "<s>user|Hi <b>|assistant|yo|</s>"),
    # Blocks leave no blank lines.
    ("  {% for m in messages %}\n{{ m.content }}\n{% endfor %}\n", "Hi <b>\nyo\n"),
    # < > & ' stay themselves
    ("{{ messages[0] | tojson }}", '{"role": "user", "content": "Hi <b>"}'),
    ("{{ {'b': 'é', 'a': 1} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 1,\n "b": "é"\n}'),
    ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}"
     "{% break %}{% endfor %}", "yo"),
    ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
    ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
     "{{ ns.n }}", "2"),
    ("{{ strftime_now('%Y') | length }}{{ pad_token }}{{ tools is none }}", "4True"),
    ("{{ add_generation_prompt }}", "False"),
])
def test_templates_see_what_they_are_written_for(tmp_path, template, text):
    assert render(tmp_path, template, HI) == text


@pytest.mark.parametrize("template, words", [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{{ messages[0].content + 1 }}", "concatenate"),
    ("{{ messages[0].nothing.more }}", "nothing"),
    ("{% if %}", "Expected"),
])
def test_a_refusal_comes_in_the_templates_own_words(tmp_path, template, words):
    with pytest.raises(ValueError, match=words):
        render(tmp_path, template, HI)


def test_a_key_that_is_none_is_a_key_that_is_absent(tmp_path):
    template = "{{ messages[0].tool_calls is defined }}"
    assert render(tmp_path, template,
                  [{"role": "user", "content": "", "tool_calls": None}]) == "False"


def test_a_reasoning_trace_is_found_under_every_name(tmp_path):
    for name in ("reasoning_content", "thinking", "reasoning"):
        assert render(tmp_path, "{{ messages[0].reasoning_content }}{{ messages[0].thinking }}",
                      [{name: "hm"}]) == "hmhm"


def test_which_template_is_the_one(tmp_path):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert render(tmp_path, named, HI) == "plain"
    (tmp_path / "chat_template.jinja").write_text("é from the file", encoding="utf-8")
    assert render(tmp_path, named, HI) == "é from the file"


def test_a_template_from_a_file_replaces_the_folders_own_and_is_saved(tmp_path):
    folder = word_folder(tmp_path / "m", {"chat_template": "the folder's"})
    file = tmp_path / "mine.jinja"
    file.write_text("mine: {{ messages[0].content }}")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.render(HI) == "the folder's"
    tokenizer.use_template(file)
    assert load_tokenizer(folder, file).render(HI) == tokenizer.render(HI) == "mine: Hi <b>"
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").render(HI) == "mine: Hi <b>"
    assert load_tokenizer(folder).render(HI) == "the folder's"
    with pytest.raises(FileNotFoundError, match="nowhere is no file; give a chat template"):
        load_tokenizer(folder, tmp_path / "nowhere")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="mine.jinja is no text in UTF-8"):
        load_tokenizer(folder, file)


def test_no_template_and_no_messages(tmp_path):
    with pytest.raises(ValueError, match="no chat template.*plain strings.*--chat-template FILE"):
        load_tokenizer(word_folder(tmp_path)).render(HI)
    for messages in ([], "Hi", [["user", "Hi"]], {"role": "user"}):
        with pytest.raises(ValueError, match="messages must be"):
            render(tmp_path, "x", messages)


def test_rendering_leaves_the_messages_alone(tmp_path):
    messages = [{"role": "user", "content": None, "thinking": "hm"}]
    render(tmp_path, "{{ messages }}", messages)
    assert messages == [{"role": "user", "content": None, "thinking": "hm"}]


def test_the_module_does_not_need_torch():
    code = "import sys, minialign.hf.tokenizer; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


# ---- real tokenizers


@pytest.mark.parametrize("name, keep", [
    ("gpt2", None), ("gpt2", "encoder.json"), ("gpt2", "gpt2.tiktoken"),
    ("mistral_v1", None), ("mistral_v3", None), ("qwen2", None),
])
def test_real_tokenizers_match_their_references(shared_data, tmp_path, name, keep):
    folder = shared_data / "tokenizers" / name
    if keep:
        shutil.copy(folder / keep, tmp_path)
    tokenizer = load_tokenizer(tmp_path if keep else folder)
    for line in (folder / "reference_encodings.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert tokenizer.encode(row["text"], add_special_tokens=False) == row["ids"]


def test_real_sentencepiece_models_say_what_they_need(shared_data, tmp_path):
    shutil.copy(shared_data / "tokenizers" / "mistral_v1" / "tokenizer.model", tmp_path)
    with pytest.raises(ValueError, match="SentencePiece model and needs a tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_real_story_ends_where_generation_config_says(shared_data):
    tokenizer = load_tokenizer(shared_data / "weights" / "stories260K")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (1, 2, (1, 2))
    assert tokenizer.decode(tokenizer.encode("Once upon a time")) == "Once upon a time"
