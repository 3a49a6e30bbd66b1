"""What `python -m toy` can be told, as a dataclass; the defaults of every file in this folder.

No torch here: -h answers at once.
"""

from dataclasses import dataclass

from minialign.settings import setting

# A study chooses these for itself; they belong to the comparison alone.
COMPARISON_ONLY = ("map", "slippery", "base", "methods")


@dataclass(frozen=True)
class Flags:
    """IFT's Frozen Lake: every method from the same start, measured exactly. Prints a table with
    95 % intervals and draws it."""

    study: str | None = setting(
        None, "answer one question instead: when are IFT's labels right? In mazes and a corridor",
        choices=("labels",))
    map: str = setting(
        "4x4", "gymnasium's maps, ours (corridor, two-path), or a random 6x6 maze for each seed",
        choices=("4x4", "8x8", "corridor", "two-path", "maze"))
    slippery: bool = setting(
        False, "two of three steps slip, gymnasium's default; off, as the paper has one optimal "
        "trajectory")
    base: str = setting(
        "random", "the policy before alignment, which the paper does not describe: untrained, or "
        "taught by a mostly random expert", choices=("random", "noisy"))
    seeds: int | None = setting(
        None, "how many; all train side by side, so more cost little; unless given, 40, and 100 "
        "for --study labels", least=1, most=10_000)
    first_seed: int = setting(
        0, "the first seed; 9001 and on were never used to choose anything", least=0, most=2**32)
    methods: str = setting(
        "sft,asft,dft,ift_eq21,ift_simple,ift,dpo,orpo", "minialign's methods separated by commas, "
        "or all; ift_eq21 is IFT's formula, ift its released weights, ift_simple the plain sum; "
        "five controls always run")
    lam: float = setting(
        0.5, "IFT: share of the policy's own guess; half shows clearly what it does; the paper's "
        "language runs: 0.2", least=0.0, most=1.0)
    steps: int = setting(
        100, "full-batch training steps; enough for SFT to walk the demonstrated path",
        least=1, most=10_000)
    lr: float = setting(
        0.01, "Adam's learning rate in the main table; a second table gives each method its own",
        above=0.0)
    json: str | None = setting(
        None, "write every number of every seed to this file", metavar="FILE")
    out: str = setting("out", "folder for the pictures", metavar="DIR")

    def all_seeds(self) -> list[int]:
        return list(range(self.first_seed, self.first_seed + self.seeds))
