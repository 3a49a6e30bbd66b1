"""The command line: python -m minialign VERB … . Torch is imported by the verb when its work starts, so -h answers at once."""

import argparse
import sys
from dataclasses import dataclass, fields
from importlib import import_module

from minialign.lab.studies import listing
from minialign.verbs.flags import add_flags, arg, exit_status

METHOD_NAMES = ("sft", "asft", "dft", "dft2", "ift", "dpo", "dpop", "ipo", "kto", "orpo", "cpo", "simpo", "simpo_sft", "rdpo",
                "rrhf", "spin", "slic", "ift_eq21")     # METHODS without importing torch; a test holds them together
PRESETS = ("cpu-32k", "cpu-128k", "llama2-7b", "llama3-8b", "llama3.1-8b", "llama3.2-1b", "llama3.2-3b", "mistral-7b",
           "mistral-7b-v0.3", "qwen2.5-0.5b", "qwen2.5-7b", "gpt2")     # PRESETS likewise
BENCH_MODES = ("head", "step", "generate", "load", "memory")
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Compare:
    seeds: int = arg(3, "how many seeds, each with a base model of its own (trained once, then cached in OUT/cache)", least=1)
    first_seed: int = arg(0, "the first of them; other seeds are a fresh draw of everything", least=0, most=10**9)
    methods: str = arg("sft,asft,dft,dft2,ift", "methods to race, separated by commas, or all")
    json: str | None = arg(None, "write every number, one value per seed, to this file (- for standard output)")
    out: str = arg("out", "folder for pictures and cached base models")


@dataclass(frozen=True)
class Train:
    model: str = arg(..., "a Hugging Face model folder (config.json, *.safetensors, tokenizer.json), "
                          "or small: the small GPT of compare")
    method: str = arg(..., "how to weigh the answers", choices=METHOD_NAMES)
    data: str = arg(..., "JSONL file, one example per line: prompt + completion, prompt + chosen + rejected, messages, or text")
    out: str = arg(..., "folder of the run: config.json, log.jsonl, checkpoint.safetensors, and at the end model/")
    negatives: str | None = arg(None, "JSONL file of the model's own answers, from 'minialign sample'; dft and dft2 need it")
    k: int | None = arg(None, "negatives per prompt and epoch, taken in turn from the file; all of them unless given", least=1)
    epochs: int = arg(1, "passes over the data", least=1)
    batch: int = arg(32, "prompts per update", least=1)
    micro_batch: int = arg(8, "most prompts per forward pass: less needs less memory, the result is the same", least=1)
    pass_tokens: int | None = arg(None, "most tokens per forward pass, padding included: short examples then go in larger passes "
                                        "than long ones, up to --micro-batch", least=1)
    lr: float = arg(5e-4, "peak learning rate; 5e-7 to 2e-6 for a 7 B model, around 5e-4 for a tiny one", above=0.0)
    warmup: float = arg(0.1, "share of the updates in which the learning rate rises; then it falls along a cosine to 0",
                        least=0.0, most=0.99)
    weight_decay: float = arg(0.0, "decoupled weight decay on matrices", least=0.0)
    clip: float | None = arg(None, "gradients longer than this are shortened to it; 1 unless given", above=0.0)
    beta1: float = arg(0.9, "AdamW's memory of gradients; 0 makes it RMSprop, and saves that memory", least=0.0, most=0.9999)
    beta2: float = arg(0.95, "AdamW's memory of their squares", least=0.0, most=0.9999)
    moments: str = arg("float32", "in what AdamW keeps both; bfloat16 halves their memory", choices=DTYPES[:2])
    inside_backward: bool = arg(False, "update each parameter as soon as its gradient is there and keep no gradient: "
                                       "an update is one pass, not clipped")
    activation_checkpointing: bool = arg(False, "keep only the input of every layer, and compute the rest again going back: "
                                                "much less memory, a quarter to a third more time")
    lora_rank: int | None = arg(None, "train low-rank adapters of this rank and leave the weights alone; "
                                      "all weights learn unless given", least=1)
    lora_alpha: float | None = arg(None, "the adapters' scale is this over the rank; twice the rank unless given", above=0.0)
    lora_targets: str | None = arg(None, "the linear layers that get one, separated by commas; all of them unless given")
    max_len: int | None = arg(None, "longest prompt + answer in tokens, the model's context unless given; "
                                    "what is longer is cut and counted", least=2)
    seed: int = arg(0, "order of the data, and all else that is drawn", least=0, most=10**9)
    dtype: str = arg("float32", "the model's numbers while training; bfloat16 is rounded stochastically", choices=DTYPES[:2])
    device: str = arg("cpu", "cpu, cuda, cuda:1, …")
    threads: int | None = arg(None, "CPU threads; torch decides unless given", least=1, most=1024)
    checkpoint_every: int = arg(50, "updates between checkpoints; 0 keeps none, for disks that cannot hold two", least=0)
    resume: bool = arg(False, "continue the run in --out from its last checkpoint")
    lam: float | None = arg(None, "asft, orpo: weight of the alignment term; ift: share of the model's own guess; "
                                  "dpop, slic: weight of the penalty")
    beta_odds: float | None = arg(None, "asft: temperature of the odds, 1 in the paper")
    tau: float | None = arg(None, "dft, dft2: temperature of the scores; ipo: inverse of the target margin")
    gamma: float | None = arg(None, "dft, dft2: share of the new estimate in the running average; ift: discount; simpo: margin")
    beta: float | None = arg(None, "dpo and its relatives, kto, cpo, simpo: temperature of the margin")
    label_smoothing: float | None = arg(None, "dpo: share of pairs taken to be the wrong way round")
    alpha: float | None = arg(None, "rdpo: price of a token of length; cpo: weight of the likelihood term")
    delta: float | None = arg(None, "slic: margin")
    lambda_d: float | None = arg(None, "kto: weight of desirable answers")
    lambda_u: float | None = arg(None, "kto: weight of undesirable answers")
    length_penalty: float | None = arg(None, "rrhf: power of the length that divides a log-prob")
    rrhf_weight: float | None = arg(None, "rrhf: weight of the ranking term")
    sft_weight: float | None = arg(None, "simpo_sft: weight of the likelihood term")
    reduction: str | None = arg(None, "sft: what the mean is over", choices=("seq_mean", "seq_sum", "token_mean"))
    nll: str | None = arg(None, "cpo: what the likelihood term is averaged over", choices=("token_mean", "seq_sum"))
    sft: str | None = arg(None, "rrhf: reduction of the likelihood term", choices=("token_mean", "sum"))
    length_normalize: bool | None = arg(None, "ipo: mean instead of summed log-probs")
    detach_weights: bool | None = arg(None, "ift: no gradient through the propagation weights")

    def hyper(self) -> dict:
        """The method's hyper-parameters that were given: the fields after `resume`."""
        names = [f.name for f in fields(self)]
        return {name: getattr(self, name) for name in names[names.index("resume") + 1 :] if getattr(self, name) is not None}


@dataclass(frozen=True)
class Sample:
    model: str = arg(..., "model folder to draw from; it becomes the reference of dft")
    data: str = arg(..., "JSONL file whose prompts to answer")
    out: str = arg(..., "JSONL file to append to, a line per prompt; the same command continues a file that was interrupted")
    k: int = arg(2, "answers per prompt; for fresh ones in every epoch take k × epochs", least=1)
    system: str | None = arg(None, "system message while sampling, such as a request for bad answers "
                                   "(written in front of prompts that are strings)")
    temperature: float = arg(0.7, "0 takes the likeliest token", least=0.0)
    top_k: int | None = arg(50, "draw among the k likeliest tokens", least=1)
    top_p: float | None = arg(None, "draw among the likeliest tokens that hold this share of it all", above=0.0, most=1.0)
    max_new_tokens: int = arg(128, "longest answer", least=1, most=10**6)
    batch: int = arg(16, "prompts at a time", least=1)
    seed: int = arg(0, "what the draws depend on", least=0, most=10**9)
    dtype: str = arg("float32", "the model's numbers", choices=DTYPES)
    device: str = arg("cpu", "cpu, cuda, cuda:1, …")


@dataclass(frozen=True)
class Evaluate:
    model: str = arg(..., "model folder")
    data: str = arg(..., "JSONL file in any of the formats of train")
    generate: int = arg(0, "also answer this many prompts greedily, and compare with the wanted answers: "
                           "exact match, BLEU-4, ROUGE-L", least=0)
    max_new_tokens: int = arg(256, "longest generated answer", least=1, most=10**6)
    max_len: int | None = arg(None, "longest prompt + answer in tokens, the model's context unless given", least=2)
    batch: int = arg(16, "prompts at a time", least=1)
    dtype: str = arg("float32", "the model's numbers", choices=DTYPES)
    device: str = arg("cpu", "cpu, cuda, cuda:1, …")
    json: bool = arg(False, "print one JSON object instead of a table")


@dataclass(frozen=True)
class Generate:
    model: str = arg(..., "model folder")
    prompt: str | None = arg(None, "text to continue; models with a chat template get it as a user's message")
    chat: bool = arg(False, "a conversation on the terminal instead; the model needs a chat template")
    system: str | None = arg(None, "system message before the prompt or the conversation")
    raw: bool = arg(False, "continue the text as it stands, chat template or not")
    greedy: bool = arg(False, "always take the likeliest token")
    temperature: float = arg(0.7, "how adventurous the draw is", least=0.0)
    top_k: int | None = arg(50, "draw among the k likeliest tokens", least=1)
    top_p: float | None = arg(None, "draw among the likeliest tokens that hold this share of it all", above=0.0, most=1.0)
    max_new_tokens: int = arg(256, "longest answer", least=1, most=10**6)
    seed: int = arg(0, "what the draw depends on", least=0, most=10**9)
    dtype: str = arg("float32", "the model's numbers", choices=DTYPES)
    device: str = arg("cpu", "cpu, cuda, cuda:1, …")


@dataclass(frozen=True)
class Study:
    name: str = arg(..., "a name from the list below, or all", positional=True)
    seeds: int | None = arg(None, "how many seeds; 3 to 5 unless given: what fits into three minutes on two cores", least=1)
    first_seed: int = arg(0, "the first of them; other seeds are a fresh draw of everything", least=0, most=10**9)
    methods: str | None = arg(None, "study methods only: which ones, separated by commas, or all")
    json: str | None = arg(None, "write every number, one value per seed, to this file (- for standard output)")
    out: str = arg("out", "folder for pictures and cached base models")


@dataclass(frozen=True)
class Bench:
    modes: list[str] = arg((), f"what to measure: {', '.join(BENCH_MODES)}; all of them unless given", positional=True, nargs="*")
    preset: str = arg("cpu-32k", "shape of the model, with random weights", choices=PRESETS)
    model: str | None = arg(None, "a model folder instead: its shape, with random weights; mode load reads the folder itself")
    method: str = arg("asft", "method of a training step; several, separated by commas, are compared with the first")
    batch: int | None = arg(None, "prompts at a time: 4 to train on; generate takes 1, 8 and 32 in turn unless given",
                            least=1, most=1024)
    len: int | None = arg(None, "tokens of prompt + answer: 512 to train on, 192 to generate, unless given", least=2,
                          most=65_536)
    prompt_len: int | None = arg(None, "tokens of it that are prompt: 128 to train on, 64 to generate, unless given", least=1)
    k: int = arg(1, "negatives per prompt, for methods that look at any", least=1, most=64)
    dtype: str = arg("float32", "the model's numbers", choices=DTYPES[:2])
    device: str = arg("cpu", "cpu, cuda, cuda:1, …")
    lean: bool = arg(False, "train as 8 B on one GPU do: bfloat16 moments, no stored gradients, activation checkpointing")
    threads: int | None = arg(None, "CPU threads; torch decides unless given", least=1, most=1024)
    rounds: int = arg(5, "how often each side takes its turn", least=1)
    against: str | None = arg(None, "also time this peer on the same data, in a process of its own",
                              choices=("trl", "transformers"))
    peer_python: str | None = arg(None, "the Python interpreter that has the peer; this one unless given")
    memory_only: bool = arg(False, "only count what a training step will hold; the same as mode memory")
    json: str | None = arg(None, "write every number, one value per round, to this file (- for standard output)")


VERBS = {   # verb: arguments, module and function, what it is for
    "compare": (Compare, "verbs.compare:main", "every method from the same start on the same data, with clean and with wrong labels: "
                                         "a table and pictures"),
    "train": (Train, "verbs.train:train", "fine-tune a model folder with one method"),
    "sample": (Sample, "verbs.sample:run", "draw a pool of a model's own answers: the negatives of dft and dft2"),
    "evaluate": (Evaluate, "verbs.evaluate:run", "log-probs, perplexity, preference accuracy, "
                                           "and answers compared with the wanted ones"),
    "study": (Study, "verbs.study:main", "one claim of the papers put to the test: a table, a picture, one honest sentence"),
    "bench": (Bench, "bench.compare:run", "what the work costs on this machine: beside its floor, and beside TRL and transformers"),
    "generate": (Generate, "verbs.generate:run", "continue one prompt, or hold a conversation"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m minialign", allow_abbrev=False,
                                     description="Align a language model without RLHF machinery; every gradient by hand.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (cls, _, what) in VERBS.items():
        words = {"help": what, "description": what[0].upper() + what[1:] + "."}
        if verb == "study":
            words |= {"epilog": f"studies:\n{listing()}", "formatter_class": argparse.RawDescriptionHelpFormatter}
        add_flags(verbs.add_parser(verb, allow_abbrev=False, **words), cls)
    return parser


def main(argv: list[str] | None = None) -> int:
    values = vars(build_parser().parse_args(argv))
    verb = values.pop("verb")
    cls, home, _ = VERBS[verb]
    module, function = home.split(":")
    return exit_status(f"minialign {verb}", lambda: getattr(import_module(f"minialign.{module}"), function)(cls(**values)))


if __name__ == "__main__":
    sys.exit(main())
