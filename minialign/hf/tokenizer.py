"""Text → token ids and back, chat messages → text: what the rest of minialign knows of a tokenizer.

It is read from a model folder, or made of our own 256 bytes. vocabulary.py runs the vocabularies,
chat.py the chat templates. Nothing here masks, truncates, or needs torch.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from minialign.files import replacing
from minialign.hf.chat import as_templates_see, compile_template
from minialign.hf.jsonfiles import read_json
from minialign.hf.places import tokenizer_files, tokenizer_folder
from minialign.hf.vocabulary import (
    Vocabulary,
    byte_letters,
    from_bare_file,
    from_json,
    from_ranks,
    in_words,
)

LONGEST = 10_000_000        # characters of a text: several contexts of a million tokens
# The special tokens that a folder may give a name, in tokenizer_config.json.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """One vocabulary with its special tokens and its chat template.

    It is made by `load_tokenizer` or `byte_tokenizer`.

    vocab_size      ids run from 0 to vocab_size − 1 (a model's embedding table may be longer)
    special         {"bos_token": "<s>", …}: the named special tokens, as chat templates see them
    bos_id, eos_id  int, or None for a vocabulary without one
    stop_ids        the ids that end a generated answer: eos_id, and those of generation_config.json
    chat_template   Jinja source, or None for a model that knows no chat
    files           {name: content}: what it was read from, and what `save` writes
    limit           ids must lie below it; whoever has the model sets it to its embeddings
    """

    def __init__(
        self, vocabulary: Vocabulary, stop_ids: Sequence[int], chat_template: str | None,
        files: dict[str, bytes],
    ):
        self.vocabulary, self.vocab_size = vocabulary, vocabulary.size
        self.special = vocabulary.special
        self.bos_id, self.eos_id = vocabulary.ids.get("bos_token"), vocabulary.ids.get("eos_token")
        self.stop_ids = tuple(sorted({*stop_ids, self.eos_id} - {None}))
        self.chat_template = chat_template
        self.files = files
        self.limit = self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`, the same as those of transformers' fast tokenizers.

        add_special_tokens surrounds them with what the vocabulary's own rule says, often BOS in
        front. The rule is the post-processor of tokenizer.json; as in transformers, add_bos_token
        in tokenizer_config.json does not override it.

        As there too, a special token that is spelled out inside `text` becomes that token. Rendered
        chats rely on it, so clean what strangers wrote before it comes here.

        Raises ValueError for a string that is not Unicode (half a surrogate pair).
        """
        check_unicode(text)
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """As `encode` for many texts, which must be valid Unicode, in half the time."""
        for text in texts:
            if len(text) > LONGEST:
                raise ValueError(f"a text of {len(text):,} characters, of which no model reads "
                                 f"more than {LONGEST:,}; cut it into pieces")
        with in_words("the tokenizer cannot encode this"):
            return self.vocabulary.encode_batch(texts, add_special_tokens)

    def check_ids(self, ids: list[int]) -> None:
        """ValueError for an id that the model has no embedding for.

        A tokenizer may know more tokens than its model (a padding token, say) as long as no text
        uses them.
        """
        if ids and max(ids) >= self.limit:
            token = self.decode([max(ids)], skip_special_tokens=False)
            raise ValueError(f"the tokenizer gives {token!r} the id {max(ids)}, and the model has "
                             f"{self.limit} embeddings; take both from the same model")

    @property
    def cuts(self) -> dict[int, str]:
        """{id: text} of the tokens at which every text is cut before it is encoded."""
        return self.vocabulary.cuts

    def decode(self, ids, skip_special_tokens: bool = True) -> str:
        """The text of `ids`, a list or a tensor.

        Ids past the vocabulary, which a model with spare embedding rows may sample, have no text.
        """
        return self.vocabulary.decode([int(i) for i in ids], skip_special_tokens)

    def render(self, messages: list[dict], add_generation_prompt: bool = False,
               tools: list[dict] | None = None) -> str:
        """The chat template applied to messages, [{"role": …, "content": …}, …].

        add_generation_prompt opens the assistant's turn at the end; tools are what the template is
        to describe, if it can. The text holds the special
        tokens it needs: encode it with add_special_tokens=False.

        Raises ValueError when there is no template, when `messages` is not such a list and, in the
        template's own words, when the template refuses it.
        """
        if self.chat_template is None:
            raise ValueError("this model folder has no chat template: give prompts and answers as "
                             "plain strings, or put a chat_template.jinja into the folder, or name "
                             "one with --chat-template FILE")
        listed = isinstance(messages, list | tuple) and len(messages) > 0
        if not listed or not all(isinstance(message, dict) for message in messages):
            raise ValueError('messages must be a list, not empty, of {"role": …, "content": …}')

        chat = [as_templates_see(message) for message in messages]
        try:
            template = compile_template(self.chat_template)
            template.environment.begin()
            return template.render(
                messages=chat, tools=tools, documents=None,
                add_generation_prompt=add_generation_prompt, **self.special)
        except Exception as error:
            # A template is a program: on messages it did not expect it may raise anything.
            words = str(error) or type(error).__name__
            raise ValueError(f"the chat template refuses these messages: {words}") from error

    def use_template(self, file: str | Path) -> None:
        """Takes the chat template of a Jinja file; `save` writes it with the tokenizer.

        Raises FileNotFoundError if there is no such file, ValueError if it is no text.
        """
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file} is no file; give a chat template in Jinja, such as "
                                    "another model's chat_template.jinja")
        content = Path(file).read_bytes()
        try:
            self.chat_template = content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no text in UTF-8 ({error}); "
                             "give a chat template in Jinja") from None
        self.files["chat_template.jinja"] = content

    def save(self, folder: str | Path) -> None:
        """Writes the files into `folder`, of which `load_tokenizer` makes the same tokenizer."""
        for name, content in self.files.items():
            with replacing(Path(folder) / name) as unfinished:
                unfinished.write_bytes(content)


# ------------------------------------------------------------------------------ our own vocabulary


def byte_tokenizer(words: Sequence[str] = ()) -> Tokenizer:
    """Our own vocabulary, for small models; every text has ids, and no file is needed to make it.

    The id of a byte is its value, <|end|> = 256 ends an answer, and each of `words` is one token.
    """
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {word.encode(): 257 + i for i, word in enumerate(words)}
    # The longest word wins; whatever is no word is cut into single characters.
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join([*map(re.escape, longest_first), r"[\s\S]"])
    vocabulary = from_ranks(ranks, {"<|end|>": 256}, pattern)
    vocabulary.special, vocabulary.ids = {"eos_token": "<|end|>"}, {"eos_token": 256}

    # The same vocabulary as a tokenizer.json, for the folders that we save.
    letters = byte_letters()
    spelled = {"<|end|>": 256}
    for token, i in ranks.items():
        spelled["".join(letters[byte] for byte in token)] = i
    backend = tokenizers.Tokenizer(models.BPE(spelled, [], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", normalized=False, special=True)])
    config = {"tokenizer_class": "PreTrainedTokenizerFast",
              "bos_token": None, "eos_token": "<|end|>"}
    files = {
        "tokenizer.json": backend.to_str().encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
    }
    return Tokenizer(vocabulary, (), None, files)


# ----------------------------------------------------------------------------------- model folders


def load_tokenizer(path: str | Path, chat_template: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a Hugging Face model folder, of OWNER/NAME on the hub, or of an adapter.

    chat_template   a Jinja file to use instead of the folder's own

    tokenizer.json is taken at its word, whatever tokenizer_class says. Where it is absent, the
    vocab.json of GPT-2 and Qwen2 (OpenAI's encoder.json) is read, or a rank file: Llama 3's
    tokenizer.model, GPT-2's and Qwen's *.tiktoken.

    Raises FileNotFoundError when there is nothing to read, ValueError when a file is damaged or
    does not suffice.
    """
    folder = tokenizer_folder(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; "
                                "give the model folder that holds tokenizer.json")
    try:
        tokenizer = read_folder(folder)
    except (AttributeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{folder}: tokenizer_config.json, or a file like it, "
                         f"holds what it should not ({error!r})") from error
    if chat_template is not None:
        tokenizer.use_template(chat_template)
    return tokenizer


def read_folder(folder: Path) -> Tokenizer:
    """As `load_tokenizer`, with Python's own errors for JSON values of the wrong type."""
    files = {}
    for file in tokenizer_files(folder):
        files[file.relative_to(folder).as_posix()] = file.read_bytes()

    # Which tokens were added and which are special; older folders tell it in two more files.
    config = read_json(folder / "tokenizer_config.json")
    added = {}
    for i, token in config.get("added_tokens_decoder", {}).items():
        if not i.isdecimal():
            raise TypeError(i)
        added[int(i)] = token
    if not added:
        config |= read_json(folder / "special_tokens_map.json")
        for text, i in read_json(folder / "added_tokens.json").items():
            if i in added:
                raise ValueError(f"{folder / 'added_tokens.json'} gives the id {i} to two special "
                                 "tokens; fetch the file again")
            added[i] = {"content": text, "special": True}
    special = {}
    for name in NAMED:
        if config.get(name) is not None:
            special[name] = token_text(config[name])
            if not isinstance(special[name], str):
                raise TypeError(special[name])

    if "tokenizer.json" in files:
        vocabulary = from_json(folder, files["tokenizer.json"], added, special)
    else:
        vocabulary = from_bare_file(folder, files, added, special)

    # A folder that does not name its begin and end tokens may still number them.
    numbers = read_json(folder / "config.json") | read_json(folder / "generation_config.json")
    for name in ("bos_token", "eos_token"):
        numbered = as_list(numbers.get(f"{name}_id"))
        if numbered and name not in config and name not in vocabulary.special:
            vocabulary.ids[name] = numbered[0]
            vocabulary.special[name] = vocabulary.decode(numbered[:1], False)
    stop_ids = as_list(numbers.get("eos_token_id"))
    return Tokenizer(vocabulary, stop_ids, find_template(config, files), files)


def find_template(config: dict, files: dict[str, bytes]) -> str | None:
    """The chat template: a file of its own, or a key of tokenizer_config.json."""
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"chat_template.jinja is not UTF-8 text (byte {error.start}); "
                             "fetch the file again") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        # Several templates, each with a name.
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ValueError("chat_template in tokenizer_config.json is no text; fetch the file again")
    return template


def check_unicode(text: str) -> None:
    """ValueError for half a surrogate pair, which JSON can spell and no vocabulary can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"this text is not valid Unicode: {error}") from None


def token_text(token: str | dict) -> str:
    """A special token, which older files write as a string and newer ones as an object."""
    return token["content"] if isinstance(token, dict) else token


def as_list(ids: int | list | None) -> list[int]:
    """One id, several or none, as a list."""
    if isinstance(ids, int):
        ids = [ids]
    if not all(type(i) is int and 0 <= i < 10**8 for i in ids or []):
        raise TypeError(ids)
    return list(ids or [])
