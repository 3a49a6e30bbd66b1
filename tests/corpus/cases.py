"""What all bad inputs begin with, for test_bad_inputs.py: a place to damage, and damage
for every kind of file.
"""

import shutil


class Cases(list):
    """Bad inputs: (area, name, function, may it succeed?).

    The function damages a Place and returns the command line that reads it.
    """

    def add(self, area, name, make, lenient=False):
        self.append((area, name, make, lenient))


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


# What may stand in a file instead of its JSON, and in a JSON instead of a value.
BAD_JSON = {
    "empty": b"", "a list": b"[]", "a number": b"3", "null": b"null", "torn": b'{"a": ',
    "not utf-8": b'\xff\xfe{"a": 1}', "deep list": b"[" * 50_000,
    "deep object": b'{"a":' * 50_000, "twice": b'{"model_type": "llama", "model_type": "gpt2"}',
    "huge integer": b'{"a": ' + b"9" * 10_000 + b"}", "nul": b"\0" * 100, "words": b"hello",
    "utf-16": '{"a": 1}'.encode("utf-16")[:-1], "html": b"<!DOCTYPE html><html></html>",
    "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "single quotes": b"{'a': 1}", "comment": b'{"a": 1 // one\n}', "two": b'{"a": 1}{"b": 2}',
}
WRONG = {"absent": ..., "null": None, "text": "x", "a list": [1], "0": 0, "-1": -1, "true": True,
         "1.5": 1.5, "1e299": 1e299, "10**12": 10**12, "NaN": float("nan")}


def dropped(name):
    return lambda state: state.pop(name)


def changed(name, how):
    def change(state):
        state[name] = how(state[name])
    return change
