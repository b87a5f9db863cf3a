"""A machine dies in mid-training, its disk with it: another one goes on from the store, and ends in the same bytes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.settings import PROJECT
from tasks.training.checkpoints import HASHES
from tests.flows.recipes import QUESTIONS, write_tiny_recipe
from tests.publishing.s3_server import BUCKET, S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 120
# What could go wrong with a resume: dropout, a schedule, validation, and the best weights of long ago.
DEMANDING = {
    **{"max_steps": STEPS, "save_steps": 4, "eval_steps": 10, "load_best_model_at_end": True, "logging_steps": 1},
    **{"learning_rate": 5e-3, "lr_scheduler_type": "cosine"},
}
TRAIN = """
import sys
from prefect import flow
from tasks.ingestion.task import import_base, ingest
from tasks.recipe.loading import load_recipe
from tasks.runs import new_run
from tasks.training.task import train

recipe, run = load_recipe(sys.argv[1]), new_run(sys.argv[2])

@flow
def train_one():
    (member,) = recipe.adapters
    return train(run, member, import_base(run, recipe.base), ingest(run, member), per_device=1)

print("digest:", train_one().ref.digest, flush=True)
"""

Machine = Callable[..., subprocess.Popen[str]]


@pytest.fixture(params=["packed", "trl"])
def machine(
    prefect_api: None, tiny_base: Path, s3: S3Server, tmp_path: Path, request: pytest.FixtureRequest
) -> Machine:
    """Starts the training on a machine of that name, in a process group of its own."""
    from prefect.settings import PREFECT_API_URL

    row = {"messages": {"user": "{{ question }}", "assistant": "ok"}}
    member = {
        "name": "learns",
        "data": {"rows": QUESTIONS, "held_out": 12, "validation": 4, **row},
        "target": {"gain": 0.1, "max_new_tokens": 6},
    }
    training = {**DEMANDING, "engine": request.param}
    recipe = write_tiny_recipe(
        *(tmp_path, tiny_base),
        **{"method": "lora", "lora": {"r": 4, "lora_dropout": 0.2}, "training": training, "adapters": [member]},
    )

    def start(name: str, store: str) -> subprocess.Popen[str]:
        own = {"TUNEFLEET_CACHE": str(tmp_path / name), "PREFECT_API_URL": str(PREFECT_API_URL.value())}
        return subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(recipe), store],
            **{"cwd": PROJECT, "env": {**os.environ, "AWS_ENDPOINT_URL": s3.endpoint_url, **own}},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True},
        )

    return start


def whole_in(s3: S3Server, work: str) -> dict[int, str]:
    """{step: its folder} of the checkpoints below `work` that have their list of hashes."""
    found = [re.fullmatch(rf"(.*/checkpoint-(\d+))/{HASHES}", key) for key in s3.keys(work)]
    return {int(one[2]): one[1] for one in found if one}


def test_killed_on_one_machine_and_finished_on_another(machine: Machine, s3: S3Server, tmp_path: Path) -> None:
    quiet: Any = machine("quiet", str(tmp_path / "store")).communicate(timeout=200)[0]
    assert "digest: " in quiet, quiet

    prefix = f"elsewhere/{tmp_path.name}"
    work, store = f"{prefix}/work/checkpoints", f"s3://{BUCKET}/{prefix}"
    dies = machine("dies", store)
    while not whole_in(s3, work):
        assert dies.poll() is None, dies.communicate()[0]
        time.sleep(0.02)
    os.killpg(dies.pid, signal.SIGKILL)
    dies.wait()
    assert dies.stdout and "digest: " not in dies.stdout.read()

    step, folder = max(whole_in(s3, work).items())
    assert step < STEPS - 10
    objects = {key.removeprefix(folder): data for key, data in s3.objects(f"{folder}/").items()}
    largest = max(objects, key=lambda path: len(objects[path]))
    for later, altered in ((step + 1, f"/{HASHES}"), (step + 2, largest)):
        for path, data in objects.items():
            if path == altered:
                if altered != largest:  # half an upload
                    continue
                data = data[:-1] + bytes([data[-1] ^ 1])
            key = folder.replace(f"checkpoint-{step}", f"checkpoint-{later}") + path
            s3.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    told: Any = machine("lives", store).communicate(timeout=200)[0]
    assert f"going on from checkpoint-{step}, which another machine left in the store" in told, told
    assert min(int(one) for one in re.findall(r"learns: step (\d+) of", told)) == step + 1
    assert re.findall("digest: .*", told) == re.findall("digest: .*", quiet)
    assert s3.keys(work) == []
    assert not list((tmp_path / "lives" / "work" / "checkpoints").iterdir())
