"""What a worker of the GPU pool does for `train-adapters`: train the members of one pack."""

from prefect import flow, get_run_logger

from infra.errors import TransientError
from infra.launch import interruption_stops_stages
from tasks.packs.pack import Pack
from tasks.packs.working import Done, work_on
from tasks.reporting.prefect_artifacts import dashboard_link, leave_dashboard_link
from tasks.runs import Run
from tasks.training.fleet import train_fleet


@flow(name="train-pack")
@interruption_stops_stages()
def train_pack(store: str, pack: str, known: str | None = None) -> None:
    """Train the pack whose job lies at `pack` in `store`, and leave the answer beside it.

    `known` is the run id of an answer that is not enough.
    """
    work_on(store, pack, known, _train)


def _train(run: Run, pack: Pack) -> Done:
    assert pack.kind == "train", f"{pack.kind} packs are for another flow"
    leave_dashboard_link(dashboard_link(run.store.root), "dashboard of the store", get_run_logger().warning)
    done = train_fleet(run, pack.recipe, pack.base, pack.data, pack.memory)
    if done.transient:  # no answer: the pack is sent again, and what was finished is found
        raise TransientError("; ".join(done.failed[name] for name in done.transient))
    return {"trained": done}
