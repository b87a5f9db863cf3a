"""Stage keys, and stages that run at most once for each."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.hashing import digest_json
from infra.settings import PROJECT, scratch_folder
from infra.storage import Store
from tasks.artifacts import StageResult
from tasks.caching import LIBRARIES, Work, git_commit, library_versions, run_stage_once, stage_key
from tests.publishing import files_under

WORK: dict[str, Any] = {
    "version": 1,
    "spec": {"r": 8, "target_modules": ("q_proj", "v_proj"), "alpha": 16.0, "path": None},
    "upstream": {"base": "a" * 64, "data": "b" * 64},
}


# --- keys


@given(st.permutations(sorted(WORK["spec"])), st.permutations(sorted(WORK["upstream"])))
def test_the_order_of_keys_does_not_count(spec: list[str], upstream: list[str]):
    other = {part: {key: WORK[part][key] for key in keys} for part, keys in (("spec", spec), ("upstream", upstream))}
    assert stage_key("train", version=1, **other) == stage_key("train", **WORK)


def test_a_list_is_as_good_as_a_tuple():
    carried = json.loads(json.dumps(WORK))  # what is left of it after a way through JSON
    assert stage_key("train", **carried) == stage_key("train", **WORK)


@pytest.mark.parametrize("seed", ["0", "1"])
def test_another_process_has_the_same_key(seed: str):
    program = f"from tasks.caching import stage_key; print(stage_key('train', **{WORK!r}))"
    environment = {"PYTHONHASHSEED": seed, "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    child = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, env=environment, capture_output=True, text=True
    )
    assert child.stdout.strip() == stage_key("train", **WORK)


OTHERS: dict[str, dict[str, Any]] = {
    "version": {"version": 2},
    "a number": {"spec": {**WORK["spec"], "r": 9}},
    "the order of a list": {"spec": {**WORK["spec"], "target_modules": ("v_proj", "q_proj")}},
    "a list that is a text": {"spec": {**WORK["spec"], "target_modules": "q_proj,v_proj"}},
    "one key less": {"spec": {key: value for key, value in WORK["spec"].items() if key != "path"}},
    "one key more": {"spec": {**WORK["spec"], "seed": 0}},
    "a nested key": {"spec": {**WORK["spec"], "path": {"a": 1}}},
    "true for one": {"spec": {**WORK["spec"], "r": True}},
    "a text for a number": {"spec": {**WORK["spec"], "r": "8"}},
    "what it reads": {"upstream": {**WORK["upstream"], "base": "c" * 64}},
    "the role of what it reads": {"upstream": {"base": "b" * 64, "data": "a" * 64}},
    "less to read": {"upstream": {"base": "a" * 64}},
    "upstream moved into the spec": {"spec": {**WORK["spec"], **WORK["upstream"]}, "upstream": {}},
}


def test_every_part_counts():
    keys = [stage_key("train", **WORK), stage_key("evaluate", **WORK)]
    keys += [stage_key("train", **{**WORK, **other}) for other in OTHERS.values()]
    assert len(set(keys)) == len(OTHERS) + 2
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)


# --- stages


@dataclass
class Stage:
    """Writes `content` and counts how often it has to."""

    content: bytes = b"weights"
    works: list[Path] = field(default_factory=list)

    def __call__(self, work: Path, output: Path) -> dict[str, Any]:
        self.works.append(work)
        assert not files_under(work)
        (work / "log.txt").write_text("not part of the artifact")
        (output / "adapter_model.safetensors").write_bytes(self.content)
        return {"loss": 0.5, "steps": 20}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def stage() -> Stage:
    return Stage()


def run(store: Store, make: Any, run_id: str = "run-1", **changes: Any) -> StageResult:
    work = Work(**{"stage": "train", **WORK, "kind": "adapters", "name": "capitals", **changes})
    return run_stage_once(store, work, make, run_id=run_id)


def test_the_second_time_it_is_there(store: Store, stage: Stage):
    first = run(store, stage)
    second = run(Store(store.root), stage, run_id="run-2")
    assert (first.cached, second.cached, len(stage.works)) == (False, True, 1)
    assert second == first.model_copy(update={"cached": True})
    assert first.facts == {"loss": 0.5, "steps": 20}
    assert files_under(store.fetch(first.ref)).keys() == {"adapter_model.safetensors", "manifest.json"}


def test_the_manifest_tells_how_it_came_about(store: Store, stage: Stage):
    manifest = store.manifest(run(store, stage).ref)
    assert manifest["spec"] == json.loads(json.dumps(WORK["spec"])) and manifest["upstream"] == WORK["upstream"]
    assert manifest["versions"] == {library: metadata.version(library) for library in LIBRARIES}
    assert manifest["git_commit"] == git_commit()
    assert manifest["stage"] == {"name": "train", "key": stage_key("train", **WORK)}
    assert 0 <= manifest["seconds"] < 60 and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["created"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"weighty"),
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
)
def test_what_was_damaged_is_computed_again(store: Store, stage: Stage, damage: Any):
    first = run(store, stage)
    damage(Path(first.ref.uri))
    second = run(store, stage)
    assert (second.cached, second.ref, len(stage.works)) == (False, first.ref, 2)
    store.verify(second.ref)


def test_other_work_is_another_artifact(store: Store, stage: Stage):
    first = run(store, stage)
    stage.content = b"other weights"
    second = run(store, stage, spec={"r": 9})
    assert not second.cached and second.ref.digest != first.ref.digest
    store.verify(first.ref)


def test_work_is_gone_after_success_and_stays_after_failure(store: Store, stage: Stage):
    def fail(work: Path, output: Path) -> dict[str, Any]:
        stage(work, output)
        raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        run(store, fail)
    (work,) = stage.works
    assert files_under(work).keys() == {"log.txt", "output/adapter_model.safetensors"}
    assert work.is_relative_to(scratch_folder(store) / "run-1")
    assert not [path for path in files_under(Path(store.root)) if path.startswith(("adapters/", "index/"))]
    result = run(store, stage)
    assert not result.cached and not stage.works[1].exists() and work.exists()


def test_facts_that_are_no_json_complete_nothing(store: Store, stage: Stage):
    def nan(work: Path, output: Path) -> dict[str, Any]:
        return {**stage(work, output), "loss": float("nan")}

    with pytest.raises(ValueError, match="not JSON compliant"):
        run(store, nan)
    assert store.lookup("train", stage_key("train", **WORK)) is None
    assert not run(store, stage).cached


def test_two_works_of_one_name_in_one_run_do_not_meet(store: Store, stage: Stage):
    def outer(work: Path, output: Path) -> dict[str, Any]:
        (output / "a").write_text("outer")
        run(store, stage, spec={"method": "qlora"})
        return {"there": [path.name for path in output.iterdir()]}

    assert run(store, outer, spec={"method": "lora"}).facts == {"there": ["a"]}


@pytest.mark.parametrize("rival_completes", [True, False])
def test_a_writer_that_was_taken_over_ends_with_the_other_result(store: Store, stage: Stage, rival_completes: bool):
    def paused(work: Path, output: Path) -> dict[str, Any]:
        facts = stage(work, output)
        if len(stage.works) == 1:
            # The others gave this one up for dead: the next token is theirs.
            key = stage_key("train", **WORK)
            store.write_json(f"claims/train/{key}/2.json", {"host": "elsewhere", "pid": 1, "until": 0})
            if rival_completes:
                run(store, Stage(b"the rival's"), run_id="rival")
        return facts

    result = run(store, paused)
    assert result.cached == rival_completes
    (weights,) = (data for path, data in files_under(store.fetch(result.ref)).items() if path != "manifest.json")
    assert weights == (b"the rival's" if rival_completes else b"weights")


# --- where it was made


def test_versions_are_those_that_are_installed():
    assert library_versions().keys() == set(LIBRARIES)
    assert digest_json(library_versions())  # plain JSON


def test_the_commit_is_a_hash_and_says_if_files_differ():
    assert re.fullmatch(r"[0-9a-f]{40}\+?", git_commit() or "0" * 40)


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit.__wrapped__() is None
