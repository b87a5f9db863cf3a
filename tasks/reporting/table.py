"""The summary as tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}
STATUS_COLOURS = {
    **{"published": "green", "passed": "green", "compared": "cyan"},
    **{"failed": "red", "inconclusive": "yellow", "error": "red"},
}
PRECISIONS = {"none": "16 bit", "nf4": "4 bit"}
ANSWER_COLOURS = {"yes": "green", "no": "red", "cannot tell": "yellow"}


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Per adapter its verdict, every task with interval, where it went; then trained against prompted; then probes."""
    for adapter in summary["adapters"]:
        console.print()
        console.print(_heading(adapter))
        if adapter["tasks"]:
            console.print(_tasks(adapter))
        for reason in adapter["reasons"]:
            console.print(f"  {escape(reason)}")
        if adapter["error"]:
            console.print(f"  [red]{escape(adapter['error'])}[/]")
        for place in adapter["published"]:
            console.print(f"  published {place['what']}: {escape(place['uri'])}", soft_wrap=True)
        if not adapter["published"] and adapter["method"] != "prompt":
            console.print("  not published")
    for name, trials in summary["searches"].items():
        console.print()
        console.print(_search(name, trials))
    if summary["comparisons"]:
        console.print()
        console.print(_comparisons(summary))
    if summary["probes"]:
        console.print()
        console.print(_probes(summary))


def _heading(adapter: Mapping[str, Any]) -> str:
    colour = STATUS_COLOURS[adapter["status"]]
    trained = ""
    if adapter["method"] == "prompt":
        trained = f"  prompt, nothing trained, {adapter['num_fewshot']} examples before the question"
    if adapter["trainable_params"]:
        share = 100 * adapter["trainable_params"] / adapter["total_params"]
        train = adapter["train"]
        trained = (
            f"  {adapter['method']}, {adapter['trainable_params']:,} of {adapter['total_params']:,} parameters "
            f"({share:.4f} %), {train['steps']} steps in {train['seconds']:.0f} s, loss {train['loss']:.3f}"
        )
    return f"[bold]{escape(adapter['name'])}[/]  [bold {colour}]{adapter['status'].upper()}[/]{trained}"


def _search(name: str, trials: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=f"Searched for {escape(name)}", title_justify="left", box=None, padding=(0, 1))
    for column in ("trial", "settings", "validation loss", "steps", ""):
        table.add_column(column, justify="left" if column in ("settings", "") else "right", overflow="fold")
    for trial in trials:
        settings = ", ".join(f"{key} {_short(value)}" for key, value in trial["settings"].items())
        outcome = "kept" if trial["kept"] else trial["error"] or trial["state"]
        loss = "" if trial["loss"] is None else f"{trial['loss']:.4f}"
        step = "" if trial["step"] is None else str(trial["step"])
        table.add_row(str(trial["number"]), escape(settings), loss, step, escape(outcome))
    return table


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tasks(adapter: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("task", "role", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("n", "base", "adapter", "difference", "90 % interval", "margin", "lost/gained"):
        table.add_column(name, justify="right", no_wrap=name != "90 % interval")
    table.add_column("verdict")
    for task in sorted(adapter["tasks"], key=lambda task: task["role"] != "target"):
        colour = COLOURS[task["verdict"]]
        fraction = task["metric"] != "nll_per_token"
        wanted = ("gain > " if fraction else "fall > ") if task["role"] == "target" else "drop < "
        flips = f"{task['flips']['lost']}/{task['flips']['gained']}" if fraction else ""
        table.add_row(
            *(escape(task["task"]), task["role"] if task["decides"] else "shown only", task["metric"], str(task["n"])),
            *(_score(task["base"], fraction), _score(task["adapter"], fraction), _change(task["delta"], fraction)),
            f"{_change(task['ci_low'], fraction)} to {_change(task['ci_high'], fraction)}",
            wanted + (f"{100 * task['margin']:g}" if fraction else f"{task['margin']:.3f}"),
            flips,
            f"[{colour}]{task['verdict']}[/]",
        )
    return table


def _comparisons(summary: Mapping[str, Any]) -> Table:
    table = Table(title="Was training worth it over prompting?", title_justify="left", box=None, padding=(0, 1))
    for name in ("adapter", "over"):
        table.add_column(name, overflow="fold")
    for name in ("n", "trained", "prompted", "difference", "90 % interval"):
        table.add_column(name, justify="right", no_wrap=name != "90 % interval")
    table.add_column("answer")
    for one in summary["comparisons"]:
        fraction = one["metric"] != "nll_per_token"
        table.add_row(
            *(_with_precision(one, "adapter"), _with_precision(one, "over"), str(one["n"])),
            *(_score(one["adapter_score"], fraction), _score(one["over_score"], fraction)),
            _change(one["delta"], fraction),
            f"{_change(one['ci_low'], fraction)} to {_change(one['ci_high'], fraction)}",
            f"[{ANSWER_COLOURS[one['answer']]}]{one['answer']}[/]",
        )
    return table


def _with_precision(one: Mapping[str, Any], side: str) -> str:
    """The name, and the precision of the base if the two sides differ in it."""
    precisions = one["quantization"]
    return escape(one[side]) + (f" ({PRECISIONS[precisions[side]]})" if len({*precisions.values()}) > 1 else "")


def _score(value: float, fraction: bool) -> str:
    return f"{100 * value:.1f} %" if fraction else f"{value:.3f}"


def _change(value: float, fraction: bool) -> str:
    """A difference: in points (hundredths) of fractions, in nats of log-likelihoods."""
    return f"{100 * value:+.1f}" if fraction else f"{value:+.3f}"


def _probes(summary: Mapping[str, Any]) -> Table:
    table = Table(title="Asked of base and adapters", title_justify="left", show_lines=True)
    table.add_column("question")
    sides = list(summary["probes"][0]["answers"])
    for side in sides:
        table.add_column(escape(side))
    for probe in summary["probes"]:
        table.add_row(escape(probe["question"]), *(escape(probe["answers"][side]) for side in sides))
    return table
