"""Bad run folders to resume from, and bad command lines."""

import torch
from cases import BAD_JSON, Cases, changed, dropped
from safetensors.torch import load_file, save_file

CASES = Cases()
case = CASES.add


for what, content in BAD_JSON.items():
    def as_record(p, content=content):
        (p.path / "run" / "config.json").write_bytes(content)
        return p.resume()
    case("run folders", f"config.json {what}", as_record)

    def as_log(p, content=content):
        (p.path / "run" / "log.jsonl").write_bytes(content)
        return p.resume()
    case("run folders", f"log.jsonl {what}", as_log)

    def as_reference(p, content=content):
        (p.path / "run" / "reference.json").write_bytes(content)
        return p.resume()
    case("run folders", f"reference.json {what} is computed again", as_reference, lenient=True)


def checkpoint(change):
    def make(p):
        file = p.path / "run" / "checkpoint.safetensors"
        state = {name: x.clone() for name, x in load_file(file).items()}
        change(state)
        save_file(state, file, {"step": "3"})
        return p.resume()
    return make


KEPT = ["model.model.norm.weight", "optimizer.m.model.norm.weight", "optimizer.steps",
        "optimizer.v.model.norm.weight", "optimizer.v.lm_head.weight"]
for name in KEPT:
    case("run folders", f"checkpoint without {name}", checkpoint(dropped(name)))
    for what, how in {
        "broadcast": lambda x: x.flatten()[:1].clone(), "int8": lambda x: x.to(torch.int8),
        "longer": lambda x: torch.cat([x.flatten(), x.flatten()]), "half": lambda x: x.half(),
        "NaN": lambda x: x * float("nan"), "empty": lambda x: x.flatten()[:0].clone(),
    }.items():
        case("run folders", f"checkpoint {name} {what}", checkpoint(changed(name, how)))
case("run folders", "checkpoint with one too many", checkpoint(
    lambda s: s.update(extra=torch.ones(1))))
for share in 0.0, 0.01, 0.5, 0.9, 0.999:
    def torn(p, share=share):
        file = p.path / "run" / "checkpoint.safetensors"
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        return p.resume()
    case("run folders", f"checkpoint cut to {share}", torn)
for name in "checkpoint.safetensors", "config.json", "log.jsonl":
    def a_folder(p, name=name):
        (p.path / "run" / name).unlink()
        (p.path / "run" / name).mkdir()
        return p.resume()
    case("run folders", f"{name} is a folder", a_folder)
for step in "-1", "0.5", "x", "", "999", "1e3":
    def stepped(p, step=step):
        file = p.path / "run" / "checkpoint.safetensors"
        save_file(load_file(file), file, {"step": step})
        return p.resume()
    case("run folders", f"checkpoint of step {step!r}", stepped)


def another_base(p):
    file = p.model / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"] = state["model.norm.weight"] + 1
    save_file(state, file, {"format": "pt"})
    return p.resume()


case("run folders", "another base model", another_base)
case("run folders", "a run that is there", lambda p: p.train(out="run"))
case("run folders", "nothing to resume", lambda p: p.train("--resume"))


# ------------------------------------------------------------------------------------ command lines

VALUES = ["", "x", "-1", "nan", "inf", "1e300", "-1e300", "10**9", "99999999999999999999", "0x10"]
for flag in ("--lr", "--epochs", "--batch", "--micro-batch", "--warmup", "--weight-decay", "--clip",
             "--beta1", "--beta2", "--seed", "--max-len", "--lora-rank", "--lora-alpha",
             "--beta", "--checkpoint-every", "--threads", "--pass-tokens"):
    for value in VALUES:
        lenient = (flag == "--clip" and value == "inf")
        case("command lines", f"{flag} {value!r}",
             lambda p, flag=flag, value=value: p.train(f"{flag}={value}"), lenient)
for words in (
    [], ["nothing"], ["train"], ["--help-me"], ["evaluate"], ["sample"], ["bench", "nothing"],
    ["compare", "--methods", "x"], ["compare", "--methods", ""], ["compare", "--seeds", "0"],
    ["study"], ["study", "x"], ["generate"], ["generate", "--model", "nowhere", "--prompt", "a"],
):
    case("command lines", f"{words}", lambda p, words=words: words)
for more in (["--device", "hpu"], ["--device", "xla"], ["--device", ""], ["--device", "cuda:99"],
             ["--device", "meta"], ["--lora-targets", ""],
             ["--lora-rank", "2", "--lora-targets", ""],
             ["--lora-rank", "2", "--lora-targets", "x"], ["--method", "x"], ["--dtype", "int8"],
             ["--data", "/dev/zero"], ["--data", "/dev/null"], ["--data", "nowhere"],
             ["--model", "/dev/null"], ["--model", "nowhere"], ["--out", "/dev/null"],
             ["--out", "/proc/x"], ["--method", "ift", "--lam", "1e300"],
             ["--method", "dft", "--tau", "0"], ["--data", "/"], ["--negatives", "/dev/zero"]):
    case("command lines", " ".join(more), lambda p, more=more: p.train(*more))
