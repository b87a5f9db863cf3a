"""The product on one page: from a recipe to adapters that are released, or not, for reasons that are kept.

recipe -> check destinations -> ingest rows, import base -> preflight -> train, or draw a prompt's examples
       -> evaluate base + adapters -> judge -> gate -> merge -> publish -> summary
"""

from typing import Any

from prefect import flow

from infra.errors import GateNotPassed, TunefleetError
from infra.launch import interruption_stops_stages
from infra.settings import default_store
from tasks.artifacts import AdapterOutcome, Lineage, StageResult, quantization_of
from tasks.evaluation.scoring import Scores
from tasks.evaluation.task import evaluate
from tasks.forgetting.task import gate, judge_adapter
from tasks.gathering import Stopwatch, all_results
from tasks.ingestion.task import import_base, ingest
from tasks.merging.task import merge
from tasks.preflight.task import preflight
from tasks.prompting.task import draw_shots
from tasks.publishing.task import check, publish
from tasks.recipe.loading import load_recipe, prepared
from tasks.recipe.schema import Artifact, Recipe
from tasks.reporting.task import report
from tasks.runs import Run, new_run
from tasks.training.fleet import train_fleet


@flow(name="train-adapters")
@interruption_stops_stages()
def train_adapters(recipe: Recipe | str, store: str | None = None) -> dict[str, Any]:
    """Train, judge and release the adapters of a recipe (the recipe itself, or the path of its file).

    Returns the summary that is also left in the store. RequestError, before any training, if something about the
    request is wrong; an adapter that fails does not stop the others.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str) else prepared(recipe)
    run, watch = new_run(store or default_store()), Stopwatch()
    prompts = [adapter for adapter in recipe.adapters if adapter.method == "prompt"]

    with watch("prepare"):
        check(recipe)
        importing = import_base.submit(run, recipe.base)
        data = all_results({adapter.name: ingest.submit(run, adapter) for adapter in recipe.adapters})
        base = importing.result()
        checked = preflight(run, recipe, base, data)
        prompted = all_results({one.name: draw_shots.submit(run, one, data[one.name]) for one in prompts})

    with watch("train"):
        done = train_fleet(run, recipe, base, data)
        recipe, data, failed = done.recipe, done.data, done.failed  # a search puts its best trials in the fleet
        trained = done.trained | prompted
        fleet = [AdapterOutcome(adapter, quantization_of(recipe, adapter)) for adapter in recipe.adapters]

    with watch("evaluate"):
        scores: dict[str, Scores] = {}
        for precision in sorted({one.quantization for one in fleet if one.name in trained}):
            scores[precision], unscored = evaluate(run, recipe, precision, base=base, data=data, trained=trained)
            failed |= unscored

    with watch("release"):
        for one in fleet:
            one.trained, one.error = trained.get(one.name), failed.get(one.name)
            if one.trained and not one.error:
                release(run, recipe, one, one.trained, base=base, data=data[one.name], scores=scores[one.quantization])

    made, searches = [base, checked], done.searches
    return report(run, recipe, fleet, base=base, data=data, made=made, scores=scores, searches=searches, timings=watch)


def release(
    run: Run,
    recipe: Recipe,
    one: AdapterOutcome,
    trained: StageResult,
    *,
    base: StageResult,
    data: StageResult,
    scores: Scores,
) -> None:
    """Judge one trained adapter and, with a PASS, merge and publish it; `one` keeps what came of it.

    A prompt is only compared. A fully fine-tuned model is published as it is: there is nothing to merge.
    """
    try:
        one.judged, one.verdict = judge_adapter(run, recipe, one.adapter, trained, scores)
        if one.method == "prompt":
            return
        gate(one.name, one.verdict, trained.ref.digest)
        what_to_publish: tuple[Artifact, ...] = ("merged",) if one.method == "full" else recipe.publish.what
        artifacts = dict.fromkeys(what_to_publish, trained)
        if "merged" in artifacts and one.method != "full":
            artifacts["merged"] = one.merged = merge(run, one.name, base=base, data=data, trained=trained)
        lineage = Lineage(trained=trained, base=base, data=data, verdict=one.verdict)
        for place in recipe.publish.to:
            for what, artifact in artifacts.items():
                one.published.append(publish(run, recipe, one.adapter, what, place, artifact, lineage))
    except GateNotPassed:
        pass  # not an error of the run: the verdict and its reasons stand in the summary
    except TunefleetError as error:
        one.error = str(error)
