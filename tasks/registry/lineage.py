"""Where a release comes from: from its files back to the rows, the recipe, the base, the commit and every verdict.

All is read from the record and from manifests, each of which names what it was made from by digest. What is gone from
the store is said to be gone. Of equal bytes a store keeps one artifact with its first manifest: what that one names is
what the bytes were first made from.
"""

from typing import Any

from infra.hashing import SHORT
from infra.storage import Store
from tasks.registry import channels
from tasks.registry.inventory import Inventory, made_from, place_of
from tasks.registry.records import ReleaseRecord, publications

VERDICT = "verdict.json"
GONE = "not in the store any more"
TOLD = ("kind", "name", "stage", "run_id", "created", "seconds", "git_commit", "versions", "spec", "facts", "upstream")


def lineage(store: Store, record: ReleaseRecord) -> dict[str, Any]:
    """JSON of all that is known; {"digest", "gone": why} wherever an artifact is no more."""
    inventory = Inventory(store)
    verdicts = verdicts_on(inventory, record.adapter.digest)
    verdicts = [record.verdict.digest, *(one for one in verdicts if one != record.verdict.digest)]
    starts = [record.adapter.digest, record.data.digest, record.base.digest, *verdicts]
    reached = inventory.reached(starts, record.name)
    adapter, data = (_artifact(inventory, one.digest, one.name) for one in (record.adapter, record.data))
    return {
        "release": record.label,
        "created": record.created,
        "override": record.override.model_dump() if record.override else None,
        "run_id": record.run_id,
        "recipe": record.recipe,
        "git_commit": record.git_commit,
        "adapter": {"method": record.method, **adapter},
        "base": {
            "model": record.base_model,
            "revision": record.base_revision,
            **_artifact(inventory, record.base.digest, record.base.name),
        },
        "data": {**data, "files": _files(inventory, record.data.digest)},
        "verdicts": [_verdict(inventory, digest, record.verdict.name) for digest in verdicts],
        "channels": channels.standing(store, record),
        "published": [one.published.model_dump() for one in publications(store, record)],
        "artifacts": {digest: _artifact(inventory, digest, record.name) for digest in reached},
    }


def verdicts_on(inventory: Inventory, adapter: str) -> list[str]:
    """Digests of all verdicts that the store still has on this adapter, the first one first."""
    places = [place for place in inventory.places if place.startswith("verdicts/")]
    read = [manifest for place in places if (manifest := inventory.manifest(place))]
    found = [manifest for manifest in read if made_from(manifest).get("adapter") == adapter]
    return list(dict.fromkeys(one["digest"] for one in sorted(found, key=lambda one: str(one.get("created")))))


def read_verdict(store: Store, record: ReleaseRecord) -> dict[str, Any] | None:
    """The content of verdict.json as the store has it; None if it is gone."""
    content = store.read_json(f"{place_of(record.verdict)}/{VERDICT}")
    return dict(content) if content else None


def _verdict(inventory: Inventory, digest: str, name: str) -> dict[str, Any]:
    """What was said, task by task, and the records that it rests on."""
    answer = _artifact(inventory, digest, name)
    if "gone" in answer:
        return answer
    data = inventory.store.read_json(f"{answer['place']}/{VERDICT}")
    compared = (answer["upstream"] or {}).get("own", "")
    scores = made_from(inventory.find(compared, name) or {})
    return {
        "said": data if data else {"gone": f"{VERDICT} is no longer in {answer['place']}"},
        **answer,
        "scores": {role: _artifact(inventory, score, name) for role, score in scores.items()},
    }


def _artifact(inventory: Inventory, digest: str, name: str) -> dict[str, Any]:
    manifest = inventory.find(digest, name)
    if not manifest:
        altered = inventory.altered(digest)
        return {"digest": digest, "gone": f"the manifest of {altered[0]} was altered" if altered else GONE}
    place = f"{manifest['kind']}/{manifest['name']}-{digest[:SHORT]}"
    return {
        "digest": digest,
        "place": place,
        "uri": f"{inventory.store.root}/{place}",
        **{key: manifest.get(key) for key in TOLD},
    }


def _files(inventory: Inventory, digest: str) -> dict[str, str]:
    """{path: SHA-256} of an artifact's files."""
    manifest = inventory.find(digest)
    return {file["path"]: file["sha256"] for file in manifest["files"]} if manifest else {}
