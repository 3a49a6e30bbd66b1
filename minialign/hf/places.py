"""Where a model lies: what a path that is given as a model means, before anything is read.

It may be a model folder, one that a killed save has left, an adapter, a model that ships with this
package (shipped/README.md), or OWNER/NAME on the Hugging Face hub (hub.py). Nothing here needs
torch.
"""

from pathlib import Path

from minialign.hf import hub
from minialign.hf.jsonfiles import read_json

SAVING = ".saving"              # the folder inside a model folder in which save_model prepares it
SHIPPED = Path(__file__).parent / "shipped"
MODELS = ("stories260K", "llama2xs")                    # the models among what is shipped


def local_folder(path: str | Path) -> Path:
    """The folder that `path` means, which need not exist: itself, a shipped one, or one of the hub.

    A name that stands for something else is only looked up if nothing of that name is here. Raises
    as `hub.local_folder` does.
    """
    return shipped_folder(path) or hub.local_folder(path)


def shipped_folder(path: str | Path) -> Path | None:
    """The folder of a shipped model, if `path` is the name of one; else None."""
    if str(path) in MODELS and not Path(path).exists():
        return SHIPPED.resolve() / str(path)
    return None


def model_folder(path: str | Path) -> Path:
    """The folder that holds config.json and the weights of a model.

    That is `path`, or SAVING inside it after a save that was killed. For an adapter it is the
    folder of the base model. Instead of a folder `path` may be the name of a shipped model, or
    OWNER/NAME.

    Raises FileNotFoundError, with what was found instead of a model.
    """
    folder = local_folder(path)
    for candidate in (folder, folder / SAVING):
        if (candidate / "config.json").is_file():
            return candidate
    if is_adapter(folder):
        return base_folder(folder)

    if folder.is_dir():
        found = "has no config.json"
    elif folder.exists():
        found = "is a file"
    else:
        found = "does not exist"
    raise FileNotFoundError(
        f"{folder} {found} (a model is a folder with config.json, *.safetensors and "
        f"tokenizer.json, or OWNER/NAME on the Hugging Face hub, or one of {', '.join(MODELS)})")


def adapter_folder(path: str | Path) -> Path | None:
    """The folder of the adapter that `path` means; None if it means a whole model."""
    folder = local_folder(path)
    return folder if is_adapter(folder) else None


def tokenizer_folder(path: str | Path) -> Path:
    """The folder whose tokenizer belongs to a model: for an adapter, its own if it has one."""
    folder = local_folder(path)
    if is_adapter(folder) and (folder / "tokenizer.json").is_file():
        return folder
    if is_adapter(folder) or (folder / SAVING / "config.json").is_file():
        return model_folder(folder)
    return folder


def is_adapter(folder: Path) -> bool:
    """Does the folder hold an adapter and no whole model?"""
    whole = (folder / "config.json").is_file() or (folder / SAVING / "config.json").is_file()
    return (folder / "adapter_config.json").is_file() and not whole


def base_folder(adapter: Path) -> Path:
    """The folder of the model that an adapter was trained on.

    adapter_config.json names it, by a path or by its name on the hub. A relative path is tried from
    here, then from the adapter's folder, and from every folder around that.
    """
    file = adapter / "adapter_config.json"
    base = read_json(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise FileNotFoundError(f"{file} does not name the base model; write its folder, or its "
                                "name on the Hugging Face hub, as base_model_name_or_path")
    for start in (Path(), adapter, *adapter.resolve().parents):
        if (start / base / "config.json").is_file():
            return start / base

    try:
        folder = local_folder(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} names a base model that is not here: {error}") from None
    if (folder / "config.json").is_file():
        return folder
    raise FileNotFoundError(
        f"{file} names the base model {base!r}, and there is no such model folder; write where it "
        "is as base_model_name_or_path, or give the merged model, which `minialign train` leaves "
        "in RUN/model")


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a model folder that belong to its tokenizer; saving a model replaces them."""
    files = [folder / name for name in hub.TOKENIZER_FILES]
    files += sorted(folder.glob("*.tiktoken"))
    files += sorted(folder.glob("chat_templates/*.jinja"))
    return [file for file in files if file.is_file()]
