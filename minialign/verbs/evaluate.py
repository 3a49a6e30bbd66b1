"""`minialign evaluate`: how good a model is on a file of examples. The marks are evaluate.py's."""

from dataclasses import dataclass

from minialign import parallel
from minialign.evaluate import answer_logps, compare_answers, marks
from minialign.files import write_json
from minialign.hf.datafiles import load_examples
from minialign.hf.rows import as_text
from minialign.settings import setting
from minialign.verbs.flags import ALL_TURNS, CHAT, COLUMNS, DTYPES, printable, reading
from minialign.verbs.models import open_model

SHOWN = 3                   # answers that are printed to read


@dataclass(frozen=True)
class Flags:
    """Which model, on which examples."""

    model: str = setting(
        ..., "model folder, adapter, or OWNER/NAME on the Hugging Face hub, stories260K or "
        "llama2xs, which ship with this package, or small: the small GPT of compare, of seed 0")
    data: str = setting(..., "a data file in any of the layouts of train")
    columns: str | None = setting(None, COLUMNS)
    chat: bool = setting(False, CHAT)
    all_turns: bool = setting(False, ALL_TURNS)
    no_end_token: bool = setting(
        False, "leave the end token of every answer out of its log-prob, as lm-evaluation-harness "
        "does")
    generate: int = setting(
        0, "also answer this many prompts greedily, and compare with the wanted answers: exact "
        "match, BLEU-4, ROUGE-L", least=0)
    max_new_tokens: int = setting(256, "longest generated answer", least=1, most=10**6)
    chat_template: str | None = setting(
        None, "Jinja file with a chat template, instead of the one in the model folder")
    max_len: int | None = setting(
        None, "longest prompt + answer in tokens, the model's context unless given", least=2)
    batch: int = setting(16, "prompts at a time", least=1)
    dtype: str = setting("float32", "the model's numbers", choices=DTYPES)
    device: str = setting("cpu", "cpu, cuda, cuda:1, mps, or auto: the best there is")
    json: bool = setting(False, "print one JSON object instead of a table")


def run(flags: Flags) -> None:
    """A table of marks, or one JSON object."""
    parallel.begin(flags.device)
    model, tokenizer = open_model(
        flags.model, flags.dtype, flags.device, chat_template=flags.chat_template)
    max_len = min(flags.max_len or model.config.max_len, model.config.max_len)
    examples, truncated = load_examples(flags.data, tokenizer, max_len, **reading(flags))
    if flags.no_end_token:
        for e in examples:
            e.answers = [without_end(answer, tokenizer.eos_id) for answer in e.answers]

    # Marks of the answers in the file.
    result = marks(*answer_logps(model, examples, flags.batch))
    result |= {"truncated": truncated, "exact_match": None, "bleu4": None, "rouge_l": None}

    # Marks of the model's own answers, to the first prompts that have a wanted one.
    chosen, wanted, generated = [], [], []
    if flags.generate:
        chosen = [e for e in examples if e.answers[0]][: flags.generate]
        if not chosen:
            raise ValueError(f"{flags.data} has no row with a wanted answer to compare with; "
                             "leave out --generate")
        prompts = [e.prompt for e in chosen]
        wanted = [as_text(e.text["answers"][0]) or "" for e in chosen]
        compared, generated = compare_answers(
            model, tokenizer, prompts, wanted, flags.batch, flags.max_new_tokens)
        result |= compared

    if flags.json:
        write_json("-", result)
        return
    for name, value in result.items():
        if value is not None:
            number = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
            print(f"{name.replace('_', ' '):26}{number}")
    for e, text, answer in list(zip(chosen, wanted, generated, strict=True))[:SHOWN]:
        prompt = as_text(e.text["prompt"]) or ""
        print(printable(f"\n── {prompt[-300:]}\nwanted  {text[:400]}\nanswer  {answer[:400]}"))


def without_end(answer: list[int], eos_id: int | None) -> list[int]:
    """An answer's ids without the end token, unless it has no other."""
    if len(answer) > 1 and answer[-1] == eos_id:
        return answer[:-1]
    return answer
