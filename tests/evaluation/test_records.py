"""Records on disk: parts of a task, clusters, chance, and files that must not be believed."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import StageError
from tasks.evaluation.records import (
    SCHEMA,
    Record,
    chance_of,
    clusters_by_document,
    read_records,
    scores_by_document,
    write_records,
)


def record(number: int, **changes: Any) -> Record:
    """A document of a multiple-choice task; all have the same text, so that only the number tells them apart."""
    alike = {"doc_digest": "d", "prompt_digest": "p", "prompt": "Q", "target": "0", "choices": ["a", "b"]}
    scored = {"response": None, "loglikelihoods": [-1.0, -2.0], "score": 1.0, "metric": "acc"}
    return {"doc_id": str(number), **alike, **scored, "cluster": None, "tokens": None, "bytes": None, **changes}


def written(path: Path, *records: Record) -> Path:
    write_records(list(records), path)
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    records = [record(1), record(2, response="text", choices=None, loglikelihoods=None, cluster="c", tokens=3, bytes=4)]
    assert read_records(written(tmp_path / "r", *records)) == records


def test_equal_documents_stay_apart_and_parts_add_up(tmp_path: Path) -> None:
    one = written(tmp_path / "one", record(1), record(2, score=0.0))
    other = written(tmp_path / "other", record(7, score=0.5))
    assert scores_by_document(one) == {"1 p": 1.0, "2 p": 0.0}
    assert scores_by_document([one, other], "doc_digest") == {"1 d": 1.0, "2 d": 0.0, "7 d": 0.5}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (record(1), "document 1 occurs twice"),
        (record(1, prompt_digest="q", doc_digest="e"), "document 1 occurs twice"),
        (record(2, metric="f1"), "different metrics: acc, f1"),
        (record(2, score=None), "document 2 has no score"),
        (record(2, score=math.nan), "document 2 has no score"),
    ],
)
def test_parts_that_do_not_add_up_are_refused(tmp_path: Path, second: Record, said: str) -> None:
    paths = [written(tmp_path / "one", record(1)), written(tmp_path / "other", second)]
    with pytest.raises(StageError, match=said):
        scores_by_document(paths)


def test_records_of_another_engine_are_no_records(tmp_path: Path) -> None:
    older = pa.schema([field for field in SCHEMA if field.name not in ("cluster", "choices")])
    pq.write_table(pa.Table.from_pylist([record(1)], schema=older), tmp_path / "older")
    retyped = pa.schema([pa.field("score", pa.string()) if field.name == "score" else field for field in SCHEMA])
    pq.write_table(pa.Table.from_pylist([record(1, score="1")], schema=retyped), tmp_path / "retyped")
    (tmp_path / "broken").write_bytes(written(tmp_path / "whole", record(1)).read_bytes()[:-20])
    for name, said in (
        ("older", r"another version of the engine \(different columns: choices, cluster\)"),
        ("retyped", r"different columns: score\)"),
        ("broken", "no whole Parquet file"),
    ):
        with pytest.raises(StageError, match=said):
            scores_by_document(tmp_path / name)


def test_clusters_are_known_for_all_documents_or_none(tmp_path: Path) -> None:
    alone = written(tmp_path / "alone", record(1), record(2))
    grouped = written(tmp_path / "grouped", record(3, cluster="x"), record(4, cluster=""))
    assert clusters_by_document(alone) is None
    assert clusters_by_document(grouped) == {"3 p": "x", "4 p": ""}
    assert clusters_by_document(grouped).keys() == scores_by_document(grouped).keys()  # type: ignore[union-attr]
    with pytest.raises(StageError, match="2 of 4 documents have no cluster"):
        clusters_by_document([alone, grouped])


@pytest.mark.parametrize(
    ("changes", "chance"),
    [
        ({}, (1 / 2 + 1 / 4) / 2),
        ({"metric": "acc_norm"}, (1 / 2 + 1 / 4) / 2),
        ({"metric": "exact_match"}, None),
        ({"metric": "acc", "loglikelihoods": [-1.0]}, None),  # LAMBADA: one continuation, which is a pick of none
        ({"metric": "acc", "loglikelihoods": None}, None),
    ],
)
def test_chance_is_one_over_the_number_of_choices(
    tmp_path: Path, changes: dict[str, Any], chance: float | None
) -> None:
    four = {"loglikelihoods": [-1.0] * 4, **changes}
    assert chance_of(written(tmp_path / "r", record(1, **changes), record(2, **four))) == chance
