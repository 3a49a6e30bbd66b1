"""`minialign generate`: one prompt continued on the terminal, or a conversation.

What the model says is written as it comes. Nothing is kept.
"""

import sys
from dataclasses import dataclass

import torch

from minialign.generate import room
from minialign.hf.encoding import encode_prompt
from minialign.settings import setting
from minialign.verbs.flags import DTYPES, printable
from minialign.verbs.models import open_model
from minialign.verbs.sample import with_system

YOU, MODEL = "you> ", "model> "


@dataclass(frozen=True)
class Flags:
    """What to continue, and how to draw."""

    model: str = setting(
        ..., "model folder, adapter, or OWNER/NAME on the Hugging Face hub, stories260K or "
        "llama2xs, which ship with this package, or small: the small GPT of compare, of seed 0")
    chat_template: str | None = setting(
        None, "Jinja file with a chat template, instead of the one in the model folder")
    prompt: str | None = setting(
        None, "text to continue; models with a chat template get it as a user's message")
    chat: bool = setting(
        False, "a conversation on the terminal instead; the model needs a chat template")
    system: str | None = setting(None, "system message before the prompt or the conversation")
    raw: bool = setting(False, "continue the text as it stands, chat template or not")
    greedy: bool = setting(False, "always take the likeliest token")
    temperature: float = setting(0.7, "how adventurous the draw is", least=0)
    top_k: int | None = setting(50, "draw among the k likeliest tokens", least=1)
    top_p: float | None = setting(
        None, "draw among the likeliest tokens that hold this share of it all", above=0, most=1)
    max_new_tokens: int = setting(256, "longest answer", least=1, most=10**6)
    seed: int = setting(0, "what the draw depends on", least=0, most=10**9)
    dtype: str = setting("float32", "the model's numbers", choices=DTYPES)
    device: str = setting("cpu", "cpu, cuda, cuda:1, mps, or auto: the best there is")


def run(flags: Flags) -> None:
    """The continuation of --prompt, or with --chat a conversation."""
    if flags.chat == (flags.prompt is not None):
        raise ValueError("give either --prompt TEXT, to see it continued, or --chat, to talk")
    if flags.chat and flags.raw:
        raise ValueError("--chat goes through the chat template; --raw does without it, so give "
                         "--prompt")
    model, tokenizer = open_model(
        flags.model, flags.dtype, flags.device, chat_template=flags.chat_template)
    has_template = tokenizer.chat_template is not None
    generator = torch.Generator(model.head.device).manual_seed(flags.seed)
    if flags.chat:
        if not has_template:
            raise ValueError(f"{flags.model} has no chat template, so it cannot be talked to; give "
                             "--prompt, or --chat-template FILE")
        converse(model, tokenizer, flags, generator)
        return

    # A text that is continued stands before its continuation; a question is not repeated.
    as_message = has_template and not flags.raw
    prompt = flags.prompt
    if as_message:
        prompt = [{"role": "user", "content": flags.prompt}]
    ids = encode_prompt(tokenizer, with_system(prompt, flags.system))
    room(model.config, [ids], flags.max_new_tokens)
    if not as_message:
        sys.stdout.write(printable(flags.prompt))
    say(model, tokenizer, ids, flags, generator)
    print()


def say(model, tokenizer, ids: list[int], flags: Flags, generator: torch.Generator) -> str:
    """Write the continuation of `ids` as it comes, up to a stop token, and return it.

    In a conversation Ctrl-C only cuts the answer short.
    """
    tokens = torch.tensor([ids], device=model.head.device)              # (1, L)
    most = room(model.config, [ids], flags.max_new_tokens)
    temperature = 0.0 if flags.greedy else flags.temperature
    stream = model.stream(tokens, most, temperature, flags.top_k, flags.top_p, tokenizer.stop_ids,
                          generator=generator)
    before = len(tokenizer.decode(ids))
    new, written = [], ""
    try:
        for token in stream:                                            # (1,)
            if int(token) in tokenizer.stop_ids:
                break
            new.append(int(token))

            # Decoded together with the prompt, for a token alone may lose its space. A text that
            # ends within a character waits for the character's other bytes.
            text = tokenizer.decode(ids + new)[before:]
            if not text.endswith("\ufffd"):
                sys.stdout.write(printable(text[len(written) :]))
                sys.stdout.flush()
                written = text
    except KeyboardInterrupt:
        if not flags.chat:
            raise
    return written


def converse(model, tokenizer, flags: Flags, generator: torch.Generator) -> None:
    """Question and answer until the input ends. An empty line starts a new conversation."""
    print("an empty line starts over; Ctrl-C stops an answer, Ctrl-D ends the conversation",
          file=sys.stderr)
    said = []
    while True:
        try:
            line = input(YOU).strip()
        except EOFError:
            print()
            return
        if not line:
            said = []
            continue

        # A question that the model cannot read is dropped, and the conversation goes on.
        said.append({"role": "user", "content": line})
        try:
            ids, said = what_fits(model, tokenizer, said, flags)
        except ValueError as error:
            print(f"({printable(str(error))})", file=sys.stderr)
            said.pop()
            continue
        sys.stdout.write(MODEL)
        answer = say(model, tokenizer, ids, flags, generator).strip()
        said.append({"role": "assistant", "content": answer})
        print()


def what_fits(model, tokenizer, said: list[dict], flags: Flags) -> tuple[list[int], list[dict]]:
    """The conversation as token ids, and as messages, less the oldest exchanges that do not fit.

    A quarter of the context is kept for the answer, or less if less was asked for. ValueError if
    even the last question alone is too long.
    """
    context = model.config.max_len
    most = context - min(flags.max_new_tokens, context // 4)
    ids = encode_prompt(tokenizer, with_system(said, flags.system))
    while len(ids) > most and len(said) > 1:
        said = said[2:]
        print("(the oldest exchange no longer fits, and is forgotten)", file=sys.stderr)
        ids = encode_prompt(tokenizer, with_system(said, flags.system))
    room(model.config, [ids], flags.max_new_tokens)
    return ids, said
