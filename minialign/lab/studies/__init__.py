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
    seeds: int = 3              # runs that several studies share are made once if all have as many


STUDIES = {
    "likelihoods": Claim(
        "DFT raises the wanted answers as SFT does while the model's own fall; under SimPO and "
        "SPIN the wanted ones fall too", "DFT, Fig. 3; SPIN added", "dft:likelihoods"),
    "gamma": Claim(
        "a moving average (γ 0.8 to 0.95) is much better than none (γ = 1)",
        "DFT, Table 8 and Fig. 2", "dft:gamma"),
    "negatives": Claim(
        "two negatives per prompt are better than one, and than four",
        "DFT, Table 9", "dft:negatives"),
    "filter": Claim(
        "with wrong labels DFT beats SFT only where its negatives are wrong more often than the "
        "labels are", "ours; negatives made, not drawn", "filters:filters"),
    "temperature": Claim(
        "negatives are best drawn at a moderate temperature, 0.7",
        "DFT, Table 12", "dft:temperature"),
    "personas": Claim(
        "negatives from an adversarial system prompt are the best, from a good one the worst",
        "DFT, Fig. 7", "dft:personas"),
    "methods": Claim(
        "on self-play data DFT beats SFT and each of SPIN, SimPO, SimPO-SFT, KTO, ORPO and DPO-p, "
        "all at their own best settings", "DFT, Table 2 and §A.2", "rivals:methods"),
    "two_stages": Claim(
        "DFT is as good as SFT followed by DPO, SimPO or KTO on preference pairs, and better than "
        "SFT followed by DPO or SimPO on the model's own answers", "DFT, Tables 3 and 4",
        "rivals:two_stages"),
    "motivation": Claim(
        "SFT, which sees good answers only, may leave the bad answer likely; DFT makes it unlikely",
        "DFT, §4, motivating example", "rivals:motivation"),
    "tau": Claim(
        "τ is best near 1 for DFT, near 0.3 for DFT2", "DFT, §A.2, Tables 5 and 6", "dft:tau"),
    "pools": Claim(
        "sampled answers score like one another and far above random text; the log-sum-exp weighs "
        "the likeliest negative most, which an average over pairs does not",
        "DFT, Fig. 1 and §6", "pools:pools"),
    "dft_cost": Claim(
        "without a reference DFT2 costs less than DFT", "DFT, §5, Fig. 4", "rivals:dft_cost"),
    "exact_u": Claim(
        "the moving average u estimates its sum over all answers better than the batch at hand "
        "(γ = 1)", "DFT, eq. 7 and §4.2", "exact:exact_u"),
    "asft_vs_dpo": Claim(
        "DPO lowers the rejected answer faster than it raises the chosen one; ASFT mitigates that",
        "ASFT, abstract", "asft:asft_vs_dpo"),
    "balance": Claim(
        "DPO's gradient is larger on the rejected answer than on the chosen one, ASFT's is "
        "balanced", "ASFT, §4.1 and §4.3", "balance:balance"),
    "fall": Claim(
        "under DPO the chosen answer rises where the two answers part and falls elsewhere; "
        "likelihood keeps the whole up", "ours, on ASFT's abstract", "fall:fall"),
    "beta": Claim(
        "within the stated range, 0.1 to 0.5, the weight of the alignment term hardly matters",
        "ours; ASFT states the range and 0.1 as typical", "asft:beta"),
    "init": Claim(
        "ASFT is less sensitive to the initial model than methods that compare answers",
        "ASFT, abstract", "asft:init", seeds=4),
    "texts": Claim(
        "ASFT is better than SFT, DPO and ORPO in BLEU-4 and ROUGE-L",
        "ASFT, abstract and experiments; here on real stories", "texts:texts", seeds=3),
    "cost": Claim(
        "without a reference model a step takes 13 % less time and 16.7 % less memory",
        "ASFT, abstract", "cost:cost"),
    "lambda": Claim(
        "mixing in the model's own guesses helps, with λ = 0.2",
        "IFT, §B.1; 0.3 to 0.5 in summaries", "ift:residual"),
    "propagation": Claim(
        "propagating losses through the answer (a cumulative sum) beats the simple sum",
        "IFT, eq. 21, Algorithm 1, ablation", "ift:propagation"),
    "pipeline": Claim(
        "IFT, from wanted answers alone, is at least as good as SFT followed by DPO on pairs",
        "IFT, abstract", "ift:pipeline"),
    "recovery": Claim(
        "a policy trained with IFT comes back from a deviation",
        "IFT, its strength where that matters: reasoning, facts", "ift:recovery"),
    "estimate": Claim(
        "SFT overestimates the policy's preference; with λ = 1 IFT looks at the true one",
        "IFT, §3 and §4", "estimate:estimate"),
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
    tune      choose the settings of the study "methods" or "writer" instead
    """
    from minialign.lab.studies.lab import Known, Lab, many_at_once  # here torch is needed

    can_write(out, json)
    known, results, found = Known(Path(out) / "cache"), {}, {}
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
