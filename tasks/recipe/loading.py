"""From a YAML file and `--set` overrides to a resolved recipe, or to every fault at once with file:line.

Relative input paths (data files, task folders, a base model's folder) are taken from the recipe's own folder;
the folder of a destination is taken from the current one.
"""

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from infra.errors import Fault, RequestError
from tasks.recipe.schema import Recipe

Location = tuple[str | int, ...]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The resolved recipe in the YAML file at `path`, after `overrides` ("a.b=value", value as YAML)."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(Fault(f"cannot be read as a recipe: {error}", str(path))) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RequestError(Fault(f"not valid YAML: {getattr(error, 'problem', error)}", where)) from error
    if not isinstance(content, dict):
        raise RequestError(Fault("holds no keys; `tunefleet init` writes a recipe to start from", str(path)))

    lines: dict[Location, int] = {}
    faults = [Fault(f"key {key!r} is given twice; keep one", f"{path}:{line}") for key, line in _walk(node, (), lines)]
    faults += [fault for override in overrides if (fault := _override(content, override))]
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RequestError(faults + _faults(error, str(path), lines, overrides)) from None
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


def _override(content: dict[str, Any], override: str) -> Fault | None:
    """Set one key in `content`; list items are named by their index or by their `name`."""
    where = f"--set {override}"
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        return Fault("has the form --set KEY=VALUE, e.g. --set training.learning_rate=1e-4", where)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return Fault(f"the value is not valid YAML: {error}", where)
    *parents, last = dotted.split(".")
    place: Any = content
    for key in parents:
        if isinstance(place, list):
            index = _item(place, key)
            if index is None:
                return Fault(f"no item {key!r}; there is {_item_names(place)}", where)
            place = place[index]
        else:
            if place.get(key) is None:
                place[key] = {}
            place = place[key]
        if not isinstance(place, dict | list):
            return Fault(f"{key!r} is a value, not a group of keys", where)
    if isinstance(place, list):
        index = _item(place, last)
        if index is None:
            return Fault(f"no item {last!r}; there is {_item_names(place)}", where)
        place[index] = value
    else:
        place[last] = value
    return None


def _item(items: list[Any], key: str) -> int | None:
    names = [item.get("name", item.get("task")) if isinstance(item, dict) else item for item in items]
    if key in names:
        return names.index(key)
    return int(key) if key.isdigit() and int(key) < len(items) else None


def _item_names(items: list[Any]) -> str:
    return ", ".join(
        str(item.get("name", index)) if isinstance(item, dict) else str(index) for index, item in enumerate(items)
    )


def _faults(error: ValidationError, path: str, lines: dict[Location, int], overrides: Sequence[str]) -> list[Fault]:
    """Pydantic's errors in words, without those that only follow from another one below the same key."""
    problems = error.errors()
    locations = [problem["loc"] for problem in problems]

    def follows(problem: Any) -> bool:
        depth = len(problem["loc"])
        return problem["type"] == "too_short" and any(
            len(other) > depth and other[:depth] == problem["loc"] for other in locations
        )

    return [_fault(problem, path, lines, overrides) for problem in problems if not follows(problem)]


def _fault(problem: Any, path: str, lines: dict[Location, int], overrides: Sequence[str]) -> Fault:
    """One pydantic error, with the override or the line of the nearest key that it comes from."""
    location: Location = problem["loc"]
    key = ".".join(map(str, location))
    known = location
    while known and known not in lines:
        known = known[:-1]
    where = f"{path}:{lines[known]}" if known else path
    where = next((f"--set {text}:" for text in overrides if text.partition("=")[0] == key), where)
    got = repr(problem["input"]) if isinstance(problem["input"], str | int | float | bool) else None
    if problem["type"] == "extra_forbidden":
        allowed = _keys_at(Recipe, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(sorted(allowed))}"
        return Fault(f"unknown key {location[-1]!r}; {hint}", f"{where} {key}")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        message = "is required but not given"
    elif got:
        message = f"got {got}: {message[0].lower()}{message[1:]}"
    return Fault(message, f"{where} {key}".rstrip())


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
