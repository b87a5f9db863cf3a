"""Two machines of one process each train what one machine of two does: the same bytes, without a common disk.

The machines are two process trees on this one. They differ in cache, temporary and working folder; what they share is
a store on an S3 server, and a network. Machine 0 is the test itself, the other one `python -m tasks.training.node`.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import KilledError, PreemptedError, RequestError
from infra.launch import run_stage
from infra.rendezvous import SLURM_PORTS, Nodes
from infra.settings import PROJECT
from infra.storage import ArtifactRef, Store
from tasks.training import checkpoints
from tasks.training.launching import launch_command, launch_environment
from tests.infra.test_conducting import gone, two_free_ports
from tests.publishing.s3_server import BUCKET, S3Server
from tests.training.test_two_processes import dataset, job, run, worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def store(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / "cache-0"))
    return Store(f"s3://{BUCKET}/machines/{tmp_path.name}")


class Machine:
    """The second one: it has its own folders, and what its scheduler says of it."""

    def __init__(self, home: Path, environment: dict[str, str]):
        self.cache = home / "cache"
        for name in ("tmp", "here"):
            (home / name).mkdir(parents=True)
        own = {"TUNEFLEET_CACHE": str(self.cache), "TMPDIR": str(home / "tmp"), "PYTHONPATH": str(PROJECT)}
        self.log = home / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tasks.training.node", "false"],
                cwd=home / "here",
                env={**os.environ, **own, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def job(self) -> Path:
        (folder,) = (self.cache / "work").glob("machine-1-*/job")
        return folder

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    started: list[Machine] = []

    def make(environment: dict[str, str]) -> Machine:
        started.append(Machine(tmp_path / f"machine-{len(started)}", environment))
        return started[-1]

    yield make
    for machine in started:
        machine.close()
        print(machine.log.read_text())


def torchrun(crew: Nodes, rank: int) -> dict[str, str]:
    return {
        **{"NNODES": str(crew.count), "NODE_RANK": str(rank)},
        **{"MASTER_ADDR": crew.address, "MASTER_PORT": str(crew.port)},
    }


def kept(store: Store, folder: Path, name: str) -> ArtifactRef:
    """A copy of the folder as an artifact, so that another machine can fetch it."""
    copy = folder.parent / f"copy-of-{name}"
    if not copy.exists():
        subprocess.run(["cp", "-r", folder, copy], check=True)
    made = store.once(
        "test", name, lambda claim: store.complete(copy, claim=claim, kind=name, name=name, manifest={}), run_id="test"
    )
    return made[0]


def on_two_machines(
    made: dict[str, Any],
    work: Path,
    crew: Nodes,
    store: Store,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """As tasks/training/task.py does it on machine 0."""
    refs = {role: kept(store, Path(made[role]), role) for role in ("base", "data")}
    there = {"store": store.root, **{role: ref.model_dump() for role, ref in refs.items()}}
    return run_stage(
        "tasks.training",
        {**made, **{role: str(store.fetch(ref)) for role, ref in refs.items()}, "from_store": there},
        folder=work,
        on_line=print,
        on_progress=on_progress,
        env={**launch_environment(["cpu"], 1, 2, crew), **torchrun(crew, 0)},
        command=launch_command(["cpu"], "ddp", 2, crew),
    )


def adapter(made: dict[str, Any]) -> bytes:
    return (Path(made["output"]) / "adapter_model.safetensors").read_bytes()


def test_every_machine_runs_the_same_command_and_ends_as_the_flow_on_machine_0(tmp_path: Path) -> None:
    crew = Nodes(0, 2, "127.0.0.1", two_free_ports())
    flow = "import os, sys; open('ran-' + os.environ['NODE_RANK'], 'x'); sys.exit(int(os.environ['NNODES']) + 1)"
    command = [sys.executable, "-m", "tasks.training.node", sys.executable, "-c", flow]
    here = {**os.environ, "PYTHONPATH": str(PROJECT)}
    both = [subprocess.Popen(command, cwd=tmp_path, env={**here, **torchrun(crew, rank)}) for rank in (0, 1)]
    assert [process.wait() for process in both] == [3, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["ran-0"]
    alone = subprocess.run(command, cwd=tmp_path, env={**here, "NNODES": "1", "NODE_RANK": "alone"}, check=False)
    assert alone.returncode == 2 and (tmp_path / "ran-alone").exists()


def test_they_train_what_one_machine_does(
    base: Path, tmp_path: Path, store: Store, start: Callable[..., Machine]
) -> None:
    data = dataset(tmp_path / "data", 22)
    crew = Nodes(0, 2, "127.0.0.1", two_free_ports())
    pod = {key: value for key, value in torchrun(crew, 1).items() if key != "NODE_RANK"}
    other = start({**pod, "JOB_COMPLETION_INDEX": "1"})
    apart, together = (job(base, data, tmp_path / name, 2) for name in ("apart", "together"))
    told: list[int] = []
    facts = on_two_machines(apart, tmp_path / "work", crew, store, lambda event: told.append(event["step"]))
    assert told == list(range(1, 13))  # by one of the two
    assert (facts["world_size"], facts["steps"]) == (2, 12)
    whole = run(together, tmp_path / "work-together")
    assert adapter(apart) == adapter(together)
    same = ("tokens", "loss", "curve", "steps", "trainable_params")
    assert {key: facts[key] for key in same} == {key: whole[key] for key in same}
    assert not list((other.cache / "work").iterdir())  # it leaves nothing of the training


def test_after_a_preemption_another_machine_goes_on_to_the_same_bytes(
    base: Path, tmp_path: Path, store: Store, start: Callable[..., Machine]
) -> None:
    """With dropout, so that the second process's random numbers count."""
    data = dataset(tmp_path / "data", 90, validation=8)
    number = next(  # of a job whose ports are free
        number for number in range(os.getpid(), os.getpid() + 100) if _are_free(SLURM_PORTS[number % len(SLURM_PORTS)])
    )
    crew = Nodes(0, 2, "localhost", SLURM_PORTS[number % len(SLURM_PORTS)])
    step = {"SLURM_JOB_ID": str(number), "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "localhost"}
    changes = {
        **{"num_train_epochs": 1, "save_steps": 100, "lora": {"lora_dropout": 0.2}},
        **{"eval_steps": 5, "load_best_model_at_end": True},
    }
    whole, halved = (job(base, data, tmp_path / name, 2, **changes) for name in ("whole", "halved"))
    facts = run(whole, tmp_path / "work-whole")
    other = start(step)

    def preempt(event: dict[str, Any]) -> None:
        if event["step"] == 6 and "loss" in event:
            os.kill(worker(1, other.job), signal.SIGTERM)

    with pytest.raises(PreemptedError):
        on_two_machines(halved, tmp_path / "work", crew, store, preempt)
    found = checkpoints.newest_whole(Path(halved["checkpoints"]))
    assert found and 6 <= checkpoints.step_of(found) < 21
    assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= {path.name for path in found.iterdir()}
    other.close()
    start(step)  # an empty disk
    again = on_two_machines(halved, tmp_path / "work", crew, store)
    assert again["steps"] == 21 and again["best_step"] == facts["best_step"]
    assert again["curve"] == facts["curve"]
    assert adapter(halved) == adapter(whole)


def _are_free(port: int) -> bool:
    try:
        for one in (port, port + 1):
            socket.create_server(("", one)).close()
    except OSError:
        return False
    return True


def test_a_process_that_is_killed_on_one_machine_ends_the_other(
    base: Path, tmp_path: Path, store: Store, start: Callable[..., Machine]
) -> None:
    crew = Nodes(0, 2, "127.0.0.1", two_free_ports())
    other = start(torchrun(crew, 1))
    made = job(base, dataset(tmp_path / "data", 400), tmp_path / "killed", 2)
    left: list[int] = []

    def kill(event: dict[str, Any]) -> None:
        if event["step"] == 2:
            left.append(worker(0, tmp_path / "work"))
            os.kill(worker(1, other.job), signal.SIGKILL)

    with pytest.raises(KilledError, match="machine 1"):
        on_two_machines(made, tmp_path / "work", crew, store, kill)
    gone(left[0])


def test_what_another_machine_cannot_fetch_is_said_before_anything_trains(
    base: Path, tmp_path: Path, start: Callable[..., Machine]
) -> None:
    """A store on machine 0's own disk: the other one sees nothing in its place."""
    crew = Nodes(0, 2, "127.0.0.1", two_free_ports())
    start(torchrun(crew, 1))
    store = Store(str(tmp_path / "store"))
    made = job(base, dataset(tmp_path / "data", 4), tmp_path / "adapter", 2)
    refs = {role: kept(store, Path(made[role]), role) for role in ("base", "data")}
    unseen = {"store": store.root, **{role: ref.model_dump() for role, ref in refs.items()}}
    shutil.rmtree(store.root)
    with pytest.raises(RequestError, match=r"has no manifest.*on a disk that all machines share"):
        run_stage(
            "tasks.training",
            {**made, "from_store": unseen},
            folder=tmp_path / "work",
            on_line=print,
            env={**launch_environment(["cpu"], 1, 2, crew), **torchrun(crew, 0)},
            command=launch_command(["cpu"], "ddp", 2, crew),
        )
    assert not Path(made["output"]).exists()
