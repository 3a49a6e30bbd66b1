"""`minialign study`: one claim of the papers, put to the test. The studies are lab/studies/."""

from dataclasses import dataclass

from minialign.lab import studies
from minialign.settings import setting

EPILOG = f"studies:\n{studies.listing()}"      # what -h says behind the flags


@dataclass(frozen=True)
class Flags:
    """Which study, on how many seeds, and where the results go."""

    name: str = setting(
        ..., "a name from the list below, or all, which leaves out writer: half an hour",
        positional=True)
    seeds: int | None = setting(
        None, "how many seeds; 3 unless given, which fits into three minutes on two cores; the "
        "verdicts in lab/studies/README.md rest on 10", least=1)
    first_seed: int = setting(
        0, "the first of them; other seeds are a fresh draw of everything", least=0, most=10**9)
    methods: str | None = setting(
        None, "study methods only: which ones, separated by commas, or all")
    judge: str | None = setting(
        None, "study writer only: the model that judges texts, instead of the teacher; any that "
        "train takes")
    tune: bool = setting(
        False, "studies methods, texts and writer only: try settings on seeds or openings kept for "
        "that, and name the best")
    json: str | None = setting(
        None, "write every number, one value per seed, to this file (- for standard output)")
    out: str = setting("out", "folder for pictures and cached base models")


def run(flags: Flags) -> None:
    """A table, a picture, one honest sentence and a verdict for every study asked for."""
    names = studies.chosen(flags.name)
    methods = None
    if flags.methods is not None:
        if flags.name != "methods":
            raise ValueError("--methods means something to the study methods only; every other one "
                             "compares what its claim is about")
        from minialign.verbs.compare import chosen_methods  # needs torch, and -h does not

        methods = chosen_methods(flags.methods)
    if flags.judge is not None and flags.name != "writer":
        raise ValueError("--judge means something to the study writer only")
    if flags.tune and flags.name not in ("methods", "texts", "writer"):
        raise ValueError("--tune means something to the studies methods, texts and writer only")
    studies.run(names, flags.seeds, flags.first_seed, methods, flags.json, flags.out, flags.judge,
                flags.tune)
