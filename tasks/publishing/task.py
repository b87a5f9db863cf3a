"""Publishing as Prefect tasks: the check before training, and the release after a PASS.

    record -> for each place: read the channel -> send every artifact -> move the channel -> note where it went

All that a card and a manifest say is read through the record, so the same release reads the same wherever and whenever
it is published.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from prefect import get_run_logger, task

from infra.errors import Fault, RequestError
from tasks.artifacts import StageResult
from tasks.publishing import folder
from tasks.publishing.card import render_card
from tasks.publishing.destinations import check_destinations, move, publish_to, repo_id_of, seen, sent_of
from tasks.publishing.eval_results import eval_results
from tasks.publishing.pointer import Seen, pointer_to
from tasks.publishing.release import Published, Release, require_pass, slug_of
from tasks.recipe.schema import Artifact, Destination, Recipe
from tasks.registry.records import Publication, ReleaseRecord, add_publication, place_of_publication, publications
from tasks.retrying import STAGE
from tasks.runs import Run

FIGURES = ("steps", "tokens", "loss", "trainable_params", "seed")


@task(name="check-destinations", **STAGE)
def check(recipe: Recipe) -> None:
    """RequestError with everything that would keep the fleet from being published."""
    if faults := check_destinations(recipe.publish.to, _sends(recipe)):
        raise RequestError(faults)


@task(name="check-space", **STAGE)
def check_space(run: Run, recipe: Recipe, base: StageResult) -> None:
    """RequestError if a folder has no room for what every adapter of the fleet would bring, if all pass."""
    need = space_needed(recipe, sum(file["size"] for file in run.store.manifest(base.ref)["files"]))
    faults = [
        Fault(fault.message, f"publish.to.{index}")
        for index, place in enumerate(recipe.publish.to)
        if place.folder is not None
        for fault in folder.check(place.folder, need_bytes=need)
    ]
    if faults:
        raise RequestError(faults)


def space_needed(recipe: Recipe, base_bytes: int) -> int:
    """Bytes that one place takes if all adapters pass; a whole model counts as its base, adapters are too small to."""
    whole = {"merged": base_bytes, "gguf": base_bytes * (2 if recipe.publish.gguf.type == "f32" else 1)}
    return sum(whole.get(one, 0) for what in _sends(recipe).values() for one in what)


def _sends(recipe: Recipe) -> dict[str, tuple[Artifact, ...]]:
    """What each adapter sends if it passes."""
    return {one.name: sent_of(one, recipe.publish.what) for one in recipe.adapters if one.method != "prompt"}


@task(name="read-channels", task_run_name="read channels of {name}", **STAGE)
def read_channels(
    name: str, places: Sequence[Destination], what: Sequence[Artifact], channel: str | None
) -> list[Mapping[str, Seen]]:
    """Where `channel` stands in each place, read before anything is sent; and once, however often sending is tried."""
    return [seen(place, name, channel, what) if channel else {} for place in places]


@task(name="publish", task_run_name="publish {record.label}", **STAGE)
def publish(
    run: Run,
    record: ReleaseRecord,
    place: Destination,
    artifacts: Mapping[Artifact, StageResult],
    channel: str | None,
    before: Mapping[str, Seen],
) -> list[dict[str, Any]]:
    """Send a release's artifacts to one place, and move the channel there last; only with a PASS, or its override.

    `before` says where the channel stood when publishing began; no `channel`: none is moved.
    """
    store, logger = run.store, get_run_logger()
    verdict = json.loads((store.fetch(record.verdict) / "verdict.json").read_text())
    require_pass(verdict, record.adapter.digest, record.override.reason if record.override else None)
    sent: dict[str, Published] = {}
    for what, artifact in artifacts.items():
        release = Release(
            name=record.name,
            number=record.number,
            what=what,
            digest=artifact.ref.digest,
            folder=store.fetch(artifact.ref),
            card=_card(run, record, what, artifact, verdict, place),
            manifest=_manifest(run, record, what, artifact, verdict),
            extra=_benchmarks(record, what, verdict) if place.hub else {},
        )
        sent[release.slug] = publish_to(place, release)
        add_publication(store, record, Publication(place=place, published=sent[release.slug]))
        logger.info("%s: published as %s to %s", record.label, what, sent[release.slug].uri)
    if channel:
        here = place_of_publication(Publication(place=place, published=next(iter(sent.values()))))
        there = [one.published for one in publications(store, record) if place_of_publication(one) == here]
        standing = {slug_of(one.what, one.digest): one for one in there}  # forms that were sent before stay
        pointer = pointer_to(
            {**standing, **sent}, name=record.name, channel=channel, number=record.number, adapter=record.adapter.digest
        )
        move(place, pointer, before, {one.what: one.revision for one in sent.values()})
        logger.info("%s: channel %s stands at it", record.label, channel)
    return [one.model_dump() for one in sent.values()]


def _manifest(
    run: Run, record: ReleaseRecord, what: Artifact, artifact: StageResult, verdict: Mapping[str, Any]
) -> dict[str, Any]:
    """`tunefleet.json`: from this file back to data rows, recipe, base, commit and verdicts."""
    trained = run.store.manifest(record.adapter)
    return {
        "name": record.name,
        "version": record.version,
        "what": what,
        "digest": artifact.ref.digest,
        "run_id": record.run_id,
        "released": record.created,
        "recipe": record.recipe,
        "base": {"model": record.base_model, "revision": record.base_revision, "digest": record.base.digest},
        "data": {"digest": record.data.digest, **run.store.manifest(record.data)["facts"]},
        "training": {"spec": trained["spec"], "adapter_digest": record.adapter.digest, "facts": trained["facts"]},
        "made_by": None if artifact.ref == record.adapter or what == "report" else {"stage": what, **artifact.facts},
        "versions": trained["versions"],
        "git_commit": trained["git_commit"],
        "verdict": verdict,
        "verdict_digest": record.verdict.digest,
        "override": record.override.model_dump() if record.override else None,
    }


def _card(
    run: Run,
    record: ReleaseRecord,
    what: Artifact,
    artifact: StageResult,
    verdict: Mapping[str, Any],
    place: Destination,
) -> str:
    facts = run.store.manifest(record.adapter)["facts"]
    base = run.store.manifest(record.base)["facts"]
    return render_card(
        name=record.name,
        number=record.number,
        what=what,
        base_model=record.base_model,
        base_revision=record.base_revision,
        base_digest=record.base.digest,
        base_license=record.recipe["base"].get("license") or base.get("license"),
        method=record.method,
        quantization=_judged_in(record),
        data_digest=record.data.digest,
        recipe=record.recipe["name"],
        training={key: facts[key] for key in FIGURES} | {"rows": run.store.manifest(record.data)["facts"]["train"]},
        merge=artifact.facts if what == "merged" and record.method != "full" else None,
        tasks=verdict["tasks"],
        verdict=verdict["verdict"],
        reasons=verdict["reasons"],
        rule=verdict.get("rule"),
        override=record.override.model_dump() if record.override else None,
        load_from=repo_id_of(place, record.name, what) if place.hub else None,
        files=[file["path"] for file in run.store.manifest(artifact.ref)["files"]],
    )


def _benchmarks(record: ReleaseRecord, what: Artifact, verdict: Mapping[str, Any]) -> Mapping[str, str]:
    """The Hub's own files of results, for benchmarks that are registered there."""
    return eval_results(
        verdict["tasks"],
        what=what,
        method=record.method,
        quantization=_judged_in(record),
        date=record.created[:10],
    )


def _judged_in(record: ReleaseRecord) -> Literal["none", "nf4"]:
    return "nf4" if record.method == "qlora" else "none"
