"""`minialign bench`: what the work costs on this machine. The measuring is minialign/bench/."""

from dataclasses import dataclass, replace

from minialign.bench import compare, peers
from minialign.hf.folders import pick_device
from minialign.hf.shapes import PRESETS
from minialign.settings import setting
from minialign.verbs.flags import TRAIN_DTYPES


@dataclass(frozen=True)
class Flags:
    """What to measure, on which shape, and beside what."""

    modes: list[str] = setting(
        (), f"what to measure: {', '.join(compare.MODES)}; all of them unless given",
        positional=True, nargs="*")
    preset: str = setting("cpu-32k", "shape of the model, with random weights", choices=PRESETS)
    model: str | None = setting(
        None, "a model folder instead: its shape, with random weights; mode load reads the folder "
        "itself")
    method: str = setting(
        "asft", "method of a training step; several, separated by commas, are compared with the "
        "first")
    batch: int | None = setting(
        None, "prompts at a time: 4 to train on; generate takes 1, 8 and 32 in turn unless given",
        least=1, most=1024)
    len: int | None = setting(
        None, "tokens of prompt + answer: 512 to train on, 192 to generate, unless given",
        least=2, most=65_536)
    prompt_len: int | None = setting(
        None, "tokens of it that are prompt: 128 to train on, 64 to generate, unless given",
        least=1)
    k: int = setting(1, "negatives per prompt, for methods that look at any", least=1, most=64)
    dtype: str = setting("float32", "the model's numbers", choices=TRAIN_DTYPES)
    device: str = setting("cpu", "cpu, cuda, cuda:1, mps, or auto: the best there is")
    lean: bool = setting(
        False, "train as 8 B on one GPU do: bfloat16 moments, no stored gradients, activation "
        "checkpointing")
    threads: int | None = setting(
        None, "CPU threads; torch decides unless given", least=1, most=1024)
    rounds: int = setting(5, "how often each side takes its turn", least=1)
    against: str | None = setting(
        None, "also time this peer on the same data, in a process of its own",
        choices=peers.NEEDED)
    peer_python: str | None = setting(
        None, "the Python interpreter that has the peer; this one unless given")
    memory_only: bool = setting(
        False, "only count what a training step will hold; the same as mode memory")
    json: str | None = setting(
        None, "write every number, one value per round, to this file (- for standard output)")


def run(flags: Flags) -> None:
    """A table for every mode: ours, beside the least that the work can cost, and beside peers."""
    compare.run(replace(flags, device=pick_device(flags.device)))
