"""A comparison of two adapters for the terminal; what they were told and wrote is escaped."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.hashing import SHORT
from tasks.reporting.figures import change, interval, is_fraction, score

COLOURS = {"better": "green", "worse": "red", "cannot tell": "yellow"}
LONGEST = 70  # characters of a setting


def print_comparison(answer: dict[str, Any], console: Console) -> None:
    """Settings that differ, then figures, then a table of the tasks, B minus A."""
    for side in ("a", "b"):
        one = answer[side]
        console.print(
            f"{side.upper()}  {escape(one['label'])}  {one['method']}, {one['digest'][:SHORT]}, {escape(one['says'])}"
        )
    if answer["same_adapter"]:
        console.print("They are the same adapter, byte for byte.")
    for what in ("data", "base"):
        one = answer[what]
        both = f"{_short(one['a'])} and {_short(one['b'])}"
        console.print(f"{what}: {'the same, ' + _short(one['a']) if one['same'] else 'different, ' + both}")
    _print_settings(answer["recipe"], console)
    table = Table(title="training", title_justify="left")
    for column in ("", "A", "B"):
        table.add_column(column, justify="left" if not column else "right")
    for key, one in answer["training"].items():
        table.add_row(key, _figure(one["a"]), _figure(one["b"]))
    console.print(table)
    _print_tasks(answer, console)
    for note in answer["notes"]:
        console.print(f"note: {escape(note)}")


def _print_settings(settings: list[dict[str, Any]], console: Console) -> None:
    if not settings:
        console.print("settings: the same")
        return
    table = Table(title="settings that differ", title_justify="left")
    table.add_column("")
    table.add_column("A", overflow="fold")
    table.add_column("B", overflow="fold")
    for one in settings:
        table.add_row(escape(one["key"]), _setting(one["a"]), _setting(one["b"]))
    console.print(table)


def _print_tasks(answer: dict[str, Any], console: Console) -> None:
    table = Table(title="scores", title_justify="left")
    for column in ("task", "n", "A", "B", "B - A", f"{100 * answer['confidence']:.4g} %", "lost", "gained", "", "note"):
        table.add_column(column, justify="left" if column in ("task", "", "note") else "right")
    for one in answer["tasks"]:
        fraction = is_fraction(one["metric"])
        scores = ["-" if one[side] is None else score(one[side], fraction) for side in ("a", "b")]
        if one["n"] is None:
            table.add_row(escape(one["task"]), "-", *scores, "", "", "", "", "", escape(one["note"]))
            continue
        table.add_row(
            *(escape(one["task"]), str(one["n"]), *scores, change(one["delta"], fraction)),
            interval(one["ci_low"], one["ci_high"], fraction),
            *(str(one["flips"]["lost"]), str(one["flips"]["gained"])),
            *(f"[{COLOURS[one['answer']]}]{one['answer']}[/]", escape(one["note"])),
        )
    console.print(table)


def _short(digest: str | None) -> str:
    return digest[:SHORT] if digest else "unknown"


def _setting(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return escape(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")


def _figure(value: Any) -> str:
    return (
        "-"
        if value is None
        else f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )
