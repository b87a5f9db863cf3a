"""A fleet that trains in one process: who fails fails alone, and a process that is ended goes on where it was."""

import json
import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.settings import scratch_folder
from infra.storage import Store
from tasks.artifacts import StageResult
from tasks.recipe.loading import load_recipe
from tasks.runs import Run, new_run
from tasks.training.checkpoints import is_whole, step_of
from tests.flows.conftest import FinishedRun
from tests.flows.recipes import MESSAGES, QUESTIONS, write_tiny_recipe

pytestmark = pytest.mark.slow

MEMBER = {
    "data": {"rows": QUESTIONS, "held_out": 12, "messages": MESSAGES},
    "target": {"gain": 0.1, "max_new_tokens": 6},
}
FLEET = [
    {**MEMBER, "name": "narrow", "lora": {"r": 4}},
    {**MEMBER, "name": "wide", "training": {"learning_rate": 2e-3, "max_steps": 50}},
    {**MEMBER, "name": "diverges", "lora": {"r": 8}, "training": {"learning_rate": 1e30}},
    {**MEMBER, "name": "whole", "method": "full", "training": {"learning_rate": 2e-3}},
]


@pytest.fixture(scope="module")
def finished(prefect_api: None, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    from flows.train_adapters import train_adapters

    folder = tmp_path_factory.mktemp("packed")
    recipe = write_tiny_recipe(folder, tiny_base, adapters=FLEET)
    with_tests = load_recipe(recipe, ["evaluation.self_tests=true", "publish.what=[adapter]", "method=lora"])
    summary = train_adapters(with_tests, store=str(folder / "store"))
    return FinishedRun(folder, recipe, folder / "store", summary)


def members(run: FinishedRun) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in run.summary["adapters"]}


def facts(run: FinishedRun) -> dict[str, dict[str, Any]]:
    """Of each trained adapter, what its manifest states."""
    manifests = [json.loads(path.read_text()) for path in run.store.glob("*/*/manifest.json")]
    return {one["name"]: one["facts"] for one in manifests if one["stage"]["name"] == "train"}


def test_one_that_diverges_fails_alone(finished: FinishedRun) -> None:
    found = members(finished)
    assert {name: one["status"] for name, one in found.items()} == {
        **dict.fromkeys(("narrow", "wide", "whole"), "published"),
        "diverges": "error",
    }, {name: one["reasons"] for name, one in found.items()}
    assert "loss" in found["diverges"]["error"] and found["diverges"]["digest"] is None


def test_they_shared_a_process_with_the_one_that_tries_the_general_tasks(finished: FinishedRun) -> None:
    trained = facts(finished)
    assert trained.keys() == {"narrow", "wide", "whole", "self-test-one-answer"}
    assert trained.pop("whole")["engine"] == "trl"
    for one in trained.values():
        assert one["engine"] == "packed" and set(one["pack"]) == {*trained, "diverges"}
        assert one["out_of_memory_at"] == []
    assert (trained["narrow"]["steps"], trained["wide"]["steps"]) == (40, 50)
    assert {one["kind"] for one in finished.summary["self_tests"]} == {"again", "noised", "one-answer"}
    assert not any(one["verdict"] == "not scored" for one in finished.summary["self_tests"])


def test_the_next_run_finds_what_was_made_and_tries_the_other_again(
    finished: FinishedRun, caplog: pytest.LogCaptureFixture
) -> None:
    from flows.train_adapters import train_adapters

    before = set(finished.store.glob("work/*/pack-*"))
    again = train_adapters(load_recipe(finished.recipe, ["publish.what=[adapter]", "method=lora"]), str(finished.store))
    assert again["cache"]["adapters"] == {"hits": 2, "misses": 0}
    digests = {one["name"]: one["digest"] for one in again["adapters"]}
    assert digests == {name: one["digest"] for name, one in members(finished).items()}
    (tried,) = set(finished.store.glob("work/*/pack-*")) - before
    assert [one["name"] for one in json.loads((tried / "job.json").read_text())["members"]] == ["diverges"]
    assert re.findall(r"(\S+) is trained by TRL, not packed: (.*)", caplog.text) == [("whole", "method: full")]


# --- a process that is ended

STEPS = {"short": 120, "long": 160}


def train(run: Run, base: Path, folder: Path, end: threading.Thread | None = None) -> dict[str, StageResult]:
    """The two adapters, trained as a pack; `end` runs meanwhile."""
    from prefect import flow

    from tasks.ingestion.task import import_base, ingest
    from tasks.training.pack_task import Pack, train_pack
    from tasks.training.sharing import Member

    adapters = [{**MEMBER, "name": name, "training": {"max_steps": steps}} for name, steps in STEPS.items()]
    training = {"learning_rate": 1e-3, "save_steps": 4, "logging_steps": 1}
    file = write_tiny_recipe(
        *(folder, base), method="lora", lora={"r": 4, "lora_dropout": 0.2}, training=training, adapters=adapters
    )
    recipe = load_recipe(file)

    @flow
    def train_both() -> Any:
        imported = import_base(run, recipe.base)
        return train_pack(run, Pack(tuple(Member(one, ingest(run, one)) for one in recipe.adapters)), imported)

    if end:
        end.start()
    done, lost = train_both()
    assert not lost
    return done


def writer_of(folder: Path) -> int | None:
    """The process that writes its checkpoints to the folder."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(folder / ".lock") in [file.path for file in process.open_files()]:
                return process.pid
    return None


def newest(folder: Path) -> int:
    return max((step_of(path) for path in folder.glob("checkpoint-*") if is_whole(path)), default=0)


def end_once(store: Store, number: int, ended_at: list[dict[str, int]]) -> None:
    """Send a signal to the process that trains when each has a checkpoint; note their steps."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        folders = list((scratch_folder(store) / "checkpoints").glob("*/*"))
        if len(folders) == len(STEPS) and all(map(newest, folders)) and (pid := writer_of(folders[0])):
            os.kill(pid, number)
            ended_at.append({folder.parent.name: newest(folder) for folder in folders})
            return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def quiet(prefect_api: None, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageResult]:
    folder = tmp_path_factory.mktemp("quiet")
    return train(new_run(str(folder / "store")), tiny_base, folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_ended_goes_on_for_all_and_ends_in_the_same_bytes(
    quiet: dict[str, StageResult], tiny_base: Path, tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    run, ended_at = new_run(str(tmp_path / "store")), []
    killer = threading.Thread(target=end_once, args=(run.store, number, ended_at), daemon=True)
    done = train(run, tiny_base, tmp_path, killer)
    assert len(ended_at) == 1 and all(0 < step < 110 for step in ended_at[0].values()), ended_at
    if number == signal.SIGKILL:
        assert "killed; going on with the same, after step [" in caplog.text
    told = {name: [int(step) for step in re.findall(rf"{name}: step (\d+) of", caplog.text)] for name in STEPS}
    for name, steps in STEPS.items():
        assert (told[name].count(1), told[name].count(steps)) == (1, 1), "none began again"
    assert {name: one.ref.digest for name, one in done.items()} == {name: one.ref.digest for name, one in quiet.items()}
    assert not list((scratch_folder(run.store) / "checkpoints").iterdir()), "nothing is left to resume"
