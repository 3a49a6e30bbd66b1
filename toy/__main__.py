"""`python -m toy`: the comparison on one lake, or a study. torch, gymnasium and matplotlib are imported when work starts."""

import argparse
import sys
import time
from dataclasses import dataclass, fields, replace

from minialign.files import can_write
from minialign.verbs.flags import add_flags, arg, exit_status
from toy.maps import BadRequest


@dataclass(frozen=True)
class Args:
    """IFT's Frozen Lake: every method from the same start, measured exactly. Prints a table with 95 % intervals and draws it."""

    study: str | None = arg(None, "answer one question instead: when are IFT's labels right, two paths, the dose, 216 designs",
                            choices=("labels", "paths", "lambda", "designs", "all"))
    map: str = arg("4x4", "4x4, 8x8 (gymnasium's), corridor, two-path (ours), maze (6x6, one per seed) or a text file of SFHG")
    slippery: bool = arg(False, "two of three steps slip, gymnasium's default; off, as the paper has one optimal trajectory")
    base: str = arg("random", "the policy before alignment, which the paper does not describe: untrained, taught by a mostly "
                    "random expert, or taught the sub-optimal trajectory", choices=("random", "noisy", "suboptimal"))
    seeds: int | None = arg(None, "how many; all train side by side, so more cost little; unless given, 40 for the comparison, "
                            "100 for --study labels, 40 for paths and lambda, 20 for designs", least=1, most=10_000)
    first_seed: int = arg(0, "the first seed; 9001 and on were never used to choose anything", least=0, most=2**32)
    methods: str = arg("sft,asft,dft,ift_eq21,ift_simple,ift,dpo,orpo", "minialign's methods separated by commas, or all; "
                       "ift_eq21 is IFT's formula, ift its released weights, ift_simple the plain sum; three controls always run")
    lam: float = arg(0.5, "IFT: share of the policy's own guess; half shows clearly what it does; the paper's language runs: 0.2",
                     least=0.0, most=1.0)
    gamma: float = arg(0.95, "IFT, released weights: decay of the relation propagation; the paper's value", least=0.0, most=1.0)
    guess: str = arg("expected", "IFT: where the policy's own action leads, averaged over its probabilities, or its likeliest "
                     "action alone (the paper leaves it open; its code for language takes the likeliest)",
                     choices=("expected", "greedy"))
    steps: int = arg(100, "full-batch training steps; enough for SFT to walk the demonstrated path", least=1, most=10_000)
    lr: float = arg(0.01, "learning rate of the main table; a second table gives each method its own", above=0.0)
    optimizer: str = arg("adam", "adam rescales every step, so that even a tiny dose of residual counts; sgd keeps proportions "
                         "(try --lr 2)", choices=("adam", "sgd"))
    policy: str = arg("network", "the paper's two layers, or a table: one row of logits per state, where nothing generalises",
                      choices=("network", "table"))
    episodes: int = arg(1000, "episodes per row played in gymnasium to confirm the exact values; 0 = none", least=0)
    animate: bool = arg(False, "also write a GIF of the policies walking the lake under 10 % noise")
    json: str | None = arg(None, "write every number of every seed to this file", metavar="FILE")
    out: str = arg("out", "folder for the pictures", metavar="DIR")


def parse(argv: list[str] | None) -> Args:
    """The command line as Args; argparse exits with status 2 on anything it does not know."""
    parser = argparse.ArgumentParser("python -m toy", description=Args.__doc__, allow_abbrev=False)
    add_flags(parser, Args)
    return Args(**vars(parser.parse_args(argv)))


def compare(args: Args) -> dict:
    """The main job: table, sentence, pictures; returns what goes into the JSON file."""
    from tqdm import tqdm

    from toy import plot
    from toy.compare import choose, prepare, race
    from toy.policy import Network, Table
    from toy.report import as_json, played, tables, verdict

    names, args = choose(args.methods), replace(args, seeds=args.seeds or 40)
    seeds = list(range(args.first_seed, args.first_seed + args.seeds))
    setting = prepare(args.map, seeds, args.slippery, args.base, kind=Network if args.policy == "network" else Table)
    print(f"{args.map}{' slippery' if args.slippery else ''}, initial policy {args.base}, {args.policy}, λ {args.lam:g}")
    results = race(setting, names, args, lambda rows: tqdm(rows, desc="methods", file=sys.stderr, leave=False))
    print(tables(results, args), "", verdict(results), sep="\n")
    if args.episodes:
        print(played(setting, results, args.episodes))
    for path in plot.comparison(setting, results, args):
        print(f"picture: {path}")
    return as_json(results)


def studies(args: Args) -> dict:
    """The studies, one after the other, each with the number of seeds that it needs unless told otherwise."""
    from toy.study import SEEDS, STUDIES

    for f in fields(Args):
        foreign = f.name in ("map", "slippery", "base", "methods", "policy", "episodes", "animate")
        if foreign and getattr(args, f.name) != f.default:
            raise BadRequest(f"--{f.name} belongs to the comparison; a study chooses its own: leave it out, or leave out --study")
    found = {}
    for name in STUDIES if args.study == "all" else [args.study]:
        found[name] = STUDIES[name](replace(args, seeds=args.seeds or SEEDS[name]))
        print()
    return found


def work(args: Args) -> None:
    began = time.time()
    can_write(args.out, args.json)      # now, and not after the work
    import torch

    torch.set_num_threads(1)            # the tensors are too small to share: more threads only wait for each other
    found = studies(args) if args.study else compare(args)
    if args.json:
        import json

        from minialign.files import write_text
        from toy.report import plain

        write_text(args.json, json.dumps(plain(found)))
        print(f"numbers: {args.json}")
    print(f"{time.time() - began:.0f} s")


def main(argv: list[str] | None = None) -> int:
    """0 done, 1 failed, 2 bad usage, 130 interrupted."""
    args = parse(argv)
    return exit_status("toy", lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
