"""What deployments/prefect.yaml names, and what of it the Prefect server has: pools, workers, limits."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.caching import git_commit
from tasks.operations.declared import FILE, Declared, declared_in, pools_of
from tasks.operations.doctor.finding import Finding, absent, fault, ok, warning
from tasks.operations.doctor.watching import look_at_watching

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import WorkPool
    from prefect.client.schemas.responses import DeploymentResponse

_COMMIT = re.compile(r"[0-9a-f]{7,12}|[0-9a-f]{40}")  # a version of 32 digits is the hash of the flow's file
_DEPLOY = "run: tunefleet deploy"
_SHOWN = 3  # names of workers


def look_at_deployments(client: "SyncPrefectClient", file: Path = FILE) -> Iterator[Finding]:
    wanted = declared_in(file)
    found = [(one, _on_server(client, one.name)) for one in wanted]
    for name in pools_of(wanted):
        yield pool(client, name, is_used=any(it and it.work_pool_name == name for _, it in found))
    if not any(it for _, it in found):
        yield absent("deployments", f"none of the {len(wanted)} of {file.name} is on the server", _DEPLOY)
        return
    for one, it in found:
        yield deployment(one, it, commit=(git_commit() or "").removesuffix("+"))
    yield from look_at_watching(client)


def _on_server(client: "SyncPrefectClient", name: str) -> "DeploymentResponse | None":
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


# --- pools and workers


def pool(client: "SyncPrefectClient", name: str, *, is_used: bool) -> Finding:
    """`is_used`: a deployment of this project sends its runs there, so that they wait for ever if nobody takes them."""
    from prefect.exceptions import ObjectNotFound

    check, wrong = f"pool {name}", fault if is_used else warning
    try:
        it = client.read_work_pool(name)
    except ObjectNotFound:
        return absent(check, "not on the server", _DEPLOY)
    if it.is_paused:
        return wrong(check, f"{it.type}, paused: no run starts", f"prefect work-pool resume {name}")
    if it.concurrency_limit == 0:
        advice = f"prefect work-pool clear-concurrency-limit {name}"
        return wrong(check, f"{it.type}, with a limit of 0 runs: none starts", advice)
    limit = "no limit of runs" if it.concurrency_limit is None else f"{it.active_slots or 0} of {it.concurrency_limit}"
    described = f"{it.type}, {limit}{' runs' if it.concurrency_limit else ''}"
    return _with_workers(client, it, described, wrong is fault)


def _with_workers(client: "SyncPrefectClient", it: "WorkPool", described: str, is_needed: bool) -> Finding:
    from prefect.client.schemas.objects import WorkerStatus

    check = f"pool {it.name}"
    if it.is_push_pool or it.is_managed_pool:
        return ok(check, f"{described}; needs no worker")
    workers = client.read_workers_for_work_pool(it.name)
    online = [one.name for one in workers if one.status == WorkerStatus.ONLINE]
    if online:
        names = ", ".join(online[:_SHOWN]) + (", ..." if len(online) > _SHOWN else "")
        return ok(check, f"{described}; {len(online)} worker{'s' * (len(online) != 1)} online: {names}")
    beats = [one.last_heartbeat_time for one in workers if one.last_heartbeat_time]
    last = f"; the last was heard of {_ago(max(beats))} ago" if beats else ""
    wrong = fault if is_needed else warning
    return wrong(check, f"{described}; no worker online{last}: runs wait", f"prefect worker start --pool {it.name}")


def _ago(time: datetime) -> str:
    seconds = (datetime.now(UTC) - time).total_seconds()
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


# --- deployments


def deployment(wanted: Declared, it: "DeploymentResponse | None", *, commit: str) -> Finding:
    """Of the file, beside that of the server; `commit` is the checkout's, empty if there is none."""
    check = wanted.name
    if it is None:
        return warning(check, "is not on the server", _DEPLOY)
    if it.work_pool_name is None:
        return fault(check, "has no work pool any more: its runs never start", _DEPLOY)
    limit = it.global_concurrency_limit
    facts: list[str] = [f"pool {it.work_pool_name}", _version(it.version, commit)]
    if limit:
        facts.append(f"{limit.active_slots} of {limit.limit} runs at a time" + ("" if limit.active else ", not active"))
    if it.schedules:
        running = sum(one.active for one in it.schedules) if not it.paused else 0
        facts.append(f"{running} of {len(it.schedules)} schedules active")
    amiss = _amiss(wanted, it, commit)
    if amiss:
        return warning(check, f"{', '.join(facts)}: {'; '.join(amiss)}", _DEPLOY)
    return ok(check, ", ".join(facts))


def _version(version: str | None, commit: str) -> str:
    if not _is_commit(version):
        return "of an unknown commit"
    return "of this commit" if commit and commit.startswith(str(version)) else f"of commit {str(version)[:7]}"


def _is_commit(version: str | None) -> bool:
    return bool(version and _COMMIT.fullmatch(version))


def _amiss(wanted: Declared, it: "DeploymentResponse", commit: str) -> Sequence[str]:
    """What the server has otherwise than the file, or than this checkout."""
    limit, amiss = it.global_concurrency_limit, []
    if commit and _is_commit(it.version) and not commit.startswith(str(it.version)):
        amiss.append(f"this checkout is at {commit[:7]}")
    if it.entrypoint != wanted.entrypoint:
        amiss.append(f"it starts {it.entrypoint}, {FILE.name} says {wanted.entrypoint}")
    if wanted.pool and wanted.pool != it.work_pool_name:
        amiss.append(f"{FILE.name} says pool {wanted.pool}")
    if wanted.limit and (limit is None or limit.limit != wanted.limit or not limit.active):
        amiss.append(f"{FILE.name} limits it to {wanted.limit} runs at a time")
    return amiss
