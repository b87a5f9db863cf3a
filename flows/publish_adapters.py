"""Publish what a finished run made: elsewhere than its recipe said, in other forms, or past the gate with a reason.

summary of the run -> register the release -> merge, export -> publish to each place -> move the channel

`release` is also how train-adapters lets its own adapters go.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger
from pydantic import ValidationError

from infra.errors import Fault, RequestError, TunefleetError
from infra.launch import interruption_stops_stages
from infra.settings import default_store
from infra.storage import ArtifactRef
from tasks.artifacts import AdapterOutcome, StageResult, quantization_of
from tasks.exporting.task import export_gguf
from tasks.forgetting.task import gate
from tasks.merging.task import merge
from tasks.operations.dashboards import ask_for_dashboard
from tasks.operations.notices import on_crashed, on_failure
from tasks.publishing.destinations import sent_of
from tasks.publishing.task import check, check_space, publish, read_channels
from tasks.recipe.loading import prepared
from tasks.recipe.schema import Artifact, Destination, Publish, Recipe
from tasks.registry import channels
from tasks.registry.inventory import rebased
from tasks.registry.records import Override, ReleaseRecord, current, register, whoever
from tasks.reporting.finished import read_run
from tasks.reporting.prefect_artifacts import artifact_key, dashboard_link, leave_dashboard_link
from tasks.runs import Run, new_run


@flow(name="publish-adapters", on_failure=[on_failure], on_crashed=[on_crashed])
@interruption_stops_stages()
def publish_adapters(
    run: str,
    adapters: Sequence[str] = (),
    *,
    store: str | None = None,
    what: Sequence[Artifact] = (),
    to: Sequence[Destination] = (),
    channel: str | None = None,
    override: str | None = None,
) -> dict[str, Any]:
    """Release adapters of the finished run `run` (an id, or latest); all that passed, if none are named.

    `what`, `to` and `channel` stand in for the recipe's own. `override` is a person's reason to release without a PASS;
    it is written on the card and into the manifest. Returns {"run_id", "adapters": [{"name", "release", "published",
    "error"}]}.
    """
    here = new_run(store or default_store())
    summary = read_run(here.store, run)
    recipe = Recipe.model_validate(summary["recipe"])
    given = {"what": tuple(what), "to": tuple(to), "channel": channel}
    try:
        publishing = Publish.model_validate(
            recipe.publish.model_dump() | {key: one for key, one in given.items() if one}
        )
    except ValidationError as error:
        raise RequestError([Fault(f"{one['loc'][0]}: {one['msg']}") for one in error.errors()]) from error
    recipe = prepared(recipe.model_copy(update={"publish": publishing}))
    if override is not None and not (override := override.strip()):
        raise RequestError("the reason to release without a PASS is empty; say why, --override 'because ...'.")
    chosen = _chosen(here, summary, recipe, adapters)
    if not publishing.to:
        raise RequestError("there is no place to publish to: the recipe names none under publish.to; give one, --to.")
    names = {one.name for one in chosen}
    chosen_alone = recipe.model_copy(update={"adapters": tuple(one for one in recipe.adapters if one.name in names)})
    check(chosen_alone)
    if chosen[0].base:
        check_space(here, chosen_alone, chosen[0].base)
    for one in chosen:  # before the first is sent
        gate(one.name, one.verdict or {}, one.trained.ref.digest if one.trained else "", override)
    for one in chosen:
        try:
            release(here, recipe, one, made_in=summary["run_id"], override=override)
        except TunefleetError as error:
            one.error = str(error)
    answer = {
        "run_id": summary["run_id"],
        "adapters": [
            {"name": one.name, "release": one.release, "published": one.published, "error": one.error} for one in chosen
        ],
    }
    here.store.write_json(f"runs/{here.run_id}/published.json", answer)
    ask_for_dashboard(here.store_uri)
    made_in = summary["run_id"]
    leave_dashboard_link(
        dashboard_link(here.store.root, f"/fleet?q={made_in}"),
        f"adapters of run {made_in} on the dashboard",
        get_run_logger().warning,
        key=artifact_key("dashboard", recipe.name),
    )
    return answer


def release(run: Run, recipe: Recipe, one: AdapterOutcome, *, made_in: str, override: str | None = None) -> None:
    """Register one adapter that may go, make what of it is wanted, publish it; `one` keeps what came of it."""
    assert one.trained and one.verdict, "it was not judged, and bears no error"
    gate(one.name, one.verdict, one.trained.ref.digest, override)
    artifacts = _made(run, recipe, one)
    record = _registered(run, recipe, one, made_in, override)
    one.release = record.label
    channel = _channel(run, record, recipe.publish.channel)
    standing = current(run.store, record.name, channel) if channel else None
    before = read_channels(record.name, recipe.publish.to, list(artifacts), channel)
    for place, seen in zip(recipe.publish.to, before, strict=True):
        one.published += publish(run, record, place, artifacts, channel, seen)
    if channel:
        channels.move(run.store, record, channel, expected=standing)


def _made(run: Run, recipe: Recipe, one: AdapterOutcome) -> dict[Artifact, StageResult]:
    """What is to be sent; a fully fine-tuned model goes as it is, there is nothing to merge."""
    assert one.trained and one.data and one.judged and one.base
    publishing, sent = recipe.publish, sent_of(one.adapter, recipe.publish.what)
    made: dict[Artifact, StageResult] = {"adapter": one.trained, "report": one.judged}
    if one.method == "full":
        made["merged"] = one.trained
    elif {"merged", "gguf"} & set(sent):
        one.merged = made["merged"] = merge(
            *(run, one.name),
            base=one.base,
            data=one.data,
            trained=one.trained,
            quantization=one.quantization,
            into=publishing.merge.into,
        )
    if "gguf" in sent:
        one.gguf = made["gguf"] = export_gguf(
            run, one.name, merged=made["merged"], trained=one.trained, base=one.base, type=publishing.gguf.type
        )
    return {what: made[what] for what in sent}


def _registered(run: Run, recipe: Recipe, one: AdapterOutcome, made_in: str, override: str | None) -> ReleaseRecord:
    assert one.trained and one.data and one.judged and one.base and one.verdict
    says = one.verdict["verdict"]
    return register(
        run.store,
        name=one.name,
        adapter=one.trained.ref,
        base=one.base.ref,
        base_model=one.base.facts["model"],
        base_revision=one.base.facts["revision"],
        data=one.data.ref,
        verdict=one.judged.ref,
        verdict_says=says,
        override=Override(reason=override, by=whoever(), at=_now()) if override and says != "PASS" else None,
        method=one.method,
        recipe=recipe.model_dump(mode="json"),
        run_id=made_in,
        git_commit=run.store.manifest(one.trained.ref)["git_commit"],
        created=_now(),
    )


def _channel(run: Run, record: ReleaseRecord, channel: str | None) -> str | None:
    """The channel to move; none if it stood at this release before, and somebody took it elsewhere since."""
    if channel is None or current(run.store, record.name, channel) == record.number:
        return channel
    if any(move.number == record.number for move in channels.history(run.store, record.name, channel)):
        label = record.label
        get_run_logger().warning("%s: %s was moved away from it, and stays where it is", label, channel)
        get_run_logger().warning("to move it back: tunefleet promote %s --to %s", label, channel)
        return None
    return channel


def _chosen(run: Run, summary: dict[str, Any], recipe: Recipe, names: Sequence[str]) -> list[AdapterOutcome]:
    """The adapters of a finished run that are to be published; RequestError if some cannot be."""
    stood = {one["name"]: one for one in summary["adapters"] if one.get("refs")}
    names = names or [name for name, one in stood.items() if one["verdict"] == "PASS"]
    faults = [
        Fault(f"run {summary['run_id']} has no judged adapter {name!r}; it has {', '.join(stood) or 'none'}.")
        for name in names
        if name not in stood
    ]
    if faults:
        raise RequestError(faults)
    if not names:
        raise RequestError(f"no adapter of run {summary['run_id']} passed; name one, and give a reason: --override.")
    adapters = {adapter.name: adapter for adapter in recipe.adapters}
    found = []
    for name in names:
        refs = {role: _result(run, ref) for role, ref in stood[name]["refs"].items()}
        one = AdapterOutcome(adapters[name], quantization_of(recipe, adapters[name]), base=refs["base"])
        one.data, one.trained, one.judged = refs["data"], refs["adapter"], refs["verdict"]
        one.verdict = run.store.read_json(f"{run.store.relative(one.judged.ref.uri)}/verdict.json")
        found.append(one)
    return found


def _result(run: Run, ref: dict[str, Any]) -> StageResult:
    known = rebased(run.store, ArtifactRef.model_validate(ref))
    return StageResult(ref=known, facts=run.store.manifest(known)["facts"], cached=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
