"""Which lm-eval tasks there are: lm-eval's own, the offline suite that ships here, and the user's folder."""

import difflib
from functools import lru_cache
from pathlib import Path
from typing import Any

from infra.errors import Fault
from infra.hashing import digest_file, digest_tree
from infra.settings import PROJECT

SUITES = Path(__file__).parent / "suites"
CAPITALS = PROJECT / "data" / "capitals.csv"


def task_manager(name: str | None, include_path: str | None) -> Any:
    """An lm-eval TaskManager that knows `name`, if any does: lm-eval's own thousands are read only where needed."""
    ours = _index(include_path, include_defaults=False)
    return ours if name is None or name in ours.all_tasks else _index(include_path, include_defaults=True)


@lru_cache
def _index(include_path: str | None, *, include_defaults: bool) -> Any:
    """Task names from YAML files alone; a task's own code runs when the task is loaded."""
    from lm_eval.tasks import TaskManager

    folders = [str(SUITES)] + ([include_path] if include_path else [])
    return TaskManager(include_path=folders, include_defaults=include_defaults)


def unknown_tasks(names: list[str], include_path: str | None) -> list[Fault]:
    """A fault for each name that is no task, group or tag, with the nearest ones that are."""
    if include_path and not Path(include_path).is_dir():
        return [Fault(f"{include_path} is not a folder", "evaluation.include_path")]
    faults = []
    shipped = {path.stem for path in SUITES.glob("*.yaml")}
    for name in sorted(set(names) - shipped, key=names.index):
        known = task_manager(name, include_path).all_tasks
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"near names: {', '.join(near)}" if near else "`lm_eval ls tasks` lists lm-eval's own"
            faults.append(Fault(f"no lm-eval task is named {name!r}; {hint}", "evaluation.general"))
    return faults


def folder_digest(include_path: str | None) -> str:
    """Digest of what the tasks that do not come from lm-eval itself are made of: the suite, its data, the user's."""
    files = {f"suites/{path.name}": path for path in SUITES.iterdir() if path.suffix in (".py", ".yaml")}
    files["capitals.csv"] = CAPITALS
    if include_path:
        own = (path for path in Path(include_path).rglob("*") if path.is_file() and path.suffix != ".pyc")
        files |= {f"own/{path.relative_to(include_path)}": path for path in own}
    return digest_tree({name: digest_file(path) for name, path in files.items()})
