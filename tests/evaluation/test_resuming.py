"""A stopped evaluation goes on where it was: finished cells are kept, half finished ones are not believed."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.stage_process import EXIT_PREEMPTED, PROGRESS
from tasks.evaluation.engine import run
from tests.tiny import save_tiny_base

pytestmark = pytest.mark.slow

TASKS = ("capitals_choice", "pydoc_perplexity")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def job(base: Path, folder: Path, *tasks: str, limit: int | None = 4, **side: Any) -> dict[str, Any]:
    cells = [
        {"kind": "general", "name": name, "limit": limit, "key": f"key of {name}", "output": str(folder / name)}
        for name in tasks or TASKS
    ]
    sides = [{"name": "base", "cells": cells, **side}]
    return {"base": str(base), "quantization": "none", "device": "cpu", "batch_size": 4, "sides": sides}


def inodes(folder: Path) -> list[int]:
    return [(folder / name / "records.parquet").stat().st_ino for name in TASKS]


def test_what_is_finished_is_not_scored_again_and_what_is_broken_is(base: Path, tmp_path: Path) -> None:
    asked = job(base, tmp_path)
    first = run(asked, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*TASKS, *(f"{name}.facts.json" for name in TASKS)}
    assert {path.name for path in (tmp_path / TASKS[0]).iterdir()} == {"records.parquet", "results.json"}
    whole = inodes(tmp_path)
    assert run(asked, tmp_path) == first and inodes(tmp_path) == whole

    def scored_again() -> bool:
        before = inodes(tmp_path)
        again = run(asked, tmp_path)
        assert not again["failed"] and again["facts"].keys() == first["facts"].keys()
        assert [facts["score"] for facts in again["facts"].values()] == [
            facts["score"] for facts in first["facts"].values()
        ]
        after = inodes(tmp_path)
        assert after[0] == before[0]
        return after[1] != before[1]

    facts, records = tmp_path / f"{TASKS[1]}.facts.json", tmp_path / TASKS[1] / "records.parquet"
    facts.unlink()
    assert scored_again()
    facts.write_text(facts.read_text().replace("key of", "key of another"))
    assert scored_again()
    records.write_bytes(records.read_bytes()[:100])
    assert scored_again()
    shutil.copy(tmp_path / TASKS[0] / "results.json", records)
    assert scored_again()
    assert not scored_again()


def test_of_a_side_that_is_finished_no_model_is_loaded(base: Path, tmp_path: Path) -> None:
    asked = job(base, tmp_path / "cells", adapter=str(tmp_path / "gone"))
    (tmp_path / "cells").mkdir()
    plain = run(job(base, tmp_path / "cells"), tmp_path)
    assert run(asked, tmp_path) == plain


def test_a_side_can_be_the_base_once_more_or_with_noise(base: Path, tmp_path: Path) -> None:
    sides: dict[str, dict[str, Any]] = {
        "plain": {},
        "again": {"again": True},
        "noised": {"noised": {"seed": 1, "strength": 0.5}},
    }
    found = {}
    for name, side in sides.items():
        (tmp_path / name).mkdir()
        result = run(job(base, tmp_path / name, **side), tmp_path)
        assert not result["failed"]
        found[name] = [result["facts"][f"key of {task}"]["score"] for task in TASKS]
    assert found["again"] == pytest.approx(found["plain"], rel=1e-2)
    assert found["noised"][1] != pytest.approx(found["plain"][1], rel=1e-2)


def test_a_process_that_was_asked_to_stop_says_so_and_goes_on_later(base: Path, tmp_path: Path) -> None:
    cells = tmp_path / "cells"
    (tmp_path / "job.json").write_text(json.dumps(job(base, cells, *TASKS[:1], "capitals_open", limit=100)))
    command = [sys.executable, "-m", "tasks.evaluation", str(tmp_path / "job.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if PROGRESS in line:
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
    assert process.returncode == EXIT_PREEMPTED
    assert sorted(path.name for path in cells.iterdir()) == [TASKS[0], f"{TASKS[0]}.facts.json"]
    kept = (cells / TASKS[0] / "records.parquet").stat().st_ino
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert [facts["n"] for facts in result["facts"].values()] == [100, 100]
    assert (cells / TASKS[0] / "records.parquet").stat().st_ino == kept
