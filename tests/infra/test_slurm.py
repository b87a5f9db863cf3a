"""The Slurm pool and the sbatch script on a real Slurm of one machine, with a real Prefect server."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State, StateType

from infra.settings import PROJECT
from tests.infra.slurm import MISSING, PARTITION, Slurm, running_slurm
from tests.operations.conftest import PrefectServer, running, started_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install --no-install-recommends slurm-wlm munge"
    ),
]

FLOW = """
import json, os, time
from pathlib import Path
from prefect import flow

@flow
def work(file: str, seconds: float):
    beside = Path(file + ".partial")
    beside.write_text(json.dumps(dict(os.environ)))
    beside.rename(file)
    time.sleep(seconds)
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with running_slurm() as there:
        yield there


@pytest.fixture(scope="module")
def server(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """With the deployments work/slurm, whose pool is ours for Slurm, and work/allocated, of a plain process pool."""
    folder = tmp_path_factory.mktemp("prefect")
    (folder / "flow.py").write_text(FLOW)
    template = str(PROJECT / "infra" / "work_pools" / "slurm.json")
    variables = {"partition": PARTITION, "gpus": 1, "cpus": 1, "memory": "500M", "time_limit": "0:10:00"}
    bin_folder = Path(sys.executable).parent
    path = f"{bin_folder}:{slurm.env['PATH']}"
    with started_server(folder, **{**slurm.env, "PATH": path}) as there:
        there.prefect("work-pool", "create", "slurm", "--type", "process", "--base-job-template", template)
        there.prefect("work-pool", "create", "tunefleet-gpu", "--type", "process")
        for name, pool, said in (
            ("slurm", "slurm", {**variables, "python": sys.executable}),
            ("allocated", "tunefleet-gpu", {}),
        ):
            deploy = ["--no-prompt", "deploy", "flow.py:work", "--name", name, "--pool", pool]
            there.prefect(*deploy, *(["--job-variable", json.dumps(said)] if said else []), cwd=folder)
        yield there


@pytest.fixture(scope="module")
def worker(server: PrefectServer) -> Iterator[None]:
    with running(server, "worker", "start", "--pool", "slurm", "--limit", "1", log="worker.log") as process:
        yield
        assert process.poll() is None, (server.folder / "worker.log").read_text()[-3000:]


def start(server: PrefectServer, deployment: str, file: Path, seconds: float = 0) -> UUID:
    """The id of a new flow run."""
    with SyncPrefectClient(server.api) as client:
        found = client.read_deployment_by_name(f"work/{deployment}")
        parameters = {"file": str(file), "seconds": seconds}
        return client.create_flow_run_from_deployment(found.id, parameters=parameters).id


def environment_of(file: Path) -> dict[str, str]:
    """What the flow saw, as soon as it runs."""
    until = time.monotonic() + 180
    while not file.exists():
        assert time.monotonic() < until, "the flow run did not start"
        time.sleep(0.2)
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def reaches(server: PrefectServer, run: UUID, wanted: StateType) -> None:
    """Wait until the flow run is in the state `wanted`."""
    until = time.monotonic() + 120
    with SyncPrefectClient(server.api) as client:
        while (state := client.read_flow_run(run).state) is None or state.type != wanted:
            assert time.monotonic() < until, f"{state}, not {wanted}"
            time.sleep(0.5)


def queue_is_empty(slurm: Slurm) -> None:
    until = time.monotonic() + 60
    while jobs := slurm.jobs():
        assert time.monotonic() < until, f"{jobs} are still there"
        time.sleep(0.5)


@pytest.mark.usefixtures("worker")
def test_a_flow_run_is_a_job_with_its_own_gpu(server: PrefectServer, slurm: Slurm, tmp_path: Path) -> None:
    run = start(server, "slurm", tmp_path / "seen")
    seen = environment_of(tmp_path / "seen")
    assert seen["SLURM_JOB_NAME"] == "tunefleet"
    assert seen["SLURM_JOB_PARTITION"] == PARTITION
    assert seen["CUDA_VISIBLE_DEVICES"] == "0"
    reaches(server, run, StateType.COMPLETED)
    queue_is_empty(slurm)


@pytest.mark.usefixtures("worker")
def test_a_preempted_run_is_crashed_and_the_worker_goes_on(server: PrefectServer, slurm: Slurm, tmp_path: Path) -> None:
    run = start(server, "slurm", tmp_path / "first", seconds=500)
    slurm("scancel", environment_of(tmp_path / "first")["SLURM_JOB_ID"])
    reaches(server, run, StateType.CRASHED)
    again = start(server, "slurm", tmp_path / "second")
    environment_of(tmp_path / "second")
    reaches(server, again, StateType.COMPLETED)
    queue_is_empty(slurm)


@pytest.mark.usefixtures("worker")
def test_a_cancelled_run_leaves_the_queue(server: PrefectServer, slurm: Slurm, tmp_path: Path) -> None:
    run = start(server, "slurm", tmp_path / "seen", seconds=500)
    environment_of(tmp_path / "seen")
    with SyncPrefectClient(server.api) as client:
        client.set_flow_run_state(run, State(type=StateType.CANCELLING))
    reaches(server, run, StateType.CANCELLED)
    queue_is_empty(slurm)


SBATCH = ("--gpus-per-node=1", "--cpus-per-task=1", "--mem=500M", "--time=10", "--export=ALL")
SCRIPT = PROJECT / "infra" / "slurm" / "tunefleet.sbatch"


def sbatch(server: PrefectServer, slurm: Slurm, *words: str | Path) -> str:
    """The id of a new job, submitted with the server's environment."""
    before, slurm.env = slurm.env, {**slurm.env, **server.env}
    try:
        return slurm("sbatch", "--parsable", *SBATCH, *words)
    finally:
        slurm.env = before


def test_a_command_runs_in_an_allocation(server: PrefectServer, slurm: Slurm, tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    sbatch(server, slurm, "--wait", f"--output={said}", SCRIPT, sys.executable, "-c", code)
    seen = json.loads(said.read_text())
    assert seen["NNODES"] == "1"
    assert seen["NODE_RANK"] == "0"
    assert seen["CUDA_VISIBLE_DEVICES"] == "0"
    assert seen["SLURM_CPUS_PER_TASK"] == "1"


def test_a_worker_in_an_allocation_takes_runs(server: PrefectServer, slurm: Slurm, tmp_path: Path) -> None:
    job = sbatch(server, slurm, f"--output={tmp_path / 'worker.log'}", SCRIPT)
    run = start(server, "allocated", tmp_path / "seen")
    assert environment_of(tmp_path / "seen")["SLURM_JOB_ID"] == job
    reaches(server, run, StateType.COMPLETED)
    slurm("scancel", job)
    queue_is_empty(slurm)
