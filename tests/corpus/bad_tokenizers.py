"""Bad tokenizers and chat templates: damaged, contradictory, endless, or blind to the answer."""

import base64
import json
import random

from cases import BAD_JSON, WRONG, Cases
from conftest import write

CASES = Cases()
case = CASES.add

# ---------------------------------------------------------------------------------------- tokenizer

for what, content in BAD_JSON.items():
    def replaced(p, content=content):
        (p.model / "tokenizer.json").write_bytes(content)
        return p.evaluate()
    case("tokenizer", f"tokenizer.json {what}", replaced)


def tokenizer_json(change):
    def make(p):
        file = p.model / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return p.evaluate()
    return make


def without(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]
    return change


def with_value(value, *keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value
    return change


case("tokenizer", "without a model", tokenizer_json(without("model")))
case("tokenizer", "without a vocab", tokenizer_json(without("model", "vocab")))
for what, value in WRONG.items():
    if value is ...:
        continue
    case("tokenizer", f"model {what}", tokenizer_json(with_value(value, "model")))
    case("tokenizer", f"vocab {what}", tokenizer_json(with_value(value, "model", "vocab")))
    case("tokenizer", f"merges {what}", tokenizer_json(with_value(value, "model", "merges")),
         lenient=True)
    case("tokenizer", f"added_tokens {what}", tokenizer_json(with_value(value, "added_tokens")))
    case("tokenizer", f"id of a token {what}", tokenizer_json(
        with_value(value, "model", "vocab", "a")))
    case("tokenizer", f"id of the end {what}", tokenizer_json(
        with_value(value, "added_tokens", 0, "id")), lenient=True)
    case("tokenizer", f"dropout {what}", tokenizer_json(with_value(value, "model", "dropout")),
         lenient=what in ("null", "0"))
    case("tokenizer", f"pre_tokenizer {what}", tokenizer_json(with_value(value, "pre_tokenizer")),
         lenient=what == "null")

    def named(p, value=value):
        (p.model / "tokenizer_config.json").write_text(json.dumps({"eos_token": value}))
        return p.evaluate()
    case("tokenizer", f"eos_token {what}", named, lenient=what in ("null", "text"))

    def numbered(p, value=value):
        (p.model / "tokenizer_config.json").write_text("{}")
        (p.model / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        return p.evaluate()
    case("tokenizer", f"eos_token_id {what}", numbered,
         lenient=what in ("null", "0", "a list"))

    def decoder(p, value=value):
        content = {"eos_token": "<|end|>", "added_tokens_decoder": {"256": value}}
        (p.model / "tokenizer_config.json").write_text(json.dumps(content))
        return p.evaluate()
    case("tokenizer", f"an added token {what}", decoder)
for key in "", "x", "-1", "1.5", "9" * 400:
    def added(p, key=key):
        token = {"content": "<new>", "special": True}
        content = {"eos_token": "<|end|>", "added_tokens_decoder": {key: token}}
        (p.model / "tokenizer_config.json").write_text(json.dumps(content))
        return p.evaluate()
    case("tokenizer", f"an added token with the id {key[:5]!r}", added, lenient=key == "9" * 400)

BYTES = [(bytes([byte]), byte) for byte in range(256)]


def rank_file(lines):
    def make(p):
        (p.model / "tokenizer.json").unlink()
        (p.model / "x.tiktoken").write_bytes(lines)
        return p.evaluate()
    return make


def spelled(tokens):
    return b"".join(base64.b64encode(token) + b" " + str(i).encode() + b"\n" for token, i in tokens)


for what, tokens_ in {
    "a byte less": BYTES[:-1], "a rank twice": BYTES[:-1] + [(b"\xff", 0)],
    "a negative rank": BYTES[:-1] + [(b"\xff", -1)], "a gap": BYTES[:-1] + [(b"\xff", 300)],
    "an empty token": BYTES[:-1] + [(b"", 255)], "huge": BYTES[:-1] + [(b"\xff", 10**30)],
    "a token twice": BYTES + [(b"a", 256)], "a word for a byte": BYTES[:-1] + [(b"ab", 255)],
    "256 words": [(b"ab%d" % i, i) for i in range(256)],
}.items():
    case("tokenizer", f"ranks: {what}", rank_file(spelled(tokens_)))
for what, lines in {"no base64": b"!!! 0\n", "no ranks": b"YQ==\n", "three columns": b"YQ== 0 1\n",
                    "empty": b"", "nul": b"\0" * 50, "a float": b"YQ== 1.5\n",
                    "sentencepiece": b"\n\x05hello"}.items():
    case("tokenizer", f"ranks: {what}", rank_file(lines))
for seed in range(20):
    whole = spelled(BYTES)
    case("tokenizer", f"ranks cut at {seed}", rank_file(
        whole[: random.Random(seed).randrange(len(whole) - 2)]))
for what, content in {
    "empty text": {"": 256}, "on a byte": {"<a>": 5}, "negative": {"<a>": -1}, "text": {"<a>": "x"},
    "twice": {"<a>": 256, "<b>": 256}, "huge": {"<a>": 10**30}, "a float": {"<a>": 256.5},
    "null": {"<a>": None},
}.items():
    def special(p, content=content):
        (p.model / "added_tokens.json").write_text(json.dumps(content))
        (p.model / "tokenizer_config.json").write_text("{}")
        return rank_file(spelled(BYTES))(p)
    case("tokenizer", f"special: {what}", special)


# ---------------------------------------------------------------------------------------- templates

LOOP = "{% for i in range(99999) %}"
GROW = ("{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = @ %}{% endfor %}"
        "{{ n.x }}")
TEMPLATES = [
    LOOP + LOOP + "{% endfor %}{% endfor %}", LOOP + LOOP + "x{% endfor %}{% endfor %}",
    LOOP * 3 + "{% endfor %}" * 3, LOOP * 15 + "{% endfor %}" * 15,
    "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(0) }}", "{{ 'x' * 10**10 }}", "{{ 10**(10**9) }}",
    "{{ 'x'|center(10**9) }}", "{{ '%1000000000d' % 1 }}", "{{ '%*d' % (10**9, 1) }}",
    *(GROW.replace("@", how) for how in (
        "n.x ~ n.x", "n.x + n.x", "n.x * 2", "n.x.replace('x', n.x ~ 'xx')", "[n.x, n.x]|join",
        "n.x.join([n.x, n.x, n.x])", "(n.x, n.x)|join('x')", "n.x.__add__(n.x)")),
    "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{{ 'x'.ljust(10**9) }}", "{{ 'x'.zfill(10**9) }}", "{{ lipsum(10**9) }}", "{{ lipsum() }}",
    "{{ raise_exception('') }}", "{{ raise_exception('no') }}", "{{ 1/0 }}", "{% if %}", "{{",
    "{% for %}", "{% endfor %}", "{% block a %}", "{% include 'x' %}", "{% import 'x' as y %}",
    "{% extends 'x' %}", "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}",
    "{{ messages.clear() }}", "{{ cycler.__init__.__globals__ }}", "{{ self.__init__ }}x",
    "{{ messages[99].content }}", "{{ messages[0].nothing.more }}", "{{ nothing() }}",
    "{{ messages|tojson(indent=10**9) }}", "{{ range(10**9)|list }}", "{{ 'a'|nofilter }}",
    "{{ range(99999)|join('x'*100000) }}", "{{ [1]*10**9 }}", "{{ 'a' + 1 }}", "{{ [] + 'a' }}",
    "{{ messages|map(attribute='content')|list|batch(10**9, 1)|list }}",
    "{{ '{:1000000000}'.format(1) }}", "{{ '{0.__class__}'.format(1) }}", "{{ " + "(" * 9999,
    "{{ " + "[" * 3000 + "]" * 3000 + " }}", "{{ " + "-" * 9999 + "1 }}", "{% if 1 %}" * 500,
    "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}", "{{ 'x'|indent(10**9) }}",
    "", "constant", "{{ messages[0].content }}", "{{ messages|length }}",
    "{% for m in messages %}{{ m.role }}{% endfor %}", "{{ messages[-1].role }}:",
    "{% for m in messages %}{{ m.content[:2] }}{% endfor %}",
    "{% for m in messages %}{{ m.content|upper }}{% endfor %}",
    "{% for m in messages %}{{ m.content|reverse }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "{% if add_generation_prompt %}a{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
]
CHAT = [{"messages": [{"role": "user", "content": "what is one plus one"},
                      {"role": "assistant", "content": "that makes two"}]}]
for number, template in enumerate(TEMPLATES):
    def templated(p, template=template):
        (p.model / "chat_template.jinja").write_text(template)
        write(p.data, CHAT)
        return p.evaluate()
    case("templates", f"{number}: {template[:40]}", templated)
for what, content in {"utf-16": "{{ 1 }}".encode("utf-16"), "latin": b"\xe4{{ 1 }}"}.items():
    def encoded(p, content=content):
        (p.model / "chat_template.jinja").write_bytes(content)
        return p.evaluate()
    case("templates", what, encoded)
for what, value in WRONG.items():
    if value not in (..., None, "x"):
        def keyed(p, value=value):
            (p.model / "tokenizer_config.json").write_text(
                json.dumps({"eos_token": "<|end|>", "chat_template": value}))
            write(p.data, CHAT)
            return p.evaluate()
        case("templates", f"chat_template {what}", keyed)
