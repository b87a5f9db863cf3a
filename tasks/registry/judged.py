"""An adapter that was judged, whether it was released or only left by a run: what those who look at it need to know.

NAME, NAME@v3, NAME@stable    a release, see records.py
RUN:NAME                      an adapter of a finished run, passed or not; RUN is its id, or latest
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import Fault, RequestError
from infra.storage import ArtifactRef, Store
from tasks.registry.inventory import Inventory, place_of
from tasks.registry.records import ReleaseRecord, find, releases
from tasks.reporting.finished import read_run


@dataclass(frozen=True)
class Judged:
    """One adapter, or one whole model, with what it came from and what was said of it."""

    name: str
    label: str  # as it was asked for, with the version spelled out
    method: str  # lora, qlora or full
    says: str  # the verdict, or why there is none
    passed: bool
    adapter: ArtifactRef
    base: ArtifactRef
    data: ArtifactRef | None  # None if it is gone
    verdict: ArtifactRef | None  # None if it was never judged
    recipe: dict[str, Any]  # the whole one, resolved

    @property
    def quantization(self) -> str:
        """The precision of the base that it was trained on and judged beside."""
        return "nf4" if self.method == "qlora" else "none"

    @property
    def settings(self) -> dict[str, Any]:
        """Its own part of the recipe; empty for what a sweep made of another one."""
        return next((dict(one) for one in self.recipe["adapters"] if one["name"] == self.name), {})


def judged(store: Store, word: str) -> Judged:
    """What `word` names, a release or RUN:NAME; RequestError with what there is, if that is nothing."""
    run, colon, name = word.partition(":")
    return of_run(store, run, [name])[0] if colon else of_release(store, find(store, word))


def of_release(store: Store, record: ReleaseRecord) -> Judged:
    reason = f"released without a PASS ({record.verdict_says}): {record.override.reason}" if record.override else None
    return Judged(
        name=record.name,
        label=record.label,
        method=record.method,
        says=reason or record.verdict_says,
        passed=record.override is None,
        adapter=_here(store, record.adapter),
        base=_here(store, record.base),
        data=_here(store, record.data),
        verdict=_here(store, record.verdict),
        recipe=record.recipe,
    )


def newest(store: Store) -> list[Judged]:
    """The newest release of every name; RequestError if there is none at all."""
    records = {record.name: record for record in releases(store)}  # in order of number: the last one stays
    if not records:
        raise RequestError(
            f"nothing was released in {store.root} yet. Adapters of a run, released or not: --run latest; or release "
            "some: tunefleet publish latest"
        )
    return [of_release(store, record) for record in records.values()]


def of_run(store: Store, run: str, names: Sequence[str] = ()) -> list[Judged]:
    """The adapters of a finished run in its own order, or those named; RequestError names what it has.

    Prompts are left out: they have no weights.
    """
    summary = read_run(store, run)
    inventory = Inventory(store)
    made = {one["name"]: one for one in summary["adapters"] if one.get("adapter_uri") and one["method"] != "prompt"}
    faults = [
        Fault(f"run {summary['run_id']} made no adapter {name!r}; it made {', '.join(made) or 'none'}.")
        for name in names
        if name not in made
    ]
    if faults or not made:
        raise RequestError(faults or f"run {summary['run_id']} made no adapter.")
    return [_of_summary(store, inventory, summary, made[name]) for name in names or made]


def _of_summary(store: Store, inventory: Inventory, summary: dict[str, Any], one: dict[str, Any]) -> Judged:
    adapter = by_digest(inventory, one["digest"])
    base = by_digest(inventory, summary["base"]["digest"])
    if adapter is None or base is None:
        gone = f"its base {summary['base']['model']}" if adapter else f"the adapter {one['name']}"
        raise RequestError(f"run {summary['run_id']}: {gone} is no longer in {store.root}; run the recipe again.")
    known = one.get("refs") or {}
    data = known["data"]["digest"] if known else store.manifest(adapter)["upstream"].get("data", "")
    verdict = "/".join((one.get("verdict_uri") or "").split("/")[-2:])  # the store may have been moved
    return Judged(
        name=one["name"],
        label=f"{summary['run_id']}:{one['name']}",
        method=one["method"],
        says=one["verdict"] or one["error"] or "not judged",
        passed=one["verdict"] == "PASS",
        adapter=adapter,
        base=base,
        data=by_digest(inventory, data),
        verdict=_by_place(inventory, verdict) if verdict else None,
        recipe=summary["recipe"],
    )


def _here(store: Store, ref: ArtifactRef) -> ArtifactRef:
    """The same artifact below this root, also if the store was moved since."""
    return ref.model_copy(update={"uri": f"{store.root}/{place_of(ref)}"})


def by_digest(inventory: Inventory, digest: str) -> ArtifactRef | None:
    """The artifact of this digest; None if the store has it no more."""
    places = inventory.places_of(digest)
    return _by_place(inventory, places[0]) if places else None


def _by_place(inventory: Inventory, place: str) -> ArtifactRef | None:
    if (manifest := inventory.manifest(place)) is None:
        return None
    kind, name, digest = manifest["kind"], manifest["name"], manifest["digest"]
    return ArtifactRef(kind=kind, name=name, uri=f"{inventory.store.root}/{place}", digest=digest)
