"""Which lm-eval tasks there are: lm-eval's own, the offline suite that ships here, and the user's folder.

All of it is read from YAML, so that what is wrong with the names is known before any data is loaded, and a task's own
code runs only when the task is loaded.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any

from infra.errors import Fault
from infra.hashing import digest_file, digest_tree
from infra.settings import PROJECT
from tasks.recipe.schema import SUITES as SUITE_NAMES

SUITES = Path(__file__).parent / "suites"
CAPITALS = PROJECT / "data" / "capitals.csv"
WHERE, FOLDER = "evaluation.general", "evaluation.include_path"
LOSSES = ("loglikelihood", "loglikelihood_rolling")


def task_manager(name: str | None, include_path: str | None) -> Any:
    """An lm-eval TaskManager that knows `name` and what it is made of, if any does.

    lm-eval's own thousands are read only where needed.
    """
    ours = _index(include_path, include_defaults=False)
    if name is None or (name in ours.task_index and not any(_absent(name, ours.task_index))):
        return ours
    return _index(include_path, include_defaults=True)


@lru_cache
def _index(include_path: str | None, *, include_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    folders = [str(SUITES)] + ([include_path] if include_path else [])
    return TaskManager(include_path=folders, include_defaults=include_defaults)


def task_faults(general: Sequence[Mapping[str, Any]], include_path: str | None, *, permitted: bool) -> list[Fault]:
    """Everything that is wrong with the general tasks ({"task", "metric"} each), as far as YAML tells."""
    names = [one["task"] for one in general]
    if faults := [*folder_faults(include_path), *unknown_tasks(names, include_path)]:
        return faults  # what is known of the rest is not the whole truth
    refused = refused_tasks(names, include_path, permitted)
    return [*refused, *(fault for one in general for fault in _metric_faults(one["task"], one["metric"], include_path))]


def folder_faults(include_path: str | None) -> list[Fault]:
    """A fault for each file of the user's folder that lm-eval would leave out without a word."""
    if not include_path:
        return []
    if not Path(include_path).is_dir():
        return [Fault(f"{include_path} is not a folder", FOLDER)]
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    faults = []
    defined: dict[str, Path] = {}
    for path in sorted(Path(include_path).rglob("*.yaml")):
        try:
            config = load_yaml(path, resolve_func=False)
        except (yaml.YAMLError, OSError, ValueError) as error:
            faults.append(Fault(f"{path} cannot be read as the YAML of a task: {' '.join(str(error).split())}", FOLDER))
            continue
        name = config.get("group") or config.get("task")
        if isinstance(name, str) and defined.setdefault(name, path) != path:
            faults.append(Fault(f"{path} defines {name!r}, and {defined[name]} does so too; rename one", FOLDER))
    return faults


def unknown_tasks(names: list[str], include_path: str | None) -> list[Fault]:
    """A fault for each name that is no task, group or tag, with the nearest ones that are; also within groups."""
    if include_path and not Path(include_path).is_dir():
        return [Fault(f"{include_path} is not a folder", FOLDER)]
    faults = []
    for name in sorted(set(names) - _shipped(include_path), key=names.index):
        manager = task_manager(name, include_path)
        if name not in manager.task_index:
            faults.append(Fault(_unknown(name, manager.all_tasks, include_path), WHERE))
        for member in _absent(name, manager.task_index):
            faults.append(Fault(f"group {name!r}: {_unknown(member, manager.all_tasks, None)}", WHERE))
    return faults


def _shipped(include_path: str | None) -> set[str]:
    """Names that need no lm-eval to be known; none where the user's folder may have given them another meaning."""
    return set() if include_path else {path.stem for path in SUITES.glob("*.yaml")}


def _unknown(name: str, known: list[str], include_path: str | None) -> str:
    near = difflib.get_close_matches(name, [*known, *SUITE_NAMES], n=3)
    hint = f"near names: {', '.join(near)}" if near else "`lm_eval ls tasks` lists lm-eval's own"
    if include_path and (unread := sorted(path.name for path in Path(include_path).rglob("*.yml"))):
        hint += f"; lm-eval reads .yaml only, not {', '.join(unread)}"
    return f"no lm-eval task is named {name!r}; {hint}"


def refused_tasks(names: Sequence[str], include_path: str | None, permitted: bool) -> list[Fault]:
    """A fault for each task that runs code which a model wrote, unless that is permitted."""
    if permitted:
        return []
    return [
        runs_code(name)
        for name in names
        if name not in _shipped(include_path)
        and any(config.get("unsafe_code") for config in _configs(name, task_manager(name, include_path).task_index))
    ]


def runs_code(name: str) -> Fault:
    return Fault(
        f"{name!r} runs code that the model wrote; set evaluation.confirm_run_unsafe_code: true to allow it", WHERE
    )


def _metric_faults(name: str, wanted: str | None, include_path: str | None) -> list[Fault]:
    """A fault if a task surely lacks the metric. Where a function makes the metrics, they are known after scoring."""
    if wanted is None:
        return []
    metric, _, cut = wanted.partition(",")
    for config in _configs(name, task_manager(name, include_path).task_index):
        listed = config.get("metric_list")
        if not listed or "class" in config or config.get("output_type") in LOSSES:
            continue
        names = [one["metric"] for one in listed]
        filters = [one["name"] for one in config.get("filter_list") or [{"name": "none"}]]
        made = any("/" in one["metric"] or one.get("hf_evaluate") for one in listed)  # by the path of a function
        if (metric not in names and not made) or (cut and cut not in filters):
            has = ", ".join(names) + (f", each behind a comma with one of {', '.join(filters)}" if cut else "")
            return [Fault(f"task {config.get('task', name)!r} has no metric {wanted!r}; it has {has}", WHERE)]
    return []


def _configs(name: str, index: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The YAML of a task, or of all tasks that a group or tag is made of."""
    entry = index.get(name)
    if entry is None:
        return
    if entry.kind.name == "TAG":
        for task in sorted(entry.tags):
            yield from _configs(task, index)
    elif entry.kind.name == "GROUP":
        yield from _members(entry.cfg.get("task"), index)
    else:
        yield entry.cfg


def _members(listed: Any, index: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for one in listed if isinstance(listed, list) else []:
        change = one if isinstance(one, dict) else {}
        name = change.get("group") or change.get("task") if change else one
        if isinstance(change.get("task"), list) and name not in index:  # a group within the group
            yield from _members(change["task"], index)
        elif isinstance(name, str) and name in index:
            yield from ({**config, **change, "task": config.get("task")} for config in _configs(name, index))
        elif change:
            yield change


def _absent(name: str, index: Mapping[str, Any]) -> Iterator[str]:
    """Names that a group lists and nobody defines; lm-eval would take each for a task without data."""
    entry = index.get(name)
    if entry is not None and entry.kind.name == "GROUP":
        yield from _absent_members(entry.cfg.get("task"), index)


def _absent_members(listed: Any, index: Mapping[str, Any]) -> Iterator[str]:
    for one in listed if isinstance(listed, list) else []:
        if isinstance(one, str):
            if one not in index:
                yield one
            else:
                yield from _absent(one, index)
        elif isinstance(one, dict) and isinstance(one.get("task"), list):
            yield from _absent_members(one["task"], index)
        elif isinstance(one, dict) and set(one) == {"task"} and one["task"] not in index:
            yield one["task"]


def folder_digest(include_path: str | None) -> str:
    """Digest of what the tasks that do not come from lm-eval itself are made of: the suite, its data, the user's.

    To the user's belong all files of the folder, and local data outside it that its YAML names as data_files, data_dir
    or dataset_path. What only the code of a task opens is not seen.
    """
    files = {f"suites/{path.name}": path for path in SUITES.iterdir() if path.suffix in (".py", ".yaml")}
    files["capitals.csv"] = CAPITALS
    if include_path:
        own = (path for path in Path(include_path).rglob("*") if path.is_file() and path.suffix != ".pyc")
        files |= {f"own/{path.relative_to(include_path)}": path for path in own}
        files |= {f"data/{path}": path for path in _data_outside(Path(include_path))}
    return digest_tree({name: digest_file(path) for name, path in files.items()})


def _data_outside(folder: Path) -> set[Path]:
    """Local files that the YAML of a folder names as data; relative names stand as `datasets` reads them."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    named: set[str] = set()
    for path in folder.rglob("*.yaml"):
        try:
            config = load_yaml(path, resolve_func=False)
        except (yaml.YAMLError, OSError, ValueError):  # see folder_faults
            continue
        options = config.get("dataset_kwargs") or {}
        for value in (options.get("data_files"), options.get("data_dir"), config.get("dataset_path")):
            named.update(_texts(value))
    found = {Path(match) for name in named for match in glob(name, recursive=True)}  # noqa: PTH207 (may be absolute)
    return {file for path in found for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()}


def _texts(value: Any) -> Iterator[str]:
    """The strings in one, in a list of them, or in a mapping to either."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(one)
