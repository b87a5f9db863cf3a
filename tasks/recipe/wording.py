"""What pydantic found wrong, in words: what was got, what is allowed, which key was meant, and where it stands."""

import difflib
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from infra.errors import Fault

Location = tuple[str | int, ...]
Place = Callable[[int, Location], str | None]  # where a key of the adapter of that number was given: file:line


def nowhere(_number: int, _location: Location) -> None:
    """The place of every key of a recipe that came without a file."""


def of_adapters(names: list[str], key: str, place: str | None = None) -> str:
    """The `where` of a fault in one or more adapters: "recipe.yaml:9 adapter 'iso' lora.r"."""
    shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return " ".join(filter(None, [place, f"adapter{'s' * (len(names) > 1)} {shown}", key]))


def in_words(
    error: ValidationError, model: type[BaseModel], content: dict[str, Any], places: Mapping[Location, str]
) -> list[Fault]:
    """Pydantic's errors over `content`, one a key, without those that only follow from another one below the same key.

    `places` says where the keys stand, and at least where the whole does, under ().
    """
    problems: dict[Location, list[Any]] = {}
    for problem in error.errors():
        problems.setdefault(_given(problem, content), []).append(problem)

    def follows(location: Location) -> bool:
        depth = len(location)
        return problems[location][0]["type"] == "too_short" and any(
            len(other) > depth and other[:depth] == location for other in problems
        )

    return [_fault(model, location, problems[location], places) for location in problems if not follows(location)]


def _given(problem: Any, content: Any) -> Location:
    """Where in `content` the problem is: pydantic's location without its names for the alternatives of a type."""
    location: Location = ()
    for step in problem["loc"]:
        known = step in content if isinstance(content, dict) else isinstance(content, list) and isinstance(step, int)
        if known:
            content = content[step]
            location = (*location, step)
    return (*location, problem["loc"][-1]) if problem["type"] == "missing" else location


def _fault(model: type[BaseModel], location: Location, problems: list[Any], places: Mapping[Location, str]) -> Fault:
    """What is wrong at one place, with the override or the line of the nearest key that it comes from."""
    key = ".".join(map(str, location))
    known = location
    while known not in places:
        known = known[:-1]
    where = f"{places[known]} {key}".rstrip()
    first = problems[0]
    if first["type"] == "extra_forbidden":
        allowed = _keys_at(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(sorted(allowed))}"
        return Fault(f"unknown key {location[-1]!r}; {hint}", where)
    if first["type"] == "missing":
        return Fault("is required but not given", where)
    message = " or ".join(dict.fromkeys(_in_yamls_words(problem["msg"]) for problem in problems))
    message = message.replace(" or input should be", " or")
    if isinstance(first["input"], str) and "://" in first["input"] and "@" in first["input"]:
        return Fault(f"{message}; what was given is not repeated here, because it may hold a password", where)
    if isinstance(first["input"], str | int | float | bool):
        return Fault(f"got {first['input']!r}: {message}", where)
    return Fault(message, where)


def _in_yamls_words(message: str) -> str:
    """Pydantic's message in the words of YAML."""
    message = message.removeprefix("Value error, ").replace("Tuple", "list").replace("tuple", "list")
    message = re.sub(r"dictionary( or instance of \w+)?", "group of keys", message)
    return message[0].lower() + message[1:]


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that the schema allows at `location`."""
    for step in location:
        if isinstance(step, int) or step not in model.model_fields:
            continue
        found = model_in(model.model_fields[step].annotation)
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside `X | None`, `tuple[X, ...]` or X itself."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for part in typing.get_args(annotation) if (found := model_in(part))), None)
