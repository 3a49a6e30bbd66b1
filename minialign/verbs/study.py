"""`minialign study`: one claim of the papers, put to the test. The studies are lab/studies/."""

from minialign.lab import studies
from minialign.verbs.compare import chosen_methods


def main(args) -> None:
    """A table, a picture, one honest sentence and a verdict for every study asked for."""
    names = studies.chosen(args.name)
    methods = None
    if args.methods is not None:
        if args.name != "methods":
            raise ValueError("--methods means something to the study methods only; every other one "
                             "compares what its claim is about")
        methods = chosen_methods(args.methods)
    studies.run(names, args.seeds, args.first_seed, methods, args.json, args.out)
