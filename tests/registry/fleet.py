"""A small store as runs leave it: bases, rows, adapters, records and verdicts of a few bytes, made by real stages."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.hashing import digest_json
from infra.storage import Store
from tasks.artifacts import StageResult
from tasks.caching import Work, run_stage_once
from tasks.publishing.destinations import publish_to
from tasks.publishing.release import Published, Release
from tasks.recipe.schema import Artifact, Destination
from tasks.registry.records import Override, Publication, ReleaseRecord, add_publication, register

RUN = "20261122-100000-aaaa"
TARGET = {
    **{"task": "mirror.held_out", "role": "target", "metric": "exact_match", "decides": True, "n": 40},
    **{"verdict": "PASS", "delta": 0.5, "ci_low": 0.25, "ci_high": 0.75, "base": 0.25, "adapter": 0.75},
}


def make(
    store: Store,
    stage: str,
    kind: str,
    name: str,
    files: Mapping[str, str],
    upstream: Mapping[str, str],
    *,
    run: str = RUN,
    spec: Any = None,
) -> StageResult:
    """One artifact with these files. Its key is that of `spec` and `upstream` alone, as in any stage."""

    def write(work: Path, output: Path) -> dict[str, Any]:
        for path, text in files.items():
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            (output / path).write_text(text)
        return {"steps": 3, "loss": 0.5}

    return run_stage_once(store, Work(stage, 1, kind, name, spec or {"name": name}, upstream), write, run_id=run)


def make_member(store: Store, name: str, *, run: str = RUN, seed: int = 0) -> dict[str, StageResult]:
    """Everything that a run makes of one adapter; with another seed all but the base and the rows are others."""
    base = make(store, "import-base", "bases", "tiny", {"model.safetensors": "weights", "config.json": "{}"}, {})
    rows = {"train.jsonl": f"{name}\n", "held_out.jsonl": "held out\n"}
    data = make(store, "ingest", "datasets", name, rows, {"file": digest_json(name)}, run=run)
    made_from = {"base": base.ref.digest, "data": data.ref.digest}
    weights = {"adapter_model.safetensors": f"{name} {seed}", "adapter_config.json": '{"r": 8}'}
    adapter = make(store, "train", "adapters", name, weights, made_from, run=run, spec={"method": "lora", "seed": seed})
    sides = {
        "base": make(store, "score", "scores", "base", {"records.parquet": f"base on {name}"}, made_from, run=run),
        "own": make(
            *(store, "score", "scores", name, {"records.parquet": f"{name} {seed} on {name}"}),
            {**made_from, "adapter": adapter.ref.digest},
            run=run,
        ),
    }
    used = {f"{side} {TARGET['task']} 0": one.ref.digest for side, one in sides.items()}
    compared = make(store, "compare", "comparisons", name, {"tasks.json": f"{name} {seed}"}, used, run=run)
    content = {
        **{"adapter": name, "adapter_digest": adapter.ref.digest, "verdict": "PASS", "reasons": ["It learned."]},
        "tasks": [TARGET],
    }
    upstream = {"adapter": adapter.ref.digest, "own": compared.ref.digest, f"family {name}": compared.ref.digest}
    verdict = make(
        *(store, "judge", "verdicts", name, {"verdict.json": json.dumps(content), "flips/a.jsonl": ""}, upstream),
        run=run,
    )
    merged = make(
        *(store, "merge", "merged", name, {"model.safetensors": f"merged {name} {seed}", "config.json": "{}"}),
        {"base": base.ref.digest, "adapter": adapter.ref.digest},
        run=run,
    )
    return {
        **{"base": base, "data": data, "adapter": adapter, "compared": compared, "verdict": verdict, "merged": merged},
        **{f"scores of {side}": one for side, one in sides.items()},
    }


def record_of(
    store: Store, member: Mapping[str, StageResult], *, override: str | None = None, run: str = RUN
) -> ReleaseRecord:
    """The release of a member."""
    name = member["adapter"].ref.name
    return register(
        store,
        name=name,
        adapter=member["adapter"].ref,
        base=member["base"].ref,
        base_model="acme/tiny",
        base_revision="main",
        data=member["data"].ref,
        verdict=member["verdict"].ref,
        verdict_says="FAIL" if override else "PASS",
        override=Override(reason=override, by="ada@desk", at="2026-11-22T10:00:00+00:00") if override else None,
        method="lora",
        recipe={"name": "tiny", "method": "lora"},
        run_id=run,
        git_commit="c0ffee",
        created="2026-11-22T10:00:00+00:00",
    )


def publish(
    store: Store,
    record: ReleaseRecord,
    member: Mapping[str, StageResult],
    place: Destination,
    what: tuple[Artifact, ...] = ("adapter",),
) -> list[Published]:
    """Send a release to a place, and note it."""
    sent = []
    for one in what:
        artifact = member[one]
        release = Release(
            name=record.name,
            number=record.number,
            what=one,
            digest=artifact.ref.digest,
            folder=store.fetch(artifact.ref),
            card="---\nlibrary_name: peft\n---\n\n# A card\n",
            manifest={"name": record.name, "version": record.version, "what": one, "digest": artifact.ref.digest},
        )
        sent.append(publish_to(place, release))
        add_publication(store, record, Publication(place=place, published=sent[-1]))
    return sent


def write_summary(store: Store, run: str, *members: Mapping[str, StageResult]) -> None:
    """What a finished run says of its members."""
    adapters = [
        {
            **{"name": one["adapter"].ref.name, "digest": one["adapter"].ref.digest},
            **{"adapter_uri": one["adapter"].ref.uri, "verdict_uri": one["verdict"].ref.uri, "merged_uri": None},
        }
        for one in members
    ]
    store.write_json(f"runs/{run}/summary.json", {"run_id": run, "store": store.root, "adapters": adapters})
