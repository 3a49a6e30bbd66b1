"""A peer's side of a comparison: the same shape, data and batch as ours, in the peer's interpreter.

Models have random weights. Settings are those that make the comparison fair: the dtype as asked, no
gradient checkpointing, no logging, no saving. This file imports nothing of minialign; turns.py lies
beside it.
"""

import copy
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM
from turns import Task, listen, now, take_turns, touch, used


def build(spec: dict) -> Task:
    return {"step": loop, "generate": generate, "load": load}[spec["mode"]](spec)


def model_of(spec: dict):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**spec["hf"])
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, spec["dtype"]))
    return model.to(spec["device"])


# ---------------------------------------------------------------------------------- a plain loop


def loop(spec: dict) -> Task:
    """Forward, full logits, a loss by autograd, AdamW: a training step as one writes it first."""
    model, name, device = model_of(spec), spec["variant"], spec["device"]
    B, P = len(spec["examples"]), len(spec["examples"][0][0])
    answers = 1 if name == "sft" else len(spec["examples"][0][1])

    # All first answers, then all second ones, each behind its prompt.
    texts = []
    for a in range(answers):
        texts += [prompt + answers_of[a] for prompt, answers_of in spec["examples"]]
    tokens = torch.tensor(texts, device=device) % model.config.vocab_size                # (A·B, L)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0)

    def sums() -> Tensor:
        logits = model(input_ids=tokens[:, :-1]).logits                         # (A·B, L−1, V)
        logps = logits.float().log_softmax(-1).gather(2, tokens[:, 1:, None])   # (A·B, L−1, 1)
        logps = logps[:, P - 1 :, 0]                                            # (A·B, T)
        return logps.sum(-1).view(answers, B)

    ref = None
    if name == "dpo":
        with torch.no_grad():
            ref = sums()                                    # computed once and stored, as ours

    def step() -> None:
        loss = objective(name, sums(), tokens.shape[1] - P, ref)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Task(step, {"tokens": tokens.numel()})


def objective(name: str, l: Tensor, n: int, ref: Tensor | None) -> Tensor:
    """The loss as the papers print it.

    l (A, B) are summed log-probs of answers of n tokens, ref (A, B) those under a frozen reference.
    """
    a = l / n
    if name == "sft":
        return -a[0].mean()
    if name == "asft":
        return (-a[0] - 0.1 * (logsigmoid(log_odds(a[0])) + logsigmoid(-log_odds(a[1])))).mean()
    if name == "orpo":
        return (-a[0] - logsigmoid(log_odds(a[0]) - log_odds(a[1]))).mean()
    if name == "simpo":
        return -logsigmoid(2.0 * (a[0] - a[1]) - 1.0).mean()
    gain = l - ref                                                                       # dpo
    return -logsigmoid(0.1 * (gain[0] - gain[1])).mean()


def log_odds(a: Tensor) -> Tensor:
    return a - torch.log1p(-a.exp())


# -------------------------------------------------------------------------------------------- TRL


def trl(spec: dict, say: Callable) -> None:
    """TRL owns the loop, so the conversation happens in its callbacks: a line starts a step."""
    from datasets import Dataset
    from transformers import TrainerCallback

    model, name, device = model_of(spec), spec["variant"], spec["device"]
    rows = text_rows(spec, model.config.vocab_size)
    Trainer, Config = trainer_of(name)
    config = Config(
        output_dir=spec["folder"], per_device_train_batch_size=len(rows), max_steps=10**6,
        learning_rate=1e-6, use_cpu=device == "cpu", bf16=False, gradient_checkpointing=False,
        save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        dataloader_pin_memory=False, **settings_of(spec))

    class Turns(TrainerCallback):
        steps = 0
        seen = None                                                 # the batch of the step

        def on_step_begin(self, args, state, control, **_):
            if self.steps == 0:
                self.before = used(device, reset=True)
            elif not sys.stdin.readline():
                os._exit(0)
            self.began = now(device)

        def on_step_end(self, args, state, control, **_):
            seconds = now(device) - self.began
            self.steps += 1
            if self.steps > 1:
                say(seconds=seconds)
                return
            # What TRL made of the data: tokens are to be compared with tokens.
            tokens = 0
            for key, value in self.seen.items():
                if key.endswith("input_ids") and "prompt" not in key:
                    tokens += value.numel()
            say(peak=used(device) - self.before, tokens=tokens)

    turns = Turns()

    class Watched(Trainer):
        def training_step(self, model, inputs, *rest):
            turns.seen = inputs
            return super().training_step(model, inputs, *rest)

    more = {}
    if name.startswith("dpo"):
        more["ref_model"] = copy.deepcopy(model)            # TRL would look for it on the hub
    tokenizer = word_tokenizer(model.config.vocab_size)
    trainer = Watched(model=model, args=config, train_dataset=Dataset.from_list(rows * 2),
                      processing_class=tokenizer, callbacks=[turns], **more)
    trainer.train()


def trainer_of(name: str) -> tuple[type, type]:
    """TRL's trainer for this loss, and the class of its settings."""
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


def settings_of(spec: dict) -> dict:
    """What this loss wants to be told."""
    prompt, answers = spec["examples"][0]
    settings = {"max_length": len(prompt) + len(answers[0]) + 8}
    if spec["variant"] == "simpo":
        settings |= {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5}
    if spec["variant"] == "dpo, reference precomputed":
        settings["precompute_ref_log_probs"] = True
    return settings


def text_rows(spec: dict, V: int) -> list[dict]:
    """The examples as text: '12 7 99' for the tokens 12, 7 and 99.

    The trainers append the end token themselves. So the last token of an answer is left out here,
    and answers are as long as ours.
    """
    def text(ids: list[int]) -> str:
        return " ".join(str(i % (V - 3)) for i in ids)

    rows = []
    for prompt, answers in spec["examples"]:
        wanted, rejected = text(answers[0][:-1]), text(answers[-1][:-1])
        if spec["variant"] == "sft":
            rows.append({"prompt": text(prompt) + " ", "completion": wanted})
        else:
            rows.append({"prompt": text(prompt) + " ", "chosen": wanted, "rejected": rejected})
    return rows


def word_tokenizer(V: int):
    """'12 7 99' ⇄ [12, 7, 99]. The last three numbers are an unknown word, padding, and the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    unknown, pad, end = str(V - 3), str(V - 2), str(V - 1)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(V)}, unk_token=unknown))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end, pad_token=pad,
                                   unk_token=unknown)


# --------------------------------------------------------------------------------- generate, load


def generate(spec: dict) -> Task:
    model = model_of(spec).eval()
    prompts = torch.tensor([prompt for prompt, _ in spec["examples"]], device=spec["device"])
    prompts %= model.config.vocab_size
    new = len(spec["examples"][0][1][0])
    how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": True, "temperature": 0.7,
           "top_k": 50, "pad_token_id": 0, "attention_mask": torch.ones_like(prompts)}
    return Task(lambda: model.generate(prompts, **how), {"tokens": len(prompts) * new})


def load(spec: dict) -> Task:
    """from_pretrained, and every page touched."""
    dtype = getattr(torch, spec["dtype"])

    def work() -> None:
        model = AutoModelForCausalLM.from_pretrained(spec["folder"], dtype=dtype)
        touch(model.to(spec["device"]).parameters())

    return Task(work)


if __name__ == "__main__":
    request, answer = listen()
    if request["who"] == "trl":
        trl(request, answer)
    else:
        take_turns(build, request, answer)
