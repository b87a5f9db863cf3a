"""Rows from files and inline, each with its place, and files that are damaged."""

import csv
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.errors import RequestError
from tasks.ingestion.rows import Row, read_rows
from tasks.recipe.schema import Data

MESSAGES = {"user": "{{ q }}", "assistant": "{{ a }}"}
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
TABLE = st.lists(st.fixed_dictionaries({"q": TEXT, "a, b": TEXT}), min_size=1, max_size=5)


def read(**source: Any) -> list[Row]:
    return list(read_rows(Data.model_validate({"messages": MESSAGES, **source})))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    ".csv": write_csv,
    ".json": write_json,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
@given(rows=TABLE)
@example(rows=[{"q": "two\r\nlines\r", "a, b": '"quoted", with\n\n'}])
@settings(max_examples=40)
def test_rows_come_back_as_they_were_written(suffix: str, rows: list[dict[str, str]]):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        WRITERS[suffix](path, rows)
        found = read(path=str(path))
    assert [row.values for row in found] == rows
    assert [row.fault for row in found] == [None] * len(rows)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_types_are_kept_where_the_format_has_them(tmp_path: Path, suffix: str):
    rows = [
        {"q": 1, "a": 0.5, "b": True, "c": None, "d": ["x", "y"]},
        {"q": 2, "a": 1.5, "b": False, "c": None, "d": []},
    ]
    WRITERS[suffix](tmp_path / f"rows{suffix}", rows)
    assert [row.values for row in read(path=str(tmp_path / f"rows{suffix}"))] == rows


def test_inline_and_generated_rows():
    assert read(rows=[{"q": 1}, {"q": None}]) == [Row("rows[0]", {"q": 1}), Row("rows[1]", {"q": None})]
    made = read(generate="iso-dates", limit=3, seed=7)
    assert [row.where for row in made] == [f"iso-dates[{index}]" for index in range(3)]
    assert made == read(generate="iso-dates", limit=3, seed=7) != read(generate="iso-dates", limit=3, seed=8)


@pytest.mark.parametrize("suffix", [*WRITERS, None])
@pytest.mark.parametrize("limit", [1, 3, 5, 9])
def test_a_limit_reads_from_the_start(tmp_path: Path, suffix: str | None, limit: int):
    rows = [{"q": str(number)} for number in range(5)]
    if suffix:
        WRITERS[suffix](tmp_path / f"rows{suffix}", rows)
    source = {"path": str(tmp_path / f"rows{suffix}")} if suffix else {"rows": rows}
    assert [row.values for row in read(**source, limit=limit)] == rows[:limit]


def test_each_row_says_where_it_stands(tmp_path: Path):
    (tmp_path / "a.csv").write_text('q,a\n1,2\n"two\nlines",3\n\n4,5\n')
    (tmp_path / "a.json").write_text('[{"q": 1},\n{"q": 2}]')
    (tmp_path / "a.jsonl").write_text('{"q": 1}\n\n{"q": 2}\n')
    write_parquet(tmp_path / "a.parquet", [{"q": 1}, {"q": 2}, {"q": 3}])
    places = {suffix: [row.where for row in read(path=f"{tmp_path}/a{suffix}")] for suffix in WRITERS}
    assert places == {
        ".csv": [f"{tmp_path}/a.csv:{line}" for line in (2, 4, 6)],  # where the row ends
        ".json": [f"{tmp_path}/a.json:row {index}" for index in (0, 1)],
        ".jsonl": [f"{tmp_path}/a.jsonl:{line}" for line in (1, 3)],
        ".parquet": [f"{tmp_path}/a.parquet:row {index}" for index in (0, 1, 2)],
    }


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path):
    (tmp_path / "a.csv").write_text("q\n1\n", encoding="utf-8-sig")
    (tmp_path / "a.json").write_text('[{"q": "1"}]\n', encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"q": "1"}\n', encoding="utf-8-sig")
    for suffix in (".csv", ".json", ".jsonl"):
        assert [row.values for row in read(path=f"{tmp_path}/a{suffix}")] == [{"q": "1"}]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_an_empty_file_has_no_rows(tmp_path: Path, suffix: str):
    (tmp_path / f"a{suffix}").touch()
    assert read(path=f"{tmp_path}/a{suffix}") == []


# --- rows that are malformed


@pytest.mark.parametrize(
    ("name", "content", "faults"),
    [
        ("a.csv", "q,a\n1,2\n3\n4,5,6,7\n8,9\n", {3: "ends before column 'a'", 4: "has 2 fields more than the header"}),
        (
            "a.jsonl",
            '{"q": 1}\n{"q": 1\n[1, 2]\n"text"\n{"q": NaN}\n{"q": -Infinity}\n{"q": 1}{"q": 2}\nnull\n',
            {
                2: "not valid JSON: Expecting ',' delimiter",
                3: "holds a list, not an object with columns",
                4: "holds a str, not an object with columns",
                5: "not valid JSON: NaN is not a JSON number",
                6: "not valid JSON: -Infinity is not a JSON number",
                7: "not valid JSON: Extra data",
                8: "holds a NoneType, not an object with columns",
            },
        ),
        ("a.jsonl", b'{"q": 1}\n{"q": "\xff"}\n', {2: "not valid JSON: 'utf-8' codec can't decode byte 0xff"}),
        ("a.jsonl", "[" * 100_000 + "\n", {1: "not valid JSON: maximum recursion depth exceeded"}),
    ],
)
def test_malformed_rows_are_named_and_the_others_read(
    tmp_path: Path, name: str, content: str | bytes, faults: dict[int, str]
):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    rows = read(path=str(tmp_path / name))
    assert len(rows) >= len(faults)
    for row in rows:
        place, _, line = row.where.rpartition(":")
        assert place == str(tmp_path / name)
        if int(line) in faults:
            assert row.fault and row.fault.startswith(faults[int(line)])
        else:
            assert row.fault is None
    assert len([row for row in rows if row.fault]) == len(faults)


def test_what_is_no_object_in_a_json_list_is_one_bad_row(tmp_path: Path):
    (tmp_path / "a.json").write_text('[{"q": 1}, ["q"], null]')
    assert [row.fault for row in read(path=f"{tmp_path}/a.json")] == [
        None,
        "holds a list, not an object with columns",
        "holds a NoneType, not an object with columns",
    ]


# --- files that cannot be read on


def parquet(damage: Callable[[bytes], bytes]) -> bytes:
    table = pa.table({"q": [f"question {number}" for number in range(500)], "a": ["x"] * 500})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    return damage(buffer.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"q,a\n" + b"1,2\n" * 60 + b"\xff,3\n1,2\n", "a.csv:62: not readable as UTF-8: invalid start byte"),
        ("a.csv", b"q,\xff\n1,2\n", "a.csv:1: not readable as UTF-8"),
        ("a.csv", b'q,a\n1,2\n"x"y,2\n', "a.csv:3: not readable as CSV: ',' expected after '\"'"),
        ("a.csv", b'q,a\n1,2\n"x,2\n3,4\n', "a.csv:3: not readable as CSV: unexpected end of data"),
        ("a.csv", b"q,a,b,a\n1,2,3,4\n", "a.csv:1: column 'a' is named twice; each needs a name of its own"),
        ("a.parquet", b"", "a.parquet: not readable as Parquet: Parquet file size is 0 bytes"),
        ("a.parquet", b"no Parquet at all", "a.parquet: not readable as Parquet"),
        ("a.parquet", parquet(lambda data: data[: len(data) // 2]), "a.parquet: not readable as Parquet"),
        (
            "a.parquet",
            parquet(lambda data: data[:100] + b"\xff" * 50 + data[150:]),
            "a.parquet: not readable as Parquet",
        ),
        ("a.json", b'[{"q": 1},\n{"q": 2]', "a.json:2: not readable as JSON: Expecting ',' delimiter."),
        (
            "a.json",
            b'{"q": 1}\n{"q": 2}\n',
            "a.json:2: not readable as JSON: Extra data; a file with one object per line is named .jsonl.",
        ),
        ("a.json", b'{"data": []}', "a.json: holds a dict; a .json file must be one list of objects."),
        ("a.json", b'[{"q": NaN}]', "a.json: not readable as JSON: NaN is not a JSON number."),
        ("a.json", b'[{"q": "\xff"}]', "a.json: not readable as JSON: 'utf-8' codec can't decode byte 0xff"),
        ("a.txt", b"q", r"a.txt ends in '.txt'; allowed are .csv, .json, .jsonl, .parquet"),
        ("a.jsonl", gzip.compress(b'{"q": 1}\n', mtime=0), "a.jsonl is gzip-compressed; unpack it."),
        ("a.parquet", b"PK\x03\x04...", "a.parquet is zip-compressed; unpack it."),
        ("a.csv.gz", b"q", r"a.csv.gz ends in '.gz'"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path: Path, name: str, content: bytes, says: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError) as error:
        read(path=str(tmp_path / name))
    assert f"{tmp_path}/{says}" in str(error.value)


def test_a_missing_file_tells_what_there_is(tmp_path: Path):
    with pytest.raises(
        RequestError, match=r"rows.csv does not exist; .* has no .csv, .json, .jsonl, .parquet file. Paths are"
    ):
        read(path=str(tmp_path / "rows.csv"))
    for name in ("row.csv", "other.parquet", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(RequestError, match=r"rows.csv does not exist; .* has other.parquet, row.csv. Paths are"):
        read(path=str(tmp_path / "rows.csv"))
    with pytest.raises(RequestError, match="does not exist"):
        read(path=str(tmp_path))  # a folder
