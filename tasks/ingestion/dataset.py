"""From rows to chats: fill the templates, drop what is malformed or twice, split by seed, say what happened.

    rows -> templates -> {"prompt": [...], "completion": [...]} -> exact duplicates out -> train | held-out

The split is over distinct prompts, so no question stands on both sides. Written as train.jsonl, held_out.jsonl and
report.json; a row of a .jsonl is {"id", "prompt": [messages], "completion": [message]}.
"""

import json
import math
import random
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateRuntimeError, TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from infra.errors import Fault, RequestError
from infra.hashing import digest_json
from tasks.ingestion.rows import Row, read_rows
from tasks.recipe.schema import Data

Chat = dict[str, Any]
REPORTED = 100  # dropped rows that a report lists one by one
HEAD = 100  # rows in which a column has to turn up

# What an expression can raise over a value of the wrong type; jinja2 does not wrap these.
RENDER_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def build_dataset(data: Data, output: Path, *, needs_held_out: bool) -> dict[str, Any]:
    """Write the data set of a recipe's `data` into the folder `output`; return its figures.

    RequestError names every malformed row (file and line) beyond `data.max_bad_rows`, and says so if a column
    that a template reads is not there, or nothing is left to train on or to score.
    """
    templates = _compile(data)
    needed = _columns_needed(data)
    rows = read_rows(data)
    head = list(islice(rows, HEAD))
    _check_columns(data, needed, head)
    chats: list[Chat] = []
    bad: list[Fault] = []
    read = 0
    for row in chain(head, rows):
        read += 1
        chat = _fill(templates, needed, row)
        if isinstance(chat, Fault):
            bad.append(chat)
        else:
            chats.append(chat)
    if not read:
        raise RequestError(f"{_source_name(data)} has no rows; there is nothing to train on.")
    if len(bad) > data.max_bad_rows:
        advice = Fault(
            f"{len(bad)} of {read} rows are malformed and max_bad_rows is {data.max_bad_rows}: "
            "mend them, or raise max_bad_rows to drop so many.",
            _source_name(data),
        )
        raise RequestError([*bad[:REPORTED], advice])

    distinct = {chat["id"]: chat for chat in chats}
    train, held_out = split_by_prompt(list(distinct.values()), data.held_out, data.seed)
    if not train:
        raise RequestError(
            f"{_source_name(data)}: {len(distinct)} rows, of which held_out={data.held_out:g} leaves none to train on."
        )
    if needs_held_out and not held_out:
        raise RequestError(
            f"{_source_name(data)}: the target scores held-out rows, but held_out={data.held_out:g} of {len(distinct)} "
            "rows leaves none. Raise held_out, or set target.splits and target.decides to train."
        )
    _write_jsonl(output / "train.jsonl", train)
    _write_jsonl(output / "held_out.jsonl", held_out)
    report = {
        "read": read,
        "train": len(train),
        "held_out": len(held_out),
        "duplicates": len(chats) - len(distinct),
        "malformed": len(bad),
    }
    # The file's name without its folder: the same rows are the same data set on every machine.
    dropped = [{"where": Path(fault.where or "").name, "why": fault.message} for fault in bad[:REPORTED]]
    (output / "report.json").write_text(json.dumps({**report, "dropped": dropped}, indent=1, ensure_ascii=False))
    return report


def split_by_prompt(chats: list[Chat], held_out: float, seed: int) -> tuple[list[Chat], list[Chat]]:
    """(train, held-out) with no prompt on both sides; `held_out` below 1 is a fraction of the distinct prompts."""
    prompts = sorted({digest_json(chat["prompt"]) for chat in chats})
    random.Random(seed).shuffle(prompts)
    count = round(held_out * len(prompts)) if held_out < 1 else int(held_out)
    kept_out = set(prompts[:count])
    sides: tuple[list[Chat], list[Chat]] = ([], [])
    for chat in chats:
        sides[digest_json(chat["prompt"]) in kept_out].append(chat)
    return sides


def read_jsonl(path: Path) -> list[Chat]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _write_jsonl(path: Path, chats: Iterable[Chat]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats)


def _source_name(data: Data) -> str:
    return data.path or data.hub or data.generate or "rows"


def _environment() -> SandboxedEnvironment:
    return SandboxedEnvironment(undefined=StrictUndefined, finalize=_printed)


def _printed(value: Any) -> Any:
    """What a template prints: nothing for null; TemplateRuntimeError for what would come out as Python's notation."""
    if isinstance(value, bytes | dict | list | tuple | set):
        kind = type(value).__name__
        raise TemplateRuntimeError(f"prints a value of type {kind}, not text; name a part of it, or use | tojson")
    return "" if value is None else value


def _texts(data: Data) -> dict[str, str]:
    return {
        role: text for role in ("system", "user", "assistant") if (text := getattr(data.messages, role)) is not None
    }


def _compile(data: Data) -> dict[str, Template]:
    templates: dict[str, Template] = {}
    faults: list[Fault] = []
    for role, text in _texts(data).items():
        try:
            templates[role] = _environment().from_string(text)
        except TemplateSyntaxError as error:
            faults.append(Fault(f"{text!r} is not a Jinja template: {error.message}", f"messages.{role}"))
    if faults:
        raise RequestError(faults)
    return templates


def _columns_needed(data: Data) -> dict[str, set[str]]:
    """{role: the columns that its template reads}"""
    return {role: meta.find_undeclared_variables(_environment().parse(text)) for role, text in _texts(data).items()}


def _check_columns(data: Data, needed: dict[str, set[str]], rows: Sequence[Row]) -> None:
    """RequestError for every column that a template reads and none of `rows` has."""
    good = [row.values for row in rows if row.fault is None]
    there = dict.fromkeys(str(column) for values in good for column in values)
    faults = [
        Fault(
            f"column {column!r} is not in {_source_name(data)}; its columns are {', '.join(there)}",
            f"messages.{role}",
        )
        for role, columns in needed.items()
        for column in sorted(columns - set(there))
    ]
    if good and faults:
        raise RequestError(faults)


def _fill(templates: dict[str, Template], needed: dict[str, set[str]], row: Row) -> Chat | Fault:
    if row.fault:
        return Fault(row.fault, row.where)
    for column in sorted(set().union(*needed.values())):
        value = row.values.get(column)
        if isinstance(value, float) and not math.isfinite(value):
            return Fault(f"column {column!r} is {value}", row.where)
    messages = []
    for role, template in templates.items():
        try:
            content = template.render(row.values)
            content.encode()  # JSON can spell half a character ("\\ud800"), which no file can hold
        except RENDER_ERRORS as error:
            return Fault(f"messages.{role}: {error}", row.where)
        if not content.strip():
            return Fault(f"messages.{role} comes out empty", row.where)
        messages.append({"role": role, "content": content})
    chat = {"prompt": messages[:-1], "completion": messages[-1:]}
    return {"id": digest_json(chat)[:16], **chat}
