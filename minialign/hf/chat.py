"""Chat messages → text: a model folder's Jinja template, letter for letter as transformers runs it.

A template is a program from somewhere else, so it runs in Jinja's sandbox.
"""

import json
from datetime import datetime
from functools import lru_cache

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """{% generation %} … {% endgeneration %} marks what the model said. It changes no text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """JSON as templates expect it; the filter that Jinja brings along escapes < > & and '."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def raise_exception(message: str):
    """What a template calls to refuse messages."""
    raise TemplateError(message)


def strftime_now(form: str) -> str:
    """Today's date, which some templates write into the system message."""
    return datetime.now().strftime(form)


@lru_cache
def compile_template(source: str) -> Template:
    """A template with the settings, the filter and the functions that templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment.from_string(source)


def as_templates_see(message: dict) -> dict:
    """A message without its empty keys, its reasoning trace under each name that templates use."""
    seen = {key: value for key, value in message.items() if value is not None}
    for name in ("reasoning_content", "thinking", "reasoning"):
        if name in seen:
            return {"thinking": seen[name], **seen, "reasoning_content": seen[name]}
    return seen
