"""The papers' claims as experiments: `minialign study NAME`. Here is their list; no torch yet.

A study trains a few small models, or computes something exactly, and prints a table. It judges its
claim by what it has just measured: "holds", "holds only if …", "does not hold here", or "undecided"
where the seeds leave it open.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from minialign.files import can_write, write_json


@dataclass(frozen=True)
class Claim:
    """What is claimed and where; `home` is what measures it, module:function in this package."""

    claim: str
    source: str
    home: str
    seeds: int = 5


STUDIES = {
    "likelihoods": Claim(
        "DFT raises the wanted answers as SFT does while its own answers fall; under SimPO and "
        "SPIN the wanted ones fall too", "DFT, Fig. 3; SPIN added", "dft:likelihoods"),
    "gamma": Claim(
        "a moving average (γ 0.8 to 0.95) is much better than none (γ = 1)",
        "DFT, Table 8", "dft:gamma"),
    "negatives": Claim(
        "two negatives per prompt are better than one, and than four",
        "DFT, Table 9", "dft:negatives"),
    "temperature": Claim(
        "negatives are best drawn at a moderate temperature, 0.7",
        "DFT, Table 12", "dft:temperature"),
    "personas": Claim(
        "negatives from an adversarial system prompt are the best, from a good one the worst",
        "DFT, Fig. 7", "dft:personas"),
    "methods": Claim(
        "on self-play data DFT beats SFT and every preference method",
        "DFT, Table 2", "dft:methods", seeds=4),
    "lr": Claim(
        "DFT beats SFT and preference methods, each at its own best learning rate",
        "DFT, Table 2 and §A.2", "dft:lr", seeds=3),
    "tau": Claim(
        "τ is best near 1 for DFT, near 0.3 for DFT2", "DFT, §A.2, Tables 5 and 6", "dft:tau"),
    "exact_u": Claim(
        "the moving average u estimates its sum over all answers better than the batch at hand "
        "(γ = 1)", "DFT, eq. 7 and §4.2", "exact:exact_u"),
    "asft_vs_dpo": Claim(
        "DPO lowers the rejected answer faster than it raises the chosen one; ASFT mitigates that",
        "ASFT, abstract", "asft:asft_vs_dpo"),
    "balance": Claim(
        "DPO's gradient is larger on the rejected answer than on the chosen one, ASFT's is "
        "balanced", "ASFT, §4.1 and §4.3", "balance:balance"),
    "beta": Claim(
        "the weight of the alignment term, β from 0.1 to 1, hardly matters",
        "ASFT, β = 0.1 as typical, 0.1 to 0.5", "asft:beta"),
    "init": Claim(
        "ASFT is less sensitive to the initial model than methods that compare answers",
        "ASFT, abstract", "asft:init", seeds=4),
    "cost": Claim(
        "without a reference model a step takes 13 % less time and 16.7 % less memory",
        "ASFT, abstract", "cost:cost"),
    "lambda": Claim(
        "mixing in the model's own guesses helps, with λ = 0.2",
        "IFT, §B.1; 0.3 to 0.5 in summaries", "ift:residual"),
    "propagation": Claim(
        "propagating losses through the answer (a cumulative sum) beats the simple sum",
        "IFT, eq. 21, Algorithm 1, ablation", "ift:propagation"),
    "greedy": Claim(
        "where the policy's greedy token is already right, IFT's residual changes nothing",
        "IFT, eq. 17 (a consequence, ours)", "ift:greedy", seeds=3),
    "first_pass": Claim(
        "asking the policy for its guesses costs next to nothing",
        "IFT, §4 and §5", "cost:first_pass"),
    "writer": Claim(
        "a policy that learns from a better writer does better with its own answers as negatives, "
        "or its own guesses, than by imitation alone",
        "DFT and IFT, abstracts; real models, ours", "writer:writer", seeds=3),
}


def listing() -> str:
    """Every study with its claim, for -h and for whoever mistypes a name."""
    lines = [f"  {name:12s} {study.claim} ({study.source})" for name, study in STUDIES.items()]
    return "\n".join(lines)


def chosen(name: str) -> list[str]:
    """The studies that a name on the command line stands for.

    All means those on the lab's own small GPT: "writer" takes half an hour by itself.
    """
    if name == "all":
        return [other for other in STUDIES if other != "writer"]
    if name not in STUDIES:
        raise ValueError(f"no study {name}; choose from {', '.join(STUDIES)}, or all")
    return [name]


def run(
    names: list[str], seeds: int | None, first_seed: int, methods: list[str] | None,
    json: str | None, out: str, judge: str | None = None, tune: bool = False,
) -> None:
    """`minialign study`: measure, write the numbers into their file, print, and only then draw.

    seeds     how many; None: as many as the claim says
    methods   which ones race in the study "methods"; None: its own
    judge     a model folder that judges in the study "writer"; None: its own
    tune      choose the learning rates of the study "writer" instead
    """
    from minialign.lab.studies.lab import Lab, many_at_once  # here torch is needed

    can_write(out, json)
    known, results, found = {}, {}, {}
    for name in names:
        study = STUDIES[name]
        some = list(range(first_seed, first_seed + (seeds or study.seeds)))
        lab = Lab(some, Path(out), known, methods, judge, tune)
        module, function = study.home.split(":")
        measure = getattr(import_module(f"minialign.lab.studies.{module}"), function)
        findings = found[name] = measure(lab)

        # A file is brought up to date after every study; standard output gets one object.
        results[name] = findings.numbers()
        if json and json != "-":
            write_json(json, results, indent=1)
        print(findings.report(name, study, lab), flush=True)
        if name == names[-1]:
            print(many_at_once(found), flush=True)
            if json == "-":
                write_json(json, results, indent=1)
        findings.draw(folder=out, name=f"study_{name}")
