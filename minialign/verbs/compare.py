"""`minialign compare`: the main job. The race itself is lab/race.py."""

from minialign.lab import race
from minialign.methods import METHODS


def main(args) -> None:
    """Every method from the same start on the same data, with right and with wrong labels."""
    seeds = list(range(args.first_seed, args.first_seed + args.seeds))
    race.run(seeds, chosen_methods(args.methods), args.json, args.out)


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
