"""infra/ray/train_on_ray.py, as far as it goes without Ray, which is not among our requirements."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from prefect.flows import Flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.train_adapters import train_adapters
from infra.settings import PROJECT

SCRIPT = PROJECT / "infra" / "ray" / "train_on_ray.py"


@pytest.fixture(scope="module")
def on_ray() -> Any:
    """The script as a module; its folder has the name of a library, so it is no package."""
    said = importlib.util.spec_from_file_location("train_on_ray", SCRIPT)
    assert said and said.loader
    module = importlib.util.module_from_spec(said)
    said.loader.exec_module(module)
    return module


def test_the_flow_without_decorators_tells_of_failures_like_the_flow(on_ray: Any) -> None:
    runner = ThreadPoolTaskRunner()
    flow: Flow[..., Any] = on_ray.undecorated(train_adapters, runner)
    assert flow.on_failure_hooks == train_adapters.on_failure_hooks != []
    assert flow.on_crashed_hooks == train_adapters.on_crashed_hooks != []
    assert (flow.name, flow.task_runner) == (train_adapters.name, runner)
    assert list(flow.parameters.properties) == list(train_adapters.parameters.properties)
    assert cloudpickle.loads(cloudpickle.dumps(flow)).name == flow.name  # Ray does it with each task


def test_what_is_wrong_is_said_without_a_traceback(tmp_path: Path) -> None:
    without = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    answer = subprocess.run(
        [sys.executable, SCRIPT, "recipe.yaml"],
        env={**without, "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("no Prefect server is named: set PREFECT_API_URL")
    assert len(answer.stderr.splitlines()) == 1
