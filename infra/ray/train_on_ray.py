"""The flow `train-adapters` with its tasks on a Ray cluster, for teams that have one.

    pip install prefect-ray               on every node, beside this project; the same versions everywhere
    export PREFECT_API_URL=... TUNEFLEET_STORE=s3://bucket/store RAY_ADDRESS=ray://head:10001
    python infra/ray/train_on_ray.py recipe.yaml --gpus 1

Each task that the flow submits becomes a Ray task with so many GPUs, on whichever node has them free; references pass
between nodes, and the store holds what they mean. Without RAY_ADDRESS it starts a Ray of this machine alone. A Prefect
server has to be there: without one each Ray worker would start its own. A pack of adapters is one task, and how many
there are is decided by the devices of the machine that starts the flow: `adapters_per_device` spreads them further.

It is one flow on many machines, without what the pool of workers has: packs, and resuming on another machine. Where
Ray is only what hands out the GPUs, start workers in it instead, one for each GPU:

    ray job submit --no-wait --entrypoint-num-gpus 1 -- \\
        prefect worker start --pool tunefleet-gpu --type process --limit 1
"""

import argparse
import inspect
import os
import sys
from typing import Any

from prefect import Flow

from flows.train_adapters import train_adapters
from infra.errors import RequestError, TunefleetError
from infra.launch import interruption_stops_stages


def main() -> None:
    parser = argparse.ArgumentParser(description="A recipe on a Ray cluster (RAY_ADDRESS).")
    parser.add_argument("recipe")
    parser.add_argument("--gpus", type=float, default=1, help="of each task; a fraction lets tasks share one")
    given = parser.parse_args()
    if not os.environ.get("PREFECT_API_URL"):
        raise RequestError("no Prefect server is named: set PREFECT_API_URL; else each Ray worker would start its own.")
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    runner = RayTaskRunner(address=os.environ.get("RAY_ADDRESS"))
    with interruption_stops_stages(), remote_options(num_gpus=given.gpus):
        summary: Any = undecorated(train_adapters, runner)(given.recipe)
    print("\n".join(f"{one['name']}: {one['status']}" for one in summary["adapters"]))


def undecorated(flow: Flow[..., Any], runner: Any) -> Flow[..., Any]:
    """The same flow on `runner`, without its decorators: Ray pickles the flow with each task, and a decorator that is a
    context manager does not let itself be pickled."""
    plain = inspect.unwrap(flow.fn)
    hooks: Any = {"on_failure": flow.on_failure_hooks, "on_crashed": flow.on_crashed_hooks}
    return Flow(plain, name=flow.name, task_runner=runner, **hooks)


if __name__ == "__main__":
    try:
        main()
    except TunefleetError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error
