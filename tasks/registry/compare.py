"""What changed from one adapter to another: its settings, its data, its base, its training, and how it answers.

Where both have records, each task is compared document by document, with the gate's own test for any difference
(margin 0). Records are found from the verdict: it names the comparison that it rests on, that one its records. A
document that only one of them answered is counted and left out; where records are gone, mean scores are all there is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.storage import ArtifactRef, Store
from tasks.evaluation.records import clusters_by_document, scores_by_document
from tasks.forgetting.verdict import Outcome
from tasks.forgetting.verdict import compare as test
from tasks.registry.inventory import Inventory, made_from
from tasks.registry.judged import Judged, by_digest

FIGURES = ("trainable_params", "steps", "tokens", "loss", "validation_loss", "seconds", "seed", "device")
BETTER: dict[Outcome, str] = {"PASS": "better", "FAIL": "worse", "INCONCLUSIVE": "cannot tell"}
# Said by the adapter's own part of a resolved recipe, so the recipe's is only what others start from.
OVERRIDDEN = ("name", "adapters", "method", "lora", "training", "accelerate")
TARGET = "target"
Found = dict[str, Any]


def compare(store: Store, a: Judged, b: Judged) -> Found:
    """{"a", "b", "same_adapter", "recipe", "data", "base", "training", "confidence", "tasks", "notes"} as JSON.

    recipe: [{"key", "a", "b"}] of the settings that differ, null where there is none. data, base: {"a", "b", "same"}.
    training: {figure: {"a", "b"}}. tasks: [{"task", "role", "metric", "a", "b", "n", "delta", "ci_low", "ci_high",
    "p_value", "answer": "better|worse|cannot tell", "flips": {"lost", "gained"}, "only_a", "only_b", "note"}], B minus
    A; without documents in common n and all that rests on them is null, and note says why.
    """
    inventory = Inventory(store)
    alpha = b.recipe.get("gate", {}).get("alpha", 0.05)
    answer = {
        "a": _told(a),
        "b": _told(b),
        "same_adapter": a.adapter.digest == b.adapter.digest,
        "recipe": differences(settings_of(a), settings_of(b)),
        "data": _both(*(one.data.digest if one.data else None for one in (a, b))),
        "base": _both(a.base.digest, b.base.digest) | {"names": [a.base.name, b.base.name]},
        "training": _training(store, a, b),
        "confidence": 1 - 2 * alpha,
        "tasks": [],
        "notes": [],
    }
    said = {}
    for side, one in (("a", a), ("b", b)):
        said[side] = _verdict(store, one)
        if said[side] is None:
            answer["notes"].append(f"{one.label} has no verdict in {store.root} any more: its scores are not known.")
    if a.quantization != b.quantization:
        answer["notes"].append(f"they were judged on bases of different precision: {a.quantization}, {b.quantization}.")
    tasks = {side: _tasks(content, one.name) for (side, content), one in zip(said.items(), (a, b), strict=True)}
    records = {side: _records(inventory, one) for side, one in (("a", a), ("b", b))}
    for key in dict.fromkeys([*tasks["a"], *tasks["b"]]):
        pair = tasks["a"].get(key), tasks["b"].get(key)
        files = [
            _files(store, records[side], task["task"]) if task else None for side, task in zip("ab", pair, strict=True)
        ]
        answer["tasks"].append(_one_task(key, pair, files, alpha))
    return answer


def settings_of(one: Judged) -> dict[str, Any]:
    """Every setting that this adapter was made and judged by, flat: {"training.learning_rate": 1e-4, ...}."""
    shared = {key: value for key, value in one.recipe.items() if key not in OVERRIDDEN or not one.settings}
    return flat({**shared, **{key: value for key, value in one.settings.items() if key != "name"}})


def flat(value: Any, before: str = "") -> dict[str, Any]:
    """Dotted keys; lists of objects by the name or task of each, so that one more moves none of the others."""
    if isinstance(value, Mapping) and value:
        return {key: one for name, part in value.items() for key, one in flat(part, f"{before}{name}.").items()}
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        named = {str(one.get("name") or one.get("task") or number): one for number, one in enumerate(value)}
        return flat(named, before)
    return {before[:-1]: value}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Found]:
    """The keys whose values differ, with both; null where one has no such key."""
    return [
        {"key": key, "a": a.get(key), "b": b.get(key)}
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def _told(one: Judged) -> Found:
    return {"label": one.label, "name": one.name, "method": one.method, "digest": one.adapter.digest, "says": one.says}


def _both(a: str | None, b: str | None) -> Found:
    return {"a": a, "b": b, "same": a == b if a and b else None}


def _training(store: Store, a: Judged, b: Judged) -> Found:
    facts = [store.manifest(one.adapter)["facts"] for one in (a, b)]
    return {
        key: {"a": facts[0].get(key), "b": facts[1].get(key)}
        for key in FIGURES
        if any(one.get(key) is not None for one in facts)
    }


def _verdict(store: Store, one: Judged) -> Found | None:
    content = store.read_json(f"{store.relative(one.verdict.uri)}/verdict.json") if one.verdict else None
    return dict(content) if content else None


def _tasks(verdict: Found | None, name: str) -> dict[str, Found]:
    """{what both may share: the task}: a target bears its adapter's name, which may differ between the two."""
    tasks = verdict["tasks"] if verdict else []
    return {
        f"{TARGET}.{task['task'].removeprefix(name + '.')}" if task["role"] == TARGET else task["task"]: task
        for task in tasks
    }


def _records(inventory: Inventory, one: Judged) -> dict[str, list[ArtifactRef]]:
    """{task: its records, part by part} of what the verdict rests on; a task of which a part is gone has none."""
    verdict = inventory.find(one.verdict.digest) if one.verdict else None
    compared = inventory.find(made_from(verdict).get("own", "")) if verdict else None
    parts: dict[str, list[ArtifactRef | None]] = {}
    for role, digest in made_from(compared or {}).items():  # "own TASK PART", or the base's
        side, _, rest = role.partition(" ")
        if side == "own":
            parts.setdefault(rest.rpartition(" ")[0], []).append(by_digest(inventory, digest))
    return {task: [ref for ref in refs if ref] for task, refs in parts.items() if all(refs)}


def _files(store: Store, records: Mapping[str, list[ArtifactRef]], task: str) -> list[Path]:
    return [store.fetch(ref) / "records.parquet" for ref in records.get(task, ())]


def _one_task(key: str, pair: tuple[Found | None, Found | None], files: list[list[Path] | None], alpha: float) -> Found:
    known = pair[0] or pair[1] or {}
    one: Found = {
        "task": key,
        "role": known["role"],
        "metric": known["metric"],
        "a": pair[0] and pair[0]["adapter"],
        "b": pair[1] and pair[1]["adapter"],
        **dict.fromkeys(("n", "delta", "ci_low", "ci_high", "p_value", "answer", "flips", "only_a", "only_b")),
        "note": "",
    }
    if not (pair[0] and pair[1]):
        return one | {"note": f"only {'A' if pair[0] else 'B'} was asked this."}
    if pair[0]["metric"] != pair[1]["metric"]:
        return one | {"note": f"different metrics: {pair[0]['metric']}, {pair[1]['metric']}."}
    gone = [side for side, some in zip("AB", files, strict=True) if not some]
    if gone:
        return one | {"note": f"the records of {' and '.join(gone)} are gone: scores only."}
    before, after = (scores_by_document(some or [], "doc_digest") for some in files)
    common = before.keys() & after.keys()
    one |= {"n": len(common), "only_a": len(before) - len(common), "only_b": len(after) - len(common)}
    if not common:
        return one | {"n": None, "note": "no document was answered by both."}
    clusters = clusters_by_document(files[1] or [], "doc_digest")
    found = test(
        task=key,
        role="target",
        metric=known["metric"],
        base={document: before[document] for document in before if document in common},
        adapter={document: after[document] for document in before if document in common},
        margin=0.0,
        alpha=alpha,
        higher_is_better=known.get("higher_is_better", known["metric"] != "nll_per_token"),
        clusters=clusters and {document: clusters[document] for document in common},
    )
    notes = (
        [f"{one['only_a']} documents only A answered, {one['only_b']} only B."] if before.keys() ^ after.keys() else []
    )
    if found.too_few:
        notes.append(f"{found.too_few}.")
    return (
        one
        | {"a": found.base, "b": found.adapter, "answer": BETTER[found.verdict], "note": " ".join(notes)}
        | found.model_dump(include={"delta", "ci_low", "ci_high", "p_value", "flips"})
    )
