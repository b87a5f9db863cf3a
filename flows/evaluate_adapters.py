"""What a worker of the GPU pool does for `train-adapters`: score the members of one pack beside their base."""

from prefect import flow, get_run_logger

from infra.launch import interruption_stops_stages
from tasks.evaluation.task import evaluate
from tasks.packs.pack import Evaluated, Pack
from tasks.packs.working import Done, work_on
from tasks.reporting.prefect_artifacts import dashboard_link, leave_dashboard_link
from tasks.runs import Run


@flow(name="evaluate-adapters")
@interruption_stops_stages()
def evaluate_adapters(store: str, pack: str, known: str | None = None) -> None:
    """Score the pack whose job lies at `pack` in `store`, and leave the answer beside it.

    `known` is the run id of an answer that is not enough.
    """
    work_on(store, pack, known, _evaluate)


def _evaluate(run: Run, pack: Pack) -> Done:
    assert pack.kind == "evaluate", f"{pack.kind} packs are for another flow"
    leave_dashboard_link(dashboard_link(run.store.root), "dashboard of the store", get_run_logger().warning)
    scores, failed = evaluate(
        *(run, pack.recipe, pack.quantization),
        members=pack.members,
        base=pack.base,
        data=pack.data,
        trained=pack.trained,
        look=pack.look,
        self_tests=pack.self_tests,
        base_only=pack.base_only,
    )
    return {"evaluated": Evaluated(scores=scores, failed=failed)}
