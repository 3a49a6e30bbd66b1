"""Reading and rendering: what becomes the prompt, what the answer, and what is said about a line
that cannot be used.
"""

import json
from types import SimpleNamespace

import pytest

from minialign.hf.datafiles import load_examples
from minialign.hf.encoding import encode_answer, encode_prompt, truncate
from minialign.hf.tokenizer import byte_tokenizer

CHATML = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|assistant|>{% endif %}")


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def chat():
    """Bytes with a chat template that ends every message with the end token and a newline."""
    t = byte_tokenizer()
    t.chat_template = CHATML
    return t


def write(tmp_path, *rows):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row)
                              for row in rows) + "\n")
    return path


def message(role, content):
    return {"role": role, "content": content}


def texts(tokenizer, example):
    return tokenizer.decode(example.prompt), [tokenizer.decode(a) for a in example.answers]


ASK, GOOD, BAD = message("user", "2+2?"), message("assistant", "4"), message("assistant", "5")


@pytest.mark.parametrize("row, prompt, answers", [
    ({"prompt": "2+2=", "completion": "4"}, "2+2=", ["4"]),
    ({"prompt": "2+2=", "chosen": "4", "rejected": "5", "id": 7}, "2+2=", ["4", "5"]),
    ({"prompt": "2+2=", "completion": "4", "label": True}, "2+2=", ["4"]),
    ({"prompt": "2+2=", "completion": "5", "label": False}, "2+2=", ["", "5"]),
    ({"prompt": "2+2=", "responses": ["5", "4", "3"], "rewards": [0.5, 2, -1]}, "2+2=",
     ["4", "5", "3"]),
    ({"text": "two and two is four"}, "", ["two and two is four"]),
    ({"prompt": [ASK], "completion": [GOOD]}, "<|user|>2+2?\n<|assistant|>", ["4"]),
    ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, "<|user|>2+2?\n<|assistant|>",
     ["4", "5"]),
    ({"messages": [ASK, GOOD]}, "<|user|>2+2?\n<|assistant|>", ["4"]),
    ({"messages": [ASK, BAD, message("user", "No."), GOOD]},
     "<|user|>2+2?\n<|assistant|>5\n<|user|>No.\n<|assistant|>", ["4"]),
])
def test_every_format_becomes_a_prompt_and_its_answers(chat, tmp_path, row, prompt, answers):
    (example,), truncated = load_examples(write(tmp_path, row), chat, 100)
    assert texts(chat, example) == (prompt, answers) and truncated == 0
    for answer in example.answers:
        assert answer == [] or answer[-1] == chat.eos_id and answer.count(chat.eos_id) == 1


@pytest.mark.parametrize("row, sentence", [
    ('{"prompt": "a"', "line 2: not JSON"),
    ("[1, 2]", "line 2: must be a JSON object, not a list"),
    ({"prompt": "a"}, "line 2: found the keys prompt; expected"),
    ({"prompt": "a", "completion": ""}, "line 2: 'completion' is empty"),
    ({"prompt": "a", "chosen": "  ", "rejected": "c"}, "line 2: 'chosen' is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": [BAD]},
     "line 2: the prompt is a string and an answer is not"),
    ({"prompt": [ASK], "chosen": [GOOD], "rejected": [{"text": "5"}]},
     "line 2: every message in 'rejected'"),
    ({"prompt": "a", "completion": 7},
     "line 2: 'completion' must be a string or a list of messages, not 7"),
    ({"prompt": "a", "completion": "b", "label": "yes"}, "line 2: 'label' must be true or false"),
    ({"prompt": "a", "responses": ["b", "c"], "rewards": [1]},
     "line 2: 'responses' and 'rewards' must be lists of the same"),
    ({"prompt": "a", "responses": ["b", "c"], "rewards": [1, 10**400]},
     "line 2: 'responses' and 'rewards' must be lists of"),
    ({"prompt": "a", "completion": "x<|end|>y"},
     "line 2: the answer has the end-of-sequence token in its middle"),
    ("[" * 100_000, "line 2: not JSON"),
    ({"prompt": "a", "responses": ["b", ""], "rewards": [1, 2]}, "line 2: 'responses' is empty"),
    ({"messages": [ASK]}, "line 2: 'messages' must be a conversation that ends with an assistant"),
    ({"messages": []}, "line 2: 'messages' is empty"),
    ({"prompt": [ASK], "completion": [GOOD]}, "line 2: .*no chat template"),
])
def test_a_bad_line_is_named_with_what_is_wrong(tokenizer, tmp_path, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_examples(write(tmp_path, {"prompt": "a", "completion": "b"}, row), tokenizer, 100)


def test_a_byte_order_mark_as_windows_writes_it_is_skipped(tokenizer, tmp_path):
    (tmp_path / "f").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n')
    assert len(load_examples(tmp_path / "f", tokenizer, 100)[0]) == 1


def test_files_that_are_no_data_say_so(tokenizer, tmp_path):
    for content, sentence in [(b"", "has no rows"), (b"\n\n", "has no rows"),
                              (b"\xff\xfe\x00", "is not UTF-8")]:
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            load_examples(tmp_path / "f", tokenizer, 100)
    with pytest.raises(ValueError, match="is a folder"):
        load_examples(tmp_path, tokenizer, 100)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_examples(tmp_path / "none", tokenizer, 100)


def test_an_answer_ends_in_exactly_one_end_token_and_nothing_follows_it(chat):
    """The template writes a newline behind its end token, which nobody generates; an answer that
    was cut off has no end.
    """
    end = chat.eos_id
    assert encode_answer(chat, [ASK], [GOOD]) == [ord("4"), end]
    assert encode_answer(chat, [ASK], [GOOD], finished=False) == [ord("4")]
    assert encode_answer(chat, "2+2=", "4") == [ord("4"), end]


# What DeepSeek-R1's template does: it asks with <think>, and leaves all thoughts out afterwards.
THINKS = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}"
          "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
          "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}")


@pytest.mark.parametrize("answer, text", [
    (GOOD, "4"),
    (message("assistant", "two twos\n</think>\n\n4"), "two twos\n</think>\n\n4"),
    (message("assistant", "<think>\ntwo twos\n</think>\n\n4"), "two twos\n</think>\n\n4"),
    (GOOD | {"reasoning": "two twos"}, "two twos\n</think>\n\n4"),
    (message("assistant", "> 4"), "> 4"),
])
def test_an_answer_stands_behind_the_tag_that_the_template_asks_with(answer, text):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = THINKS
    assert tokenizer.decode(encode_prompt(tokenizer, [ASK])) == "<|user|>2+2?<|assistant|><think>\n"
    ids = encode_answer(tokenizer, [ASK], [answer])
    assert (tokenizer.decode(ids[:-1]), ids[-1]) == (text, tokenizer.eos_id)
    assert encode_answer(tokenizer, [ASK], [answer], finished=False) == ids[:-1]


def test_a_template_that_changes_the_prompt_itself_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{{ messages[-1].content }}"
    with pytest.raises(ValueError, match="renders the prompt differently once an answer follows"):
        encode_answer(tokenizer, [ASK], [GOOD])


def test_a_prompt_without_tokens_is_opened_by_the_end_token(tokenizer):
    assert encode_prompt(tokenizer, "") == [tokenizer.eos_id]


def test_tokens_are_those_of_running_text(tokenizer):
    """A vocabulary that merges across words: the answer's tokens are what follows the prompt's,
    or, where one straddles, its own.
    """
    merges = {"a": 1, "b": 2, "ab": 3, " c": 4, "c": 5, " ": 6}

    def encode(text, add_special_tokens=True):
        ids = []
        while text:
            word = max((w for w in merges if text.startswith(w)), key=len)
            ids, text = ids + [merges[word]], text[len(word):]
        return ids

    def encode_batch(texts, add_special_tokens=True):
        return [encode(text, add_special_tokens) for text in texts]

    t = SimpleNamespace(encode=encode, encode_batch=encode_batch, eos_id=0, check_ids=len)
    assert encode_answer(t, "a", " c") == [4, 0]
    assert encode_answer(t, "a", "b") == [2, 0], "'ab' would swallow the prompt's last token"


@pytest.mark.parametrize("prompt, answers, max_len, expected", [
    (5, [3, 2], 10, (5, [3, 2], False)),
    (9, [3, 2], 10, (7, [3, 2], True)),
    (9, [8, 2], 10, (5, [5, 2], True)),
    (3, [20, 2], 10, (3, [7, 2], True)),
])
def test_truncation_keeps_the_end_of_the_prompt_and_the_beginning_of_answers(
    prompt, answers, max_len, expected
):
    ids, cut, truncated = truncate(list(range(prompt)), [list(range(n)) for n in answers], max_len)
    assert (len(ids), [len(a) for a in cut], truncated) == expected
    assert ids == list(range(prompt))[-len(ids):] and all(a == list(range(len(a))) for a in cut)


def test_negatives_are_joined_by_prompt(tokenizer, tmp_path):
    data = write(tmp_path, {"prompt": "a", "completion": "b"},
                 {"prompt": "c", "chosen": "d", "rejected": "unused"})
    pool = tmp_path / "pool.jsonl"
    pool.write_text("\n".join(json.dumps(r) for r in [
        {"prompt": "c", "negatives": ["e", "f"], "finished": [True, False],
         "ref_logps": [-1.5, -2.5]},
        {"prompt": "a", "completion": "g"},
        {"prompt": "a", "completion": "h", "model": "somebody else's"}]))
    (first, second), _ = load_examples(data, tokenizer, 100, pool)
    assert texts(tokenizer, first) == ("a", ["b", "g", "h"])
    assert first.ref_logps == [None, None, None]
    assert texts(tokenizer, second) == ("c", ["d", "e", "f"])
    assert second.ref_logps == [None, -1.5, -2.5]
    assert second.answers[2][-1] != tokenizer.eos_id


@pytest.mark.parametrize("row", [{"negatives": ["5", "6"], "finished": [True, False]},
                                 {"completion": "5"}, {"completion": [BAD]}])
def test_negatives_of_a_conversation_are_rendered_as_its_answers_are(chat, tmp_path, row):
    """As the pool holds them, texts alone, or as TRL writes them, messages."""
    data, pool = write(tmp_path, {"messages": [ASK, GOOD]}), tmp_path / "pool.jsonl"
    pool.write_text(json.dumps({"prompt": [ASK], **row}))
    (example,), _ = load_examples(data, chat, 100, pool)
    assert texts(chat, example)[1] == ["4", "5", "6"][: len(example.answers)]
    ended = [True, True, False][: len(example.answers)]
    assert [answer[-1] == chat.eos_id for answer in example.answers] == ended


@pytest.mark.parametrize("row, sentence", [
    ({"prompt": "a", "negatives": []}, "pool.jsonl line 1: expected"),
    ({"prompt": "a", "negatives": ["x"], "ref_logps": [1, 2]},
     "'ref_logps' must be a list with one value per answer, 1 here"),
    ({"prompt": "a", "negatives": ["x"], "ref_logps": [float("nan")]}, "not a finite number"),
    ({"prompt": "a", "negatives": ["x"], "finished": ["no"]}, "'finished' must hold true or false"),
    ({"prompt": "a", "negatives": ["x"], "ref_logps": [[1]]}, "not a finite number"),
    ({"prompt": "other", "negatives": ["x"]}, "data.jsonl line 1: no negatives for this prompt"),
])
def test_a_pool_that_cannot_be_used_says_why(tokenizer, tmp_path, row, sentence):
    data, pool = write(tmp_path, {"prompt": "a", "completion": "b"}), tmp_path / "pool.jsonl"
    pool.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=sentence):
        load_examples(data, tokenizer, 100, pool)
