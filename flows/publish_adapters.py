"""Publish what a finished run made: elsewhere than its recipe said, in other forms, or past the gate with a reason.

summary of the run -> register the release -> merge, export -> publish to each place -> move the channel

`release` is also how train-adapters lets its own adapters go.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import flow

from infra.errors import Fault, RequestError, TunefleetError
from infra.launch import interruption_stops_stages
from infra.settings import default_store
from infra.storage import ArtifactRef
from tasks.artifacts import AdapterOutcome, StageResult, quantization_of
from tasks.exporting.task import export_gguf
from tasks.forgetting.task import gate
from tasks.merging.task import merge
from tasks.publishing.task import check, publish
from tasks.recipe.schema import Artifact, Destination, Publish, Recipe
from tasks.registry import channels
from tasks.registry.records import Override, current, register, whoever
from tasks.reporting.finished import read_run
from tasks.runs import Run, new_run


@flow(name="publish-adapters")
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
    publishing = Publish.model_validate(recipe.publish.model_dump() | {key: one for key, one in given.items() if one})
    recipe = recipe.model_copy(update={"publish": publishing})
    chosen = _chosen(here, summary, recipe, adapters)
    if not publishing.to:
        raise RequestError("there is no place to publish to: the recipe names none under publish.to; give one, --to.")
    names = {one.name for one in chosen}
    check(recipe.model_copy(update={"adapters": tuple(one for one in recipe.adapters if one.name in names)}))
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
    return answer


def release(run: Run, recipe: Recipe, one: AdapterOutcome, *, made_in: str, override: str | None = None) -> None:
    """Register one adapter that may go, make what of it is wanted, publish it; `one` keeps what came of it.

    A fully fine-tuned model is published as it is: there is nothing to merge.
    """
    trained, data, judged, base = one.trained, one.data, one.judged, one.base
    assert trained and data and judged and base and one.verdict, "it was not judged, and bears no error"
    gate(one.name, one.verdict, trained.ref.digest, override)
    whole = one.method == "full"
    what = dict.fromkeys("merged" if whole and each == "adapter" else each for each in recipe.publish.what)
    artifacts: dict[Artifact, StageResult] = {}
    if whole:
        one.merged = trained
    elif {"merged", "gguf"} & what.keys():
        one.merged = merge(
            *(run, one.name),
            base=base,
            data=data,
            trained=trained,
            quantization=one.quantization,
            into=recipe.publish.merge.into,
        )
    for each in what:
        if each == "gguf":
            assert one.merged
            one.gguf = export_gguf(
                run, one.name, merged=one.merged, trained=trained, base=base, type=recipe.publish.gguf.type
            )
        artifacts[each] = {"adapter": trained, "merged": one.merged, "gguf": one.gguf, "report": judged}[each]  # type: ignore[assignment]
    passed = one.verdict["verdict"] == "PASS"
    record = register(
        run.store,
        name=one.name,
        adapter=trained.ref,
        base=base.ref,
        base_model=base.facts["model"],
        base_revision=base.facts["revision"],
        data=data.ref,
        verdict=judged.ref,
        verdict_says=one.verdict["verdict"],
        override=None if passed or not override else Override(reason=override, by=whoever(), at=_now()),
        method=one.method,
        recipe=recipe.model_dump(mode="json"),
        run_id=made_in,
        git_commit=run.store.manifest(trained.ref)["git_commit"],
        created=_now(),
    )
    one.release = record.label
    for place in recipe.publish.to:
        one.published += publish(run, record, place, artifacts, recipe.publish.channel)
    if recipe.publish.channel:
        standing = current(run.store, record.name, recipe.publish.channel)
        channels.move(run.store, record, recipe.publish.channel, expected=standing)


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
    known = ArtifactRef.model_validate(ref)
    return StageResult(ref=known, facts=run.store.manifest(known)["facts"], cached=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
