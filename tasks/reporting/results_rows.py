"""The rows of a run's results: its summary's adapters, each with what the store still has of it.

Summaries of older runs have fewer keys, and stores lose artifacts: whatever is not there is null.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from infra.redaction import without_secrets
from infra.storage import Store
from tasks.reporting.results_evidence import Evidence, Json, place_of_ref, place_of_uri

Places = dict[str, str | None]  # {role: of the artifact, below the root}
AT_ONCE = 64  # adapters, whose manifests are read together
COUNTS = ("steps", "planned_steps", "best_step", "stopped_early", "tokens", "validation_loss", "seed", "world_size")
SETTINGS = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "device"),
    *("peak_memory_bytes", "out_of_memory_at", "engine", "pack", "computed_tokens"),
)


def rows_of(store: Store, summary: Mapping[str, Any]) -> Iterator[Json]:
    """One row an adapter, in the summary's order."""
    adapters = summary.get("adapters") or []
    for start in range(0, len(adapters), AT_ONCE):
        some = [(one, _places(one)) for one in adapters[start : start + AT_ONCE]]
        evidence = Evidence(store)
        evidence.look(place for _, places in some for place in places.values())
        for one, places in some:
            places.update(_made_from(one["name"], places, evidence))
        evidence.look(place for _, places in some for place in places.values())
        scores = [evidence.score_places(places["comparison"]).values() for _, places in some]
        evidence.look(place for tasks in scores for parts in tasks for place in parts)
        for position, (one, places) in enumerate(some, start):
            yield _row(one, places, summary, evidence, position)


def _places(one: Json) -> Places:
    """{role: place} as far as the summary says."""
    refs = one.get("refs") or {}
    return {
        "adapter": place_of_uri(one.get("adapter_uri")),
        **{role: place_of_ref(refs.get(role)) for role in ("base", "data")},
        **{role: place_of_uri(one.get(f"{role}_uri")) for role in ("verdict", "merged", "gguf")},
    }


def _made_from(name: str, places: Places, evidence: Evidence) -> Places:
    """What only manifests name: the comparison, the adapter that a cure scaled, the data of what was not judged."""
    upstream = (evidence.manifest(places["adapter"]) or {}).get("upstream", {})

    def known(role: str, kind: str) -> str | None:
        return place_of_ref({"kind": kind, "name": name, "digest": upstream[role]}) if upstream.get(role) else None

    return {
        "as trained": known("adapter", "adapters"),
        "comparison": evidence.comparison_place(places["verdict"]),
        "data": places["data"] or known("data", "datasets"),
    }


def _row(one: Json, places: Places, summary: Mapping[str, Any], evidence: Evidence, position: int) -> Json:
    made = evidence.manifest(places["adapter"]) or {}
    facts = made.get("facts") or {}
    return {
        **_identity(one, summary, made, position),
        **{f"{role}_place": places[role] for role in ("adapter", "merged", "gguf", "verdict", "data", "base")},
        **_data(one, summary, evidence.manifest(places["data"])),
        **_cost(one, facts, evidence, places),
        **_said(one, evidence.seconds_by_task(places["comparison"])),
        "comparisons": _comparisons(one["name"], summary),
        "trials": _trials(one["name"], summary),
        "flips": evidence.flips(places["verdict"]),
        "curve": _curve(facts),
        "rows_sample": evidence.rows(places["data"]),
        "lineage": [_origin(role, place, evidence) for role, place in places.items() if evidence.manifest(place)],
        "run": _run(summary) if position == 0 else None,
    }


def _identity(one: Json, summary: Mapping[str, Any], made: Json, position: int) -> Json:
    base, recipe = summary.get("base") or {}, summary.get("recipe") or {}
    method = one.get("method")
    trained_like = recipe.get("method") if method == "prompt" else method  # as tasks.artifacts.quantization_of says
    own = next((each for each in recipe.get("adapters", []) if each["name"] == one["name"]), None)
    settings = own or made.get("spec")
    return {
        "run_id": summary["run_id"],
        "started": started(summary["run_id"]),
        "position": position,
        "recipe": recipe.get("name"),
        **{key: one.get(key) for key in ("name", "status", "method", "num_fewshot", "verdict", "digest")},
        "error": _safe(one.get("error")),
        "precision": {"qlora": "nf4", "lora": "none", "full": "none"}.get(str(trained_like)),
        **{"base_model": base.get("model"), "base_revision": base.get("revision"), "base_digest": base.get("digest")},
        "settings_json": json.dumps(_safe(settings), ensure_ascii=False) if settings else None,
        **{key: one.get(key) for key in ("reasons", "release", "published")},
        "warnings": _safe(one.get("warnings")),
        "created": _time(made.get("created")),
        "git_commit": made.get("git_commit"),
        "versions_json": json.dumps(made["versions"]) if made.get("versions") else None,
    }


def _data(one: Json, summary: Mapping[str, Any], made: Json | None) -> Json:
    facts = (made or {}).get("facts") or {}
    adapters = (summary.get("recipe") or {}).get("adapters", [])
    asked = next((each.get("data") or {} for each in adapters if each["name"] == one["name"]), None)
    if asked is None:  # of a sweep: the rows' own artifact says where they came from
        asked = (made or {}).get("spec") or {}
    named = asked.get("path") or asked.get("hub") or asked.get("generate") or ("rows" if asked.get("rows") else None)
    return {
        "data_source": _safe(named),
        "data_kind": facts.get("kind"),
        **{f"rows_{split}": facts.get(split) for split in ("train", "validation", "held_out")},
        **{key: facts.get(key) for key in ("duplicates", "malformed", "near_copies")},
    }


def _cost(one: Json, facts: Json, evidence: Evidence, places: Places) -> Json:
    train = {key: value for key, value in (one.get("train") or {}).items() if value is not None}
    known = {**facts, **train}
    seconds, tokens = known.get("seconds"), known.get("tokens")
    answered = evidence.seconds_by_task(places["comparison"])
    tasks = [task["task"] for task in one.get("tasks") or []]
    scoring = sum(answered.values()) if tasks and all(task in answered for task in tasks) else None
    training = seconds * facts["world_size"] if seconds is not None and facts.get("world_size") else None
    if one.get("method") == "prompt":  # nothing is trained
        training = 0.0
    return {
        **{key: one.get(key) for key in ("trainable_params", "total_params")},
        **{f"{role}_bytes": evidence.size(places[role]) for role in ("adapter", "merged", "gguf")},
        **{key: known.get(key) for key in (*COUNTS, *SETTINGS)},
        "train_seconds": seconds,
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "train_loss": known.get("loss"),
        **{"train_device_seconds": training, "score_device_seconds": scoring},
        "device_seconds": None if training is None or scoring is None else training + scoring,
    }


def _said(one: Json, seconds: Mapping[str, float]) -> Json:
    rule = one.get("rule") or {}
    tasks = [
        {**task, **(task.get("flips") or {}), "seconds": seconds.get(task["task"])} for task in one.get("tasks") or []
    ]
    cure = one.get("cure")
    return {
        **{"alpha": rule.get("alpha"), "adjust": rule.get("adjust")},
        **{key: one.get(key) for key in ("p_value", "p_adjusted", "pool", "win_rate")},
        "tasks": tasks,
        "cure": cure and {**cure, "curve": [_candidate(point) for point in cure.get("curve") or []]},
    }


def _curve(facts: Json) -> list[Json] | None:
    """The points with the pace at each; a validation is a point of its own, and takes none."""
    if facts.get("curve") is None:
        return None
    at = {point["step"]: point for point in facts.get("pace") or []}
    return [{**point, **at.get(point["step"], {})} if "loss" in point else point for point in facts["curve"]]


def _candidate(point: Json) -> Json:
    target, pool = point.get("target") or {}, point.get("pool") or {}
    return {
        **point,
        **{f"target_{key}": target.get(key) for key in ("delta", "ci_low", "ci_high")},
        **{f"pool_{key}": pool.get(key) for key in ("drop", "ci_low", "ci_high")},
    }


def _comparisons(name: str, summary: Mapping[str, Any]) -> list[Json]:
    def precisions(one: Json) -> Json:
        return {f"{side}_precision": precision for side, precision in (one.get("quantization") or {}).items()}

    return [{**one, **precisions(one)} for one in summary.get("comparisons") or [] if one["adapter"] == name]


def _trials(name: str, summary: Mapping[str, Any]) -> list[Json]:
    """Of the search that made it: the one of its own name, or of which it is a trial that was kept."""
    for sought, trials in (summary.get("searches") or {}).items():
        if sought == name or any(trial["name"] == name for trial in trials):
            return [_trial(trial) for trial in trials]
    return []


def _trial(trial: Json) -> Json:
    settings = json.dumps(_safe(trial["settings"]), ensure_ascii=False)
    return {**trial, "settings_json": settings, "error": _safe(trial.get("error"))}


def _origin(role: str, place: str | None, evidence: Evidence) -> Json:
    manifest = evidence.manifest(place) or {}
    told = {key: manifest.get(key) for key in ("kind", "name", "digest", "created", "seconds", "run_id", "git_commit")}
    return {"role": role, "place": place, "stage": (manifest.get("stage") or {}).get("name"), **told}


def _run(summary: Mapping[str, Any]) -> Json:
    cache = summary.get("cache") or {}
    probes: Sequence[Json] = summary.get("probes") or []
    return {
        "store": summary.get("store"),
        "warnings": _safe(summary.get("warnings") or []),
        "timings": [{"stage": stage, "seconds": each} for stage, each in (summary.get("timings") or {}).items()],
        "cache": [{"kind": kind, **counts} for kind, counts in cache.items()],
        "gate": (summary.get("recipe") or {}).get("gate"),
        "self_tests": summary.get("self_tests") or [],
        "probes": [
            {
                "question": one["question"],
                "answers": [{"side": side, "text": text} for side, text in one["answers"].items()],
            }
            for one in probes
        ],
    }


def _safe(value: Any) -> Any:
    """`value` without secrets in its texts: addresses may hold them. Rows stay as they are: they are the data."""
    if isinstance(value, dict):
        return {key: inner if key == "rows" else _safe(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_safe(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


def started(run_id: str) -> datetime | None:
    """When a run began, by its id; None if that is of another form."""
    try:
        return datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
