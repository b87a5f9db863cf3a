"""Markdown in which data stay text: names, reasons and figures come from recipes and data, and are never markup."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

_MARKUP = re.compile(r"^(?:[-+#]|\d+(?=[.)](?:\s|$)))|[\\`*_\[\]|~$]")  # the first kind only where a line starts


def text(value: str) -> str:
    """One line in which nothing is markup, neither markdown nor HTML."""
    line = html.escape(" ".join(str(value).split()), quote=False)
    return _MARKUP.sub(lambda found: _escaped(found.group()), line)


def _escaped(mark: str) -> str:
    return f"{mark}\\" if mark.isdigit() else f"\\{mark}"  # of "1." that starts a list it is the dot


def cell(value: Any) -> str:
    """How a figure is shown: four digits, or that there is none."""
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([text(cell(value)) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """A list of lines that are markdown already."""
    return "\n".join(f"- {line}" for line in lines)


def code(language: str, lines: Sequence[str]) -> str:
    """A block of code; no line of it may start with what came from data."""
    return "\n".join((f"```{language}", *lines, "```"))


def printable(value: str) -> str:
    """One line of what can be seen, for a place where nothing is escaped."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in value).split())
