"""What deployments/prefect.yaml declares: the one place where it is read, for `tunefleet deploy` and the doctor."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.settings import PROJECT

FILE = PROJECT / "deployments" / "prefect.yaml"


@dataclass(frozen=True)
class Declared:
    """A deployment as the file describes it."""

    name: str  # flow/deployment, as Prefect's commands take it
    entrypoint: str
    pool: str | None  # None where the file leaves it to the environment
    limit: int | None  # runs at a time
    schedules: tuple[str, ...] = ()  # in words


def declared_in(file: Path = FILE) -> list[Declared]:
    import yaml

    return [
        Declared(
            name=f"{one.get('flow_name') or _flow_name(one['entrypoint'])}/{one['name']}",
            entrypoint=one["entrypoint"],
            pool=_literal((one.get("work_pool") or {}).get("name")),
            limit=_limit(one.get("concurrency_limit")),
            schedules=tuple(_when(schedule) for schedule in one.get("schedules") or ()),
        )
        for one in yaml.safe_load(file.read_text(encoding="utf-8")).get("deployments") or ()
    ]


def pools_of(deployments: Sequence[Declared]) -> list[str]:
    """The work pools that they name, each once."""
    return list(dict.fromkeys(one.pool for one in deployments if one.pool))


def _flow_name(entrypoint: str) -> str:
    """What Prefect calls a flow unless told otherwise: its function's name, with hyphens."""
    return re.split(r"[.:]", entrypoint)[-1].replace("_", "-")


def _literal(value: str | None) -> str | None:
    return None if value is None or "{{" in value else value


def _limit(value: Any) -> int | None:
    limit = value.get("limit") if isinstance(value, dict) else value
    return limit if isinstance(limit, int) else None


def _when(schedule: dict[str, Any]) -> str:
    """One that is no cron expression stands as the file has it."""
    if "cron" not in schedule:
        return ", ".join(f"{key} {value}" for key, value in schedule.items())
    return f"at {schedule['cron']} {schedule.get('timezone') or 'UTC'}"
