"""The command line: `minialign VERB …`, or `python -m minialign VERB …`.

A verb is a module of minialign/verbs with a dataclass `Flags` and a function `run`. It is imported
once it has been chosen, so `minialign -h` does not wait for torch.
"""

import argparse
import io
import os
import sys
from importlib import import_module

from minialign.verbs.flags import add_flags, exit_status

VERBS = {
    "compare": "every method from the same start on the same data, with clean and with wrong "
               "labels: a table and pictures",
    "train": "fine-tune a model folder with one method",
    "sample": "draw a pool of a model's own answers: the negatives of dft and dft2",
    "evaluate": "log-probs, perplexity, preference accuracy, and answers compared with the wanted "
                "ones",
    "study": "one claim of the papers put to the test: a table, a picture, one honest sentence",
    "bench": "what the work costs on this machine: beside its floor, and beside TRL and "
             "transformers",
    "generate": "continue one prompt, or hold a conversation",
}
SHARED = ("train", "sample", "evaluate")        # what several processes, from torchrun, can share


def chosen_verb(words: list[str]) -> str:
    """The first word, if it is a verb. argparse answers -h, and refuses anything else."""
    parser = argparse.ArgumentParser(
        "minialign", allow_abbrev=False,
        description="Align a language model without RLHF machinery; every gradient by hand.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, what in VERBS.items():
        verbs.add_parser(verb, help=what, add_help=False)
    return parser.parse_args(words[:1]).verb


def flags_of(verb: str, words: list[str]):
    """The rest of the command line as the verb's Flags."""
    module = import_module(f"minialign.verbs.{verb}")
    what = VERBS[verb]
    parser = argparse.ArgumentParser(
        f"minialign {verb}", allow_abbrev=False,
        description=what[0].upper() + what[1:] + ".")
    if hasattr(module, "EPILOG"):
        parser.epilog = module.EPILOG
        parser.formatter_class = argparse.RawDescriptionHelpFormatter       # it keeps the line ends
    add_flags(parser, module.Flags)
    return module.Flags(**vars(parser.parse_args(words)))


def main(words: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted."""
    if words is None:
        words = sys.argv[1:]
    # A terminal that cannot write Δ gets a question mark. Nothing that is finished is lost for it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    verb = chosen_verb(words)

    def work() -> None:
        flags = flags_of(verb, words[1:])
        if verb not in SHARED and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(f"torchrun would run {verb} several times over; start it without "
                             f"torchrun: python -m minialign {verb} …")
        import_module(f"minialign.verbs.{verb}").run(flags)
        import_module("minialign.parallel").end()

    return exit_status(f"minialign {verb}", work)


if __name__ == "__main__":
    sys.exit(main())
