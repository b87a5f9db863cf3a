"""The deployment, as a user makes it: a Prefect server, a process worker, `prefect deploy`, `deployment run`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from infra.settings import PROJECT
from tests.flows.conftest import FinishedRun

pytestmark = pytest.mark.slow

PREFECT = [sys.executable, "-m", "prefect"]


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server for as long as the block lasts, in a process group of its own."""
    stream: IO[bytes]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=env, cwd=PROJECT, stdout=stream, stderr=stream, start_new_session=True)
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer within {seconds} s")


@pytest.mark.timeout(400)
def test_the_deployment_runs_on_a_worker(finished_run: FinishedRun, tmp_path: Path) -> None:
    port = free_port()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_CLI_COLORS": "false",
    }

    def prefect(*words: str) -> str:
        done = subprocess.run([*PREFECT, *words], env=env, cwd=PROJECT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"prefect {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    server = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    worker = [*PREFECT, "worker", "start", "--pool", "tunefleet", "--type", "process"]
    with running(server, env, tmp_path / "server.log"):
        wait_for(f"http://127.0.0.1:{port}/api/health", 90)
        prefect("work-pool", "create", "tunefleet", "--type", "process")
        prefect("--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        with running(worker, env, tmp_path / "worker.log"):
            out = prefect(
                *("deployment", "run", "train-adapters/train-adapters", "--watch"),
                *("--param", f"recipe={json.dumps(str(finished_run.recipe))}"),
                *("--param", f"store={json.dumps(str(finished_run.store))}"),
            )
    log = (tmp_path / "worker.log").read_text()
    assert "Completed" in out + log, out + log
    runs = {path.parent.name: json.loads(path.read_text()) for path in finished_run.store.glob("runs/*/summary.json")}
    newest = runs[max(runs)]
    assert newest["run_id"] != finished_run.summary["run_id"]
    assert [one["digest"] for one in newest["adapters"]] == [one["digest"] for one in finished_run.summary["adapters"]]


def test_the_deployment_takes_a_recipe_as_its_parameter() -> None:
    """What the Prefect UI shows as a form: the recipe's own schema."""
    code = (
        "from flows.train_adapters import train_adapters; import json;"
        "print(json.dumps(train_adapters.parameters.model_dump()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=True)
    parameters = json.loads(done.stdout)
    assert {"Recipe", "Adapter", "Lora", "Training"} <= parameters["definitions"].keys()
    assert "recipe" in parameters["properties"]
