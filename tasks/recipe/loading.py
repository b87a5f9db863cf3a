"""From a YAML file and `--set` overrides to a prepared recipe, or to every fault at once with file:line.

Relative input paths (data files, task folders, a base model's folder) are taken from the recipe's own folder;
the folder of a destination is taken from the current one.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from infra.errors import Fault, RequestError
from tasks.recipe.contradictions import contradictions
from tasks.recipe.schema import Adapter, Recipe
from tasks.recipe.sweeps import variants
from tasks.recipe.wording import Location, Place, in_words, nowhere, of_adapters
from tasks.recipe.yaml_core import CoreLoader

ENDLESS = "the alias stands inside what it refers to, which would never end; write the value out"


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The prepared recipe in the YAML file at `path`, after `overrides` ("a.b=value", value as YAML)."""
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
    except RecursionError:
        raise RequestError(Fault("nested without end, or too deeply to be read", str(path))) from None
    if not isinstance(content, dict):
        raise RequestError(Fault("holds no keys; `tunefleet init` writes a recipe to start from", str(path)))

    lines: dict[Location, int] = {}
    faults = [Fault(problem, f"{path}:{line}") for problem, line in _walk(node, (), lines)]
    if any(fault.message == ENDLESS for fault in faults):
        raise RequestError(faults)
    places: dict[Location, str] = {(): str(path), **{key: f"{path}:{line}" for key, line in lines.items()}}
    faults += [fault for override in overrides if (fault := _override(content, override, places))]
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RequestError(faults + in_words(error, Recipe, content, places)) from None
    if faults:
        raise RequestError(faults)
    return with_absolute_paths(prepared(recipe, _place_in(places)), path.parent)


def prepared(recipe: Recipe, place: Place = nowhere) -> Recipe:
    """`recipe` as a run takes it: grids expanded, every adapter spelled out; RequestError if it contradicts itself.

    Every recipe goes through here, whether it came from a file or as a flow's parameter; once more changes nothing.
    """
    adapters: list[Adapter] = []
    numbers: list[int] = []  # of the adapter in `recipe` that each one came from
    faults: list[Fault] = []
    for number, adapter in variants(recipe, place):
        try:
            adapters += recipe.model_copy(update={"adapters": (adapter,)}).resolved().adapters
            numbers.append(number)
        except ValidationError as error:  # the adapter's keys do not go with the fleet's
            where = of_adapters([adapter.name], "", place(number, ()))
            faults += in_words(error, type(adapter), {}, {(): where})
    whole = recipe.model_copy(update={"adapters": tuple(adapters)})
    faults += contradictions(whole, lambda number, location: place(numbers[number], location))
    if faults:
        raise RequestError(faults)
    return whole


def _place_in(places: dict[Location, str]) -> Place:
    """Where a key of an adapter was given: in the adapter itself, or else in what the fleet shares."""

    def nearest(location: Location) -> Location:
        while location not in places:
            location = location[:-1]
        return location

    def place(number: int, location: Location) -> str:
        own, shared = nearest(("adapters", number, *location)), nearest(location)
        return places[shared if len(shared) > max(len(own) - 2, 0) else own]

    return place


def with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """`recipe` with its input paths taken from `folder`; uris and Hub ids stay."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or "://" in path else str((folder / Path(path).expanduser()).resolve())

    def located(model: str | None) -> str | None:
        is_folder = model and (model.startswith((".", "/", "~")) or (folder / model).is_dir())
        return absolute(model) if is_folder else model

    adapters = tuple(
        adapter.model_copy(update={"data": adapter.data.model_copy(update={"path": absolute(adapter.data.path)})})
        for adapter in recipe.adapters
    )
    include_path, judge = absolute(recipe.evaluation.include_path), recipe.evaluation.judge
    judge = judge and judge.model_copy(update={"model": located(judge.model)})
    cure, replay = recipe.cure, recipe.cure.replay if recipe.cure else None
    if cure and replay:
        replay = replay.model_copy(update={"prompts": absolute(replay.prompts)})
        cure = cure.model_copy(update={"replay": replay})
    return recipe.model_copy(
        update={
            "adapters": adapters,
            "evaluation": recipe.evaluation.model_copy(update={"include_path": include_path, "judge": judge}),
            "cure": cure,
            "base": recipe.base.model_copy(
                update={
                    "model": located(recipe.base.model),
                    "chat_template": absolute(recipe.base.chat_template),
                }
            ),
        }
    )


def _walk(
    node: yaml.Node | None, location: Location, lines: dict[Location, int], around: tuple[yaml.Node, ...] = ()
) -> list[tuple[str, int]]:
    """Fill `lines` with the line of every key below `node`; return (problem, line) of keys given twice and loops."""
    problems: list[tuple[str, int]] = []
    if any(node is outer for outer in around):
        return [(ENDLESS, lines[location])]
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                problems.append((f"key {key.value!r} is given twice; keep one", line))
            seen.add(key.value)
            lines[*location, key.value] = line
            problems += _walk(value, (*location, key.value), lines, (*around, node))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*location, index] = item.start_mark.line + 1
            problems += _walk(item, (*location, index), lines, (*around, node))
    return problems


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
            step, keys = _key(place, keys)
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


def _key(group: dict[str, Any], keys: list[str]) -> tuple[str, list[str]]:
    """The key of `group` that the first of `keys` name, and the other keys. In a sweep, keys have dots in them."""
    for count in range(len(keys), 1, -1):
        if (key := ".".join(keys[:count])) in group:
            return key, keys[count:]
    return keys[0], keys[1:]


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
