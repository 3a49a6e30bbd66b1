"""Every layout that people bring, in its original columns: read as TRL reads it, and one update
taken on it. What is not known is refused with the columns found and what to type.
"""

import gzip
import json
import sys

import pytest
import torch

from minialign.data import collate
from minialign.hf.datafiles import load_examples, remarks, show_example
from minialign.hf.encoding import encode_prompt
from minialign.hf.rows import parse_columns, read_rows
from minialign.hf.tokenizer import byte_tokenizer
from minialign.logps import batch_logps
from minialign.model import Config, Transformer

CHATML = ("{% if tools %}<|tools|>{{ tools | tojson }}<|end|>\n{% endif %}"
          "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
          "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|assistant|>{% endif %}")


@pytest.fixture
def chat():
    t = byte_tokenizer()
    t.chat_template = CHATML
    return t


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def texts(tokenizer, example):
    return tokenizer.decode(example.prompt), [tokenizer.decode(a) for a in example.answers]


OPENED = "<|user|>2+2?\n<|assistant|>"
TALK = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: 2+2?\n\nAssistant:"
TOOL = {"type": "function", "function": {"name": "add"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}

AS_IT_LIES = {
    "trl-lib/ultrafeedback_binarized": (
        {"chosen": [user("2+2?"), assistant("4")], "rejected": [user("2+2?"), assistant("5")],
         "score_chosen": 8.0, "score_rejected": 2.0}, OPENED, ["4", "5"]),
    "argilla/dpo-mix-7k": (
        {"dataset": "x", "chosen": [user("hi"), assistant("yes"), user("2+2?"), assistant("4")],
         "rejected": [user("hi"), assistant("yes"), user("2+2?"), assistant("5")],
         "chosen_rating": 5.0, "rejected_rating": 1.0},
        "<|user|>hi\n<|assistant|>yes\n" + OPENED, ["4", "5"]),
    "HuggingFaceH4/ultrafeedback_binarized": (
        {"prompt": "2+2?", "prompt_id": "0", "chosen": [user("2+2?"), assistant("4")],
         "rejected": [user("2+2?"), assistant("5")], "messages": [user("2+2?"), assistant("4")],
         "score_chosen": 8.0, "score_rejected": 2.0}, OPENED, ["4", "5"]),
    "messages that repeat their prompt": (
        {"prompt": [user("2+2?")], "completion": [user("2+2?"), assistant("4")]}, OPENED, ["4"]),
    "Anthropic/hh-rlhf": (
        {"chosen": TALK + " 4, of course", "rejected": TALK + " 4 or 5"}, TALK,
        [" 4, of course", " 4 or 5"]),
    "ShareGPT": (
        {"id": "a", "conversations": [{"from": "human", "value": "2+2?"},
                                      {"from": "gpt", "value": "4"}]}, OPENED, ["4"]),
    "ShareGPT with its system": (
        {"system": "Add.", "conversations": [{"from": "human", "value": "2+2?"},
                                             {"from": "gpt", "value": "4"}]},
        "<|system|>Add.\n" + OPENED, ["4"]),
    "text parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+"},
                                                   {"type": "text", "text": "2?"}]},
                      assistant("4")]}, OPENED, ["4"]),
    "a tool call": (
        {"messages": [user("2+2?"), CALL], "tools": [TOOL]},
        f"<|tools|>{json.dumps([TOOL])}\n" + OPENED, ['[{"name": "add"}]']),
    "tools spelled as JSON": (
        {"messages": [user("2+2?"), assistant("4")], "tools": json.dumps([TOOL])},
        f"<|tools|>{json.dumps([TOOL])}\n" + OPENED, ["4"]),
    "KTO with label 1": ({"prompt": "2+2=", "completion": "4", "label": 1}, "2+2=", ["4"]),
    "KTO with label 0": ({"prompt": "2+2=", "completion": "5", "label": 0}, "2+2=", ["", "5"]),
}

AFTER_NAMING = {
    "MetaMathQA": (
        {"query": "2+2?", "response": "4", "type": "x"}, "prompt=query,completion=response",
        "2+2?", ["4"]),
    "GSM8K": (
        {"question": "2+2?", "answer": "#### 4"}, "prompt=question,completion=answer", "2+2?",
        ["#### 4"]),
    "alpaca": (
        {"instruction": "Add.", "input": "2 2", "output": "4"},
        "prompt=instruction+input,completion=output", "Add.\n\n2 2", ["4"]),
    "alpaca without input": (
        {"instruction": "Add 2 2.", "input": "", "output": "4"},
        "prompt=instruction+input,completion=output", "Add 2 2.", ["4"]),
    "dolly": (
        {"instruction": "Add.", "context": "2 2", "response": "4", "category": "qa"},
        "prompt=context+instruction,completion=response", "2 2\n\nAdd.", ["4"]),
    "OpenOrca": (
        {"id": "0", "system_prompt": "Be brief.", "question": "2+2?", "response": "4"},
        "prompt=system_prompt+question,completion=response", "Be brief.\n\n2+2?", ["4"]),
    "Intel/orca_dpo_pairs": (
        {"system": "Be brief.", "question": "2+2?", "chosen": "4", "rejected": "5"},
        "prompt=system+question", "Be brief.\n\n2+2?", ["4", "5"]),
    "a KTO file": (
        {"q": "2+2?", "a": "5", "good": 0}, "prompt=q,completion=a,label=good", "2+2?", ["", "5"]),
    "other names of pairs": (
        {"q": "2+2?", "win": "4", "lose": "5"}, "prompt=q,chosen=win,rejected=lose", "2+2?",
        ["4", "5"]),
}
CASES = [(row, None, prompt, answers) for row, prompt, answers in AS_IT_LIES.values()]
CASES += AFTER_NAMING.values()


@pytest.mark.parametrize("row, columns, prompt, answers", CASES,
                         ids=[*AS_IT_LIES, *AFTER_NAMING])
def test_every_layout_loads_and_is_learnt(chat, tmp_path, row, columns, prompt, answers):
    path = write(tmp_path / "data.jsonl", [row])
    (example,), _ = load_examples(path, chat, 500, columns=parse_columns(columns))
    assert texts(chat, example) == (prompt, answers)

    torch.manual_seed(0)
    model = Transformer(Config(vocab_size=chat.vocab_size, n_layer=1, n_head=2, d_model=16,
                               d_mlp=16, max_len=500))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = collate([example])
    sign = torch.tensor([[1.0], [-1.0]])[: len(answers)]            # the wanted up, the other down
    before = (sign * batch_logps(model, batch).sum(-1)).sum()
    (-before / 100).backward()
    optimizer.step()
    assert (sign * batch_logps(model, batch).sum(-1)).sum() > before


@pytest.mark.parametrize("row, columns, sentence", [
    ({"query": "a", "response": "b"}, None,
     "line 1: found the keys query, response; expected .*--columns prompt=question,completion"),
    ({"query": "a", "response": "b"}, "prompt=question,completion=response",
     "line 1: --columns names 'question', and the row has query, response"),
    ({"a": "x", "b": [1]}, "prompt=a+b", "line 1: --columns can join columns of text alone"),
    ({"a": "x"}, "question=a", "--columns question=…: the meaning stands before the ="),
    ({"a": "x"}, "prompt", "--columns prompt: write each meaning once"),
    ({"chosen": "b", "rejected": "c"}, None, "line 1: there is no prompt, and .*add a column"),
    ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]}, None,
     "line 1: there is no prompt, and .* differ from the first message on"),
    ({"chosen": [user("a"), assistant("b")], "rejected": "c"}, None, "must both be strings or"),
    ({"chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
      "rejected": [user("a"), assistant("x"), user("y"), assistant("z")]}, None,
     "line 1: an answer must be one assistant message, and .* assistant, user, assistant"),
    ({"prompt": "z", "chosen": [user("a"), assistant("b")],
      "rejected": [user("a"), assistant("c")]}, None,
     "line 1: the prompt is a string, and the answers are conversations in which it does not"),
    ({"prompt": "a", "completion": "b", "label": 2}, None, "'label' must be true or false, or 1"),
    ({"prompt": "a", "completion": "b", "label": None}, None, "'label' must be true or false"),
    ({"prompt": "a", "completion": "b", "system": "s"}, None,
     "'system' is for messages, and .* --chat, or join with --columns prompt=system"),
    ({"messages": [{"role": "system", "content": "s"}, user("a"), assistant("b")], "system": "t"},
     None, "a system message in the column 'system' and another one"),
    ({"prompt": "a", "completion": "b", "tools": [TOOL]}, None, "'tools' are for a chat template"),
    ({"messages": [user("a"), assistant("b")], "tools": "add"}, None, "'tools' must be a list of"),
    ({"conversations": [{"from": "bing", "value": "a"}, {"from": "gpt", "value": "b"}]}, None,
     'a message in .conversations. is from "bing"; known are human, gpt'),
    ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, assistant("b")]},
     None, "holds .*image.*; only parts"),
    ({"messages": [user("a"), {"role": "assistant", "content": None}]}, None,
     "every message in 'messages' must be"),
])
def test_nothing_is_guessed(chat, tmp_path, row, columns, sentence):
    path = write(tmp_path / "data.jsonl", [row])
    with pytest.raises(ValueError, match=sentence):
        load_examples(path, chat, 500, columns=parse_columns(columns))


def test_tools_that_a_template_does_not_write_are_refused(chat, tmp_path):
    chat.chat_template = CHATML[CHATML.index("{% for") :]
    path = write(tmp_path / "f", [{"messages": [user("a"), assistant("b")], "tools": [TOOL]}])
    with pytest.raises(ValueError, match="line 1: the chat template does not write the tools"):
        load_examples(path, chat, 500)


def test_chat_makes_messages_of_strings(chat, tmp_path):
    """The pool's prompts too; and the columns `system` is then the system's message."""
    data = write(tmp_path / "data", [
        {"system": "Add.", "question": "2+2?", "chosen": "4", "rejected": "5"},
        {"system": None, "question": "2+2?", "chosen": [assistant("4")], "rejected": "5"}])
    columns = {"prompt": "question"}
    (first, second), _ = load_examples(data, chat, 500, columns=columns, chat=True)
    assert texts(chat, first) == ("<|system|>Add.\n" + OPENED, ["4", "5"])
    assert texts(chat, second) == (OPENED, ["4", "5"])

    data = write(tmp_path / "one", [{"prompt": "2+2?", "completion": "4"}])
    pool = write(tmp_path / "pool", [{"prompt": "2+2?", "negatives": ["5", "6"]}])
    (example,), _ = load_examples(data, chat, 500, pool, chat=True)
    assert texts(chat, example) == (OPENED, ["4", "5", "6"])

    for row in ({"text": "a story"}, {"chosen": TALK + " a", "rejected": TALK + " b"},
                {"prompt": " ", "completion": "b"}):
        with pytest.raises(ValueError, match="line 1: --chat makes a user's message of the prompt"):
            load_examples(write(tmp_path / "f", [row]), chat, 500, chat=True)


def test_all_turns_trains_every_assistant_message(chat, tmp_path):
    talk = [user("hi"), assistant("yes"), user("2+2?"), assistant("4")]
    path = write(tmp_path / "f", [{"messages": talk}, {"prompt": "a", "completion": "b"}])
    assert len(load_examples(path, chat, 500)[0]) == 2
    examples, _ = load_examples(path, chat, 500, all_turns=True)
    assert [texts(chat, e)[1] for e in examples] == [["yes"], ["4"], ["b"]]
    assert [e.index for e in examples] == [0, 1, 2]


def test_prompts_alone_are_enough_to_sample_from(tmp_path):
    path = write(tmp_path / "f", [{"prompt": "a"}, {"prompt": [user("b")], "source": "x"}])
    assert [row.prompt for row in read_rows(path, prompts_only=True)] == ["a", [user("b")]]
    with pytest.raises(ValueError, match="line 1: found the keys prompt; expected"):
        read_rows(path)


def test_many_rows_are_encoded_as_one_by_one(chat, tmp_path):
    """Only the end of a rendered prompt is encoded again with each answer, special tokens inside
    the messages or not.
    """
    said = ["a", "b <|end|> c", "<|end|>", "", "ünï\n\n"]
    rows = [{"prompt": [user(a)], "chosen": [assistant(b)], "rejected": [assistant("5")]}
            for a in said for b in ("x", "\n y", " ")]
    examples, _ = load_examples(write(tmp_path / "f", rows), chat, 500)
    for row, example in zip(rows, examples, strict=True):
        before = chat.render(row["prompt"], add_generation_prompt=True)
        whole = chat.render(row["prompt"] + row["chosen"])
        assert example.prompt == encode_prompt(chat, row["prompt"]) == chat.encode(before)
        assert example.prompt + example.answers[0] + chat.encode("\n") == chat.encode(whole)


# -------------------------------------------------------------------------------- kinds of files

PAIRS = [{"prompt": "2+2=", "chosen": "4", "rejected": "5"},
         {"prompt": "1+1=", "chosen": "2", "rejected": "3"}]
TALKS = [{"chosen": [user("2+2?"), assistant("4")], "rejected": [user("2+2?"), CALL]}]


def load_pairs(path, tokenizer):
    return [texts(tokenizer, e) for e in load_examples(path, tokenizer, 500)[0]]


PAIR_TEXTS = [("2+2=", ["4", "5"]), ("1+1=", ["2", "3"])]


def test_json_in_its_three_wrappings(chat, tmp_path):
    lines = "\n".join(json.dumps(row) for row in PAIRS)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "b.json").write_text("\n" + json.dumps(PAIRS, indent=2))
    (tmp_path / "c.json").write_text(lines)
    for name in ("a.jsonl.gz", "b.json", "c.json"):
        assert load_pairs(tmp_path / name, chat) == PAIR_TEXTS


def test_damaged_files_say_where(chat, tmp_path):
    lines = "\n".join(json.dumps({"text": f"{i:x}" * (i % 7 + 1)}) for i in range(9999)).encode()
    whole = gzip.compress(lines)
    for name, content, sentence in [
        ("cut.jsonl.gz", whole[:-2000], r"cannot be read behind line [1-9]\d*.*; it is damaged"),
        ("no.jsonl.gz", lines, "cannot be read behind line 0 .*it is damaged"),
        ("bad.json", b'[{"text": "a"}, {"te', "bad.json: not JSON .*fetch or write it again"),
        ("list.json", b'[{"text": "a"}, 3]', "list.json row 2: must be a JSON object, not a int"),
        ("empty.json", b"[]", "has no rows"),
        ("latin.jsonl", b'{"text": "a"}\n{"text": "\xfc"}', "line 2 is not UTF-8 text"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            load_examples(tmp_path / name, chat, 500)


def test_parquet(chat, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "a.parquet")
    assert load_pairs(tmp_path / "a.parquet", chat) == PAIR_TEXTS

    # Arrow fills the keys that only other messages have; those are no part of a message.
    pq.write_table(pa.Table.from_pylist(TALKS), tmp_path / "b.parquet")
    (example,), _ = load_examples(tmp_path / "b.parquet", chat, 500)
    assert example.text["prompt"] == [user("2+2?")]
    assert example.text["answers"][0] == [assistant("4")]

    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[:-20])
    (tmp_path / "bad.parquet").write_bytes(content[:20] + b"\xff" * 30 + content[50:])
    for name in ("cut", "bad"):
        with pytest.raises(ValueError, match=f"{name}.parquet cannot be read behind row 0 .*fetch"):
            load_examples(tmp_path / f"{name}.parquet", chat, 500)


def test_a_folder_written_by_datasets(chat, tmp_path):
    pa = pytest.importorskip("pyarrow")
    split = tmp_path / "set" / "train"
    split.mkdir(parents=True)
    for i, row in enumerate(PAIRS):
        table = pa.Table.from_pylist([row])
        with pa.ipc.new_stream(split / f"data-{i}.arrow", table.schema) as file:
            file.write_table(table)
    names = [{"filename": f"data-{i}.arrow"} for i in range(2)]
    (split / "state.json").write_text(json.dumps({"_data_files": names}))
    assert load_pairs(split, chat) == PAIR_TEXTS

    with pytest.raises(ValueError, match="a folder with the splits train; name one of them"):
        load_examples(tmp_path / "set", chat, 500)
    (split / "data-1.arrow").write_bytes(b"no arrow")
    with pytest.raises(ValueError, match="data-1.arrow cannot be read behind row 0"):
        load_examples(split, chat, 500)
    (split / "data-1.arrow").unlink()
    with pytest.raises(FileNotFoundError, match="data-1.arrow"):
        load_examples(split, chat, 500)


def test_missing_pyarrow_is_said_in_a_sentence(chat, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="a.parquet needs pyarrow, .*; pip install pyarrow"):
        load_examples(tmp_path / "a.parquet", chat, 500)


# ------------------------------------------------------------------------------- what is shown


def test_the_first_example_is_shown_as_it_is_read(chat, tmp_path):
    path = write(tmp_path / "f", [{"prompt": [user("2+2?\x1b[2J")], "completion": [assistant("4")]},
                                  {"prompt": "a", "completion": "b" * 999, "id": 3}])
    examples, _ = load_examples(path, chat, 500)
    first, second = [show_example(chat, e) for e in examples]
    assert first == r"<|user|>2+2?\x1b[2J<|end|>\n<|assistant|> | 4<|end|>"
    assert second == f"a | {'b' * 150} … {'b' * 150}", "an answer that was cut off has no end"
    assert remarks(chat, examples)[0] == "columns not used: id"
    assert "--chat makes messages of them" in remarks(chat, examples)[1]
    assert remarks(chat, examples[:1]) == []
