"""Rows by templates: what a recipe's Jinja templates make of a row's columns.

Templates say what a column means, so they may print numbers, and any answer at all: "None" is an answer here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateRuntimeError, TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from infra.errors import Fault, RequestError
from tasks.ingestion.rows import Malformed, Row, source_name
from tasks.recipe.schema import Data

Make = Callable[[dict[str, Any]], dict[str, Any]]  # columns -> row to train on; raises Malformed

# What an expression can raise over a value of the wrong type; jinja2 does not wrap these.
RENDER_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def given_templates(data: Data) -> dict[str, str]:
    """{the recipe's key: template}, in the order in which they make a row; empty if the recipe gives none."""
    messages = data.messages.model_dump() if data.messages else {}
    given = {f"messages.{role}": messages.get(role) for role in ("system", "user", "assistant")}
    given |= {"prompt": data.prompt, "completion": data.completion, "text": data.text}
    return {key: text for key, text in given.items() if text is not None}


def made_by_templates(data: Data, head: Sequence[Row]) -> Make:
    """What turns a row's columns into a chat, plain text, or one text; RequestError for templates that cannot."""
    templates, needed = _compile(given_templates(data))
    _check_columns(data, needed, head)
    columns = sorted(set().union(*needed.values()))

    def make(values: dict[str, Any]) -> dict[str, Any]:
        for column in columns:
            value = values.get(column)
            if isinstance(value, float) and not math.isfinite(value):
                raise Malformed(f"column {column!r} is {value}")
        return _assembled({key: _printed(key, template, values) for key, template in templates.items()})

    return make


def _assembled(texts: dict[str, str]) -> dict[str, Any]:
    if "text" in texts or "prompt" in texts:
        return texts
    messages = [{"role": key.removeprefix("messages."), "content": text} for key, text in texts.items()]
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def _printed(key: str, template: Template, values: dict[str, Any]) -> str:
    try:
        text = template.render(values)
        text.encode()  # JSON can spell half a character ("\\ud800"), which no file can hold
    except RENDER_ERRORS as error:
        raise Malformed(f"{key}: {error}") from error
    if not text.strip():
        raise Malformed(f"{key} comes out empty")
    return text


def _compile(texts: dict[str, str]) -> tuple[dict[str, Template], dict[str, set[str]]]:
    """({key: template}, {key: the columns that it reads})"""
    environment = SandboxedEnvironment(undefined=StrictUndefined, finalize=_shown)
    templates: dict[str, Template] = {}
    needed: dict[str, set[str]] = {}
    faults: list[Fault] = []
    for key, text in texts.items():
        try:
            templates[key] = environment.from_string(text)
            needed[key] = meta.find_undeclared_variables(environment.parse(text))
        except TemplateSyntaxError as error:
            faults.append(Fault(f"{text!r} is not a Jinja template: {error.message}", key))
    if faults:
        raise RequestError(faults)
    return templates, needed


def _shown(value: Any) -> Any:
    """What a template prints: nothing for null; TemplateRuntimeError for what would come out as Python's notation."""
    if isinstance(value, bytes | dict | list | tuple | set):
        kind = type(value).__name__
        raise TemplateRuntimeError(f"prints a value of type {kind}, not text; name a part of it, or use | tojson")
    return "" if value is None else value


def _check_columns(data: Data, needed: dict[str, set[str]], rows: Sequence[Row]) -> None:
    """RequestError for every column that a template reads and none of `rows` has."""
    good = [row.values for row in rows if row.fault is None]
    there = dict.fromkeys(str(column) for values in good for column in values)
    faults = [
        Fault(f"column {column!r} is not in {source_name(data)}; its columns are {', '.join(there)}", key)
        for key, columns in needed.items()
        for column in sorted(columns - set(there))
    ]
    if good and faults:
        raise RequestError(faults)
