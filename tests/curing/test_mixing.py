"""Replayed rows among the training rows: as many as asked for, and nothing else changes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect.logging import disable_run_logger

from infra.errors import StageError
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.curing.replay import REPLAY, mix
from tasks.curing.task import mix_replay
from tasks.ingestion.dataset import build_dataset, read_jsonl
from tasks.recipe.schema import Data, Recipe
from tasks.runs import Run, new_run

SIDES = ("train.jsonl", "validation.jsonl", "held_out.jsonl")


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": answer}]}


def write_replay(folder: Path, count: int, *more: str) -> None:
    questions = [*(f"General {number}?" for number in range(count)), *more]
    rows = [{"id": f"replay-{question}", **chat(question, "So.")} for question in questions]
    (folder / REPLAY).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder: Path, count: int, **changes: Any) -> dict[str, Any]:
    rows = tuple({"q": f"Own {number}?"} for number in range(count))
    shape: dict[str, Any] = {"messages": {"user": "{{ q }}", "assistant": "ok"}, "held_out": 5, "validation": 3}
    return build_dataset(Data(rows=rows, **{**shape, **changes}), folder, needs_held_out=False)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("data", "replay"):
        (tmp_path / name).mkdir()
    return tmp_path / "data", tmp_path / "replay"


def mixed(folders: tuple[Path, Path], name: str = "mixed", **how: Any) -> tuple[Path, dict[str, Any]]:
    output = folders[0].parent / name
    output.mkdir(exist_ok=True)
    return output, mix(*folders, output, **{"share": 0.5, "seed": 0, **how})


def test_replayed_rows_join_training_and_nothing_else(folders: tuple[Path, Path]) -> None:
    before = write_data(folders[0], 48)
    write_replay(folders[1], 60)
    output, facts = mixed(folders)
    assert facts == {**before, "train": 80, "replayed": 40, "replay_wanted": 40}
    own, rows = read_jsonl(folders[0] / "train.jsonl"), read_jsonl(output / "train.jsonl")
    drawn = [row for row in rows if row["id"].startswith("replay-")]
    assert sorted(row["id"] for row in rows if row not in drawn) == sorted(row["id"] for row in own)
    assert len(drawn) == len({row["id"] for row in drawn}) == 40
    assert all(row in read_jsonl(folders[1] / REPLAY) for row in drawn)
    assert sum(row in drawn for row in rows[:40]) not in (0, 40)  # shuffled, not appended
    for side in SIDES[1:]:
        assert (output / side).read_bytes() == (folders[0] / side).read_bytes()
    assert json.loads((output / "report.json").read_text()) == {**facts, "dropped": []}


def test_the_seed_alone_decides_draw_and_order(folders: tuple[Path, Path]) -> None:
    write_data(folders[0], 48)
    write_replay(folders[1], 60)
    first, again, other = (mixed(folders, name, seed=seed)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for side in (*SIDES, "report.json"):
        assert (first / side).read_bytes() == (again / side).read_bytes()
    assert (first / "train.jsonl").read_bytes() != (other / "train.jsonl").read_bytes()


@given(share=st.floats(0.02, 0.95), own=st.integers(1, 40), there=st.integers(1, 60))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_share_is_as_near_as_whole_rows_allow(
    folders: tuple[Path, Path], share: float, own: int, there: int
) -> None:
    write_data(folders[0], own, held_out=0, validation=0)
    write_replay(folders[1], there)
    if round(own * share / (1 - share)) == 0:
        with pytest.raises(StageError, match="no replayed row"):
            mixed(folders, share=share)
        return
    _, facts = mixed(folders, share=share)
    replayed, train = facts["replayed"], facts["train"]
    assert train == own + replayed
    if replayed < facts["replay_wanted"]:
        assert replayed == there  # too few: all of them, and the figures say so
    else:
        others = [count for count in (replayed - 1, replayed + 1) if count]
        distance = abs(replayed - share * train)  # rows
        assert all(distance <= abs(count - share * (own + count)) + 1e-9 for count in others)


def test_what_the_data_set_asks_itself_is_not_replayed(folders: tuple[Path, Path]) -> None:
    write_data(folders[0], 48)
    kept = [read_jsonl(folders[0] / side)[0]["prompt"][0]["content"] for side in SIDES]
    write_replay(folders[1], 3, *(question.upper() for question in kept))
    output, facts = mixed(folders)
    assert (facts["replayed"], facts["replay_wanted"]) == (3, 40)
    assert not [row for row in read_jsonl(output / "train.jsonl") if row["id"].startswith("replay-Own".upper())]
    write_replay(folders[1], 0, *kept)
    with pytest.raises(StageError, match="no replayed row"):
        mixed(folders)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ({"messages": None, "prompt": "{{ q }}", "completion": " ok"}, "plain"),
        ({"messages": None, "text": "{{ q }}"}, "text"),
    ],
)
def test_plain_rows_take_no_chats(folders: tuple[Path, Path], shape: dict[str, Any], kind: str) -> None:
    write_data(folders[0], 20, **shape)
    write_replay(folders[1], 5)
    with pytest.raises(StageError, match=f"of kind {kind}, and replayed rows are chats"):
        mixed(folders)


def stored(run: Run, kind: str, fill: Any) -> StageResult:
    return run.once(Work(kind, 1, kind, "one", {}, {}), lambda _work, output: fill(output))


def test_as_a_task_it_is_made_once_and_long_rows_are_refused(tmp_path: Path) -> None:
    content = {"name": "one", "data": {"rows": [{"prompt": "a", "completion": "b"}]}, "training": {"max_length": 64}}
    adapter = Recipe.model_validate({"name": "fleet", "adapters": [content]}).resolved().adapters[0]
    run = new_run(str(tmp_path / "store"))

    def replays(longest: int) -> Any:
        def fill(output: Path) -> dict[str, Any]:
            write_replay(output, 20)
            return {"longest": longest}

        return fill

    data = stored(run, "datasets", lambda output: write_data(output, 48))
    fits = stored(run, "replays", replays(64))
    with disable_run_logger():
        first = mix_replay.fn(run, adapter, data, fits, [], share=0.25, seed=0)
        again = mix_replay.fn(run, adapter, data, fits, [], share=0.25, seed=0)
        other = mix_replay.fn(run, adapter, data, fits, [], share=0.2, seed=0)
        assert first.facts["replayed"] == 13 and first.ref.kind == "datasets"
        assert first.ref == again.ref and (first.cached, again.cached, other.cached) == (False, True, False)
        with pytest.raises(StageError, match="65 tokens, above training"):
            mix_replay.fn(run, adapter, data, fits.model_copy(update={"facts": {"longest": 65}}), [], share=0.5, seed=0)


def test_what_the_gate_asks_is_not_trained_on(folders: tuple[Path, Path]) -> None:
    write_data(folders[0], 48)
    write_replay(folders[1], 60)
    output, _ = mixed(folders, examined=[f"<|user|>General {number}?<|end|>" for number in range(30)])
    drawn = [row["id"] for row in read_jsonl(output / "train.jsonl") if row["id"].startswith("replay-")]
    assert len(drawn) == 30 and set(drawn) == {f"replay-General {number}?" for number in range(30, 60)}
