"""What several processes do together, for test_parallel.py: torchrun starts this file.

    torchrun --nproc-per-node 2 together.py OUT NAME …

Rank 0 writes {NAME: what the case of that name returns} to OUT. The tests call the same functions
alone, in their own process, and compare.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import tiny_model

from minialign import METHODS, build_method, parallel
from minialign.data import Example
from minialign.evaluate import answer_logps
from minialign.hf import lora
from minialign.train import Recipe, fit

# Every method, each on another model, so that all models and all ways of training have their turn.
SHAPES = ["llama", "gpt2", "qwen2", "olmo2", "mistral", "qwen3"]
WAYS = [
    {"clip": float("inf")},
    {"micro_batch": 1, "weight_decay": 0.1},
    {"recompute": True},
    {"pass_tokens": 40, "clip": float("inf"), "beta1": 0.0},
    {"rank": 3},
]
CASES = {}
for number, name in enumerate(METHODS):
    CASES[name] = (name, SHAPES[number % len(SHAPES)], WAYS[number % len(WAYS)])
CASES["ift tied"] = ("ift", "qwen2", {"recompute": True})
CASES["kto tied"] = ("kto", "gpt2", {"rank": None})


def examples(n=11) -> list[Example]:
    """Ragged ones; with 5 in an update the third update has a single prompt."""
    draw = torch.Generator().manual_seed(1)

    def ids(k):
        return torch.randint(1, 50, (k,), generator=draw).tolist()

    made = []
    for i in range(n):
        answers = [ids(1 + (3 * i + a) % 7) for a in range(3)]
        made.append(Example(i, ids(1 + 5 * i % 9), answers, rewards=[2.0, 1.0, 0.0]))
    return made


def trained(case: str) -> dict:
    """Train a tiny model; → the records, its parameters, and what the method remembers."""
    name, shape, way = CASES[case]
    way = dict(way)
    model = tiny_model(shape).float()
    model.recompute = way.pop("recompute", False)
    rank = way.pop("rank", None)
    if rank and model.config.pos != "learned":
        lora.add_adapters(model, rank, 6.0)
    parallel.shard(model, "cpu")
    data = examples()
    method = build_method(name, {}, len(data))
    method.prepare_data(model, data, progress=False)
    recipe = replace(Recipe(epochs=1, batch=5, micro_batch=2, lr=1e-3), **way)
    records = list(fit(model, method, data, recipe))
    for record in records:
        del record["seconds"]
    return {
        "records": records,
        "parameters": parallel.whole_state(model),
        "memory": method.state_dict(),
        "logps": answer_logps(model, data, 3, progress=False),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    parallel.begin("cpu")
    out, *names = sys.argv[1:]
    results = {name: trained(name) for name in names}
    if parallel.first():
        torch.save(results, out)
    parallel.end()
