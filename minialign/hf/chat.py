"""Chat messages → text: a model folder's Jinja template, letter for letter as transformers runs it.

A template is a program from somewhere else. So it runs in Jinja's sandbox, and what it may write,
hold and repeat has limits that no honest template comes near.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache, wraps

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

LONGEST = 20_000_000        # characters that a template may write, and items that a value may have
MOST_ROUNDS = 200_000       # rounds of all its loops, and calls of its macros, together
MOST_BITS = 10_000          # of an integer
WIDEST = 10_000             # what a number may be that is given to a filter, and join's separator
WIDE = r"\d{6}|\*"          # a width in a format, which is that wide or is told elsewhere


class Generation(Extension):
    """{% generation %} … {% endgeneration %} marks what the model said. It changes no text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """JSON as templates expect it; the filter that Jinja brings along escapes < > & and '."""
    if isinstance(indent, int) and indent > 100:
        raise SecurityError("it writes JSON with a huge indent")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def raise_exception(message: str):
    """What a template calls to refuse messages."""
    raise TemplateError(message)


def strftime_now(form: str) -> str:
    """Today's date, which some templates write into the system message."""
    return datetime.now().strftime(form)


# ---------------------------------------------------------------------------- limits of a template


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which a single operation cannot make something huge either.

    It counts for one rendering: what is written, and how often loops and macros begin anew.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def begin(self) -> None:
        """Before a rendering: nothing is written yet."""
        self.written, self.rounds = 0, 0

    def write(self, value):
        """Jinja asks what becomes of every value that is written: here it is counted."""
        if isinstance(value, str):
            self.written += len(value)
        if self.written > LONGEST:
            raise SecurityError(f"it writes more than {LONGEST:,} characters")
        return value

    def count(self) -> str:
        """One more round of a loop, or one more call of a macro."""
        self.rounds += 1
        if self.rounds > MOST_ROUNDS:
            raise SecurityError(f"its loops go round more than {MOST_ROUNDS:,} times")
        return ""

    @staticmethod
    def join(*values) -> str:
        """left ~ right: the texts of the values one behind the other."""
        texts = [str(value) for value in values]
        if sum(map(len, texts)) > LONGEST:
            raise SecurityError("it computes something huge")
        return "".join(texts)

    def call_binop(self, context, operator: str, left, right):
        """left + right, left * right, left ** right, left % right, unless that is huge."""
        numbers = all(isinstance(x, int | float) for x in (left, right))
        whole = all(isinstance(x, int) for x in (left, right))
        size = 0
        if operator == "+" and not numbers:
            size = length(left) + length(right)
        elif operator == "*" and not numbers:
            times = next((x for x in (left, right) if isinstance(x, int)), 1)
            size = times * max(length(left), length(right))
        elif operator == "*" and whole and left.bit_length() + right.bit_length() > MOST_BITS:
            size = LONGEST + 1
        elif operator == "%" and isinstance(left, str) and re.search(WIDE, left):
            size = LONGEST + 1
        elif operator == "**" and whole and left.bit_length() * right > MOST_BITS:
            size = LONGEST + 1
        if size > LONGEST:
            raise SecurityError("it computes something huge")
        return super().call_binop(context, operator, left, right)

    def call(self, context, function, *args, **kwargs):
        """A call, unless a number given to it (a width, say) or its result is huge."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > LONGEST:
                raise SecurityError("it computes something huge")
        result = super().call(context, function, *args, **kwargs)
        if length(result) > LONGEST:
            raise SecurityError("it computes something huge")
        return result


def length(value) -> int:
    """How many characters or items a value has."""
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def narrow(filter: Callable, longest: int) -> Callable:
    """The same filter, which makes nothing huge.

    Besides the value that it filters it takes no huge number, and no text of more than `longest`
    characters.
    """
    given = 2 if hasattr(filter, "jinja_pass_arg") else 1       # Jinja's own argument, the value

    @wraps(filter)
    def checked(*args, **kwargs):
        for value in (*args[given:], *kwargs.values()):
            huge = isinstance(value, int) and abs(value) > WIDEST
            if huge or length(value) > longest:
                raise SecurityError("it computes something huge")
        result = filter(*args, **kwargs)
        if length(result) > LONGEST:
            raise SecurityError("it computes something huge")
        return result

    return checked


class Counted(NodeTransformer):
    """A parsed template in which every loop and every macro counts, and `~` is like `+`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        node = self.generic_visit(node)
        call = nodes.Call(nodes.EnvironmentAttribute("count"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(call))
        return node

    visit_Macro = visit_CallBlock = visit_For

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        node = self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("join"), node.nodes, [], None, None)


@lru_cache
def compile_template(source: str) -> Template:
    """A template with the settings, the filter and the functions that templates are written for."""
    if len(source) > LONGEST:
        raise ValueError(f"the chat template is longer than {LONGEST:,} characters")
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.finalize = environment.write
    environment.begin()
    environment.filters["tojson"] = tojson
    for name, filter in environment.filters.items():
        environment.filters[name] = narrow(filter, WIDEST if name == "join" else LONGEST)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    del environment.globals["lipsum"]               # as much text as one likes

    counted = Counted().visit(environment.parse(source))
    for node in counted.find_all(nodes.Node):
        node.set_environment(environment)
    code = environment.compile(counted)
    return Template.from_code(environment, code, environment.make_globals(None))


def as_templates_see(message: dict) -> dict:
    """A message without its empty keys, its reasoning trace under each name that templates use."""
    seen = {key: value for key, value in message.items() if value is not None}
    for name in ("reasoning_content", "thinking", "reasoning"):
        if name in seen:
            return {"thinking": seen[name], **seen, "reasoning_content": seen[name]}
    return seen
