"""Bad data and pools: damaged files, rows without sense, answers that another model has drawn."""

import json

from cases import BAD_JSON, Cases
from conftest import ROWS, write

CASES = Cases()
case = CASES.add


for what, content in BAD_JSON.items():
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


# --------------------------------------------------------------------------------------------- data

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


# -------------------------------------------------------------------------------------------- pools

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
