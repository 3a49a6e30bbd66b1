"""`minialign evaluate`: how good a model is on a data file."""

from minialign.evaluate import answer_logps, compare_answers, marks
from minialign.files import write_json
from minialign.hf.datafiles import load_examples
from minialign.hf.folders import load_model
from minialign.hf.rows import as_text

SHOWN = 3                   # answers that are printed to read


def run(args) -> None:
    """`minialign evaluate`: a table of marks, or one JSON object."""
    model, tokenizer = load_model(args.model, args.dtype, args.device)
    max_len = min(args.max_len or model.config.max_len, model.config.max_len)
    examples, truncated = load_examples(args.data, tokenizer, max_len)

    # Marks of the answers in the file.
    result = marks(*answer_logps(model, examples, args.batch))
    result |= {"truncated": truncated, "exact_match": None, "bleu4": None, "rouge_l": None}

    # Marks of the model's own answers, to the first prompts that have a wanted one.
    chosen, wanted, generated = [], [], []
    if args.generate:
        chosen = [e for e in examples if e.answers[0]][: args.generate]
        if not chosen:
            raise ValueError(f"{args.data} has no row with a wanted answer to compare with; "
                             "leave out --generate")
        prompts = [e.prompt for e in chosen]
        wanted = [as_text(e.text["answers"][0]) for e in chosen]
        compared, generated = compare_answers(
            model, tokenizer, prompts, wanted, args.batch, args.max_new_tokens
        )
        result |= compared

    if args.json:
        write_json("-", result)
        return
    for name, value in result.items():
        if value is not None:
            number = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
            print(f"{name.replace('_', ' '):26}{number}")
    for e, text, answer in list(zip(chosen, wanted, generated, strict=True))[:SHOWN]:
        prompt = as_text(e.text["prompt"])
        print(f"\n── {prompt[-300:]}\nwanted  {text[:400]}\nanswer  {answer[:400]}")
