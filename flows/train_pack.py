"""What a worker of the GPU pool does for `train-adapters`: train the members of one pack."""

from prefect import flow

from infra.launch import interruption_stops_stages
from tasks.packs.pack import Pack
from tasks.packs.working import Done, work_on
from tasks.runs import Run
from tasks.training.fleet import train_fleet


@flow(name="train-pack")
@interruption_stops_stages()
def train_pack(store: str, pack: str) -> None:
    """Train the pack whose job lies at `pack` in `store`, and leave the answer beside it."""
    work_on(store, pack, _train)


def _train(run: Run, pack: Pack) -> Done:
    assert pack.kind == "train", f"{pack.kind} packs are for another flow"
    return {"trained": train_fleet(run, pack.recipe, pack.base, pack.data)}
