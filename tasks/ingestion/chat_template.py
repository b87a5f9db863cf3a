"""A chat template that the recipe gives in place of the tokenizer's own: read and checked before anything is loaded."""

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from infra.errors import RequestError

CHAT_TEMPLATE = "chat_template.jinja"  # the file that transformers reads before any other place


DATE = "26 Jul 2024"
_FIXED_DATE = "{%- macro strftime_now(format) -%}" + DATE + "{%- endmacro -%}"


def has_chat_template(base: Path) -> bool:
    """Whether the tokenizer in this folder can render a chat."""
    config = base / "tokenizer_config.json"
    return (base / CHAT_TEMPLATE).exists() or bool(
        config.exists() and json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    )


def with_fixed_date(template: str) -> str:
    """The same template, in which it is always the same day.

    Some templates write today's date into every prompt (Llama 3.2's does). Then rows would be trained on one day's
    prompts and scored on another's, and no two runs could be compared. The date is the one that Llama's own template
    falls back to. transformers offers templates a function `strftime_now`; a macro of that name goes before it.
    """
    return _FIXED_DATE + template if "strftime_now" in template and _FIXED_DATE not in template else template


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, with which templates mark the answer for transformers."""

    tags = {"generation"}  # noqa: RUF012 - so declared by jinja2

    def parse(self, parser: Parser) -> Any:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def read_chat_template(path: str) -> str:
    """The text of a Jinja chat template; RequestError if there is no such file, or it is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"base.chat_template {path!r} cannot be read: {error}. Paths are relative to the recipe."
        ) from (error)
    try:
        ImmutableSandboxedEnvironment(extensions=[_Generation, "jinja2.ext.loopcontrols"]).from_string(text)
    except TemplateSyntaxError as error:
        raise RequestError(
            f"base.chat_template {path!r}, line {error.lineno}: not a Jinja template: {error.message}."
        ) from error
    if not text.strip():
        raise RequestError(f"base.chat_template {path!r} is empty, so a chat would render to nothing.")
    return text
