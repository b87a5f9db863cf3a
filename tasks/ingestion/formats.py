"""Rows by shape: the common forms of training data, recognised by their columns, for recipes without templates.

    alpaca             instruction, output, [input]   a chat: the user gives the instruction and, after a blank line,
                                                      the input; the assistant gives the output
    chat               messages                       [{"role": system | user | assistant, "content"}, ...]
    sharegpt           conversations                  [{"from": system | human | user | gpt | assistant, "value"}, ...]
    prompt-completion  prompt, completion             plain text each, or messages each: a chat
    text               text                           plain text, trained on as a whole
    preference         chosen, rejected, [prompt]     two answers: text, or messages; whole chats if there is no prompt

Alpaca's own prompt ("Below is an instruction that describes a task...") is plain text around the columns: a recipe
that wants it gives it as the templates `prompt` and `completion`.

A chat's prompt is all that stands before its last message, and that one is the answer. What cannot be meant is
Malformed: turns out of order, an empty turn, a value that is not text, and an answer such as "nan", which is how tools
write a missing value. Where that is the answer, templates say so: they take any text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import Fault, RequestError
from tasks.ingestion.columns import Messages, Values, answer, chat, messages, not_missing, sharegpt_messages, text
from tasks.ingestion.rows import Malformed, Row, source_name
from tasks.recipe.schema import Data, Format

TEMPLATES = "templates: data.messages (user, assistant), data.prompt with data.completion, or data.text"


def kind_of(row: dict[str, Any]) -> str:
    """Which of the four kinds of tasks/training/rendering.py a row is."""
    if "text" in row:
        return "text"
    if "chosen" in row:
        return "preference"
    return "plain" if isinstance(row["prompt"], str) else "chat"


def _alpaca(values: Values) -> Values:
    user = text(values, "instruction")
    if values.get("input") not in (None, ""):
        user += "\n\n" + not_missing(text(values, "input"), "column 'input'")
    output = {"role": "assistant", "content": answer(values, "output")}
    return {"prompt": [{"role": "user", "content": user}], "completion": [output]}


def _chat(values: Values) -> Values:
    return chat(messages(values, "messages"), "column 'messages'")


def _sharegpt(values: Values) -> Values:
    return chat(sharegpt_messages(values, "conversations"), "column 'conversations'")


def _prompt_completion(values: Values) -> Values:
    if isinstance(values.get("prompt"), list) and isinstance(values.get("completion"), list):
        said = messages(values, "prompt") + messages(values, "completion")
        return chat(said, "columns 'prompt' and 'completion'")
    return {"prompt": text(values, "prompt"), "completion": answer(values, "completion")}


def _text(values: Values) -> Values:
    return {"text": answer(values, "text")}


def _preference(values: Values) -> Values:
    sides = ("chosen", "rejected")
    if any(isinstance(values.get(side), list) for side in sides):
        before = _asked(values)
        chosen, rejected = (chat(_after(before, messages(values, side)), f"column {side!r}") for side in sides)
        if chosen["prompt"] != rejected["prompt"]:
            raise Malformed("'chosen' and 'rejected' differ before their last message; only the answer may differ")
        pair = {"prompt": chosen["prompt"], "chosen": chosen["completion"], "rejected": rejected["completion"]}
    else:
        pair = {"prompt": text(values, "prompt"), **{side: answer(values, side) for side in sides}}
    if pair["chosen"] == pair["rejected"]:
        raise Malformed("'chosen' and 'rejected' are the same answer; nothing can be learned from it")
    return pair


def _asked(values: Values) -> Messages:
    """The prompt as messages; none if there is no such column, or null in it."""
    if isinstance(values.get("prompt"), str):
        return [{"role": "user", "content": text(values, "prompt")}]
    return [] if values.get("prompt") is None else messages(values, "prompt")


def _after(before: Messages, said: Messages) -> Messages:
    """Some data sets repeat the prompt in front of each answer."""
    return said if said[: len(before)] == before else before + said


@dataclass(frozen=True)
class Shape:
    """The columns that a format is known by, those that it may have, and how a row is made of them."""

    needs: tuple[str, ...]
    make: Callable[[Values], Values]
    may: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join((*self.needs, *(f"[{column}]" for column in self.may)))


SHAPES: dict[Format, Shape] = {
    "alpaca": Shape(("instruction", "output"), _alpaca, may=("input",)),
    "chat": Shape(("messages",), _chat),
    "sharegpt": Shape(("conversations",), _sharegpt),
    "prompt-completion": Shape(("prompt", "completion"), _prompt_completion),
    "text": Shape(("text",), _text),
    "preference": Shape(("chosen", "rejected"), _preference, may=("prompt",)),
}


def made_by_shape(data: Data, head: Sequence[Row]) -> Callable[[Values], Values]:
    """What turns a row of the named or recognised format into a row to train on.

    RequestError if the columns of `head` (the first rows) are those of no format, or of several.
    """
    good = [row.values for row in head if row.fault is None]
    if not good:
        faults = [Fault(row.fault or "", row.where) for row in head]
        raise RequestError([*faults, Fault("none of the first rows can be read, so no columns", source_name(data))])
    columns = dict.fromkeys(str(column) for values in good for column in values)
    there = f"its columns are {', '.join(columns)}"
    if data.format:
        missing = [column for column in SHAPES[data.format].needs if column not in columns]
        if missing:
            raise RequestError(
                f"{source_name(data)}: data.format {data.format} needs {' and '.join(map(repr, missing))}; {there}. "
                f"Its columns would be: {SHAPES[data.format]}. Name another format, or give {TEMPLATES}."
            )
        return SHAPES[data.format].make
    found: list[Format] = [name for name, shape in SHAPES.items() if set(shape.needs) <= set(columns)]
    if len(found) == 1:
        return SHAPES[found[0]].make
    known = "; ".join(f"{name}: {SHAPES[name]}" for name in found or SHAPES)
    if found:
        advice = f"could be of {len(found)} formats ({known}). Say which, e.g. data.format: {found[0]}"
    else:
        advice = f"are of no known format ({known}). Rename the columns"
    raise RequestError(f"{source_name(data)}: {there}, and {advice}, or give {TEMPLATES}.")
