"""From a YAML file and `--set` overrides to a resolved recipe, or to every fault at once with file:line.

Relative input paths (data files, task folders, a base model's folder) are taken from the recipe's own folder;
the folder of a destination is taken from the current one.
"""

import copy
import difflib
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from infra.errors import Fault, RequestError
from tasks.recipe.schema import Recipe
from tasks.recipe.yaml_core import CoreLoader

Location = tuple[str | int, ...]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The resolved recipe in the YAML file at `path`, after `overrides` ("a.b=value", value as YAML)."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(Fault(f"cannot be read as a recipe: {error}", str(path))) from error
    try:
        node = yaml.compose(text, Loader=CoreLoader)
        content = yaml.load(text, Loader=CoreLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RequestError(Fault(f"not valid YAML: {getattr(error, 'problem', error)}", where)) from error
    if not isinstance(content, dict):
        raise RequestError(Fault("holds no keys; `tunefleet init` writes a recipe to start from", str(path)))

    lines: dict[Location, int] = {}
    faults = [Fault(f"key {key!r} is given twice; keep one", f"{path}:{line}") for key, line in _walk(node, (), lines)]
    places = {location: f"{path}:{line}" for location, line in lines.items()}
    faults += [fault for override in overrides if (fault := _override(content, override, places))]
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RequestError(faults + _faults(error, content, {(): str(path), **places})) from None
    if faults:
        raise RequestError(faults)
    return with_absolute_paths(recipe, path.parent).resolved()


def with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """`recipe` with its input paths taken from `folder`; uris and Hub ids stay."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or "://" in path else str((folder / Path(path).expanduser()).resolve())

    adapters = tuple(
        adapter.model_copy(update={"data": adapter.data.model_copy(update={"path": absolute(adapter.data.path)})})
        for adapter in recipe.adapters
    )
    include_path = absolute(recipe.evaluation.include_path)
    model = recipe.base.model
    is_folder = model.startswith((".", "/", "~")) or (folder / model).is_dir()
    return recipe.model_copy(
        update={
            "adapters": adapters,
            "evaluation": recipe.evaluation.model_copy(update={"include_path": include_path}),
            "base": recipe.base.model_copy(update={"model": absolute(model) if is_folder else model}),
        }
    )


def _walk(node: yaml.Node | None, location: Location, lines: dict[Location, int]) -> list[tuple[str, int]]:
    """Fill `lines` with the line of every key below `node`; return the keys that are given twice."""
    twice: list[tuple[str, int]] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                twice.append((key.value, line))
            seen.add(key.value)
            lines[*location, key.value] = line
            twice += _walk(value, (*location, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*location, index] = item.start_mark.line + 1
            twice += _walk(item, (*location, index), lines)
    return twice


def _override(content: dict[str, Any], override: str, places: dict[Location, str]) -> Fault | None:
    """Set one key in `content`, and say so in `places`; list items are named by their index or by their `name`."""
    where = f"--set {override}"
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        return Fault("has the form --set KEY=VALUE, e.g. --set training.learning_rate=1e-4", where)
    try:
        value = yaml.load(text, Loader=CoreLoader)
    except yaml.YAMLError as error:
        return Fault(f"the value is not valid YAML: {getattr(error, 'problem', error)}", where)
    keys = dotted.split(".")
    place: Any = content
    location: Location = ()
    step: str | int
    while True:
        if isinstance(place, list):
            found = _item(place, keys)
            if found is None:
                return Fault(f"no item {keys[0]!r}; there is {_item_names(place)}", where)
            step, keys = found
        elif isinstance(place, dict):
            step, keys = keys[0], keys[1:]
        else:
            return Fault(f"{location[-1]!r} is a value, not a group of keys", where)
        location = (*location, step)
        if not keys:
            break
        if isinstance(place, dict) and place.get(step) is None:
            place[step] = {}
            places[location] = f"{where}:"
        place[step] = copy.copy(place[step])  # another key may share it, through a YAML alias
        place = place[step]
    place[step] = value
    for inside in [other for other in places if other[: len(location)] == location]:
        del places[inside]
    places[location] = f"{where}:"
    return None


def _item(items: list[Any], keys: list[str]) -> tuple[int, list[str]] | None:
    """The index of the item that the first of `keys` name, and the other keys. A name may have dots in it."""
    names = [_item_name(item, index) for index, item in enumerate(items)]
    for count in range(1, len(keys) + 1):
        if (name := ".".join(keys[:count])) in names:
            return names.index(name), keys[count:]
    index = int(keys[0]) if keys[0].isdecimal() else len(items)
    return (index, keys[1:]) if index < len(items) else None


def _item_names(items: list[Any]) -> str:
    return ", ".join(_item_name(item, index) for index, item in enumerate(items)) or "none"


def _item_name(item: Any, index: int) -> str:
    return str(item.get("name", item.get("task", index)) if isinstance(item, dict) else item)


def _faults(error: ValidationError, content: dict[str, Any], places: dict[Location, str]) -> list[Fault]:
    """Pydantic's errors in words, one a key, without those that only follow from another one below the same key."""
    problems: dict[Location, list[Any]] = {}
    for problem in error.errors():
        problems.setdefault(_given(problem, content), []).append(problem)

    def follows(location: Location) -> bool:
        depth = len(location)
        return problems[location][0]["type"] == "too_short" and any(
            len(other) > depth and other[:depth] == location for other in problems
        )

    return [_fault(location, problems[location], places) for location in problems if not follows(location)]


def _given(problem: Any, content: Any) -> Location:
    """Where in `content` the problem is: pydantic's location without its names for the alternatives of a type."""
    location: Location = ()
    for step in problem["loc"]:
        known = step in content if isinstance(content, dict) else isinstance(content, list) and isinstance(step, int)
        if known:
            content = content[step]
            location = (*location, step)
    return (*location, problem["loc"][-1]) if problem["type"] == "missing" else location


def _fault(location: Location, problems: list[Any], places: dict[Location, str]) -> Fault:
    """What is wrong at one place, with the override or the line of the nearest key that it comes from."""
    key = ".".join(map(str, location))
    known = location
    while known not in places:
        known = known[:-1]
    where = f"{places[known]} {key}".rstrip()
    first = problems[0]
    if first["type"] == "extra_forbidden":
        allowed = _keys_at(Recipe, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(sorted(allowed))}"
        return Fault(f"unknown key {location[-1]!r}; {hint}", where)
    if first["type"] == "missing":
        return Fault("is required but not given", where)
    message = " or ".join(dict.fromkeys(_in_words(problem["msg"]) for problem in problems))
    message = message.replace(" or input should be", " or")
    if isinstance(first["input"], str | int | float | bool):
        return Fault(f"got {first['input']!r}: {message}", where)
    return Fault(message, where)


def _in_words(message: str) -> str:
    """Pydantic's message in the words of YAML."""
    message = message.removeprefix("Value error, ").replace("Tuple", "list").replace("tuple", "list")
    message = re.sub(r"dictionary( or instance of \w+)?", "group of keys", message)
    return message[0].lower() + message[1:]


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that the schema allows at `location`."""
    for step in location:
        if isinstance(step, int) or step not in model.model_fields:
            continue
        found = _model_in(model.model_fields[step].annotation)
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside `X | None`, `tuple[X, ...]` or X itself."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for part in typing.get_args(annotation) if (found := _model_in(part))), None)
