# %% [markdown]
# # 13 · For real
# **The question:** is it the same code at 1 B?
#
# Everything so far ran on a GPT that was trained in about a minute. Here you load a model
# that somebody else has made, with weights from the format that all big models are published in,
# and look whether our logits are those of the library it was written for. Then you teach it
# something with the same loop and the same methods as before, and read its stories before and
# after. Last comes the one thing that really is different for large models: memory. You will count
# what a training step of Llama-3-8B holds before a single byte of it is allocated.
#
# You need lesson 07's DFT and lesson 12. Twenty-five minutes, about one of them computing. Keep
# `minialign/hf/folders.py` and `minialign/bench/sheet.py` open beside it. The model ships with
# minialign; `python lessons/13_for_real.py MODEL_FOLDER` takes another one.
#
# **Guess first.** Llama-3-8B has 8 billion parameters; with two bytes for each of them that is
# 16 GB. How many GB does an ordinary training step need, in float32, with AdamW and all parameters
# learning? And of what is most of it? Write a number and a word down.

# %%
import sys
import textwrap
from pathlib import Path

import torch
from safetensors.torch import load_file

from lessons import check
from lessons.pictures import worlds as pictures

# %% [markdown]
# What we take from the package: how models and data are read, how a model is trained, and, for the
# second half of the lesson, how memory is counted.
# %%
from minialign.bench import sheet as memory
from minialign.data import Example
from minialign.generate import answers
from minialign.hf.datafiles import load_examples
from minialign.hf.encoding import encode_answer
from minialign.hf.folders import load_model, load_weights, read_config, save_model
from minialign.hf.shapes import PRESETS
from minialign.logps import add_reference
from minialign.methods import METHODS, build_method
from minialign.model import Config, Transformer
from minialign.train import Recipe, fit

# %%
args = check.options(model="stories260K")
mine = check.mine(args)
torch.manual_seed(0)
try:
    model, tokenizer = load_model(args.model)
except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    sys.exit(2)
n = sum(p.numel() for p in model.parameters())
print(f"{args.model}: {n:,} parameters, {model.config.n_layer} layers, "
      f"{model.config.vocab_size} tokens")
check.talk(model, tokenizer, ["Tom had a red ball."], k=2, longest=40)

# %% [markdown]
# `stories260K` is a Llama with 260,032 parameters, trained by Andrej Karpathy on stories for
# children. Its English is broken, but it is English: words, names, somebody who wants something.
#
# ## Step 1: whose numbers?
# Llama, Mistral, Qwen2 and GPT-2 are not four models in this repository. They are four values of
# `Config`. `load_model` reads the numbers of the architecture from config.json, the parameters from
# *.safetensors, and refuses what it does not know. The tests have a few logits that the library
# transformers computed: those of stories260K, and of tiny random models. Each of the latter is a
# corner where a loader can go wrong without an error: rotary frequencies that are rescaled for long
# texts, attention in a sliding window, biases on q, k and v alone.

# %%
fixtures = Path(check.__file__).parents[1] / "tests" / "fixtures"       # in a clone of minialign
folders = {name: fixtures / name for name in (
    "llama_tied_llama3_rope", "mistral_window", "qwen2_window")} if fixtures.is_dir() else {}
for name, folder in folders.items():
    other = load_weights(folder, read_config(folder), "float32", "cpu")
    expected = load_file(folder / "reference.safetensors")
    with torch.no_grad():
        off = (other.logits(expected["input_ids"]) - expected["logits"]).abs().max()
    print(f"{name:22} logits up to {expected['logits'].abs().max():4.1f}: {off:.0e} apart")
if folders and args.model == "stories260K":
    expected = load_file(fixtures / "shipped" / "stories260K.safetensors")
    with torch.no_grad():
        off = (model.logits(expected["input_ids"]) - expected["logits"]).abs().max()
    print(f"{args.model:22} logits up to {expected['logits'].abs().max():4.1f}: {off:.0e} apart")

# %% [markdown]
# The differences are rounding in float32. (Without a clone of the repository the tests are not
# there, and nothing is printed.)
#
# ## Step 2: teach it to let people speak
# In some of its stories somebody speaks, “in quotation marks”. Can we make that more? The package
# has openings of stories, each with a continuation by the same model in which somebody does speak
# (`stories-dialogue`). That is the wanted answer. SFT imitates it. DFT also pushes down what the
# model says by itself, so we draw two answers to every opening first; nobody has to label them.

# %%
data, _ = load_examples("stories-dialogue", tokenizer, model.config.max_len)
exam, _ = load_examples("stories-dialogue-test", tokenizer, model.config.max_len)
data, exam = data[: 16 if args.fast else 256], exam[: 8 if args.fast else 100]
longest = 16 if args.fast else 80                                       # new tokens
draw = torch.Generator(model.head.device).manual_seed(0)
pools = answers(model, tokenizer, [e.prompt for e in data], 2, longest, 0.9, generator=draw)
examples = []
for i, (example, pool) in enumerate(zip(data, pools, strict=True)):
    opening = example.text["prompt"]
    negatives = [encode_answer(tokenizer, opening, text or "?", done) for text, done in pool]
    examples.append(Example(i, example.prompt, [example.answers[0], *negatives]))
add_reference(model, examples, progress=False)          # DFT's P_ref: once, as the model is now


# %%
def stories(model):
    """A continuation of every opening in the exam."""
    draw = torch.Generator(model.head.device).manual_seed(1)
    prompts = [e.prompt for e in exam]
    return [pool[0][0] for pool in answers(model, tokenizer, prompts, 1, longest, 1.0,
                                           generator=draw)]


told, rate = {"before": stories(model)}, 0.064 / model.config.d_model   # 1e-3 at a width of 64
for name in "sft", "dft":
    tuned, _ = load_model(args.model)
    recipe = Recipe(epochs=2, batch=32, micro_batch=32, lr=rate, warmup=0.0)
    records = list(fit(tuned, build_method(name, {}, len(examples)), examples, recipe))
    told[f"after {name}"] = stories(tuned)
    print(f"{name}: {len(records)} updates")

# %%
for who, texts in told.items():
    share = sum('"' in text for text in texts) / len(texts)
    print(f"{who:10} somebody speaks in {share:.0%} of {len(texts)} stories")
print()
for i in range(2):
    print(exam[i].text["prompt"])
    for who, texts in told.items():
        text = f"  {who + ':':11} {' '.join(texts[i].split())}…"
        print(textwrap.fill(text, 96, subsequent_indent=" " * 14))

# %% [markdown]
# Read the stories, not only the numbers: is it still a story, does it make less sense than before?
# And compare the two methods: what SFT gets from the wanted answers alone needs no negatives. (One
# run each, and 100 stories: a difference of less than a tenth may be luck.)
#
# This was `fit`, the loop of lessons 05 to 11, with the `weigh` of lesson 07. Nothing else is
# needed for a larger model. The result is a folder like the one that it came from, and opens in
# other libraries as well:

# %%
save_model(check.OUT / "13" / "tuned", tuned, tokenizer)
again, _ = load_model(check.OUT / "13" / "tuned")
with torch.no_grad():
    ids = torch.tensor([examples[0].prompt])
    print("saved and loaded, the same to the last bit:",
          torch.equal(again.logits(ids), tuned.logits(ids)))

# %% [markdown]
# ## Step 3: how large is it?
# Now memory. A Llama consists of two tables, of (vocabulary × width) each: one turns tokens into
# vectors, the other, the head, turns vectors into logits. If the model is *tied* they are one and
# the same. Between them are layers, and in each layer
#
#     q and o            d_model × (n_head · d_head)          each
#     k and v            d_model × (n_kv_head · d_head)       each: several heads may share them
#     gate, up, down     d_model × d_mlp                      each
#
# and vectors of norms, which are too small to matter.
#
# ## Exercise 1 ●○○ (5 minutes): `n_parameters`
# Write `n_parameters(config)` in `lessons/mine.py`: the number of parameters of a Llama, to 1 %,
# from the fields vocab_size, n_layer, n_head, n_kv_head, d_head, d_model, d_mlp and tie.

# %%
verdict = check.n_parameters(mine.n_parameters)
counts = check.is_right(verdict)
print(verdict)
if counts:
    print(f"{args.model}: you say {mine.n_parameters(model.config):,}, it has {n:,}")

# %% [markdown]
# ## Exercise 2 ●●○ (10 minutes): `peak`
# What is held for each of these numbers while a model learns? Write `peak(config, weight_bytes,
# moment_bytes)`: the bytes at the fullest moment of full fine-tuning with AdamW, to 10 %, for
# answers so short that nothing else counts. The parameters and their gradients take `weight_bytes`
# each, AdamW's numbers (lesson 04) `moment_bytes`.
#
# <details><summary>Hint</summary>
#
# Of every parameter: itself, its gradient, the running mean of the gradient, and that of its
# square.
# </details>

# %%
verdict = check.peak(mine.peak)
right_peak = check.is_right(verdict)
print(verdict)

# %% [markdown]
# ## Step 4: what a step will hold
# With longer answers two more things count: what the layers keep of every token for the way back
# (the activations), and the head (lesson 12). `memory.sheet` adds all of it up from shapes, on a
# device called “meta” where tensors have a shape and no memory. Can it be trusted? Here is a small
# model, against what torch's allocator really gave out:

# %%
small = Config(2000, n_layer=2 if args.fast else 4, n_head=8, n_kv_head=2,
               d_model=256 if args.fast else 512, d_mlp=1408)
pairs = [Example(i, [5] * 24, [[7] * 16, [9] * 16]) for i in range(2)]
plain = Recipe(epochs=2, batch=2, micro_batch=1)        # two passes per update


def train_small():
    model = Transformer(small)
    model.initialise()
    for _ in fit(model, METHODS["asft"](), pairs, plain):
        pass


said = sum(memory.sheet(small, memory.load_of(pairs, plain), plain, "float32").values())
seen = memory.allocated(train_small)
print(f"sheet {said / 1e6:.0f} MB, allocator {seen / 1e6:.0f} MB: {said / seen - 1:+.0%}")

# %% [markdown]
# Now Llama-3-8B with DFT2: 4 prompts of 256 tokens, each with 1 + 2 answers of 768. Every row below
# keeps what the rows above it have done, the last one excepted:
#
# * bfloat16, two bytes per number: for parameters (“weights” in the table), gradients and
#   activations, then for the moments;
# * activation checkpointing: activations are forgotten, and computed again on the way back;
# * inside backward: each parameter is updated as soon as its gradient is there, so that the
#   gradients never exist all at once (an update is one pass then, and its gradient is not clipped);
# * or LoRA instead: the parameters stay as they are, and only small factors beside them learn.

# %%
big, half = PRESETS["llama3-8b"], {"moments": "bfloat16"}
load = memory.load_of([Example(i, [0] * 256, [[0] * 768] * 3) for i in range(4)],
                      Recipe(micro_batch=4))
inside = Recipe(inside_backward=True, batch=4, micro_batch=4, clip=float("inf"), **half)
plans = {
    "plain: float32": memory.sheet(big, load, Recipe(), "float32"),
    "+ --dtype bfloat16": memory.sheet(big, load, Recipe()),
    "+ --moments bfloat16": memory.sheet(big, load, Recipe(**half)),
    "+ --activation-checkpointing": memory.sheet(big, load, Recipe(**half), recompute=True),
    "+ --inside-backward": memory.sheet(big, load, inside, recompute=True),
    "or --lora-rank 16": memory.sheet(big, load, Recipe(), recompute=True,
                                      adapters=memory.Adapters(16, 32.0)),
}

# %%
for name, parts in plans.items():
    print(f"{name:28} {sum(parts.values()) / memory.GIB:6.1f} GiB: " + ", ".join(
        f"{part} {size / memory.GIB:.1f}" for part, size in parts.items()))

# %% [markdown]
# So on one GPU of 80 GB, all parameters learning, one would type
#
#     python -m minialign sample --model meta-llama/Meta-Llama-3-8B --data train.jsonl --k 6 \
#         --dtype bfloat16 --device cuda --out pool.jsonl
#     python -m minialign train --model meta-llama/Meta-Llama-3-8B --method dft2 --k 2 --epochs 3 \
#         --data train.jsonl --negatives pool.jsonl --batch 4 --micro-batch 4 --lr 2e-6 \
#         --dtype bfloat16 --device cuda --moments bfloat16 --activation-checkpointing \
#         --inside-backward --out run
#
# bfloat16 has eight bits for the digits of a number, so an update of 2e-6 would nearly always be
# rounded away. `minialign/optim.py` rounds by chance instead, up or down in the right proportion.
#
# ## The picture: where the memory goes
# A bar per row; the dotted lines are GPUs that one can buy. If your `peak` is right, black marks
# show it for the first three rows, for which you know the bytes. What lies to the right of a mark
# is the price of long answers.

# %%
marks = [mine.peak(big, *sizes) for sizes in ((4, 4), (2, 4), (2, 2))] if right_peak else []
check.show(pictures.memory_bars(plans, marks, "Llama-3-8B, DFT2: 4 × (256 + 3 × 768) tokens"), "13")
first, total = plans["plain: float32"], [sum(parts.values()) / 1e9 for parts in plans.values()]
most = max(first, key=first.get)
print(f"Your guess? {total[0]:.0f} GB, most of it {most} ({first[most] / 1e9:.0f} GB); "
      f"in the end {total[-2]:.0f} GB, or {total[-1]:.0f} with LoRA.")

# %% [markdown]
# So the answer to the question of this lesson is yes: the same `weigh`, the same `fit`. What grows
# is the list of flags about memory, and none of them knows which method is running.
#
# ## Try
# * `PRESETS["llama3.2-1b"]` for `big`. Which part has become the largest?
# * `build_method("dpo", {}, …)` with the rejected answers of the data (`data[i].answers`): does it
#   learn to speak? What becomes of its stories?
# * A model of your own: `hf download HuggingFaceTB/SmolLM2-135M --local-dir smol`, and
#   `python lessons/13_for_real.py smol`.
#
# **Next:** 14. You have seen all of it. What would you do better?

# %%
# region Solution: unfold when you have tried
def n_parameters(config):
    C, D = config.d_model, config.d_head
    layer = 2 * C * D * config.n_head + 2 * C * D * config.n_kv_head + 3 * C * config.d_mlp
    tables = 1 if config.tie else 2
    return config.n_layer * layer + tables * config.vocab_size * C


def peak(config, weight_bytes, moment_bytes):
    each = 2 * weight_bytes + 2 * moment_bytes                  # itself, gradient; two moments
    return each * n_parameters(config)
# endregion
