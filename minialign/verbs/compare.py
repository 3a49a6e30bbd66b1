"""`minialign compare`: the main job. The race itself is lab/race.py."""

from dataclasses import dataclass

from minialign.lab import race
from minialign.methods import METHODS
from minialign.settings import setting


@dataclass(frozen=True)
class Flags:
    """Which methods race, from how many starts, and where the results go."""

    seeds: int = setting(
        3, "how many seeds, each with a base model of its own (trained once, then cached in "
        "OUT/cache)", least=1)
    first_seed: int = setting(
        0, "the first of them; other seeds are a fresh draw of everything", least=0, most=10**9)
    methods: str = setting(
        "sft,asft,dft,dft2,ift", "methods to race, separated by commas, or all; sft and dft "
        "bring their controls")
    json: str | None = setting(
        None, "write every number, one value per seed, to this file (- for standard output)")
    out: str = setting("out", "folder for pictures and cached base models")


def run(flags: Flags) -> None:
    """Every method from the same start on the same data, with right and with wrong labels."""
    seeds = list(range(flags.first_seed, flags.first_seed + flags.seeds))
    race.run(seeds, chosen_methods(flags.methods), flags.json, flags.out)


def chosen_methods(words: str) -> list[str]:
    """The methods that --methods names. ValueError for a name that no method has."""
    if words == "all":
        return list(METHODS)
    names = words.split(",")
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        known = ", ".join(METHODS)
        raise ValueError(f"no method {', '.join(unknown)}; choose from {known}, or all")
    return names
