"""The flips of a finished run, found and shown: summary.json -> the verdict's artifact -> flips/<task>.jsonl.

What models wrote is data: on a terminal it is escaped, and cut where it is long; as JSON it stays whole.
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.errors import RequestError
from infra.storage import ArtifactRef, Store
from tasks.forgetting.flips import read_flips
from tasks.reporting.finished import read_run

LONGEST = 160  # characters of a text in the table
COLOURS = {"lost": "red", "worse": "red", "gained": "green", "better": "green"}
Found = dict[str, Any]


def find_flips(
    store: Store, run: str, *, adapter: str | None, task: str | None, kinds: Sequence[str], most: int
) -> Found:
    """{"run_id", "found": [{"adapter", "task", "of", "flips"}]}: the first `most` flips of each adapter and task.

    `kinds` are those wanted (lost, gained, worse, better), `of` says how many there are of them. RequestError names
    what there is if the run, the adapter or the task is not among it.
    """
    summary = read_run(store, run)
    judged = {one["name"]: one["verdict_uri"] for one in summary["adapters"] if one.get("verdict_uri")}
    if adapter is not None and adapter not in judged:
        raise RequestError(_absent("adapter with a verdict", adapter, list(judged), summary["run_id"]))
    found: list[Found] = []
    tasks: dict[str, None] = {}
    for name, uri in judged.items():
        if adapter in (None, name):
            for one in _of_verdict(store, uri):
                tasks[one["task"]] = None
                flips = [flip for flip in one["flips"] if flip["kind"] in kinds]
                if task in (None, one["task"]):
                    found.append({"adapter": name, "task": one["task"], "of": len(flips), "flips": flips[:most]})
    if task is not None and task not in tasks:
        raise RequestError(_absent("task", task, list(tasks), summary["run_id"]))
    return {"run_id": summary["run_id"], "found": found}


def _of_verdict(store: Store, uri: str) -> list[Found]:
    """[{"task", "flips"}] of one verdict. A store that was moved keeps its artifacts' places below the root."""
    place = "/".join(uri.rstrip("/").split("/")[-2:])
    manifest = store.read_json(f"{place}/manifest.json")
    if manifest is None:
        raise RequestError(f"{store.root} no longer holds the verdict {place}; run the recipe again.")
    kind, name, digest = manifest["kind"], manifest["name"], manifest["digest"]
    folder = store.fetch(ArtifactRef(kind=kind, name=name, uri=f"{store.root}/{place}", digest=digest))
    return [
        {"task": file.name.removesuffix(".jsonl"), "flips": read_flips(file)}
        for file in sorted((folder / "flips").glob("*.jsonl"))
    ]


def _absent(what: str, got: str, there: list[str], run: str) -> str:
    return f"run {run} has no {what} {got!r}; it has {', '.join(there) or 'none'}."


def print_flips(answer: Found, console: Console) -> None:
    """A table for each adapter and task with flips; a line for each without."""
    for one in answer["found"]:
        what = f"{escape(one['adapter'])} on {escape(one['task'])}"
        if not one["flips"]:
            console.print(f"{what}: no flips of this kind")
            continue
        table = Table(title=f"{what}: {len(one['flips'])} of {one['of']}", title_justify="left", show_lines=True)
        table.add_column("", no_wrap=True)
        table.add_column("moved", justify="right", no_wrap=True)
        for column in ("asked", "wanted", "base", "adapter"):
            table.add_column(column, overflow="fold")
        for flip in one["flips"]:
            colour = COLOURS[flip["kind"]]
            table.add_row(
                *(f"[{colour}]{flip['kind']}[/]", f"{flip['moved']:+.3f}", _cut_start(flip["prompt"])),
                *(_wanted(flip), _answer(flip["base"]), _answer(flip["adapter"])),
            )
        console.print(table)


def _wanted(flip: Found) -> str:
    """The target; where that is only the number of a choice, what the side that is right chose says more."""
    right = flip["base"] if flip["kind"] == "lost" else flip["adapter"]
    if flip["right_choice"] is not None and right["choice"] == flip["right_choice"]:
        return _answer(right)
    return _cut(flip["target"])


def _answer(answer: Found) -> str:
    if answer["choice"] is not None:
        text = "" if answer["text"] is None else f": {_cut(answer['text'])}"
        return f"choice {answer['choice']}{text}"
    return f"score {answer['score']:.4g}" if answer["text"] is None else _cut(answer["text"])


def _cut(text: str) -> str:
    return escape(_visible(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"))


def _cut_start(text: str) -> str:
    """The question stands at a prompt's end, behind the system's message and the examples."""
    shown = _visible(text if len(text) <= LONGEST else "…" + text[1 - LONGEST :], kept="\n")
    return escape(shown.strip())


def _visible(text: str, kept: str = "") -> str:
    """Control characters spelled out: a model's answer must not steer the reader's terminal, nor fill it with lines."""
    return "".join(one if one.isprintable() or one in kept else repr(one)[1:-1] for one in text)
