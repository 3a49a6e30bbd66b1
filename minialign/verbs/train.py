"""`minialign train`: one fine-tuning run, from a model folder and data files to a run folder.

The loop itself is `fit` in minialign/train.py. What is refused beforehand stands in checks.py, what
lets a killed run go on in checkpoint.py, what can be seen of a run in watch.py. README.md beside
this file lists what a run folder holds.
"""

import math
import sys
from contextlib import ExitStack
from dataclasses import Field, dataclass, fields, make_dataclass
from pathlib import Path

import torch

from minialign import parallel
from minialign.bench.sheet import Adapters, check_fits, load_of, parameters_of, per_rank, sheet
from minialign.data import Example
from minialign.files import locked, write_json
from minialign.hf import lora
from minialign.hf.datafiles import load_examples, remarks, show_example
from minialign.hf.folders import check_device, save_model
from minialign.methods import METHODS, Method, build_method
from minialign.optim import AdamW
from minialign.progress import bar
from minialign.settings import bounds_in_words, setting
from minialign.train import Recipe, build_optimizer, fit
from minialign.verbs.checkpoint import (
    Interrupted,
    Stop,
    check_same_run,
    clear_run,
    fingerprint,
    load_checkpoint,
    made_with,
    read_reference,
    save_checkpoint,
    write_reference,
)
from minialign.verbs.checks import (
    LARGE,
    advice,
    check_data,
    check_disk,
    check_lr,
    check_place,
    check_pool,
    check_trained,
)
from minialign.verbs.flags import ALL_TURNS, CHAT, COLUMNS, TRAIN_DTYPES, kind_of, reading
from minialign.verbs.models import digest_of, in_one_piece, read_weights, shape_and_tokenizer
from minialign.verbs.watch import (
    EVAL_EVERY,
    HeldOut,
    Log,
    check_board,
    held_out_of,
    summary,
    try_to_draw,
)

# ------------------------------------------------------------------------------------ the flags


@dataclass(frozen=True)
class RunFlags:
    """The flags of a run that belong neither to its recipe nor to its method."""

    model: str = setting(
        ..., "a Hugging Face model folder (config.json, *.safetensors, tokenizer.json), an "
        "adapter, or OWNER/NAME on the hub; stories260K or llama2xs, which ship with this package; "
        "or small: the small GPT of compare, of this --seed")
    method: str = setting(..., "how to weigh the answers", choices=METHODS)
    data: str = setting(
        ..., "examples as .jsonl, .jsonl.gz, .json, .parquet or a folder of datasets: prompt + "
        "completion, prompt + chosen + rejected, messages, text, and the other layouts of "
        "minialign/hf/README.md")
    out: str = setting(
        ..., "folder of the run: config.json, log.jsonl, checkpoint.safetensors, and at the end "
        "model/ and curves.png")
    columns: str | None = setting(None, COLUMNS)
    chat: bool = setting(False, CHAT)
    all_turns: bool = setting(False, ALL_TURNS)
    negatives: str | None = setting(
        None, "JSONL file of the model's own answers, from 'minialign sample'; methods that learn "
        "against negatives need it")
    chat_template: str | None = setting(
        None, "Jinja file with a chat template, instead of the one in the model folder")
    max_len: int | None = setting(
        None, "longest prompt + answer in tokens, the model's context unless given; what is longer "
        "is cut and counted", least=2)
    activation_checkpointing: bool = setting(
        False, "keep only the input of every layer, and compute the rest again going back: much "
        "less memory, a quarter to a third more time")
    lora_rank: int | None = setting(
        None, "train low-rank adapters of this rank and leave the weights alone; all weights learn "
        "unless given", least=1)
    lora_alpha: float | None = setting(
        None, "the adapters' scale is this over the rank; twice the rank unless given", above=0)
    lora_targets: str | None = setting(
        None, "the linear layers that get an adapter, separated by commas; all unless given")
    dtype: str = setting(
        "float32", "the model's numbers while training; bfloat16 is rounded stochastically",
        choices=TRAIN_DTYPES)
    device: str = setting("cpu", "cpu, cuda, cuda:1, mps, or auto: the best there is")
    threads: int | None = setting(
        None, "CPU threads; torch decides unless given", least=1, most=1024)
    checkpoint_every: int = setting(
        50, "updates between checkpoints; 0 keeps none, for disks that cannot hold two", least=0)
    resume: bool = setting(False, "continue the run in --out from its last checkpoint")
    eval_data: str | None = setting(
        None, "JSONL file of held-out examples: loss, perplexity, pairs right and margin go into "
        "log.jsonl before training, during it and at the end")
    eval_every: int | None = setting(
        None, f"updates between two looks at --eval-data; {EVAL_EVERY} unless given", least=1)
    keep_best: bool = setting(
        False, "model/ is not the last model but the best of those looked at: with the most "
        "held-out pairs right, or if there are no pairs the lowest perplexity")
    tensorboard: bool = setting(
        False, "also write the log for TensorBoard, to OUT/tensorboard")


RECIPE_SECTION = "the recipe"
METHOD_SECTION = "hyper-parameters (behind the name of each method that has one, its default)"

# Where the flags differ from the fields of Recipe: in a name, and in defaults. Unless --clip is
# given, whether gradients are shortened depends on --inside-backward.
FLAG_OF = {"negatives": "k"}
DEFAULTS = {"lr": None, "clip": None}
SMALL_LR = 5e-4


def recipe_settings() -> list[tuple[str, type, Field]]:
    """A flag for every field of Recipe: its name, its type, and the dataclass field."""
    made = []
    for f in fields(Recipe):
        how = {**f.metadata, "section": RECIPE_SECTION}
        default = DEFAULTS.get(f.name, f.default)
        if f.name == "lr":
            how["help"] += (f"; {SMALL_LR:g} unless given, but a model of more than "
                            f"{LARGE // 10**6} million parameters must be given one")
        elif default is None and f.default is not None:
            how["help"] += f"; {f.default:g} unless given"
        declared = setting(default, **how)
        made.append((FLAG_OF.get(f.name, f.name), f.type | None, declared))
    return made


def method_settings(methods: dict[str, type[Method]]) -> list[tuple[str, type, Field]]:
    """A flag for every name of a hyper-parameter, whichever methods have one of that name.

    A flag that is left out leaves each method its own default. The flag checks the type alone:
    bounds and choices differ between methods, so each method checks its own.
    """
    owners: dict[str, list[tuple[str, Field]]] = {}
    for name, method in methods.items():
        for f in fields(method):
            if f.init and "help" in f.metadata:
                owners.setdefault(f.name, []).append((name, f))
    made = []
    for hyper, declarations in owners.items():
        kind = kind_of(declarations[0][1])
        declared = setting(None, explanation(declarations), section=METHOD_SECTION)
        made.append((hyper, kind | None, declared))
    return made


def explanation(declarations: list[tuple[str, Field]]) -> str:
    """Help for a flag of several methods; those that say the same about it are named together.

    "asft (0.1), orpo (0.1): weight of the alignment term [from 0]; ift (0.2): share of …"
    """
    names: dict[str, list[str]] = {}
    for method, f in declarations:
        meaning = f.metadata["help"]
        allowed = " or ".join(f.metadata.get("choices", ())) or bounds_in_words(f.metadata)
        if allowed:
            meaning += f" [{allowed}]"
        names.setdefault(meaning, []).append(f"{method} ({f.default})")
    return "; ".join(f"{', '.join(names[meaning])}: {meaning}" for meaning in names)


Flags = make_dataclass(
    "Flags", recipe_settings() + method_settings(METHODS), bases=(RunFlags,), frozen=True)


def recipe_of(flags: Flags) -> Recipe:
    """The Recipe that the flags describe. ValueError, in the flags' words, if they contradict."""
    one_pass = flags.inside_backward
    if one_pass and (flags.batch > (flags.micro_batch or 8) or flags.pass_tokens or flags.clip):
        raise ValueError(
            "--inside-backward updates in one pass, before the whole gradient is known: give "
            f"--micro-batch as large as --batch ({flags.batch}), and neither --pass-tokens nor "
            "--clip"
        )
    if one_pass and parallel.world() > 1:
        raise ValueError("--inside-backward is for a single process; leave it out, since several "
                         "share the gradients anyway")
    values = {f.name: getattr(flags, FLAG_OF.get(f.name, f.name)) for f in fields(Recipe)}
    if flags.clip is None:
        values["clip"] = math.inf if one_pass else 1.0
    if flags.lr is None:
        values["lr"] = SMALL_LR
    return Recipe(**values)


def hyper_of(flags: Flags) -> dict:
    """The hyper-parameters that were given."""
    hyper = {}
    for f in fields(flags):
        value = getattr(flags, f.name)
        if f.metadata.get("section") == METHOD_SECTION and value is not None:
            hyper[f.name] = value
    return hyper


def adapters_of(flags: Flags) -> Adapters | None:
    """The adapters that the flags describe; None if all weights learn."""
    if flags.lora_rank is None:
        if flags.lora_alpha is not None or flags.lora_targets is not None:
            raise ValueError("--lora-alpha and --lora-targets describe adapters; give --lora-rank "
                             "too, such as 16")
        return None
    alpha = flags.lora_alpha or 2.0 * flags.lora_rank
    targets = lora.TARGETS
    if flags.lora_targets is not None:
        targets = tuple(flags.lora_targets.split(","))
    return Adapters(flags.lora_rank, alpha, targets)


def resolved(flags: Flags) -> dict:
    """What config.json says of a run: its flags, with all defaults of recipe and method filled in.

    What is not set, or has no bound, is left out.
    """
    recipe, method = recipe_of(flags), build_method(flags.method, hyper_of(flags), 1)
    values = {f.name: getattr(flags, f.name) for f in fields(RunFlags)}
    values |= {FLAG_OF.get(f.name, f.name): getattr(recipe, f.name) for f in fields(recipe)}
    values |= {f.name: getattr(method, f.name) for f in fields(method) if "help" in f.metadata}
    values["data_sha256"] = fingerprint(flags.data)
    values["negatives_sha256"] = fingerprint(flags.negatives)
    values["eval_data_sha256"] = fingerprint(flags.eval_data)
    values["model_sha256"] = digest_of(flags.model, flags.seed)
    return {name: value for name, value in values.items() if value not in (None, math.inf)}


# ------------------------------------------------------------------------------------ the run


def run(flags: Flags) -> None:
    """Train one model, in a folder that no other run may use at the same time."""
    parallel.begin(flags.device)
    out = Path(flags.out)
    check_place(out)
    with ExitStack() as stack:
        if parallel.first():
            stack.enter_context(locked(out))
            clear_run(out)
        parallel.wait()                                 # the folder is there, and it is ours
        run_in(out, flags)


def run_in(out: Path, flags: Flags) -> None:
    """The run. Nothing is written before everything that can be refused was checked."""
    config = resolved(flags)
    if flags.resume:
        check_same_run(out, config)
    elif any(out.iterdir()):
        raise ValueError(f"{out} is not empty; add --resume to continue the run in it, or choose "
                         "another --out")
    if flags.threads:
        torch.set_num_threads(flags.threads)
    device = check_device(flags.device)
    if flags.tensorboard:
        check_board()

    # The examples, and the method that is to learn from them.
    shape, tokenizer = shape_and_tokenizer(flags.model, flags.chat_template)
    check_lr(flags.lr, sum(p.numel() for p in parameters_of(shape, flags.dtype)))
    max_len = min(flags.max_len or shape.max_len, shape.max_len)
    examples, truncated = load_examples(
        flags.data, tokenizer, max_len, flags.negatives, **reading(flags))
    check_data(flags.method, examples, flags.data, flags.negatives)
    method = build_method(flags.method, hyper_of(flags), len(examples))
    recipe, adapters = recipe_of(flags), adapters_of(flags)
    held_out = held_out_of(flags, tokenizer, max_len)

    check_room(out, flags, shape, examples, recipe, adapters, device)

    model = read_weights(
        flags.model, shape, flags.dtype, parallel.loaded_on(device), flags.seed)
    model.recompute = flags.activation_checkpointing
    if adapters:
        lora.add_adapters(model, adapters.rank, adapters.alpha, adapters.targets, flags.seed)
    parallel.shard(model, device)
    updates = recipe.updates(len(examples))
    print(f"{len(examples)} examples, {truncated} truncated, {updates} updates; {method}")
    show_data(tokenizer, examples)

    # The model that training starts from is asked for what the method needs, unless an earlier
    # start of this run has stored the answer.
    stored = False
    if "reference" in method.needs:
        check_pool(model, config["model_sha256"], examples, flags.negatives)
        stored = read_reference(out / "reference.json", examples)
    method.prepare_data(model, examples, max_len)
    parallel.wait()                                     # nobody looks into the folder any more
    if parallel.first():
        write_json(out / "config.json", {**config, "made_with": made_with()}, indent=2)
        if "reference" in method.needs and not stored:
            write_reference(out / "reference.json", examples)

    optimizer = build_optimizer(model, recipe)
    start = 0
    if flags.resume and (out / "checkpoint.safetensors").exists():
        start = load_checkpoint(out / "checkpoint.safetensors", model, optimizer, method)
    log = Log(out, start, updates, held_out, flags.tensorboard)
    train(model, method, examples, recipe, optimizer, flags.checkpoint_every, out, log)
    model = in_one_piece(model, adapters)
    if parallel.first():
        keep(model, tokenizer, adapters, flags, updates, held_out)


def check_room(out: Path, flags: Flags, shape, examples: list[Example], recipe: Recipe,
               adapters: Adapters | None, device: str) -> None:
    """ValueError, before a weight is read, if the run will not fit into memory or on the disk."""
    load = load_of(examples, recipe)
    parts = sheet(shape, load, recipe, flags.dtype, flags.activation_checkpointing, adapters)
    mine = per_rank(parts, shape, flags.dtype, parallel.world(), adapters)
    check_fits(mine, device, advice(flags))
    parameters = parameters_of(shape, flags.dtype, adapters)
    check_disk(out, parameters, parts["optimizer"], flags.checkpoint_every, flags.keep_best)


def show_data(tokenizer, examples: list[Example]) -> None:
    """What a reader of the output should see of the data before it is trained on."""
    print(f"the first: {show_example(tokenizer, examples[0])}")
    for remark in remarks(tokenizer, examples):
        print(remark)
    sys.stdout.flush()


def train(
    model, method: Method, examples: list[Example], recipe: Recipe, optimizer: AdamW,
    every: int, out: Path, log: Log,
) -> None:
    """The loop with its log and its checkpoints. Interrupted once the last update is saved."""
    updates, device = log.updates, str(model.head.device)
    shown = bar(updates, "train", "update", log.start)
    with Stop() as stop, log, shown:
        log.begin(model)
        for record in fit(model, method, examples, recipe, optimizer, log.start):
            log.add(model, record)
            shown.set_postfix_str(log.state(record, device), refresh=False)
            shown.update()

            # The log must be on the disk before a checkpoint that counts on it.
            step, asked = record["step"], any(parallel.gather(stop.asked))
            if step == updates:
                check_trained(model, examples, step)
            if every and (asked or step % every == 0 or step == updates):
                log.sync()
                save_checkpoint(out / "checkpoint.safetensors", model, optimizer, method, step)
            if asked and step < updates:
                kept = "nothing is kept, as you asked"
                if every:
                    kept = "the same command with --resume goes on from there"
                raise Interrupted(f"stopped after update {step} of {updates}; {kept}")


def keep(
    model, tokenizer, adapters: Adapters | None, flags: Flags, updates: int,
    held_out: HeldOut | None,
) -> None:
    """What is left of a run: the model as a folder, a picture, and what it was good for.

    Adapters are also saved by themselves before the merge.
    """
    out = Path(flags.out)
    step, note, also = updates, "", ""
    if flags.keep_best:
        step = held_out.restore_best(model)
        note = f", the best on --eval-data: as it was after update {step} of {updates}"
    if adapters:
        lora.save_adapters(out / "adapter", model, flags.model)
        lora.merge(model)
        also = f", its adapter alone: {out / 'adapter'}"
    save_model(out / "model", model, tokenizer)
    print(f"done: {out / 'model'}{also}{note}")
    try_to_draw(out, f"{flags.method} on {Path(flags.data).name}")
    if held_out:
        print(f"{summary(out, step)}, on {len(held_out.examples)} held-out examples")
