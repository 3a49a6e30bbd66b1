"""What several processes do together, for test_parallel.py. Each of three runs this file:

    together.py FOLDER PORT PORT

First all of them work together, then the first two, each time through another port. For each time
rank 0 writes what the cases return, {case: result}, to FOLDER. The tests call the same functions
alone, in their own process, and compare.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import tiny_model

from minialign import METHODS, Config, Transformer, build_method, parallel
from minialign.bench import sheet
from minialign.data import Example
from minialign.evaluate import answer_logps
from minialign.hf import lora
from minialign.optim import AdamW
from minialign.train import Recipe, fit, gradient

# Every method, on another model and trained in another way each, so that all have their turn.
SHAPES = ["llama", "gpt2", "qwen2", "olmo2", "mistral", "qwen3"]
WAYS = [
    {"clip": float("inf")},
    {"micro_batch": 1, "weight_decay": 0.1},
    {"recompute": True},
    {"pass_tokens": 40, "clip": float("inf"), "beta1": 0.0},
    {"adapters": 3},
]
CASES = {}
for number, name in enumerate(METHODS):
    CASES[name] = (name, SHAPES[number % len(SHAPES)], WAYS[number % len(WAYS)])

# IFT reads a tied table by itself; KTO's drift; all answers in one part of each rank.
CASES["ift, tied"] = ("ift", "qwen2", {"recompute": True})
CASES["kto, learned positions"] = ("kto", "gpt2", {})
CASES["asft, one rank has it all"] = ("asft", "llama", {"batch": 1})

# Who does what: so many processes, these cases.
TURNS = {
    3: ["dft", "ift, tied", "kto, learned positions", "stepped"],
    2: [*CASES, "stepped", "held"],
}


def examples(n: int = 6) -> list[Example]:
    """Ragged ones. Of 5 in an update ranks get unequal shares; then one is left, for one rank."""
    draw = torch.Generator().manual_seed(1)

    def ids(k):
        return torch.randint(1, 50, (k,), generator=draw).tolist()

    made = []
    for i in range(n):
        answers = [ids(1 + (3 * i + a) % 7) for a in range(3)]
        made.append(Example(i, ids(1 + 5 * i % 9), answers, rewards=[2.0, 1.0, 0.0]))
    return made


def trained(case: str) -> dict:
    """Train a tiny model; → the records, its parameters, what the method remembers, and marks."""
    name, shape, way = CASES[case]
    recipe = {"batch": 5, "micro_batch": 2, "lr": 1e-3, **way}
    model = tiny_model(shape).float()
    model.recompute = recipe.pop("recompute", False)
    rank = recipe.pop("adapters", None)
    if rank:
        lora.add_adapters(model, rank, 6.0)
    parallel.shard(model, "cpu")

    # The policy is moved away from the reference, where a margin is a rounding error.
    data = examples(3 if recipe["batch"] == 1 else 6)
    method = build_method(name, {}, len(data))
    method.prepare_data(model, data, progress=False)
    with torch.no_grad():
        for p in parallel.parameters(model).values():
            p.mul_(1.05)
    records = list(fit(model, method, data, replace(Recipe(), **recipe)))
    for record in records:
        del record["seconds"]
    return {
        "records": records,
        "parameters": parallel.whole_state(model),
        "memory": method.state_dict(),
        "logps": answer_logps(model, data, 3, progress=False),
    }


def stepped() -> dict:
    """Three updates of a bfloat16 model with gradients that are given."""
    model = tiny_model("gpt2").bfloat16()
    parallel.shard(model, "cpu")
    optimizer = AdamW(parallel.parameters(model), weight_decay=0.1)
    draw = torch.Generator().manual_seed(2)
    norms = []
    for _ in range(3):
        for p in optimizer.parameters.values():
            p.grad = torch.zeros_like(p)
            parallel.fill(p.grad, torch.randn(p.shape, generator=draw).bfloat16())
        norms.append(float(optimizer.gradient_norm()))
        optimizer.step(1e-3)
    return {"parameters": parallel.whole_state(model), "norms": norms}


def held() -> dict:
    """What a step allocates beyond the shares that a rank keeps, and what the sheet says."""
    shape = Config(vocab_size=8000, n_layer=8, n_head=8, n_kv_head=4, d_model=128, d_mlp=352)
    draw, found = torch.Generator().manual_seed(3), {}
    for dtype, recompute in ("float32", False), ("float32", True), ("bfloat16", True):
        model = Transformer(shape).to(getattr(torch, dtype))
        model.recompute = recompute
        parallel.shard(model, "cpu")
        tokens = torch.randint(8000, (2, 3, 40), generator=draw).tolist()
        data = [Example(i, prompt, answers) for i, (prompt, *answers) in enumerate(tokens)]
        method = build_method("asft", {}, 2)
        gradient(model, method, data, 1)                # the shares of the gradients are there
        used = sheet.allocated(lambda: gradient(model, method, data, 1))    # noqa: B023

        load = sheet.load_of(data, Recipe(micro_batch=1))
        one = sheet.sheet(shape, load, Recipe(), dtype, recompute)
        said = sheet.per_rank(one, shape, dtype, parallel.world())
        said = {name: said[name] for name in ("weights", "gradients", "activations", "head")}
        kept = (one["weights"] + one["gradients"]) // parallel.world()
        found[f"{dtype}, {recompute}"] = (used, sum(said.values()) - kept)
    return found


def result(case: str):
    """What a case returns."""
    others = {"stepped": stepped, "held": held}
    return others[case]() if case in others else trained(case)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *ports = sys.argv[1:]
    for (n, cases), port in zip(TURNS.items(), ports, strict=True):
        if int(os.environ["RANK"]) >= n:
            break
        os.environ |= {"WORLD_SIZE": str(n), "MASTER_PORT": port}
        parallel.begin("cpu")
        results = {case: result(case) for case in cases}
        if parallel.first():
            torch.save(results, f"{folder}/{n}.pt")
        parallel.end()
