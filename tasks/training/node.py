"""`python -m tasks.training.node COMMAND...`: what every machine of a job runs, if its trainings are spread over all.

Machine 0 runs COMMAND, a flow such as `prefect flow-run execute`; the others train with it, and end when it ends, with
its exit code. Which machine this is, the scheduler says (infra/rendezvous.py); on one machine it is COMMAND alone:

    srun --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=120 python -m tasks.training.node tunefleet run recipe.yaml

Only trainings with as many processes as machines, or a multiple, are spread (accelerate.num_processes).
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args

from infra.errors import IntegrityError, RequestError, TunefleetError
from infra.following import follow, lead
from infra.gpus import CPU, device_slots
from infra.rendezvous import ALONE, Nodes, nodes, translated
from infra.settings import cache_folder
from infra.storage import ArtifactRef, Store
from tasks.runs import child
from tasks.training.launching import Config, launch_command, launch_environment


def main(command: Sequence[str]) -> int:
    if not command:
        raise RequestError("got no command; give the one that machine 0 is to run.")
    os.environ.update(translated())
    crew = nodes()
    if crew == ALONE:
        os.execvp(command[0], list(command))
    if crew.rank == 0:
        return lead(crew, command)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    return follow(crew, lambda job, ready: train_along(crew, job, ready))


def train_along(crew: Nodes, job: dict[str, Any], ready: Callable[[], None]) -> None:
    """This machine's processes of a training that machine 0 conducts; they leave nothing here."""
    config, processes = job["accelerate"]["config"], job["accelerate"]["num_processes"]
    if config not in get_args(Config):  # it comes from the network, and becomes a file's name
        raise RequestError(f"accelerate.config: got {config!r}; allowed are {', '.join(get_args(Config))}.")
    folder = cache_folder() / "work" / f"machine-{crew.rank}-of-{crew.address}-{crew.port}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with device_slots(processes // crew.count, 1, on_wait=print) as places:
        if (places == [CPU]) != (job["device"] == CPU):
            raise RequestError(f"this machine has {', '.join(places)}, machine 0 trains on {job['device']}.")
        job = {
            **job,
            **fetched(job),
            "checkpoints": str(folder / "checkpoints"),  # copies of machine 0's
            "output": str(folder / "output"),
        }
        ready()
        child(
            "tasks.training",
            job,
            folder / "job",
            on_line=print,
            command=launch_command(places, config, processes, crew),
            env=launch_environment(places, 1, processes, crew),
        )
    shutil.rmtree(folder)


def fetched(job: dict[str, Any]) -> dict[str, str]:
    """Where base and data lie on this machine: `from_store` says which artifacts they are, of which store."""
    if "from_store" not in job:  # then the job's paths are said to hold everywhere
        return {}
    store = Store(job["from_store"]["store"])
    try:
        return {
            role: str(store.fetch(ArtifactRef.model_validate(job["from_store"][role]))) for role in ("base", "data")
        }
    except IntegrityError as error:
        hint = " Is this folder on a disk that all machines share? Else take s3://." if store.is_local else ""
        raise RequestError(f"store {store.root}: {error}{hint}") from error


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except TunefleetError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error
