"""minialign: aligning a language model without RLHF machinery, by hand.

The names below are imported when they are first used, so that `python -m minialign -h` does not wait for torch.
"""

from importlib import import_module

_HOME = {
    "METHODS": "methods",
    "Batch": "data",
    "Config": "model",
    "Transformer": "model",
    "linear_logps": "logps",
    "load_model": "hf.folders",
    "save_model": "hf.folders",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'minialign' has no attribute {name!r}")
    return getattr(import_module(f"minialign.{_HOME[name]}"), name)
