"""A setting: a dataclass field that carries its own explanation and bounds.

A method's hyper-parameters, the recipe of a training run and the flags of every verb are declared
with `setting`, once, where they are used. `check_settings` holds the values against the bounds;
verbs/flags.py turns the same fields into flags. No torch here.
"""

from dataclasses import MISSING, Field, field, fields

BOUNDS = ("least", "most", "above", "below")
HUGE = 1e15               # no setting of ours is larger; a number beyond it is a slip of the finger


def setting(default, help: str, **how):
    """A dataclass field with its explanation. The default ... (Ellipsis): a value must be given.

    how: for numbers the bounds `least` and `most` (both included), `above` and `below` (both
    excluded); for strings `choices`; for the command line alone `metavar`, `nargs`, and
    `positional=True` for a word that is given without a flag.
    """
    metadata = {"help": help, **how}
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def check_settings(owner) -> None:
    """ValueError if a setting of this dataclass lies outside its bounds; None is never checked."""
    for f in fields(owner):
        value = getattr(owner, f.name, None)
        if value is None or not f.init:
            continue
        if choices := f.metadata.get("choices"):
            if value not in choices:
                raise ValueError(f"{f.name} is {value!r}; choose {' or '.join(map(str, choices))}")
        elif any(name in f.metadata for name in BOUNDS) and (problem := out_of_bounds(f, value)):
            raise ValueError(f"{f.name} is {value}; {problem}")


def out_of_bounds(f: Field, value) -> str | None:
    """None for a number within the bounds of its setting, else which numbers are."""
    how = f.metadata
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "it must be a number"
    inside = (
        ("least" not in how or value >= how["least"])
        and ("most" not in how or value <= how["most"])
        and ("above" not in how or value > how["above"])
        and ("below" not in how or value < how["below"])
        and (abs(value) < HUGE or value == how.get("most"))         # false for NaN, like all above
    )
    return None if inside else f"it must be a number {bounds_in_words(how)}"


def bounds_in_words(how) -> str:
    """ "above 0 and up to 1": the bounds of a setting, for messages and for -h."""
    words = []
    if "above" in how:
        words.append(f"above {how['above']:g}")
    if "least" in how:
        words.append(f"from {how['least']:g}")
    if "below" in how:
        words.append(f"below {how['below']:g}")
    if "most" in how:
        words.append(f"up to {how['most']:g}")
    return " and ".join(words)


def is_required(f: Field) -> bool:
    """Must a value be given?"""
    return f.default is MISSING and f.default_factory is MISSING
