# %% [markdown]
# # 13 · For real
# **The question:** is it the same code at 1 B?
#
# You load model folders that another library wrote and hold our logits against its own, take two DFT steps on a checkpoint (a
# real one, if you have any: `python lessons/10_for_real.py MODEL_FOLDER`), and count what a training step of Llama-3-8B will hold
# in memory before a byte of it is allocated. You need lesson 12's memory and lesson 07's DFT. Fifteen minutes, half a minute of
# computing. Keep `minialign/hf/folders.py` and `minialign/bench/sheet.py` open beside it.
#
# **Guess first.** Llama-3-8B has 8 billion weights; in bfloat16 that is 16 GB. How many GB does a plain training step need, all
# weights learning, AdamW? And of what is most of it? Write a number and a word down.

# %%
import math
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file

from lessons import check
from minialign.bench import sheet as memory
from minialign.data import Example, collate
from minialign.generate import answers
from minialign.hf.encoding import encode_answer, encode_prompt
from minialign.hf.folders import load_model, save_model
from minialign.hf.shapes import PRESETS
from minialign.hf.tokenizer import byte_tokenizer
from minialign.lab.plot import clean
from minialign.logps import add_reference, batch_logps
from minialign.methods import build_method
from minialign.model import Config, Transformer
from minialign.train import Recipe, fit

args = check.options(model="")
mine = check.mine(args)
torch.manual_seed(0)
work = check.OUT / "13"

# %% [markdown]
# ## Whose numbers?
# Llama, Mistral, Qwen2 and GPT-2 are not four models here but four values of `Config`; `load_model` reads the numbers from
# config.json and the tensors from *.safetensors, and refuses what it does not know. `tests/fixtures` holds tiny folders with
# random weights, written by transformers, and the logits that transformers computed for them.

# %%
for name in "llama_tied_llama3_rope", "mistral_window", "qwen2_window":
    source, folder = Path(check.__file__).parent.parent / "tests" / "fixtures" / name, work / name
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("reference*"))
    byte_tokenizer().save(folder)                       # the fixtures came without one
    model, _ = load_model(folder)
    reference = load_file(source / "reference.safetensors")
    with torch.no_grad():
        off = (model.logits(reference["input_ids"]) - reference["logits"]).abs().max()
    print(f"{name:24} {sum(p.numel() for p in model.parameters()):6} weights, logits up to "
          f"{reference['logits'].abs().max():.1f}: at most {off:.0e} apart")

# %% [markdown]
# That is float32 rounding. Each folder is a corner where loaders go wrong without any shape betraying it: rotary frequencies
# rescaled for long contexts, a sliding window, biases on q, k, v alone, a head that is the embedding table.
#
# ## Two steps of DFT on a checkpoint
# Yours, if you name a folder; else stories260K under MINIALIGN_DATA, a small model that tells stories; else random weights.

# %%
data = os.environ.get("MINIALIGN_DATA")
folder = Path(args.model) if args.model else Path(data or "") / "weights" / "stories260K"
if not args.model and not (folder / "config.json").exists():
    tokenizer, folder = byte_tokenizer(), work / "random"
    model = Transformer(Config(tokenizer.vocab_size, n_layer=2, n_head=4, n_kv_head=2, d_model=64, d_mlp=176, max_len=256))
    model.initialise()
    save_model(folder, model, tokenizer)
try:
    model, tokenizer = load_model(folder)
except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    sys.exit(2)
prompts = ["Once upon a time, there was a", "Tom had a red ball. He", "Lily saw a big dog. The dog", "One day, Mom said"]
wanted = [" dragon who said, \"Hello!\"", " said, \"Catch, Sue!\"", " said, \"Come and play!\"", ", \"Let us go to the park.\""]
ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
pools = answers(model, tokenizer, ids, 2, 12, 1.0, 50, None, torch.Generator(model.head.device).manual_seed(0))
print(f"{folder.name}: {sum(p.numel() for p in model.parameters()):,} weights. It says, and these are the negatives:")
examples = []
for i, (prompt, good, pool) in enumerate(zip(prompts, wanted, pools, strict=True)):
    print(f"  {prompt} … {' | '.join(repr(text) for text, _ in pool)}")
    said = [(good, False), *((text or "?", finished) for text, finished in pool)]           # answer 0 is the wanted one
    examples.append(Example(i, ids[i], [encode_answer(tokenizer, prompt, *answer) for answer in said]))


def mean_logps(model):
    """Log-prob per answer under the model: of the wanted ones, and of its own."""
    batch = collate([replace(e, ref_logps=None) for e in examples])
    with torch.no_grad():
        sums = batch_logps(model, batch).sum(-1)                        # (A, B)
    return float(sums[0].mean()), float(sums[1:].mean())


add_reference(model, examples, progress=False)          # frozen, so once is enough
before, rate = mean_logps(model), 0.064 / model.config.d_model          # wide models want small steps
for record in fit(model, build_method("dft", {}, 4), examples, Recipe(epochs=2, batch=4, lr=rate, warmup=0.0)):
    print(f"step {record['step']}: loss {record['loss']:.2f}, pushes down sum to {record['push_down']:.2f}")
after = mean_logps(model)
print(f"wanted answers {before[0]:.2f} → {after[0]:.2f},   its own {before[1]:.2f} → {after[1]:.2f}")
save_model(work / "tuned", model, tokenizer)
again, _ = load_model(work / "tuned")
print("saved, loaded again, the same to the last bit:", mean_logps(again) == after)

# %% [markdown]
# The folder opens in transformers as well. The loop is the one of lessons 05 to 11, the `weigh` is lesson 07's; that is all there
# is to "scaling up", apart from memory.
#
# ## What a step will hold
# Of every weight: itself, its gradient, AdamW's two moments. Of every token: what the layers keep for the way back. And the head,
# lesson 12. `memory.sheet` counts from shapes, on a device ("meta") where nothing is allocated. First a small model, against the
# allocator:

# %%
small = Config(2000, n_layer=2 if args.fast else 4, n_head=8, n_kv_head=2, d_model=256 if args.fast else 512, d_mlp=1408)
pairs = [Example(i, [5] * 24, [[7] * 16, [9] * 16]) for i in range(2)]
plain = Recipe(epochs=2, batch=2, micro_batch=1)        # two passes per update: the second finds the first one's gradients


def train_small():
    model = Transformer(small)
    model.initialise()
    for _ in fit(model, build_method("asft", {}, 2), pairs, plain):
        pass


said, seen = sum(memory.sheet(small, memory.load_of(pairs, plain), plain, "float32").values()), memory.allocated(train_small)
print(f"the sheet says {said / 1e6:.0f} MB, the allocator counted {seen / 1e6:.0f} MB: {said / seen - 1:+.0%}")

# %% [markdown]
# Now Llama-3-8B: 4 prompts of 256 tokens, 1 + 2 answers of 768 each, DFT2.

# %%
big = PRESETS["llama3-8b"]
load = memory.load_of([Example(i, [0] * 256, [[0] * 768] * 3) for i in range(4)], Recipe(micro_batch=4))
half = {"moments": "bfloat16"}
inside = {"inside_backward": True, "batch": 4, "micro_batch": 4, "clip": math.inf, **half}
plans = {
    "plain: float32": memory.sheet(big, load, Recipe(), "float32"),
    "--dtype bfloat16": memory.sheet(big, load, Recipe()),
    "--moments bfloat16": memory.sheet(big, load, Recipe(**half)),
    "--activation-checkpointing": memory.sheet(big, load, Recipe(**half), recompute=True),
    "--inside-backward": memory.sheet(big, load, Recipe(**inside), recompute=True),
    "or --lora-rank 16": memory.sheet(big, load, Recipe(), recompute=True, adapters=memory.Adapters(16, 32.0)),
}
for name, parts in plans.items():
    print(f"{name:27} " + "  ".join(f"{part} {size / memory.GIB:.1f}" for part, size in parts.items())
          + f"  total {sum(parts.values()) / memory.GIB:.1f} GiB")
print("""
One GPU of 80 GB, all weights learning (GiB: the last row but one):
  python -m minialign sample --model Meta-Llama-3-8B --data train.jsonl --k 6 --dtype bfloat16 --device cuda --out pool.jsonl
  python -m minialign train --model Meta-Llama-3-8B --method dft2 --data train.jsonl --negatives pool.jsonl --k 2 --epochs 3 \\
      --batch 4 --micro-batch 4 --lr 2e-6 --dtype bfloat16 --device cuda --moments bfloat16 --activation-checkpointing \\
      --inside-backward --out run""")
print(memory.table(plans["--inside-backward"]))

# %% [markdown]
# bfloat16 weights that take steps of 2e-6 need care: rounding to nearest would lose nearly every one of them. `optim.py` rounds
# stochastically. `--inside-backward` updates each weight as soon as its gradient is there, so an update is one pass, not clipped.
#
# ## The picture

# %%
colors = {"weights": "#4477aa", "gradients": "#ee6677", "optimizer": "#ccbb44", "activations": "#66ccee", "head": "#aa3377"}
figure, axes = plt.subplots(figsize=(12, 4.6), layout="constrained")
for gib, card in (24, "24 GB"), (80, "80 GB"), (140, "141 GB"):
    axes.plot([gib, gib], [-0.4, len(plans) - 0.5], color="black", linewidth=1, linestyle=":", zorder=3)
    axes.text(gib, len(plans) - 0.45, f"{card} card", ha="center", va="top", fontsize=9.5)
left = [0.0] * len(plans)
for part, color in colors.items():
    sizes = [parts[part] / memory.GIB for parts in plans.values()]
    axes.barh(range(len(plans)), sizes, left=left, color=color, height=0.7)
    axes.text(left[0] + sizes[0] / 2, -0.42, part, color=color, ha="center", va="bottom", fontsize=11, fontweight="bold")
    left = [a + b for a, b in zip(left, sizes, strict=True)]
for y, total in enumerate(left):
    white = {"facecolor": "white", "linewidth": 0, "pad": 1}
    axes.text(total + 3, y, f"{total:.0f}", va="center", fontsize=11, zorder=4, bbox=white)
axes.set_yticks(range(len(plans)), [("+ " if 0 < i < 5 else "") + name for i, name in enumerate(plans)])
axes.set(ylim=(len(plans) - 0.1, -0.75), title="Llama-3-8B, DFT2: 4 prompts × (256 + 3 × 768 tokens)",
         xlabel="GiB at the fullest moment of a training step")
axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
clean(axes)
axes.grid(False, axis="y")
check.show(figure, "13")
first, total = plans["plain: float32"], [sum(parts.values()) / 1e9 for parts in plans.values()]
most = max(first, key=first.get)
print(f"Your guess? Plain, {total[0]:.0f} GB, most of it {most}; in the end {total[-2]:.0f} GB, or {total[-1]:.0f} with LoRA.")

# %% [markdown]
# ## Exercise ●●○ (15 minutes)
# Predict the peak yourself, to 10 %, of full fine-tuning on a short pair: activations do not count then, so count weights. No
# meta device: from the numbers of the `Config` (SwiGLU, RMSNorm; norms and biases are too small to matter).
#
# <details><summary>Hint</summary>Per layer: q and o are d_model × (n_head · d_head), k and v have n_kv_head; gate, up and down
# are d_model × d_mlp. Then the tables. Then bytes: what is kept for each weight?</details>

# %%
print(check.peak(mine.peak))

# %% [markdown]
# ## Try
# * `PRESETS["llama3.2-1b"]` for `big`. Which part has become the largest?
# * A folder of your own: `hf download HuggingFaceTB/SmolLM2-135M --local-dir smol`, and give it to this lesson.
# * `python -m minialign bench` measures time as well, beside its floor.
#
# **Next:** nothing. You have seen all of it; `minialign/methods` is waiting for yours.

# %%
# region Solution: unfold when you have tried
def peak(config, weight_bytes, moment_bytes):
    C, D = config.d_model, config.d_head
    layer = 2 * C * D * config.n_head + 2 * C * D * config.n_kv_head + 3 * C * config.d_mlp
    weights = config.n_layer * layer + config.vocab_size * C * (1 if config.tie else 2)
    return weights * (2 * weight_bytes + 2 * moment_bytes)              # itself, gradient; two moments
# endregion
