"""Text to token ids and back, and chat messages to text: a model folder's own vocabulary, or our 256 bytes.

A tokenizer.json is run by `tokenizers`; rank files, and our own bytes, by `tiktoken`. The rest of minialign sees one small class.
Nothing here trains a vocabulary, masks or truncates (data.py does), downloads, or needs torch.
"""

import base64
import json
import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path

import tiktoken
import tokenizers
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from minialign.files import replacing

# What a tokenizer is read from, besides *.tiktoken and chat_templates/*.jinja.
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
         "chat_template.jinja", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe", "tokenizer.model", "tekken.json")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NEED = ("needs a tokenizer.json beside it: fetch the model's own, or make one with transformers 4 (5 reads spaces differently): "
        'AutoTokenizer.from_pretrained("FOLDER").save_pretrained("FOLDER")')


class Tokenizer:
    """One vocabulary, made by `load_tokenizer` or `byte_tokenizer`.

    vocab_size      ids run from 0 to vocab_size − 1 (a model's embedding table may be longer)
    special         {"bos_token": "<s>", …}: the named special tokens as text, as chat templates see them
    bos_id, eos_id  int, or None for a vocabulary without one
    stop_ids        the ids that end a generated answer: eos_id and those generation_config.json adds
    chat_template   Jinja source, or None for a model that knows no chat
    files           {name: bytes}: what it was read from, and what `save` writes
    """

    def __init__(self, encode, decode, vocab_size, special, ids, stop_ids=(), chat_template=None, files=None):
        self._encode, self._decode, self.vocab_size, self.special = encode, decode, vocab_size, special
        self.bos_id, self.eos_id = ids.get("bos_token"), ids.get("eos_token")
        self.stop_ids = tuple(sorted({*stop_ids, self.eos_id} - {None}))
        self.chat_template = chat_template
        self.files = files or {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, those of transformers' fast tokenizers.

        add_special_tokens surrounds them with what the vocabulary's own rule says, often BOS in front. The rule is the
        post-processor of tokenizer.json; as in transformers, add_bos_token in tokenizer_config.json does not override it. As
        there too, a special token spelled out inside `text` becomes that token: rendered chats rely on it, so clean what
        strangers wrote first. Raises ValueError for a string that is not Unicode (half a surrogate pair).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"this text is not valid Unicode: {error}") from None
        return self._encode(text, add_special_tokens)

    def decode(self, ids, skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Ids past the vocabulary, which a model with spare embedding rows may sample, have no text."""
        return self._decode([int(i) for i in ids], skip_special_tokens)

    def render(self, messages: list[dict], add_generation_prompt: bool = False) -> str:
        """The chat template applied to `messages`, [{"role": …, "content": …}, …]: letter for letter what transformers renders.

        The text holds the special tokens it needs: encode it with add_special_tokens=False. Raises ValueError when there is no
        template, when `messages` is not such a list, and, in the template's own words, when the template refuses it.
        """
        if self.chat_template is None:
            raise ValueError("this model folder has no chat template: give prompts and answers as plain strings, not as messages")
        if not isinstance(messages, list | tuple) or not messages or not all(isinstance(message, dict) for message in messages):
            raise ValueError('messages must be a list, not empty, of {"role": …, "content": …}')
        chat = [with_reasoning({key: value for key, value in message.items() if value is not None}) for message in messages]
        try:
            return self._template.render(
                messages=chat, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **self.special)
        except Exception as error:              # a template is a program: on messages it did not expect it may raise anything
            raise ValueError(f"the chat template refuses these messages: {error}") from error

    @cached_property
    def _template(self):
        return compile_template(self.chat_template)

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files into `folder`; `load_tokenizer(folder)` then gives the same tokenizer."""
        for name, data in self.files.items():
            with replacing(Path(folder) / name) as unfinished:
                unfinished.write_bytes(data)


def byte_tokenizer(words: Sequence[str] = ()) -> Tokenizer:
    """Our own vocabulary, for small models: a byte's id is its value, <|end|> = 256 ends an answer, `words` are one token each.

    Every text has ids, and no file is needed to make it.
    """
    ranks = {bytes([b]): b for b in range(256)} | {word.encode(): 257 + i for i, word in enumerate(words)}
    pattern = "|".join([*map(re.escape, sorted(words, key=len, reverse=True)), r"[\s\S]"])
    encode, decode = from_ranks(ranks, {"<|end|>": 256}, pattern)
    # The same vocabulary as a tokenizer.json, for the folders we save.
    letters = byte_letters()
    vocab = {"".join(letters[b] for b in token): i for token, i in ranks.items()} | {"<|end|>": 256}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", normalized=False, special=True)])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|end|>"}
    files = {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": json.dumps(config, indent=2).encode()}
    return Tokenizer(encode, decode, 257 + len(words), {"eos_token": "<|end|>"}, {"eos_token": 256}, files=files)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model folder.

    tokenizer.json is taken at its word, whatever tokenizer_class says. Where it is absent: the vocab.json of GPT-2 and Qwen2
    (OpenAI's encoder.json), or tiktoken ranks: Llama 3's tokenizer.model, GPT-2's and Qwen's *.tiktoken. Raises
    FileNotFoundError when there is nothing to read, ValueError when a file is damaged or does not suffice.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the model folder that holds tokenizer.json")
    try:
        return read_folder(folder)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: tokenizer_config.json, or a file like it, holds what it should not ({error!r})") from error


def read_folder(folder: Path) -> Tokenizer:
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in tokenizer_files(folder)}
    config = read_json(folder / "tokenizer_config.json")
    added = {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
    if not added:                               # older folders tell it in two more files
        config |= read_json(folder / "special_tokens_map.json")
        added = {i: {"content": text, "special": True} for text, i in read_json(folder / "added_tokens.json").items()}
    special = {name: as_text(config[name]) for name in NAMED if config.get(name) is not None}
    read = from_json if "tokenizer.json" in files else from_bare_file
    encode, decode, size, ids = read(folder, files, added, special)

    numbers = {**read_json(folder / "config.json"), **read_json(folder / "generation_config.json")}
    for name in ("bos_token", "eos_token"):     # a folder that names no such token may still number it
        if name not in config and name not in special and (stated := as_list(numbers.get(name + "_id"))):
            ids[name], special[name] = stated[0], decode(stated[:1], False)
    template = config.get("chat_template")
    if isinstance(template, list):              # several, each with a name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if "chat_template.jinja" in files:
        template = files["chat_template.jinja"].decode()
    return Tokenizer(encode, decode, size, special, ids, as_list(numbers.get("eos_token_id")), template, files)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a model folder that belong to its tokenizer; saving a model writes all of them again."""
    found = [*map(folder.joinpath, FILES), *sorted(folder.glob("*.tiktoken")), *sorted(folder.glob("chat_templates/*.jinja"))]
    return [file for file in found if file.is_file()]


def from_json(folder: Path, files: dict, added: dict, special: dict):
    """tokenizer.json, and the special tokens that only the files beside it name: encode, decode, size, ids of `special`."""
    try:
        backend = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:                  # tokenizers raises nothing more precise
        raise ValueError(f"{folder / 'tokenizer.json'} is damaged or not a tokenizer: {error}") from None
    backend.no_truncation()                     # a file may carry the settings of its last use
    backend.no_padding()
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    extra = [AddedToken(**token) for _, token in sorted(added.items())]
    extra += [AddedToken(text, normalized=False, special=True) for text in special.values()]
    backend.add_tokens([token for token in extra if token.content not in known])
    size = max(backend.get_vocab_size(with_added_tokens=False), *(i + 1 for i in backend.get_added_tokens_decoder()), 0)
    ids = {name: backend.token_to_id(text) for name, text in special.items()}
    return lambda text, add: backend.encode(text, add_special_tokens=add).ids, backend.decode, size, ids


# Vocabularies also published as one bare file, by their number of ordinary tokens: how text is cut into words, which the file
# does not say, the special tokens that follow, and what those are for.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
LLAMA_SPECIAL = ("begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id "
                 "reserved_special_token_2 start_header_id end_header_id eom_id eot_id python_tag").split()
BARE = {
    50256: (GPT2, ["endoftext"], {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    128000: (LLAMA, LLAMA_SPECIAL + [f"reserved_special_token_{i}" for i in range(3, 248)],
             {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}),
    151643: (QWEN, ["endoftext", "im_start", "im_end"], {"eos_token": "<|endoftext|>"}),
}


def from_bare_file(folder: Path, files: dict, added: dict, special: dict):
    """vocab.json or a rank file, by tiktoken: encode, decode, size, ids of `special`, which gains the family's own names."""
    name = next((n for n in files if n in ("vocab.json", "encoder.json", "tokenizer.model") or n.endswith(".tiktoken")), None)
    if name is None:
        raise FileNotFoundError(f"{folder} holds no tokenizer: no tokenizer.json, vocab.json, tokenizer.model or *.tiktoken")
    if files[name].startswith(b"\n"):           # the tag of a protobuf message's first field
        raise ValueError(f"{folder / name} is a SentencePiece model and {NEED}")
    try:
        if name.endswith(".json"):              # its ids were given in the order of the merges, so they are the ranks
            byte = {letter: b for b, letter in enumerate(byte_letters())}
            apart = {"<|endoftext|>", *special.values(), *(token["content"] for token in added.values())}
            ranks = {bytes(byte[c] for c in token): i for token, i in json.loads(files[name]).items() if token not in apart}
        else:
            ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, files[name].splitlines())}
    except (ValueError, KeyError, AttributeError):
        raise ValueError(f"{folder / name} is damaged or no byte-level vocabulary; if it is whole, it {NEED}") from None
    if len(ranks) not in BARE:
        raise ValueError(f"{folder / name} has {len(ranks):,} ordinary tokens. Only GPT-2's 50,256, Llama 3's 128,000 and Qwen's "
                         f"151,643 can be read from it; any other vocabulary {NEED}")
    pattern, names, purpose = BARE[len(ranks)]
    special |= purpose | special
    specials = {token["content"]: i for i, token in added.items()} or {f"<|{n}|>": len(ranks) + i for i, n in enumerate(names)}
    for text in special.values():
        specials.setdefault(text, max(specials.values()) + 1)
    ids = {name: specials[text] for name, text in special.items()}
    first = [ids["bos_token"]] if pattern is LLAMA else []
    encode, decode = from_ranks(ranks, specials, pattern, first, "NFC" if pattern is QWEN else None)
    return encode, decode, max(specials.values()) + 1, ids


def from_ranks(ranks: dict[bytes, int], specials: dict[str, int], pattern: str, first=(), form: str | None = None):
    """tiktoken's encode and decode. `first` are the ids put in front of a text, `form` the Unicode form it is brought to."""
    encoding = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
    hidden = set(specials.values())

    def encode(text: str, add_special_tokens: bool) -> list[int]:
        text = unicodedata.normalize(form, text) if form else text
        return [*first] * add_special_tokens + encoding.encode(text, allowed_special="all")

    def decode(ids: list[int], skip_special_tokens: bool) -> str:
        return encoding.decode([i for i in ids if i < encoding.n_vocab and not (skip_special_tokens and i in hidden)])

    return encode, decode


def byte_letters() -> list[str]:
    """GPT-2's spelling of bytes 0 … 255 in visible characters: those that print are themselves, the rest count from 256 on."""
    visible, spare = {*range(33, 127), *range(161, 173), *range(174, 256)}, iter(range(256, 512))
    return [chr(b if b in visible else next(spare)) for b in range(256)]


def compile_template(source: str):
    """A chat template in Jinja's sandbox, with the settings, the filter and the functions that templates are written for."""

    class Generation(Extension):                # {% generation %} … {% endgeneration %} marks the answer and changes no text
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):   # Jinja's own escapes < > & '
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=lambda form: datetime.now().strftime(form))
    return env.from_string(source)


def with_reasoning(message: dict) -> dict:
    """A reasoning trace, under each of the names that templates read it by."""
    trace = next((message[key] for key in ("reasoning_content", "thinking", "reasoning") if key in message), None)
    return message if trace is None else {"thinking": trace, **message, "reasoning_content": trace}


def read_json(path: Path) -> dict:
    """The JSON object in a file, {} where there is no such file. Raises ValueError when it holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def as_text(token: str | dict) -> str:
    """A special token, as older files (str) and newer ones (dict) write it."""
    return token["content"] if isinstance(token, dict) else token


def as_list(ids: int | list | None) -> list[int]:
    return [ids] if isinstance(ids, int) else list(ids or [])
