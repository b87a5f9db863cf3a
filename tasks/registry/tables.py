"""The registry's answers on a terminal. Names and reasons are people's words: escaped, never markup."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape as as_text
from rich.table import Table
from rich.tree import Tree

from infra.hashing import SHORT
from tasks.publishing.markdown import printable
from tasks.registry.collect import Garbage
from tasks.registry.verify import Finding
from tasks.reporting.figures import VERDICT_COLOURS, change, interval, is_fraction

Facts = Mapping[str, Any]
_UNITS = ("B", "kB", "MB", "GB", "TB")


def escape(value: str) -> str:
    """Neither markup nor anything that a terminal would act on: manifests may be a stranger's."""
    return as_text(printable(value))


def print_releases(rows: Sequence[Facts], console: Console) -> None:
    table = Table(box=None, padding=(0, 2))
    for column in ("name", "version", "verdict", "base", "target gain", "channels", "where", "created"):
        table.add_column(column, overflow="fold")
    for row in rows:
        places = dict.fromkeys(f"{one['to']}: {one['what']}" for one in row["published"])
        table.add_row(
            *(escape(row["name"]), row["version"], _verdict(row["verdict"], row["override"])),
            *(escape(row["base"]["model"]), _gain(row["gain"]), escape(", ".join(row["channels"]))),
            *(escape(", ".join(places)), row["created"][:16].replace("T", " ")),
        )
    console.print(table)
    for row in rows:
        if row["override"]:
            console.print(f"{row['release']} had no PASS. {_signed(row['override'])}")


def print_lineage(found: Facts, console: Console) -> None:
    """A tree from the release back to the rows."""
    tree = Tree(f"[bold]{escape(found['release'])}[/] of {found['created']}")
    if found["override"]:
        tree.add(f"[red]override[/]: {_signed(found['override'])}")
    if found["channels"]:
        tree.add(f"channels: {escape(', '.join(found['channels']))}")
    for one in found["published"]:
        at = f" at {one['revision']}" if one["revision"] else ""
        tree.add(f"{one['what']}: {escape(one['uri'])}{at}")
    adapter = tree.add(_artifact("adapter", found["adapter"]))
    _training(adapter, found["adapter"])
    base = found["base"]
    adapter.add(_artifact(f"base {base['model']}, revision {base['revision'] or 'none'}", base))
    data = adapter.add(_artifact("data", found["data"]))
    for path, sha256 in found["data"]["files"].items():
        data.add(f"{escape(path)} {sha256}")
    for role, digest in (found["data"].get("upstream") or {}).items():
        data.add(f"from {escape(role)} {digest}")
    recipe = found["recipe"]
    adapter.add(f"recipe {escape(str(recipe.get('name')))} of run {escape(found['run_id'])}; all of it with --json")
    for one in found["verdicts"]:
        _add_verdict(tree, one)
    console.print(tree)


def _training(node: Tree, adapter: Facts) -> None:
    if "gone" in adapter:
        return
    facts = {key: value for key, value in (adapter["facts"] or {}).items() if isinstance(value, int | float | str)}
    node.add(f"code {adapter['git_commit'] or 'outside a git checkout'}, method {adapter['method']}")
    node.add("figures: " + escape(", ".join(f"{key} {value}" for key, value in facts.items())))
    node.add("libraries: " + escape(", ".join(f"{key} {value}" for key, value in (adapter["versions"] or {}).items())))


def _add_verdict(tree: Tree, verdict: Facts) -> None:
    said = verdict.get("said") or {}
    node = tree.add(_artifact(f"verdict {_verdict(said.get('verdict') or '', None)}", verdict))
    for reason in [said["gone"]] if "gone" in said else said.get("reasons", ()):
        node.add(escape(reason))
    for task in said.get("tasks", ()):
        fraction = is_fraction(task["metric"])
        delta = f"{change(task['delta'], fraction)} ({interval(task['ci_low'], task['ci_high'], fraction)})"
        node.add(f"{escape(task['task'])}, {task['role']}: {_verdict(task['verdict'], None)} {delta}, n {task['n']}")
    for role, one in (verdict.get("scores") or {}).items():
        node.add(_artifact(f"records of {role}", one))


def print_published(manifest: Facts, console: Console) -> None:
    """What tunefleet.json of a published release says, without the list of files."""
    tree = Tree(f"[bold]{escape(str(manifest.get('name')))} {escape(str(manifest.get('version') or ''))}[/]")
    for key, value in manifest.items():
        if key == "files":
            tree.add(f"{len(value)} files")
        elif key not in ("name", "version"):
            _add(tree, key, value)
    console.print(tree)


def _add(tree: Tree, key: str, value: Any) -> None:
    if isinstance(value, dict) and value:
        node = tree.add(escape(key))
        for inner, content in value.items():
            _add(node, inner, content)
    else:
        tree.add(f"{escape(key)}: {escape(_short(value))}")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return (
            f"{len(value)} entries; all of them with --json"
            if any(isinstance(one, dict) for one in value)
            else (", ".join(map(str, value)) or "none")
        )
    return "none" if value is None else str(value)


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    for one in findings:
        state = "[red]damaged[/]" if one.problems else "[green]whole[/]"
        console.print(f"{state}  {escape(one.uri)}  {one.files} files", soft_wrap=True)
        for problem in one.problems:
            console.print(f"  [red]{escape(problem)}[/]", soft_wrap=True)
        for note in one.notes:
            console.print(f"  note: {escape(note)}", soft_wrap=True)


def print_garbage(garbage: Sequence[Garbage], console: Console) -> None:
    """What may go, the largest first, and how much that is."""
    table = Table(box=None, padding=(0, 2))
    table.add_column("size", justify="right", no_wrap=True)
    for column in ("kind", "path", "why"):
        table.add_column(column, overflow="fold")
    for one in sorted(garbage, key=lambda one: -one.bytes):
        table.add_row(size(one.bytes), escape(one.kind), escape(one.path), escape(one.why))
    if garbage:
        console.print(table)
    console.print(f"{len(garbage)} in all, {size(sum(one.bytes for one in garbage))}")


def size(count: float) -> str:
    """Bytes in powers of 1000."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit returns")


def _artifact(what: str, one: Facts) -> str:
    shown = what if what.startswith("verdict") else escape(what)
    if "gone" in one:
        return f"{shown} {one['digest'][:SHORT]}: [red]gone[/], {escape(one['gone'])}"
    return f"{shown} {one['digest'][:SHORT]} of run {escape(str(one['run_id']))}"


def _verdict(verdict: str, override: Facts | None) -> str:
    colour = VERDICT_COLOURS.get(verdict)
    shown = f"[{colour}]{verdict}[/]" if colour else escape(verdict)
    return f"{shown} [red]override[/]" if override else shown


def _signed(override: Facts) -> str:
    return f"{escape(override['by'])} let it through at {override['at']}: {escape(override['reason'])}"


def _gain(gain: Facts | None) -> str:
    if gain is None:
        return "not known"
    fraction = is_fraction(gain["metric"])
    return f"{change(gain['delta'], fraction)} ({interval(gain['ci_low'], gain['ci_high'], fraction)})"
