"""minialign: aligning a language model without RLHF machinery, by hand.

The names below are the project's front door: `from minialign import METHODS, load_model, …`. Each
is imported from its module when it is first asked for, because torch takes a second or two to
import, and `minialign -h` should not wait for it.
"""

from importlib import import_module

# name: the module that defines it
HOMES = {
    "METHODS": "minialign.methods",
    "Method": "minialign.methods",
    "build_method": "minialign.methods",
    "Config": "minialign.model",
    "Transformer": "minialign.model",
    "Batch": "minialign.data",
    "Example": "minialign.data",
    "linear_logps": "minialign.logps",
    "Recipe": "minialign.train",
    "fit": "minialign.train",
    "load_examples": "minialign.hf.datafiles",
    "load_model": "minialign.hf.folders",
    "save_model": "minialign.hf.folders",
    "load_tokenizer": "minialign.hf.tokenizer",
}
__all__ = sorted(HOMES)


def __getattr__(name: str):
    """Python calls this for a name that the package does not have yet."""
    if name not in HOMES:
        raise AttributeError(f"module 'minialign' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    """What dir(minialign) lists, so that an editor can complete the names."""
    return sorted([*globals(), *HOMES])
