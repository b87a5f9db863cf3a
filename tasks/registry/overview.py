"""All releases of a store at a glance: what `tunefleet list` says of each."""

from typing import Any

from infra.errors import RequestError
from infra.storage import Store
from tasks.registry.channels import standing
from tasks.registry.lineage import read_verdict
from tasks.registry.records import ReleaseRecord, publications, releases


def overview(store: Store, name: str | None = None) -> list[dict[str, Any]]:
    """One record for each release of `name`, or of all; RequestError if there is none of that name."""
    found = releases(store, name)
    if name is not None and not found:
        known = ", ".join(store.list_names("releases")) or "none yet"
        raise RequestError(f"there is no release of {name!r} in {store.root}; released are: {known}.")
    return [_row(store, record) for record in found]


def _row(store: Store, record: ReleaseRecord) -> dict[str, Any]:
    return {
        "release": record.label,
        "name": record.name,
        "version": record.version,
        "verdict": record.verdict_says,
        "override": record.override.model_dump() if record.override else None,
        "method": record.method,
        "base": {"model": record.base_model, "revision": record.base_revision, "digest": record.base.digest},
        "digest": record.adapter.digest,
        "gain": _gain(read_verdict(store, record)),
        "channels": standing(store, record),
        "published": [one.published.model_dump() for one in publications(store, record)],
        "run_id": record.run_id,
        "created": record.created,
    }


def _gain(verdict: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the target that decides gained over the base; None if the verdict is gone."""
    for task in verdict["tasks"] if verdict else ():
        if task["role"] == "target" and task["decides"]:
            return {key: task[key] for key in ("task", "metric", "delta", "ci_low", "ci_high")}
    return None
