"""Models by their name on the Hugging Face hub, OWNER/NAME: found in its cache, or downloaded.

Only what `load_model` reads is fetched: no code, no pickles, no second copies of the weights. The
cache is the one that all programs of Hugging Face share; nothing in it is ever changed here.
"""

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

from minialign.hf.jsonfiles import read_json

# What a tokenizer is read from, besides *.tiktoken and chat_templates/*.jinja.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json", "chat_template.jinja", "vocab.json", "merges.txt", "encoder.json",
    "vocab.bpe", "tokenizer.model", "tekken.json",
)
WANTED = (
    "config.json", "model.safetensors", "model.safetensors.index.json",
    "model-*-of-*.safetensors", "adapter_config.json", "adapter_model.safetensors",
    "*.tiktoken", "chat_templates/*.jinja", *TOKENIZER_FILES,
)


def local_folder(path: str | Path) -> Path:
    """The folder that `path` means, which need not exist.

    OWNER/NAME, where no such folder is there, means the model of that name on the hub. It is looked
    up in the cache, and downloaded if it is not all there.

    Raises FileNotFoundError, with what to do about it, if it cannot be had.
    """
    named = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path))
    if Path(path).exists() or not named:
        return Path(path)
    cached = in_cache(str(path))
    if cached is not None and lacking(cached) is None:
        return cached
    return download(str(path), cached)


def in_cache(name: str) -> Path | None:
    """The folder of a model in the cache, whole or not; None if nothing is known of it."""
    from huggingface_hub import constants, try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(name, file, cache_dir=constants.HF_HUB_CACHE)
        if isinstance(found, str):
            return Path(found).parent
    return None


def lacking(folder: Path) -> str | None:
    """The first file that a half-downloaded model still needs; None if it has them all."""
    if not (folder / "config.json").exists():
        needed = ["adapter_model.safetensors"]
    elif (folder / "model.safetensors.index.json").exists():
        listed = read_json(folder / "model.safetensors.index.json").get("weight_map")
        needed = sorted(set(listed.values())) if isinstance(listed, dict) else []
    else:
        needed = ["model.safetensors"]
    for file in needed:
        if not (folder / file).exists():
            return file

    # Adapters may come without a tokenizer, models may not.
    vocabularies = ("tokenizer.json", "vocab.json", "tokenizer.model", "tekken.json")
    has_vocabulary = any((folder / file).exists() for file in vocabularies)
    if has_vocabulary or any(folder.glob("*.tiktoken")) or not (folder / "config.json").exists():
        return None
    return "tokenizer.json"


def download(name: str, cached: Path | None) -> Path:
    """Fetches what a model folder needs into the cache, and says so first.

    cached   the model's folder in the cache if a part of it is there
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    # The hub's client lets the errors of several libraries through, so all of them are caught.
    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=10)
        files = {}
        for file in info.siblings:
            if any(fnmatch(file.rfilename, pattern) for pattern in WANTED):
                files[file.rfilename] = file.size or 0
        if any(file.endswith(".safetensors") for file in files):
            size = sum(files.values()) / 1e9
            print(f"downloading {name} ({len(files)} files, {size:.2f} GB) "
                  f"into {constants.HF_HUB_CACHE}", file=sys.stderr, flush=True)
            return Path(snapshot_download(name, cache_dir=constants.HF_HUB_CACHE,
                                          allow_patterns=list(files)))
    except Exception as error:
        raise FileNotFoundError(why_not(name, cached, error)) from error
    raise FileNotFoundError(f"{name} on the Hugging Face hub has no weights in safetensors files, "
                            "and others are not read; choose another model")


def why_not(name: str, cached: Path | None, error: Exception) -> str:
    """Why a model cannot be downloaded, and what to do, in one sentence."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return (f"{name} is given only to those who accept its licence: do so at "
                f"https://huggingface.co/{name}, run `hf auth login`, and try again")
    if isinstance(error, RepositoryNotFoundError):
        return (f"there is no folder {name} here, and the Hugging Face hub shows no model of that "
                "name; correct it, or run `hf auth login` if the model is private")

    # Everything else is the connection, or the disk.
    found = f"there is no folder {name} here, {constants.HF_HUB_CACHE} does not hold that model"
    if cached is not None:
        found = f"{name} is only half downloaded: {cached} lacks {lacking(cached)}"
    lines = str(error).splitlines() or [""]
    return (f"{found}, and it cannot be downloaded ({type(error).__name__}: {lines[0]}); with a "
            f"connection and room on the disk, run `hf download {name}`")
