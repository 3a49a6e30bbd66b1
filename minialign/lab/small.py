"""The small GPT that the race and the studies fine-tune: its base training, cached per seed.

A base model is trained until it is fit, once per seed, and kept in a file. So every comparison
starts from the same parameters. What it reads is described in tasks.py.
"""

import ast
import hashlib
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minialign import optim
from minialign.data import collate
from minialign.files import UNFINISHED, clear_away, locked, write_tensors
from minialign.hf.tokenizer import Tokenizer, byte_tokenizer
from minialign.hf.weights import check_tensors
from minialign.lab import tasks
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.model import Transformer
from minialign.train import fused_pass

BATCH, LR, WARMUP = 64, 2e-3, 50
COURSES = (1000, 500)       # updates; the second course is for a model that is not fit yet
FIT = 0.95                  # a fit model gives one of a question's two answers so often, and
N_LOOK = 64                 # reverses so well: the mean over so many questions and reversals
CACHE = Path("out") / "cache"

# The files whose code runs while a base model is trained: a change in one of them trains it anew.
PACKAGE = Path(__file__).parents[1]
MADE_BY = (
    "data.py", "hf/tokenizer.py", "hf/vocabulary.py", "lab/small.py", "lab/tasks.py", "logps.py",
    "methods/method.py", "methods/sft.py", "model.py", "optim.py", "parallel.py", "rope.py",
    "settings.py", "train.py",
)


def code_alone(source: str) -> str:
    """The syntax tree of a Python source as text, without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        may_have_one = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if may_have_one and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


@lru_cache
def digest(package: Path, names: tuple[str, ...] = MADE_BY) -> str:
    """Ten characters that change with the code of these files, and with nothing else."""
    code = [code_alone((package / name).read_text(encoding="utf-8")) for name in names]
    return hashlib.sha256("".join(code).encode()).hexdigest()[:10]


def base_path(seed: int, cache: Path) -> Path:
    """Where a seed's base model is kept.

    The name holds a digest of the code that makes the model. After a change in the task, say, the
    old file is no longer found, and so never used.
    """
    return Path(cache) / f"base-{digest(PACKAGE)}-seed{seed}.safetensors"


@torch.no_grad()
def fitness(model: Transformer, tokenizer: Tokenizer, seed: int) -> float:
    """How well a base model has learnt to copy two numbers and to reverse one, from 0 to 1.

    The lesser of two mean probabilities: of either answer, right or wrong, to questions that no
    exam asks, and of the right answer to reversals.
    """
    rng = random.Random(seed + 4)
    questions, _ = tasks.all_questions(random.Random(seed))
    asked = [(q.prompt(), [q.right, q.wrong]) for q in rng.sample(questions, N_LOOK)]
    reversals = [tasks.reversal(rng) for _ in range(N_LOOK)]
    known = []
    for texts in asked, [(prompt, [answer]) for prompt, answer in reversals]:
        examples = [
            tasks.as_example(tokenizer, i, prompt, answers)
            for i, (prompt, answers) in enumerate(texts)
        ]
        p = batch_logps(model, collate(examples)).sum(-1).exp()         # (answers, N_LOOK)
        known.append(p.sum(0).mean().item())
    return min(known)


def base_training(model: Transformer, tokenizer: Tokenizer, seed: int) -> Iterator[int]:
    """Train a fresh small GPT on what a base model reads; yields after every update.

    It is trained in courses, each with a learning rate that rises and falls, until it is fit or
    there is no course left. Whoever wants to know asks for its `fitness`.
    """
    rng = random.Random(seed)
    questions, _ = tasks.all_questions(random.Random(seed))
    method = METHODS["sft"](reduction="token_mean")
    optimizer = optim.AdamW(dict(model.named_parameters()), weight_decay=0.01)
    for updates in COURSES:
        for step in range(updates):
            texts = [tasks.base_text(rng, questions) for _ in range(BATCH)]
            examples = [
                tasks.as_example(tokenizer, i, prompt, [answer])
                for i, (prompt, answer) in enumerate(texts)
            ]
            fused_pass(model, method, collate(examples))

            # A gradient longer than 1 is shortened to 1.
            shorten = min(1.0, 1.0 / float(optimizer.gradient_norm()))
            optimizer.step(LR * optim.cosine(step, updates, WARMUP), shorten)
            yield step
        if fitness(model, tokenizer, seed) >= FIT:
            return


def base_model(
    seed: int, cache: Path = CACHE, tick: Callable[[], object] | None = None
) -> tuple[Transformer, Tokenizer]:
    """The base model of a seed and its tokenizer, from the cache or trained now.

    `tick` is called after every update of the training, of which there are sum(COURSES) at most.
    Whoever else wants the same model at the same time waits until it is there.
    """
    path, tokenizer = base_path(seed, cache), byte_tokenizer(tasks.WORDS)
    torch.manual_seed(seed)
    model = Transformer(tasks.small_config(tokenizer.vocab_size))
    parameters = dict(model.named_parameters())
    clear_away(path.parent)
    if read_cached(path, parameters):
        return model, tokenizer

    # There is no such file yet, or it is damaged: train, and write it anew.
    with locked(path.with_name(UNFINISHED + path.stem), wait=True):
        if not read_cached(path, parameters):
            model.initialise()
            for _ in base_training(model, tokenizer, seed):
                if tick is not None:
                    tick()
            write_tensors(path, parameters)
    return model, tokenizer


def read_cached(path: Path, parameters: dict[str, Tensor]) -> bool:
    """Fill the parameters with those in the file. False if there is none, or if it is damaged."""
    if not path.is_file():
        return False
    try:
        saved = load_file(path)
        check_tensors(saved, parameters)
    except (SafetensorError, ValueError):
        return False
    for name, p in parameters.items():
        p.data.copy_(saved[name])
    return True
