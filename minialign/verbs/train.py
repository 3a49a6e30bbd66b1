"""One fine-tuning run as the `train` verb makes it: the loop of train.py between a model folder, data files and a run folder.

A run folder holds config.json, log.jsonl, checkpoint.safetensors, reference.json for methods that measure from a reference, and,
at the end, model/. All the next update depends on is in the checkpoint: a killed run continues bit for bit on the CPU.
"""

import hashlib
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from minialign.bench import sheet as memory
from minialign.data import Example
from minialign.files import write_tensors, write_text
from minialign.hf import lora
from minialign.hf.datafiles import load_examples
from minialign.hf.folders import check_device, load_weights, model_folder, read_config, save_model
from minialign.hf.tokenizer import Tokenizer, load_tokenizer
from minialign.lab import small
from minialign.logps import add_reference
from minialign.methods import METHODS, Method, build_method
from minialign.model import Config, Transformer
from minialign.optim import AdamW
from minialign.train import Recipe, build_optimizer, fit


def save_checkpoint(path: Path, model, optimizer: AdamW, method: Method, step: int) -> None:
    """Everything the next update depends on, in one file, replaced whole."""
    tensors = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    tensors |= {f"optimizer.{name}": x for name, x in optimizer.state_dict().items()}
    tensors |= {f"method.{name}": x for name, x in method.state_dict().items()}
    write_tensors(path, tensors, {"step": str(step)})


def load_checkpoint(path: Path, model, optimizer: AdamW, method: Method) -> int:
    """Put everything back; returns the number of finished updates. ValueError if the file is not a checkpoint of this run."""
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            step = int(file.metadata()["step"])
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.data.copy_(state[f"model.{name}"])
        for prefix, owner in (("optimizer.", optimizer), ("method.", method)):
            owner.load_state_dict({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})
    except (SafetensorError, KeyError, RuntimeError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not a checkpoint of this run ({error}); start again with another --out") from None
    return step


def fingerprint(path: str | None) -> str | None:
    """A digest of a data file, so that a resumed run can tell whether it is still the same."""
    if path is None:
        return None
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "no such file"
        raise FileNotFoundError(f"{what}: {path}; give a JSONL file, one JSON object per line")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


MISSING = {
    "rejected": 'pairs: rows {"prompt", "chosen", "rejected"}, or answers of the model itself with --negatives '
                "(made by 'minialign sample')",
    "negatives": "answers of the model itself: make them with 'minialign sample --model … --data … --out negatives.jsonl', "
                 "pass --negatives",
    "rewards": 'a score for every answer: rows {"prompt", "responses": [text, …], "rewards": [number, …]}',
}


def check_data(name: str, examples: list[Example], path: str, negatives: str | None) -> None:
    """ValueError if the data lacks what the method compares, naming the first line that does."""
    needs = METHODS[name].needs
    if "negatives" in needs and negatives is None:
        raise ValueError(f"{name} needs {MISSING['negatives']}")
    for need in {"rejected", "rewards"} & set(needs):
        lacking = next((e for e in examples if len(e.answers) < 2 or (need == "rewards" and e.rewards is None)), None)
        if lacking is not None:
            raise ValueError(f"{name} needs {MISSING[need]}; {lacking.text.get('where', path)} has none")
    unpaired = next((e for e in examples if not e.answers[0]), None)
    if unpaired is not None and not METHODS[name].allows_unpaired:
        raise ValueError(f"{unpaired.text.get('where', path)} is unpaired (label: false); {name} needs a wanted answer "
                         "in every row, kto does not")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came, and what had been done by then is saved."""


def train(args) -> None:
    """`minialign train`."""
    out = Path(args.out)
    config = {**asdict(args), "data_sha256": fingerprint(args.data), "negatives_sha256": fingerprint(args.negatives)}
    checkpoint, log = out / "checkpoint.safetensors", out / "log.jsonl"
    if args.resume:
        check_same_run(out, config)
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; add --resume to continue the run in it, or choose another --out")
    if args.threads:
        torch.set_num_threads(args.threads)
    model_config, tokenizer, load = open_model(args)
    max_len = min(args.max_len or model_config.max_len, model_config.max_len)
    examples, truncated = load_examples(args.data, tokenizer, max_len, args.negatives)
    check_data(args.method, examples, args.data, args.negatives)
    method = build_method(args.method, args.hyper(), len(examples))
    recipe, adapters = recipe_of(args), adapters_of(args)
    parts = memory.sheet(model_config, memory.load_of(examples, recipe), recipe, args.dtype,
                         args.activation_checkpointing, adapters)
    memory.check_fits(parts, args.device, advice(args))
    check_disk(out, memory.parameters_of(model_config, args.dtype, adapters), parts["optimizer"], args.checkpoint_every)
    model = load()
    model.recompute = args.activation_checkpointing
    if adapters:
        lora.add_adapters(model, adapters.rank, adapters.alpha, adapters.targets, args.seed)
    print(f"{len(examples)} examples, {truncated} truncated, {recipe.updates(len(examples))} updates; {method}", flush=True)
    if "reference" in method.needs:
        check_pool(model, examples, args.negatives)
    write_text(out / "config.json", json.dumps(config, indent=2) + "\n")

    optimizer = build_optimizer(model, recipe)
    if "reference" in method.needs:
        stored_reference(out / "reference.json", model, examples)
    method.prepare_data(model, examples, max_len)
    start = load_checkpoint(checkpoint, model, optimizer, method) if args.resume and checkpoint.exists() else 0
    train_with_checkpoints(model, method, examples, recipe, optimizer, start, args.checkpoint_every, checkpoint, log)
    if adapters:
        lora.save_adapters(out / "adapter", model, args.model)
        lora.merge(model)
    save_model(out / "model", model, tokenizer)
    print(f"done: {out / 'model'}" + (f", its adapter alone: {out / 'adapter'}" if adapters else ""))


def open_model(args) -> tuple[Config, Tokenizer, Callable[[], Transformer]]:
    """What is known of the model before its weights are read, and how to read them.

    It is a model folder, or the small GPT of the race, whose base training takes half a minute the first time.
    """
    check_device(args.device)
    if args.model != "small":
        config = read_config(args.model)
        return config, load_tokenizer(model_folder(args.model)), lambda: load_weights(args.model, config, args.dtype, args.device)
    with tqdm(total=small.STEPS, desc="base model", unit="update", leave=False) as bar:
        model, tokenizer = small.base_model(args.seed, tick=bar.update)
    return model.config, tokenizer, lambda: model.to(args.device, getattr(torch, args.dtype))


def recipe_of(args) -> Recipe:
    """The Recipe that the flags describe. ValueError, in the flags' own words, for flags that contradict one another."""
    given = {f.name: getattr(args, f.name if f.name != "negatives" else "k") for f in fields(Recipe)}
    if args.inside_backward and (args.batch > args.micro_batch or args.pass_tokens or args.clip):
        raise ValueError("--inside-backward updates in one pass, before the whole gradient is known: give --micro-batch as large "
                         f"as --batch ({args.batch}), and neither --pass-tokens nor --clip")
    return Recipe(**given | {"clip": args.clip or (math.inf if args.inside_backward else 1.0)})


def adapters_of(args) -> memory.Adapters | None:
    if args.lora_rank is None:
        if args.lora_alpha or args.lora_targets:
            raise ValueError("--lora-alpha and --lora-targets describe adapters; give --lora-rank too, such as 16")
        return None
    targets = tuple(args.lora_targets.split(",")) if args.lora_targets else lora.TARGETS
    return memory.Adapters(args.lora_rank, args.lora_alpha or 2.0 * args.lora_rank, targets)


def check_disk(out: Path, parameters: list[Tensor], moments: int, every: int) -> None:
    """ValueError now, and not at the first checkpoint, if the run folder cannot be written or the disk is too full.

    A checkpoint is written beside the last one.
    """
    kept = (out / "checkpoint.safetensors").stat().st_size if (out / "checkpoint.safetensors").exists() else 0
    checkpoint = moments + sum(p.nbytes for p in parameters if p.requires_grad)
    need = sum(p.nbytes for p in parameters) + (2 * checkpoint - kept if every else 0)
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{there} is {'read-only' if there.is_dir() else 'a file'}; name another folder as --out")
    free = shutil.disk_usage(there).free
    if need > free:
        raise ValueError(f"the model and its checkpoints need {need / memory.GIB:.2f} GiB of disk, and {there} has "
                         f"{free / memory.GIB:.2f} GiB free; give another --out, or --checkpoint-every 0 to keep none")


def advice(args) -> str:
    """The flags that would need less memory and are not given yet, the cheapest first."""
    ways = {"--activation-checkpointing": not args.activation_checkpointing, "--micro-batch 1": args.micro_batch > 1,
            "--dtype bfloat16": args.dtype != "bfloat16", "--moments bfloat16": args.moments != "bfloat16" and not args.lora_rank,
            "a smaller --max-len": True, "--lora-rank 16": args.lora_rank is None}
    return ", ".join(flag for flag, helps in ways.items() if helps)


def check_pool(model, examples: list[Example], path: str | None) -> None:
    """ValueError if the log-probs that came with the negatives are those of another model: asked again for a few of them."""
    some = [e for e in examples if e.ref_logps and any(l is not None for l in e.ref_logps)][:4]
    again = [replace(e, ref_logps=None) for e in some]
    add_reference(model, again, progress=False)
    pairs = [(old, new, len(a)) for e, f in zip(some, again, strict=True)
             for old, new, a in zip(e.ref_logps, f.ref_logps, e.answers, strict=True) if old is not None]
    off = sum(abs(old - new) for old, new, _ in pairs) / max(1, sum(n for _, _, n in pairs))
    if off > 0.1:                                   # nats per token; rounding in bf16 makes a few hundredths
        raise ValueError(f"the log-probs in {path} are not those of --model ({off:.2f} nats per token off): draw the negatives "
                         'from this model, or delete "ref_logps" from the file, and they are computed')


def stored_reference(path: Path, model, examples: list[Example]) -> None:
    """The reference's log-probs from the file of an earlier start of this run, or computed now and written there."""
    try:
        for e, ref_logps in zip(examples, json.loads(path.read_text()), strict=True):
            e.ref_logps = [float(x) for x in ref_logps]
    except (OSError, ValueError, TypeError):    # not there yet, or damaged: the model is not trained yet, so ask it again
        add_reference(model, examples)
        write_text(path, json.dumps([e.ref_logps for e in examples]) + "\n")


def check_same_run(out: Path, config: dict) -> None:
    """Resuming must not mix two runs: the arguments and the data files must be those the run began with."""
    try:
        old = json.loads((out / "config.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"nothing to resume: {out / 'config.json'} does not exist; drop --resume to start a run there") from None
    except ValueError:
        old = None
    if not isinstance(old, dict):
        raise ValueError(f"{out / 'config.json'} is damaged; start again with another --out")
    free = {"resume", "out", "data", "negatives", "device", "threads", "checkpoint_every"}      # files may move, not change
    for key in sorted(set(old) | set(config)):
        if key not in free and old.get(key) != config.get(key):
            what = f"the file given as --{key.split('_')[0]} has changed" if key.endswith("sha256") else \
                f"--{key.replace('_', '-')} was {old.get(key)} and is now {config.get(key)}"
            raise ValueError(f"cannot resume {out}: {what} since the run began")


def finished_lines(log: Path, start: int) -> list[str]:
    """The log of the updates that the checkpoint contains. ValueError if some of it is gone: a log with holes would mislead."""
    lines = log.read_text(encoding="utf-8").split("\n")[:start] if start and log.exists() else []
    try:
        whole = [json.loads(line)["step"] for line in lines] == list(range(1, start + 1))
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"{log} does not hold the {start} updates of the checkpoint beside it; start again with another --out")
    return lines


def train_with_checkpoints(model, method, examples, recipe, optimizer, start, every, checkpoint: Path, log: Path) -> None:
    """The loop, its log and its checkpoints; Ctrl-C and SIGTERM finish the update, save, and raise Interrupted."""
    write_text(log, "".join(line + "\n" for line in finished_lines(log, start)))
    stop = False

    def ask_to_stop(*_):
        nonlocal stop
        if stop:
            raise KeyboardInterrupt             # the second Ctrl-C does not wait
        stop = True

    previous = {name: signal.signal(name, ask_to_stop) for name in (signal.SIGINT, signal.SIGTERM)}  # clusters send the second
    updates = recipe.updates(len(examples))
    try:
        with open(log, "a", encoding="utf-8") as file, tqdm(total=updates, initial=start, desc="train", unit="update") as bar:
            for record in fit(model, method, examples, recipe, optimizer, start):
                file.write(json.dumps(record) + "\n")
                file.flush()
                bar.set_postfix(loss=f"{record['loss']:.4g}", refresh=False)
                bar.update()
                if every and (stop or record["step"] % every == 0 or record["step"] == updates):
                    os.fsync(file.fileno())
                    save_checkpoint(checkpoint, model, optimizer, method, record["step"])
                if stop and record["step"] < updates:
                    raise Interrupted(f"stopped after update {record['step']} of {updates}; " + (
                        "the same command with --resume goes on from there" if every else "nothing is kept, as you asked"))
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
