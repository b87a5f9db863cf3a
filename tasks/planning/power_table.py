"""The power section of a plan as a table: what each task can show with its documents, and whether that is enough."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.planning.power import ASSUMED

Facts = Mapping[str, Any]
ENOUGH = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: "?"}


def print_power(power: Facts, console: Console) -> None:
    """Nothing for a recipe of prompts alone: nothing is judged."""
    if not power["tasks"]:
        return
    title = f"What the gate can see: {power['power']:.0%} chance to decide, one-sided alpha {power['alpha']:.3g}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), header_style="bold")
    table.add_column("task", overflow="fold")
    for column in ("documents", "flip", "shows", "asked", "needs", "enough"):
        table.add_column(column, justify="right", overflow="fold")
    for one in power["tasks"]:
        table.add_row(*_row(one))
    console.print(table)
    for one in power["tasks"]:
        if one["note"]:
            console.print(f"{escape(one['task'])}: {escape(one['note'])}")
    for line in _rates(power["tasks"]):
        console.print(line)
    if power["looks"] == 1 and power["judged"] > 1:
        console.print(
            f"{power['judged']} adapters are judged together: the first to pass needs more (Holm's correction)"
        )
    for warning in power["warnings"]:
        console.print(f"[yellow]{escape(warning)}[/]")


def _row(one: Facts) -> tuple[str, ...]:
    tier = f" ({one['tier']})" if one["tier"] not in (None, "critical") else ""
    documents = "?" if one["documents"] is None else f"{'<= ' * one['at_most']}{one['documents']:,}"
    rate = "" if one["role"] == "pool" else "?"
    if one["disagreement"] is not None:
        rate = f"{100 * one['disagreement']:.1f} %" + ("" if one["measured_on"] else "*")
    shows = "?" if one["detectable"] is None else f"{one['change']} {100 * one['detectable']:.1f} %"
    wanted = f"{'>' if one['role'] == 'target' else '<'} {100 * one['margin']:g} %"
    needs = "?" if one["needed"] is None else f"{one['needed']:,}"
    return escape(one["task"]) + tier, documents, rate, shows, wanted, needs, ENOUGH[one["enough"]]


def _rates(tasks: list[Facts]) -> list[str]:
    """Where the rates come from."""
    rated = [one for one in tasks if one["disagreement"] is not None or one["sd"] is not None]
    measured = [f"{escape(one['task'])} ({one['measured_on']})" for one in rated if one["measured_on"]]
    said = []
    if measured:
        said.append(f"measured on earlier adapters of this base, in brackets how many: {', '.join(measured)}")
    if any(not one["measured_on"] and one["role"] != "pool" for one in rated):
        said.append(f"* assumed, {ASSUMED:.0%} of documents, until a run on this base has measured it")
    return said
