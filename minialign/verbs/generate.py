"""A model on the terminal: one prompt continued, or a conversation. What it says is written as it comes; nothing is kept."""

import sys

import torch

from minialign.generate import room
from minialign.hf.encoding import encode_prompt
from minialign.hf.folders import load_model
from minialign.verbs.sample import with_system

YOU, MODEL = "you> ", "model> "


def run(args) -> None:
    """`minialign generate`: the continuation of --prompt, or with --chat a conversation."""
    if args.chat == (args.prompt is not None):
        raise ValueError("give either --prompt TEXT, to see it continued, or --chat, to talk")
    if args.chat and args.raw:
        raise ValueError("--chat goes through the chat template; --raw does without it, so give --prompt")
    model, tokenizer = load_model(args.model, args.dtype, args.device)
    if args.chat and tokenizer.chat_template is None:
        raise ValueError(f"{args.model} has no chat template, so it cannot be talked to; give --prompt")
    generator = torch.Generator(model.head.device).manual_seed(args.seed)
    if args.chat:
        return converse(model, tokenizer, args, generator)
    chat = tokenizer.chat_template is not None and not args.raw
    prompt = with_system([{"role": "user", "content": args.prompt}] if chat else args.prompt, args.system)
    ids = encode_prompt(tokenizer, prompt)
    room(model, [ids], args.max_new_tokens)
    if not chat:
        sys.stdout.write(args.prompt)
    say(model, tokenizer, ids, args, generator)
    print()


def say(model, tokenizer, ids: list[int], args, generator: torch.Generator) -> str:
    """Writes the continuation of `ids` as it comes, up to a stop token; returns it. Ctrl-C cuts it short in a conversation."""
    tokens, new, written = torch.tensor([ids], device=model.head.device), [], ""
    before = len(tokenizer.decode(ids))
    try:
        for token in model.stream(tokens, room(model, [ids], args.max_new_tokens), 0.0 if args.greedy else args.temperature,
                                  args.top_k, args.top_p, tokenizer.stop_ids, generator=generator):
            if int(token) in tokenizer.stop_ids:
                break
            new.append(int(token))
            text = tokenizer.decode(ids + new)[before:]
            if not text.endswith("\ufffd"):                              # half a character: wait for its other bytes
                sys.stdout.write(text[len(written) :])
                sys.stdout.flush()
                written = text
    except KeyboardInterrupt:
        if not args.chat:
            raise
    return written


def converse(model, tokenizer, args, generator: torch.Generator) -> None:
    """Question and answer until the input ends. When the context is full, the oldest exchange is forgotten; a question that the
    model cannot read is said to be so, and dropped.
    """
    print("an empty line starts over; Ctrl-C stops an answer, Ctrl-D ends the conversation", file=sys.stderr)
    said, context = [], model.config.max_len
    most = context - min(args.max_new_tokens, context // 4)             # tokens a prompt may have
    while True:
        try:
            line = input(YOU).strip()
        except EOFError:
            print()
            return
        if not line:
            said = []
            continue
        said.append({"role": "user", "content": line})
        try:
            while len(ids := encode_prompt(tokenizer, with_system(said, args.system))) > most and len(said) > 1:
                said = said[2:]
                print("(the oldest exchange no longer fits, and is forgotten)", file=sys.stderr)
            room(model, [ids], args.max_new_tokens)
        except ValueError as error:
            print(f"({error})", file=sys.stderr)
            said.pop()
            continue
        sys.stdout.write(MODEL)
        said.append({"role": "assistant", "content": say(model, tokenizer, ids, args, generator).strip()})
        print()
