"""The product on one page: from a recipe to adapters that are released, or not, for reasons that are kept.

recipe -> check destinations -> ingest rows, import base -> preflight -> train, or draw a prompt's examples
       -> evaluate base + adapters -> judge, look again, cure -> gate -> merge -> publish -> summary
"""

from typing import Any, Literal

from prefect import flow

from flows.publish_adapters import release
from infra.errors import GateNotPassed, TunefleetError
from infra.launch import interruption_stops_stages
from infra.settings import default_store
from tasks.artifacts import AdapterOutcome, quantization_of
from tasks.curing.cure import cure_fleet
from tasks.forgetting import self_test
from tasks.forgetting.fleet import judge_members
from tasks.gathering import Stopwatch, all_results
from tasks.ingestion.task import import_base, ingest
from tasks.judging.fleet import win_rates
from tasks.operations.dashboards import ask_for_dashboard
from tasks.operations.notices import on_crashed, on_failure, tell_of
from tasks.packs.sending import check_workers
from tasks.packs.training import train_all
from tasks.preflight.task import preflight
from tasks.prompting.task import draw_shots
from tasks.publishing.task import check, check_space
from tasks.recipe.loading import load_recipe, prepared
from tasks.recipe.schema import Recipe
from tasks.reporting.task import report
from tasks.runs import new_run


@flow(name="train-adapters", on_failure=[on_failure], on_crashed=[on_crashed])
@interruption_stops_stages()
def train_adapters(
    recipe: Recipe | str, store: str | None = None, run_on: Literal["here", "workers"] = "here"
) -> dict[str, Any]:
    """Train, judge and release the adapters of a recipe (the recipe itself, or the path of its file).

    On "workers", what takes a GPU is sent to the workers of the pool tunefleet-gpu (docs/OPERATIONS.md).
    Returns the summary that is also left in the store. RequestError, before any training, if something about the
    request is wrong; an adapter that fails does not stop the others.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str) else prepared(recipe)
    run, watch = new_run(store or default_store(), run_on), Stopwatch()
    prompts = [adapter for adapter in recipe.adapters if adapter.method == "prompt"]

    with watch("prepare"):
        if run.on == "workers":
            check_workers(run.store)
        check(recipe)
        importing = import_base.submit(run, recipe.base)
        data = all_results({adapter.name: ingest.submit(run, adapter) for adapter in recipe.adapters})
        base = importing.result()
        check_space(run, recipe, base)
        checked = preflight(run, recipe, base, data)
        prompted = all_results({one.name: draw_shots.submit(run, one, data[one.name]) for one in prompts})

    with watch("train"):
        tested = self_test.to_train(run, recipe, base)
        done = train_all(run, recipe, base, data, checked.facts, beside=list(tested.values()))
        recipe, data, failed = done.recipe, done.data, done.failed  # a search puts its best trials in the fleet
        trained = done.trained | prompted
        fleet = [AdapterOutcome(adapter, quantization_of(recipe, adapter), base=base) for adapter in recipe.adapters]
        tests, unmade = self_test.sides(tested, done)

    with watch("evaluate"):
        members = {adapter.name: adapter for adapter in recipe.adapters if adapter.name in trained}
        judged = judge_members(run, recipe, members, base=base, data=data, trained=trained, self_tests=tests)
        failed |= judged.failed
        noticed = self_test.findings(run, recipe, judged.scores, tests, unmade)
        for one in fleet:
            one.data, one.trained, one.error = data[one.name], trained.get(one.name), failed.get(one.name)
            one.judged, one.verdict = judged.verdicts.get(one.name, (None, None))
            one.cells = judged.scores.get(one.quantization, {}).get(one.name, {})
        made = [base, checked, *judged.made]

    if recipe.cure:
        with watch("cure"):
            made += cure_fleet(run, recipe, fleet, members, judged, base=base)

    if recipe.evaluation.judge:
        with watch("win rates"):
            made += win_rates(run, recipe, fleet, judged.scores)

    with watch("release"):
        for one in fleet:
            if one.method != "prompt" and not one.error:
                try:
                    release(run, recipe, one, made_in=run.run_id)
                except GateNotPassed:
                    pass  # not an error of the run: the verdict and its reasons stand in the summary
                except TunefleetError as error:
                    one.error = str(error)

    summary = report(
        *(run, recipe, fleet),
        base=base,
        data=data,
        made=made,
        scores=judged.scores,
        searches=done.searches,
        self_tests=noticed,
        timings=watch,
    )
    tell_of(summary)
    ask_for_dashboard(run.store_uri)
    return summary
