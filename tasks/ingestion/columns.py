"""What a column may hold where no template reads it: text, an answer, or the messages of a chat."""

from typing import Any

from tasks.ingestion.rows import Malformed

Values = dict[str, Any]
Messages = list[dict[str, str]]

WRITTEN_FOR_MISSING = {"nan", "NaN", "NaT", "<NA>", "None", "null", "NULL"}
CHAT_ROLES = {role: role for role in ("system", "user", "assistant")}
SHAREGPT_ROLES = {**CHAT_ROLES, "human": "user", "gpt": "assistant"}
CALLS = ("tool_calls", "function_call")  # parts of a message that would be lost


def text(values: Values, column: str) -> str:
    return _is_text(_value(values, column), f"column {column!r}")


def answer(values: Values, column: str) -> str:
    """Text that is trained on: "nan" and the like are refused."""
    return not_missing(text(values, column), f"column {column!r}")


def not_missing(said: str, where: str) -> str:
    if said.strip() in WRITTEN_FOR_MISSING:
        raise Malformed(
            f"{where} is {said.strip()!r}: it looks like a missing value that was written as text; if it is meant, "
            "give templates"
        )
    return said


def messages(values: Values, column: str) -> Messages:
    """[{"role", "content"}, ...], as they stand in the column."""
    return _read_messages(values, column, speaker="role", content="content", roles=CHAT_ROLES)


def sharegpt_messages(values: Values, column: str) -> Messages:
    return _read_messages(values, column, speaker="from", content="value", roles=SHAREGPT_ROLES)


def chat(said: Messages, where: str) -> Values:
    """{"prompt": what stands before the last message, "completion": that message}; Malformed if it is no answer."""
    turns = said[1:] if said[0]["role"] == "system" else said
    for index, message in enumerate(turns):
        if message["role"] != (wanted := ("user", "assistant")[index % 2]):
            number = index + 1 + len(said) - len(turns)
            raise Malformed(
                f"{where}: message {number} is of role {message['role']!r}, not {wanted!r}; "
                "after a system message, if any, user and assistant take turns"
            )
    if len(turns) % 2 or not turns:
        raise Malformed(f"{where} ends with a message of the {said[-1]['role']}, not with the assistant's answer")
    return {"prompt": said[:-1], "completion": said[-1:]}


def _read_messages(values: Values, column: str, *, speaker: str, content: str, roles: dict[str, str]) -> Messages:
    given = _value(values, column)
    if not isinstance(given, list) or not given:
        raise Malformed(f"column {column!r} is {_kind(given)}, not a list of messages")
    read = []
    for number, message in enumerate(given, start=1):
        where = f"column {column!r}: message {number}"
        if not isinstance(message, dict) or not {speaker, content} <= message.keys():
            shown = (
                f"has the keys {', '.join(map(str, message))}" if isinstance(message, dict) else f"is {_kind(message)}"
            )
            raise Malformed(f"{where} {shown}; it must be {{{speaker!r}: ..., {content!r}: ...}}")
        if message[speaker] not in tuple(roles):
            raise Malformed(f"{where} is of role {message[speaker]!r}; allowed are {', '.join(roles)}")
        if calls := [key for key in CALLS if message.get(key)]:
            raise Malformed(f"{where} has {calls[0]!r}, which would be lost: only what is said is trained on")
        said = _is_text(message[content], f"{where}: {content!r}")
        role = roles[message[speaker]]
        read.append({"role": role, "content": not_missing(said, where) if role == "assistant" else said})
    return read


def _value(values: Values, column: str) -> Any:
    if column not in values:
        raise Malformed(f"has no column {column!r}; its columns are {', '.join(map(str, values)) or 'none'}")
    return values[column]


def _is_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{where} is {_kind(value)}, not text")
    if not value.strip():
        raise Malformed(f"{where} is empty")
    try:
        value.encode()  # JSON can spell half a character ("\\ud800"), which no file can hold
    except UnicodeEncodeError as error:
        raise Malformed(f"{where}: {error}") from error
    return value


def _kind(value: Any) -> str:
    """A value in words."""
    if value is None:
        return "null"
    kind = type(value).__name__
    return f"an empty {kind}" if value == [] else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
