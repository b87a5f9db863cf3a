"""The summary as tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.reporting.cure_table import cure_table
from tasks.reporting.figures import VERDICT_COLOURS, change, confidence, interval, is_fraction, score

STATUS_COLOURS = {
    **{"published": "green", "passed": "green", "compared": "cyan"},
    **{"failed": "red", "inconclusive": "yellow", "error": "red"},
}
PRECISIONS = {"none": "16 bit", "nf4": "4 bit"}
SELF_TESTS = {
    "again": "the base against itself",
    "noised": "a noised adapter",
    "one-answer": "an adapter of one answer",
}
ANSWER_COLOURS = {"yes": "green", "no": "red", "cannot tell": "yellow"}


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """What to know of the run; per adapter its verdict, every task, where it went; trained against prompted; probes."""
    for warning in summary.get("warnings", []):
        console.print(f"[yellow]{escape(warning)}[/]")
    for adapter in summary["adapters"]:
        console.print()
        console.print(_heading(adapter))
        if adapter["tasks"]:
            console.print(_tasks(adapter))
        if adapter["pool"]:
            console.print(f"  {_pool(adapter['pool'])}")
        for reason in adapter["reasons"]:
            console.print(f"  {escape(reason)}")
        for warning in adapter["warnings"]:
            console.print(f"  [yellow]{escape(warning)}[/]")
        if adapter["cure"]:
            console.print(cure_table(adapter))
            console.print(f"  cure: {escape(adapter['cure']['said'])}")
        if adapter["win_rate"]:
            console.print(f"  {_win_rate(adapter['win_rate'])}")
        if adapter["error"]:
            console.print(f"  [red]{escape(adapter['error'])}[/]")
        for place in adapter["published"]:
            console.print(f"  published {place['what']}: {escape(place['uri'])}", soft_wrap=True)
        if not adapter["published"] and adapter["method"] != "prompt":
            console.print("  not published")
    if summary["self_tests"]:
        console.print()
    for test in summary["self_tests"]:
        console.print(_self_test(test), soft_wrap=True)
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
    for name in ("n", "base", "adapter", "difference", _interval_of(adapter), "margin", "lost/gained"):
        table.add_column(name, justify="right", no_wrap=not name.endswith("interval"))
    diverged = any(task.get("kl") is not None for task in adapter["tasks"])
    if diverged:
        table.add_column("KL", justify="right", no_wrap=True)
    table.add_column("verdict")
    for task in sorted(adapter["tasks"], key=lambda task: task["role"] != "target"):
        fraction = is_fraction(task["metric"])
        grows = task["higher_is_better"]
        wanted = ("gain > " if grows else "fall > ") if task["role"] == "target" else "drop < " if grows else "rise < "
        flips = f"{task['flips']['lost']}/{task['flips']['gained']}" if fraction else ""
        table.add_row(
            *(escape(task["task"]), _role(task), task["metric"], str(task["n"])),
            *(score(task["base"], fraction), score(task["adapter"], fraction), change(task["delta"], fraction)),
            interval(task["ci_low"], task["ci_high"], fraction),
            wanted + (f"{100 * task['margin']:g}" if fraction else f"{task['margin']:.3f}"),
            flips,
            *([_short(task["kl"]) if task.get("kl") is not None else ""] if diverged else []),
            _label(task),
        )
    return table


def _interval_of(adapter: Mapping[str, Any]) -> str:
    """The intervals' confidence is 1 - 2 alpha, and looks and cures have a smaller alpha than the recipe's."""
    alpha = (adapter["rule"] or {}).get("alpha", 0.05)
    return f"{confidence(alpha)} interval"


def _role(task: Mapping[str, Any]) -> str:
    """Target or general; what a general task's vote weighs if it is not critical, what a target must surpass."""
    if not task["decides"]:
        return "shown only"
    tier, over = task.get("tier", "critical"), task.get("over", "the base")
    more = ([tier] if tier != "critical" else []) + ([f"over {escape(over)}"] if over != "the base" else [])
    return ", ".join([task["role"], *more])


def _label(task: Mapping[str, Any]) -> str:
    label = f"[{VERDICT_COLOURS[task['verdict']]}]{task['verdict']}[/]"
    needed = task.get("needed")
    if task["verdict"] == "INCONCLUSIVE" and needed and needed > task["n"]:
        label += f", needs about {needed:,}"
    return label


def _pool(pool: Mapping[str, Any]) -> str:
    return (
        f"general tasks on average: {change(-pool['drop'], True)} points over {pool['n_tasks']} right/wrong tasks "
        f"(interval {interval(-pool['ci_high'], -pool['ci_low'], True)}); allowed is a drop of less than "
        f"{100 * pool['margin']:g}, p = {pool['p_value']:.3f}"
    )


def _win_rate(rate: Mapping[str, Any]) -> str:
    """Of the adapter's answers over the base's; above one half the judge prefers the adapter."""
    unread = f", {rate['unreadable']} replies unreadable" if rate["unreadable"] else ""
    return (
        f"win rate over the base: {score(rate['win_rate'], True)} (interval {score(rate['ci_low'], True)} to "
        f"{score(rate['ci_high'], True)}) of {rate['n']} documents: {rate['wins']} won, {rate['losses']} lost, "
        f"{rate['ties']} without a winner{unread}; judge {escape(str(rate['judge']))}"
    )


def _self_test(test: Mapping[str, Any]) -> str:
    colour, mark = ("green", "ok") if test["ok"] else ("bold red", "NOT OK")
    name = SELF_TESTS.get(test["kind"], test["kind"])
    return f"self-test, {PRECISIONS[test['precision']]}: [{colour}]{mark}[/] {name}: {escape(test['said'])}"


def _comparisons(summary: Mapping[str, Any]) -> Table:
    table = Table(title="Was training worth it over prompting?", title_justify="left", box=None, padding=(0, 1))
    for name in ("adapter", "over"):
        table.add_column(name, overflow="fold")
    intervals = f"{confidence(summary['recipe']['gate']['alpha'])} interval"  # compared at the level of the whole run
    for name in ("n", "trained", "prompted", "difference", intervals):
        table.add_column(name, justify="right", no_wrap=name != intervals)
    table.add_column("answer")
    for one in summary["comparisons"]:
        fraction = is_fraction(one["metric"])
        table.add_row(
            *(_with_precision(one, "adapter"), _with_precision(one, "over"), str(one["n"])),
            *(score(one["adapter_score"], fraction), score(one["over_score"], fraction)),
            change(one["delta"], fraction),
            interval(one["ci_low"], one["ci_high"], fraction),
            f"[{ANSWER_COLOURS[one['answer']]}]{one['answer']}[/]",
        )
    return table


def _with_precision(one: Mapping[str, Any], side: str) -> str:
    """The name, and the precision of the base if the two sides differ in it."""
    precisions = one["quantization"]
    return escape(one[side]) + (f" ({PRECISIONS[precisions[side]]})" if len({*precisions.values()}) > 1 else "")


def _probes(summary: Mapping[str, Any]) -> Table:
    table = Table(title="Asked of base and adapters", title_justify="left", show_lines=True)
    table.add_column("question")
    sides = list(summary["probes"][0]["answers"])
    for side in sides:
        table.add_column(escape(side))
    for probe in summary["probes"]:
        table.add_row(escape(probe["question"]), *(escape(probe["answers"][side]) for side in sides))
    return table
