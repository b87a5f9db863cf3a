"""A preview for a terminal: what is trained is green between « and », so that it reads without colour as well."""

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

OPEN, CLOSE = "«", "»"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # would act on the terminal, or vanish in it
Facts = Mapping[str, Any]


def print_preview(preview: Facts, console: Console) -> None:
    for adapter in preview["adapters"]:
        counts = adapter["counts"]
        kept = ", ".join(
            f"{counts[side]} {name}" for side, name in (("validation", "validation"), ("held_out", "held out"))
        )
        console.print()
        heading = Text(adapter["name"], style="bold")
        heading.append(
            f"  {adapter['method']}, {adapter['kind']} rows: {counts['train']} to train on, {kept}", "not bold"
        )
        console.print(heading)
        if adapter["method"] == "prompt":
            console.print("nothing is trained; these are the questions as they are asked, with the answers wanted")
        else:
            console.print(f"trained tokens stand between {OPEN} and {CLOSE}")
        for number, row in enumerate(adapter["rows"], start=1):
            for side in row["sides"]:
                name = f"row {number}" + ("" if side["name"] == "row" else f", {side['name']}")
                console.rule(f"{name}: {side['tokens']} tokens, {side['trained_tokens']} trained", align="left")
                console.print(shown(side["parts"]), soft_wrap=True)
        console.rule()
        console.print(_lengths(adapter))
        console.print(f"{100 * adapter['trained_share']:.1f} % of the tokens are trained")
        console.print(_too_long(adapter))


def shown(parts: list[Facts]) -> Text:
    """Text with the trained stretches marked and coloured; what the data holds is never read as markup."""
    text = Text()
    for part in parts:
        plain = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", part["text"])
        if part["trained"]:
            text.append(OPEN + plain + CLOSE, style="bold green")
        else:
            text.append(plain, style="dim")
    return text


def _lengths(adapter: Facts) -> Table:
    table = Table(title="Tokens", title_justify="left", box=None, padding=(0, 1), header_style="bold")
    table.add_column("of the")
    for name in ("min", "median", "95 %", "max"):
        table.add_column(name, justify="right")
    for name, spread in adapter["lengths"].items():
        table.add_row(name, *(f"{spread[key]:,}" for key in ("min", "median", "p95", "max")))
    return table


def _too_long(adapter: Facts) -> Text:
    limit, longer = adapter["max_length"], adapter["longer"]
    if not longer:
        return Text(f"no row is longer than max_length={limit}")
    return Text(
        f"{longer} rows are longer than max_length={limit}; cut to it, {adapter['answer_lost']} would lose the whole "
        "answer, the others its end. Rows are never cut: a run refuses them. Raise max_length, or shorten them.",
        style="bold red",
    )
