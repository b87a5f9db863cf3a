"""A plan as tables for a terminal of 80 columns or more."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.planning.power_table import print_power

Facts = Mapping[str, Any]


def print_plan(plan: Facts, console: Console) -> None:
    """What would be trained, what it needs, and what is there already; then what does not fit, in red."""
    base = plan["base"]
    devices = ", ".join(f"{one['name']}{_kind(one)} with {size(one['free_bytes'])} free" for one in plan["devices"])
    console.print(f"[bold]{escape(plan['recipe'])}[/] on {escape(base['model'])}, {base['parameters']:,} parameters")
    console.print(f"devices: {escape(devices)}")
    for note in base["notes"]:
        console.print(f"[yellow]{escape(note)}[/]")
    console.print(_training(plan))
    console.print(_memory(plan))
    console.print(_store(plan))
    for pack in plan["packs"]:
        if len(pack["adapters"]) > 1:
            names = ", ".join(pack["adapters"])
            console.print(f"trained together, in one process of {size(pack['memory_bytes'])}: {escape(names)}")
    for adapter in plan["adapters"]:
        if why := adapter["engine_reason"]:
            console.print(f"{escape(adapter['name'])} is trained by TRL, not packed: {escape(why)}")
    print_power(plan["power"], console)
    for adapter in plan["adapters"]:
        for warning in adapter["warnings"]:
            console.print(f"[yellow]{escape(adapter['name'])}: {escape(warning)}[/]")
        if adapter["does_not_fit"]:
            console.print(f"[bold red]{escape(adapter['name'])}: {escape(adapter['does_not_fit'])}[/]")
    for source in dict.fromkeys(one["speed"]["source"] for one in plan["adapters"] if one["speed"]):
        names = ", ".join(one["name"] for one in plan["adapters"] if one["speed"] and one["speed"]["source"] == source)
        console.print(f"time of {escape(names)}: {escape(source)}")
    disk, free = plan["disk"], plan["disk"]["free"]
    room = "" if free is None else f", {size(free)} free"
    short = free is not None and disk["total"] > free
    line = f"disk: {size(disk['total'])} in {escape(plan['store'])}{room}"
    console.print(f"[bold red]{line}: not enough[/]" if short else line, soft_wrap=True)
    if plan["seconds"] is not None:
        console.print(f"time: {duration(plan['seconds'])} of training, one adapter after the other")
    console.print("nothing was started")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), header_style="bold")
    table.add_column("adapter", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _training(plan: Facts) -> Table:
    table = _table("Training", "method", "rows", "steps", "tokens", "longest", "trains", "time")
    for one in plan["adapters"]:
        name = escape(one["name"]) + (f" x {one['trials']}" if one["trials"] > 1 else "")
        rows = str(one["rows"]["train"])
        if one["method"] == "prompt":
            table.add_row(name, "prompt", rows, "none", "", "", "no training", "")
            continue
        share = 100 * one["trainable_params"] / one["total_params"]
        table.add_row(
            *(name, one["method"], rows, f"{one['steps']:,}", number(one["tokens"]), number(one["longest_row"])),
            *(f"{one['trainable_params']:,} of {one['total_params']:,} ({share:.4f} %)", duration(one["seconds"])),
        )
    return table


def _memory(plan: Facts) -> Table:
    columns = ("weights", "gradients, AdamW", "activations", "head", "in all", "fits")
    table = _table("Memory of one process", *columns)
    for one in plan["adapters"]:
        if one["memory"] is None:
            continue
        memory = one["memory"]
        fits = ", ".join(
            f"{fit['device']} x {'?' if fit['at_once'] is None else fit['at_once']}" for fit in one["fits"]
        )
        recomputed = ", recomputed" if one["gradient_checkpointing"] else ""
        processes = f" ({one['processes']} processes)" if one["processes"] > 1 else ""
        table.add_row(
            *(escape(one["name"]) + processes, size(memory["weights"])),
            *(size(memory["gradients"] + memory["optimizer"]), size(memory["activations"]) + recomputed),
            *(size(memory["head"]), size(memory["total"])),
            "[bold red]nowhere[/]" if one["does_not_fit"] else fits,
        )
    return table


def _store(plan: Facts) -> Table:
    table = _table("In the store already", "base", "data", "training", "adapter", "checkpoints", "merged", "gguf")
    for one in plan["adapters"]:
        disk = one["disk"]
        trained = "none" if one["method"] == "prompt" else _cached(one["cached"]["training"])
        table.add_row(
            *(escape(one["name"]), _cached(plan["base"]["cached"]), _cached(one["cached"]["data"]), trained),
            *(size(disk["adapter"]), size(disk["checkpoints"]), size(disk["merged"]), size(disk["gguf"])),
        )
    return table


def _cached(hit: bool) -> str:
    return "[green]yes[/]" if hit else "new"


def _kind(device: Facts) -> str:
    return "" if device["kind"] == device["name"] else f" ({device['kind']})"


def number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def size(value: int | None) -> str:
    """Bytes in words; "?" for what is not known."""
    if value is None:
        return "?"
    if value >= 2**30:
        return f"{value / 2**30:.1f} GiB"
    return f"{value / 2**20:.1f} MiB" if value else "0"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
