"""What a sweep tries: its settings laid over the adapter, and a grid's adapters in the place of the one that had it.

A grid is expanded before the run, so that each combination is an adapter like any other, cached by itself. What tpe
tries is decided during the run (tasks/searching); here only the ends of its ranges are checked.
"""

import itertools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, JsonValue, ValidationError

from infra.errors import Fault, RequestError
from infra.hashing import digest_json
from tasks.recipe.schema import Adapter, Range, Recipe, Sweep
from tasks.recipe.wording import Location, Place, in_words, nowhere, of_adapters

MOST = 256  # adapters of a fleet with grids; also the combinations of tpe's values that are checked beforehand
LONGEST = 64  # characters of a name, as in the schema
At = Callable[[Location], str | None]  # where a key of one adapter was given
Settings = Mapping[str, Any]  # {dotted key of an adapter: JSON value}


def expand(recipe: Recipe) -> Recipe:
    """`recipe` with one adapter per combination in the place of every grid; RequestError if that cannot be."""
    return recipe.model_copy(update={"adapters": tuple(adapter for _, adapter in variants(recipe))})


def variants(recipe: Recipe, place: Place = nowhere) -> list[tuple[int, Adapter]]:
    """The adapters of the expanded recipe, each with the number of the adapter that it came from."""
    found: list[tuple[int, Adapter]] = []
    faults: list[Fault] = []
    for number, adapter in enumerate(recipe.adapters):
        if adapter.sweep and adapter.sweep.sampler == "grid":
            adapters, wrong = tried(adapter, partial(place, number))
            faults += wrong
            found += [(number, one) for one in adapters]
        else:
            found.append((number, adapter))
    if len(found) > MOST and len(found) > len(recipe.adapters):
        faults.append(Fault(f"grids make {len(found)} adapters of this fleet; at most {MOST} are allowed"))
    numbers: dict[str, int] = {}
    for number, adapter in found:
        if numbers.setdefault(adapter.name, number) != number:
            message = "a sweep makes a second adapter of this name; rename the adapter that has it, or the sweep's"
            faults.append(Fault(message, of_adapters([adapter.name], "name", place(number, ("name",)))))
    if faults:
        raise RequestError(faults)
    return found


def tried(adapter: Adapter, at: At) -> tuple[list[Adapter], list[Fault]]:
    """One adapter per combination of the sweep's values (of a range: its ends), and what is wrong with the sweep."""
    sweep = adapter.sweep
    assert sweep, "the adapter has no sweep"
    faults = [
        Fault(message, of_adapters([adapter.name], f"sweep.over {key}".rstrip(), at(("sweep", "over", key))))
        for key, message in _unusable(sweep)
    ]
    if faults:
        return [], faults
    combinations = list(itertools.islice(_combinations(sweep), MOST))
    adapters: list[Adapter] = []
    for settings, name in zip(combinations, _names(adapter.name, combinations), strict=True):
        try:
            adapters.append(with_settings(adapter, settings, name=name, at=at))
        except RequestError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    return adapters, faults


def with_settings(adapter: Adapter, settings: Settings, *, name: str, at: At | None = None) -> Adapter:
    """`adapter` with `settings` over its own, under another name, without a sweep; RequestError if they do not fit."""
    content: dict[str, Any] = {**adapter.model_dump(exclude_unset=True, exclude={"sweep"}), "name": name}
    for key, value in settings.items():
        *groups, last = key.split(".")
        group = content
        for step in groups:
            if not isinstance(group.get(step), dict):
                group[step] = {}
            group = group[step]
        group[last] = value
    try:
        return Adapter.model_validate(content)
    except ValidationError as error:
        at = at or (lambda _location: None)
        where: dict[Location, str] = {
            tuple(key.split(".")): f"{of_adapters([adapter.name], 'sweep.over', at(('sweep', 'over', key)))}:"
            for key in settings
        }
        where[()] = f"{of_adapters([adapter.name], 'sweep.over', at(('sweep', 'over')))}:"
        raise RequestError(in_words(error, Adapter, content, where)) from None


def trial_name(name: str, number: int) -> str:
    """What an adapter of a search is called: the trials of `name` are numbered from 0."""
    return f"{name}-trial{number}"


def number_kind(key: str) -> type | None:
    """int or float if the schema takes such numbers at the adapter's dotted key, else None."""
    parts = _taken_at(key)
    return next((kind for kind in (float, int) if kind in parts), None)


def _taken_at(key: str) -> list[Any]:
    """What the schema takes at the adapter's dotted key: the alternatives of `X | Y`; nothing at an unknown key."""
    parts: list[Any] = [Adapter]
    for step in key.split("."):
        models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        groups = [part for part in parts if typing.get_origin(part) is dict]
        if models and step in models[0].model_fields:
            parts = list(_alternatives(models[0].model_fields[step].annotation))
        else:
            parts = list(_alternatives(typing.get_args(groups[0])[1])) if groups else []
    return parts


def _alternatives(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _alternatives(part)
    else:
        yield annotation


def _combinations(sweep: Sweep) -> Iterator[dict[str, JsonValue]]:
    lists = ([tries.low, tries.high] if isinstance(tries, Range) else tries for tries in sweep.over.values())
    return (dict(zip(sweep.over, values, strict=True)) for values in itertools.product(*lists))


def _unusable(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it or its values), as far as it can be said without the adapter."""
    for key, tries in sweep.over.items():
        first = key.split(".")[0]
        if first in ("name", "sweep"):
            yield key, "cannot be swept: every combination gets a name of its own, and no sweep"
        if inner := [other for other in sweep.over if other.startswith(f"{key}.")]:
            yield key, f"holds {', '.join(inner)}, which is swept as well; keep one of them"
        if isinstance(tries, Range):
            if sweep.sampler == "grid":
                yield key, "got a range, which has no end of values; list the values, or set sampler: tpe"
            elif _taken_at(key) and number_kind(key) is None:
                yield key, "got a range, and the key takes no numbers; list the values"
        elif not tries:
            yield key, "got no values; list those to try"
        elif len({json.dumps(value, sort_keys=True) for value in tries}) < len(tries):
            yield key, f"got a value twice in {json.dumps(tries)}; keep one"
    count = math.prod(len(tries) for tries in sweep.over.values() if not isinstance(tries, Range))
    if sweep.sampler == "grid" and count > MOST:
        yield (
            "",
            f"the grid has {count} combinations; at most {MOST} are allowed: list fewer values, or set sampler: tpe",
        )


def _names(name: str, combinations: list[dict[str, JsonValue]]) -> list[str]:
    """A valid name for each, and no two the same: with whole keys, else with their initials, else with a digest."""
    for short in (False, True):
        names = ["-".join([name, *itertools.starmap(partial(_label, short=short), c.items())]) for c in combinations]
        if len(set(names)) == len(names) and max(map(len, names), default=0) <= LONGEST:
            return names
    return [f"{name[: LONGEST - 9]}-{digest_json([name, settings])[:8]}" for settings in combinations]


def _label(key: str, value: JsonValue, *, short: bool) -> str:
    """One setting in a name: learning_rate0.0005, or short lr0.0005."""
    last = key.rpartition(".")[2]
    word = "".join(part[:1] for part in last.split("_")) if short else last
    values = value if isinstance(value, list | tuple) else [value]
    text = "-".join(one if isinstance(one, str) else json.dumps(one) for one in values)
    return re.sub(r"[^a-z0-9._-]+", "-", f"{word}{text}".lower())
