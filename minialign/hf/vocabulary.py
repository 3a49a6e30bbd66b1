"""Vocabularies: text → token ids and back, by `tokenizers` or by `tiktoken`.

A tokenizer.json is run by `tokenizers`. Bare files of ranks, the vocab.json of GPT-2 and Qwen2, and
our own bytes are run by `tiktoken`. Nothing here trains a vocabulary, and nothing needs torch.
"""

import base64
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tiktoken
import tokenizers
from tokenizers import AddedToken

from minialign.hf.jsonfiles import parse_object


@dataclass
class Vocabulary:
    """What a tokenizer is made of, whichever library runs it.

    encode_batch  ([text, …], add_special_tokens) → a list of ids for each
    decode        (ids, skip_special_tokens) → text
    size          ids run from 0 to size − 1
    special       {"bos_token": "<s>", …}: the named special tokens as text
    ids           {"bos_token": 1, …}: their ids
    cuts          {id: text} of the tokens at which every text is cut before anything is encoded
    """

    encode_batch: Callable[[list[str], bool], list[list[int]]]
    decode: Callable[[list[int], bool], str]
    size: int
    special: dict[str, str]
    ids: dict[str, int]
    cuts: dict[int, str]


def from_json(folder: Path, content: bytes, added: dict, special: dict) -> Vocabulary:
    """The vocabulary of a tokenizer.json, with the special tokens that only other files name.

    added    {id: {"content": …, …}} of the tokens that were added to the vocabulary
    special  {"bos_token": "<s>", …}

    Raises ValueError if the file is damaged.
    """
    file = folder / "tokenizer.json"
    with in_words(f"{file} is damaged or not a tokenizer"):
        backend = tokenizers.Tokenizer.from_buffer(content)
    ids = backend.get_vocab(with_added_tokens=False).values()
    if len(set(ids)) < len(ids):
        raise ValueError(f"{file} is damaged: two of its tokens have one id; fetch it again")
    if getattr(backend.model, "dropout", None):
        raise ValueError(f"{file} drops merges at random, so a text has no ids of its own; "
                         'write "dropout": null')
    # The file may carry the settings of its last use.
    backend.no_truncation()
    backend.no_padding()

    # Tokens that the file does not know yet are added in the order of their ids.
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    extra = [AddedToken(**token) for _, token in sorted(added.items())]
    extra += [AddedToken(text, normalized=False, special=True) for text in special.values()]
    if any(not token.content for token in extra):
        raise ValueError(f"{folder} names an empty text as a special token; fetch the files again")
    with in_words(f"{folder}: the special tokens do not fit tokenizer.json"):
        backend.add_tokens([token for token in extra if token.content not in known])

    def encode_batch(texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        batch = backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in batch]

    # Only a token that is looked for in the text as it stands, and anywhere in it, always cuts.
    cuts = {}
    for i, token in backend.get_added_tokens_decoder().items():
        if token.special and not token.normalized and not token.single_word:
            cuts[i] = token.content
    sizes = [i + 1 for i in backend.get_added_tokens_decoder()]
    sizes.append(backend.get_vocab_size(with_added_tokens=False))
    ids = {name: backend.token_to_id(text) for name, text in special.items()}
    return Vocabulary(encode_batch, backend.decode, max(sizes), special, ids, cuts)


def from_ranks(
    ranks: dict[bytes, int], specials: dict[str, int], pattern: str,
    first: tuple[int, ...] = (), form: str | None = None,
) -> Vocabulary:
    """A byte-level vocabulary run by tiktoken.

    ranks     {token: id}, ids in the order of the merges
    specials  {text: id} of the special tokens
    pattern   how a text is cut into words before anything is merged
    first     ids put in front of every text
    form      the Unicode form that a text is brought to, or None
    """
    encoding = tiktoken.Encoding(
        "", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
    hidden = set(specials.values())

    def encode(text: str, add_special_tokens: bool) -> list[int]:
        if form:
            text = unicodedata.normalize(form, text)
        ids = encoding.encode(text, allowed_special="all")
        return [*first, *ids] if add_special_tokens else ids

    def encode_batch(texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        return [encode(text, add_special_tokens) for text in texts]

    def decode(ids: list[int], skip_special_tokens: bool) -> str:
        ids = [i for i in ids if i < encoding.n_vocab]
        if skip_special_tokens:
            ids = [i for i in ids if i not in hidden]
        return encoding.decode(ids)

    size = max([*ranks.values(), *hidden]) + 1
    cuts = {i: text for text, i in specials.items()}
    return Vocabulary(encode_batch, decode, size, {}, {}, cuts)


# ------------------------------------------------------------- bare files, without tokenizer.json

# How a text is cut into words. The bare files do not say it.
GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
              r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA_WORDS = QWEN_WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|")

GPT2_SPECIAL = ["endoftext"]
QWEN_SPECIAL = ["endoftext", "im_start", "im_end"]
LLAMA_SPECIAL = [
    "begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
    "finetune_right_pad_id", "reserved_special_token_2", "start_header_id", "end_header_id",
    "eom_id", "eot_id", "python_tag", *(f"reserved_special_token_{i}" for i in range(3, 248)),
]

# The vocabularies that are also published as one bare file, by their number of ordinary tokens:
# the words, the special tokens that follow the ordinary ones, and what those are for.
BARE = {
    50256: (GPT2_WORDS, GPT2_SPECIAL,
            {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    128000: (LLAMA_WORDS, LLAMA_SPECIAL,
             {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}),
    151643: (QWEN_WORDS, QWEN_SPECIAL, {"eos_token": "<|endoftext|>"}),
}
REMEDY = ("needs a tokenizer.json beside it: fetch the model's own, or make one with "
          "transformers 4 (5 reads spaces differently): "
          'AutoTokenizer.from_pretrained("FOLDER").save_pretrained("FOLDER")')


def from_bare_file(folder: Path, files: dict, added: dict, special: dict) -> Vocabulary:
    """The vocabulary of a vocab.json or of a rank file; `added` and `special` as in `from_json`.

    files  {name: content} of the folder

    Raises FileNotFoundError if there is none, ValueError if it is damaged or does not suffice.
    """
    bare = [name for name in files
            if name in ("vocab.json", "encoder.json", "tokenizer.model")
            or name.endswith(".tiktoken")]
    if not bare and "tekken.json" in files:
        raise ValueError(f"{folder / 'tekken.json'} is in Mistral's own format and {REMEDY}")
    if not bare:
        raise FileNotFoundError(f"{folder} holds no tokenizer: no tokenizer.json, vocab.json, "
                                "tokenizer.model or *.tiktoken")
    file, content = folder / bare[0], files[bare[0]]
    if content.startswith(b"\n"):               # the tag of a protobuf message's first field
        raise ValueError(f"{file} is a SentencePiece model and {REMEDY}")

    try:
        if file.suffix == ".json":
            apart = {"<|endoftext|>", *special.values()}
            apart |= {token["content"] for token in added.values()}
            ranks = ranks_of_json(content, apart)
        else:
            ranks = ranks_of_lines(content)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{file} is damaged or no byte-level vocabulary; "
                         f"if it is whole, it {REMEDY}") from None
    if len(ranks) not in BARE:
        raise ValueError(
            f"{file} has {len(ranks):,} ordinary tokens. Only GPT-2's 50,256, Llama 3's 128,000 "
            f"and Qwen's 151,643 can be read from it; any other vocabulary {REMEDY}")

    check_ranks(file, ranks)

    # The special tokens and their ids: those of the folder, else those of the family.
    pattern, names, purpose = BARE[len(ranks)]
    special = special | {name: text for name, text in purpose.items() if name not in special}
    specials = {token["content"]: i for i, token in added.items()}
    if not specials:
        specials = {f"<|{name}|>": len(ranks) + i for i, name in enumerate(names)}
    for text in special.values():
        specials.setdefault(text, max(specials.values()) + 1)
    ids = {name: specials[text] for name, text in special.items()}
    check_specials(folder, specials, len(ranks))

    first = (ids["bos_token"],) if pattern == LLAMA_WORDS else ()
    form = "NFC" if pattern == QWEN_WORDS else None
    vocabulary = from_ranks(ranks, specials, pattern, first, form)
    vocabulary.special, vocabulary.ids = special, ids
    return vocabulary


def ranks_of_json(content: bytes, apart: set[str]) -> dict[bytes, int]:
    """{token: rank} of a vocab.json, without the special tokens `apart`.

    Its ids were given in the order of the merges, so they are the ranks.
    """
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    ranks = {}
    for token, i in parse_object(content, "vocab.json", REMEDY).items():
        if token not in apart:
            ranks[bytes(byte_of[letter] for letter in token)] = i
    return ranks


def ranks_of_lines(content: bytes) -> dict[bytes, int]:
    """{token: rank} of a file with one token in base64 and its rank on each line."""
    ranks = {}
    for line in content.splitlines():
        token, rank = line.split()
        token = base64.b64decode(token, validate=True)
        if token in ranks:
            raise ValueError(f"the token {token!r} is there twice")
        ranks[token] = int(rank)
    return ranks


def check_ranks(file: Path, ranks: dict[bytes, int]) -> None:
    """ValueError unless the ranks are 0 … n − 1, each once, and every byte is a token."""
    whole = set(ranks.values()) == set(range(len(ranks))) and b"" not in ranks
    if not whole or any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError(f"{file} is damaged: its {len(ranks):,} tokens must have the ranks from "
                         "0 on, each once, and all bytes must be among them; fetch it again")


def check_specials(folder: Path, specials: dict[str, int], n_ordinary: int) -> None:
    """ValueError for a special token that is empty, or whose id another token has."""
    ids = list(specials.values())
    if "" in specials or len(set(ids)) < len(ids):
        raise ValueError(f"{folder} has an empty special token, or two with one id; "
                         "fetch the files again")
    for text, i in specials.items():
        if not isinstance(i, int) or not n_ordinary <= i < 10**8:
            raise ValueError(f"{folder} gives the special token {text!r} the id {i}, which an "
                             f"ordinary token has, or none can have; fetch the files again")


@contextmanager
def in_words(what: str) -> Iterator[None]:
    """Whatever a library of Rust raises in this block becomes a ValueError: what, and its words.

    Such a library panics with an exception that is no Exception, and that it gives no public name.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {error}") from None


def byte_letters() -> list[str]:
    """GPT-2's spelling of the bytes 0 … 255 in visible characters.

    Bytes that print are themselves, the others count from 256 on.
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in visible else next(spare)) for byte in range(256)]
