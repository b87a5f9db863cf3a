"""The report for a terminal: a line for each check, grouped by area; at the end what is wrong and what to do first.

Marks are words, so that it reads without colour as well.
"""

import textwrap

from rich.console import Console
from rich.text import Text

from tasks.operations.doctor.examine import Report
from tasks.operations.doctor.finding import Finding, Status

MARKS: dict[Status, tuple[str, str]] = {  # the word, and its style
    "ok": ("ok", "green"),
    "absent": ("absent", "dim"),
    "warning": ("warning", "yellow"),
    "fault": ("FAULT", "bold red"),
}
_MARK_WIDTH = max(len(word) for word, _ in MARKS.values())
_NARROWEST = 30  # columns for what was found


def print_report(report: Report, console: Console) -> None:
    widest = max((len(one.check) for findings in report.values() for one in findings), default=0)
    for area, findings in report.items():
        console.print(Text(area, style="bold"))
        for one in findings:
            _print_finding(one, widest, console)
        console.print()
    style = "bold red" if of_status(report, "fault") else "bold"
    console.print(Text(conclusion(report), style=style), soft_wrap=True)


def _print_finding(one: Finding, widest: int, console: Console) -> None:
    word, style = MARKS[one.status]
    indent = 2 + _MARK_WIDTH + 2 + widest + 2
    found, *more = _wrapped(one.found, console.width - indent) or [""]
    line = Text("  ").append(f"{word:{_MARK_WIDTH}}", style=style).append(f"  {one.check:{widest}}  {found}")
    advice = _wrapped(f"-> {one.advice}", console.width - indent) if one.advice else []
    for part in [line, *(Text(" " * indent + text) for text in more)]:
        console.print(part, soft_wrap=True)
    for text in advice:
        console.print(Text(" " * indent + text, style="" if one.status == "fault" else "dim"), soft_wrap=True)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, _NARROWEST), break_long_words=False, break_on_hyphens=False)


def conclusion(report: Report) -> str:
    """One line: what is wrong, and what to do first."""
    faults, warnings = of_status(report, "fault"), of_status(report, "warning")
    if faults:
        area, first = faults[0]
        counted = "One thing keeps" if len(faults) == 1 else f"{len(faults)} things keep"
        return f"{counted} a run from working. First, {area}, {first.check}: {first.found} -> {first.advice}"
    if warnings:
        counted = "one warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
        return f"Nothing keeps a run from working; {counted}."
    return "Nothing is wrong."


def of_status(report: Report, status: Status) -> list[tuple[str, Finding]]:
    """(area, finding) of that status, in the order of the report."""
    return [(area, one) for area, findings in report.items() for one in findings if one.status == status]
