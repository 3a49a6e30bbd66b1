"""What the world has, for our Transformer: model folders, tokenizers, data files, adapters.

The names below are imported when they are first used, since a tokenizer does not need torch.
"""

from importlib import import_module

_HOME = {
    "load_model": "folders",
    "save_model": "folders",
    "read_config": "folders",
    "model_folder": "places",
    "load_weights": "folders",
    "load_tokenizer": "tokenizer",
    "load_examples": "datafiles",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'minialign.hf' has no attribute {name!r}")
    return getattr(import_module(f"minialign.hf.{_HOME[name]}"), name)
