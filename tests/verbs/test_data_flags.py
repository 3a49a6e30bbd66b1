"""The flags that say how data are read, through every verb that reads them."""

import gzip
import json

import pytest
from conftest import ROWS, read, write

from minialign.__main__ import main
from minialign.hf.datafiles import load_examples
from minialign.hf.tokenizer import byte_tokenizer


def test_columns_mean_the_same_to_sample_train_and_evaluate(folder, tmp_path, capsys):
    """Under their own names the same questions give the same pool, run and marks."""
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    plain = write(tmp_path / "a.jsonl", ROWS)
    other = write(tmp_path / "b.jsonl",
                  [{names[key]: text for key, text in row.items()} for row in ROWS])
    columns = ["--columns", ",".join(f"{key}={name}" for key, name in names.items())]
    said = []
    for data, flags in ((plain, []), (other, columns)):
        common = ["--model", folder, "--data", data, *flags]
        pool, out = f"{data}.pool", tmp_path / f"{data}.run"
        assert main(["sample", *common, "--out", pool, "--k", "2", "--max-new-tokens", "3"]) == 0
        assert main(["train", *common, "--method", "dft", "--negatives", pool, "--epochs", "1",
                     "--out", str(out)]) == 0
        assert main(["evaluate", *common, "--json"]) == 0
        marks = capsys.readouterr().out.split("\n")[-2]
        said.append((read(pool), [row["loss"] for row in read(out / "log.jsonl")], marks))
    assert said[0] == said[1]


def test_prompts_alone_are_sampled(folder, tmp_path):
    data = write(tmp_path / "f.jsonl", [{"prompt": row["prompt"], "id": 1} for row in ROWS])
    pool = tmp_path / "pool.jsonl"
    words = ["sample", "--model", folder, "--data", data, "--out", str(pool)]
    assert main([*words, "--k", "1", "--max-new-tokens", "2"]) == 0
    assert [row["prompt"] for row in read(pool)] == [row["prompt"] for row in ROWS]


def test_train_shows_the_first_example_and_what_it_does_not_use(folder, pairs, tmp_path, capsys):
    rows = [{**row, "source": "me"} for row in ROWS]
    data = write(tmp_path / "f.jsonl", rows)
    words = ["train", "--model", folder, "--data", data, "--method", "sft", "--epochs", "1"]
    assert main([*words, "--out", str(tmp_path / "r")]) == 0
    said = capsys.readouterr().out
    assert "0+0= | 0<|end|>\n" in said and "columns not used: source\n" in said


def test_without_the_end_token_the_marks_are_those_of_the_text_alone(folder, tmp_path, capsys):
    """As lm-evaluation-harness scores a choice: the tokens of its text."""
    data = write(tmp_path / "f.jsonl", ROWS)
    marks = []
    for flags in ([], ["--no-end-token"]):
        assert main(["evaluate", "--model", folder, "--data", data, "--json", *flags]) == 0
        marks.append(json.loads(capsys.readouterr().out))
    examples, _ = load_examples(data, byte_tokenizer(), 64)
    assert marks[0]["tokens"] == sum(len(e.answers[0]) for e in examples)
    assert marks[1]["tokens"] == marks[0]["tokens"] - len(ROWS)
    assert marks[1]["margin"] != marks[0]["margin"]


@pytest.mark.parametrize("name, content, sentence", [
    ("f.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-9], "f.jsonl.gz cannot be read behind"),
    ("f.parquet", b"PAR1", "f.parquet"),
    ("f.json", b'[{"text": "a"}, 7]', "f.json row 2: must be a JSON object"),
    ("f.jsonl", b'{"q": "a", "r": "b"}', "found the keys q, r; expected"),
])
def test_unreadable_data_end_in_one_sentence(folder, tmp_path, capsys, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    words = ["evaluate", "--model", folder, "--data", str(tmp_path / name)]
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error and "Traceback" not in error and "\n" not in error
