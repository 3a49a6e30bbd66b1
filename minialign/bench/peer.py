"""TRL's and transformers' side of `python -m minialign bench --against …`: same shape, data and batch, in their own interpreter.

Speaks the same lines of JSON as minialign/bench/worker.py and imports nothing of minialign. Models have random weights. Settings
are those that make the comparison fair: float32 or bfloat16 as asked, no gradient checkpointing, no logging, no saving.
"""

import copy
import json
import os
import resource
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM


def build(spec: dict):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**spec["hf"])
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, spec["dtype"]))
    return model.to(spec["device"])


def rows_of(spec: dict, V: int) -> list[tuple[list[int], list[list[int]]]]:
    return [([i % V for i in prompt], [[i % V for i in a] for a in answers]) for prompt, answers in spec["examples"]]


# ---------------------------------------------------------------------------------------------------- a plain loop

def log_odds(a):
    return a - torch.log1p(-a.exp())


def objective(name: str, l, n, ref):
    """The loss as papers print it: l, n, ref (A, B) are summed log-probs, lengths, and log-probs under a frozen reference."""
    a = l / n
    if name == "sft":
        return -a[0].mean()
    if name == "asft":
        return (-a[0] - 0.1 * (logsigmoid(log_odds(a[0])) + logsigmoid(-log_odds(a[1])))).mean()
    margin = {"orpo": lambda: log_odds(a[0]) - log_odds(a[1]), "simpo": lambda: 2.0 * (a[0] - a[1]) - 1.0,
              "dpo": lambda: 0.1 * ((l - ref)[0] - (l - ref)[1])}[name]()
    pairwise = -logsigmoid(margin)
    return (pairwise - a[0] if name == "orpo" else pairwise).mean()


def loop(spec: dict):
    """Forward, full logits, loss by autograd, AdamW: what one writes first."""
    model, name = build(spec), spec["variant"]
    rows, device = rows_of(spec, model.config.vocab_size), spec["device"]
    tokens = torch.tensor([prompt + answers[a] for a in range(len(rows[0][1])) for prompt, answers in rows], device=device)
    P, B = len(rows[0][0]), len(rows)                                   # tokens (A·B, L): all first answers, then all second ones
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0)

    def sums():
        logits = model(input_ids=tokens[:, :-1]).logits.float()
        logps = logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0][:, P - 1 :]
        return logps.sum(-1).view(-1, B)

    with torch.no_grad():
        ref = sums() if name == "dpo" else None                         # stored once, as ours

    def step():
        l = sums()
        objective(name, l, tokens.shape[1] - P, ref).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, {"tokens": tokens.numel()}


# ---------------------------------------------------------------------------------------------------- TRL

def word_tokenizer(V: int):
    """'12 7 99' ⇄ [12, 7, 99]: TRL wants text. The last two numbers end and pad."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = Tokenizer(models.WordLevel({str(i): i for i in range(V)}, unk_token=str(V - 3)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=str(V - 1), pad_token=str(V - 2), unk_token=str(V - 3))


def trainer_of(name: str):
    if name == "sft":
        from trl import SFTConfig, SFTTrainer
        return SFTTrainer, SFTConfig
    if name.startswith("dpo"):
        from trl import DPOConfig, DPOTrainer
        return DPOTrainer, DPOConfig
    if name == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer
        return ORPOTrainer, ORPOConfig
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    return CPOTrainer, CPOConfig


def trl(spec: dict, say) -> None:
    """TRL owns the loop, so the conversation happens in its callbacks: a step begins when a line arrives."""
    from datasets import Dataset
    from transformers import TrainerCallback
    model, name = build(spec), spec["variant"]
    V = model.config.vocab_size
    tokenizer, text = word_tokenizer(V), lambda ids: " ".join(str(i % (V - 3)) for i in ids)
    # The trainers append the end token themselves, so that answers are as long as ours.
    rows = [{"prompt": text(prompt) + " ", "chosen": text(answers[0][:-1]), "rejected": text(answers[-1][:-1])}
            for prompt, answers in rows_of(spec, V)]
    if name == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    Trainer, Config = trainer_of(name)
    length = len(spec["examples"][0][0]) + len(spec["examples"][0][1][0])
    settings = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5} if name == "simpo" else {}
    if name == "dpo, reference precomputed":
        settings["precompute_ref_log_probs"] = True
    config = Config(output_dir=spec["folder"], max_length=length + 8, per_device_train_batch_size=len(rows), max_steps=10**6,
                    learning_rate=1e-6, use_cpu=spec["device"] == "cpu", bf16=False,
                    gradient_checkpointing=False, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
                    dataloader_pin_memory=False, **settings)

    class Turns(TrainerCallback):
        steps = 0

        def on_step_begin(self, args, state, control, **_):
            if self.steps == 0:
                self.before = used(spec["device"], reset=True)
            elif not sys.stdin.readline():
                os._exit(0)
            self.began = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            seconds = passed(self.began, spec["device"])
            self.steps += 1
            if self.steps == 1:
                seen = sum(x.numel() for k, x in self.batch.items() if k.endswith("input_ids") and "prompt" not in k)
                say(ready=True, peak=used(spec["device"]) - self.before, tokens=seen)
            else:
                say(seconds=seconds)

    turns, more = Turns(), {}
    if name.startswith("dpo"):
        more["ref_model"] = copy.deepcopy(model)                        # TRL would look for it on the hub
    trainer = Trainer(model=model, args=config, train_dataset=Dataset.from_list(rows * 2), processing_class=tokenizer,
                      callbacks=[turns], **more)
    plain_step = trainer.training_step

    def watched(model, inputs, *rest):                                  # what TRL made of the data, to compare tokens with tokens
        turns.batch = inputs
        return plain_step(model, inputs, *rest)

    trainer.training_step = watched
    trainer.train()


# ---------------------------------------------------------------------------------------------------- generate, load

def generate(spec: dict):
    model = build(spec).eval()
    prompts = torch.tensor([prompt for prompt, _ in rows_of(spec, model.config.vocab_size)], device=spec["device"])
    how = {"max_new_tokens": spec["new"], "min_new_tokens": spec["new"], "do_sample": True, "temperature": 0.7, "top_k": 50,
           "pad_token_id": 0, "attention_mask": torch.ones_like(prompts)}
    return lambda: model.generate(prompts, **how), {"tokens": len(prompts) * spec["new"]}


def load(spec: dict):
    """from_pretrained, and every page touched."""
    def work():
        model = AutoModelForCausalLM.from_pretrained(spec["folder"], dtype=getattr(torch, spec["dtype"])).to(spec["device"])
        for p in model.parameters():
            p.detach().view(-1).view(torch.uint8)[:: resource.getpagesize()].sum()
    return work, {}


# ---------------------------------------------------------------------------------------------------- the conversation

def passed(began: float, device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def used(device: str, reset: bool = False) -> int:
    """As in minialign/bench/worker.py."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**facts) -> None:
        print(json.dumps(facts), file=out, flush=True)

    spec = json.loads(sys.stdin.readline())
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    if spec["who"] == "trl":
        trl(spec, say)
        return
    work, facts = {"step": loop, "generate": generate, "load": load}[spec["mode"]](spec)
    before = used(spec["device"], reset=True)
    work()
    say(ready=True, peak=used(spec["device"]) - before, **facts)
    for _ in sys.stdin:
        began = time.perf_counter()
        work()
        say(seconds=passed(began, spec["device"]))


if __name__ == "__main__":
    main()
