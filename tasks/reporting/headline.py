"""The two tasks that tell most of an adapter in a line: what it learned, and where it came nearest to losing."""

from collections.abc import Mapping
from typing import Any


def target_of(adapter: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The target that decides; None before a verdict, and for prompts without one."""
    return next((one for one in adapter["tasks"] if one["role"] == "target" and one["decides"]), None)


def worst_of(adapter: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The general task that used up most of what it was allowed to drop."""
    general = [one for one in adapter["tasks"] if one["role"] == "general" and one["decides"]]
    return max(general, key=lambda task: used(task, task["delta"]), default=None)


def better(task: Mapping[str, Any], difference: float) -> float:
    """A difference from the base, turned so that more is better."""
    return difference if task["higher_is_better"] else -difference


def used(task: Mapping[str, Any], difference: float) -> float:
    """The drop in units of its margin: tasks have different ones, and losses are no fractions."""
    drop = -better(task, difference)
    return drop / task["margin"] if task["margin"] else drop
