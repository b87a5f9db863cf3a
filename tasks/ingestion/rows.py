"""Rows from a CSV, JSONL, JSON or Parquet file, from the Hub, or inline: each with the place it came from.

Files are read here and not by `datasets`, which turns mixed types into JSON and missing keys into nulls without a
word: a row has to come out as it was written, or be named with its line.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from infra.errors import RequestError
from tasks.ingestion.hub_rows import hub_rows
from tasks.ingestion.iso_dates import iso_dates
from tasks.recipe.schema import Data

FORMATS = (".csv", ".json", ".jsonl", ".parquet")
PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Row:
    """One row as it was read; `fault` says what is wrong with it, if anything."""

    where: str  # "file:line", or "rows[3]"
    values: dict[str, Any]
    fault: str | None = None


class Malformed(Exception):
    """One row cannot become what it should; the message says why."""


def source_name(data: Data) -> str:
    return data.path or data.hub or data.generate or "rows"


def read_rows(data: Data) -> Iterator[Row]:
    """All rows of a recipe's `data`, good and malformed ones, in their order, up to `limit`."""
    rows = _source(data)
    return islice(rows, data.limit) if data.limit else rows


def _source(data: Data) -> Iterator[Row]:
    if data.rows is not None:
        return (Row(f"rows[{index}]", dict(values)) for index, values in enumerate(data.rows))
    if data.generate is not None:
        made = iso_dates(data.limit or 0, data.seed)
        return (Row(f"{data.generate}[{index}]", dict(values)) for index, values in enumerate(made))
    if data.hub is not None:
        found = hub_rows(data.hub, data.hub_config, data.hub_split, data.hub_revision)
        return (Row(f"{data.hub}:{data.hub_split}[{index}]", values) for index, values in enumerate(found))
    path = Path(data.path or "")
    if not path.is_file():
        near = sorted(other.name for other in path.parent.glob("*") if other.suffix in FORMATS)
        there = (
            f"{path.parent} has {', '.join(near[:8])}" if near else f"{path.parent} has no {', '.join(FORMATS)} file"
        )
        raise RequestError(f"data file {path} does not exist; {there}. Paths are relative to the recipe.")
    _not_packed(path)
    readers = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise RequestError(f"data file {path} ends in {path.suffix!r}; allowed are {', '.join(FORMATS)}.")
    return readers[path.suffix](path)


def _not_packed(path: Path) -> None:
    """Whatever it is called: a few packed kilobytes can hold gigabytes, so nothing is unpacked unasked."""
    with path.open("rb") as stream:
        start = stream.read(5)
    for magic, name in PACKED.items():
        if start.startswith(magic):
            raise RequestError(f"data file {path} is {name}-compressed; unpack it. Read are {', '.join(FORMATS)}.")


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            columns = reader.fieldnames or ()
            if twice := [column for index, column in enumerate(columns) if column in columns[:index]]:
                raise RequestError(f"{path}:1: column {twice[0]!r} is named twice; each needs a name of its own.")
            for values in reader:
                where = f"{path}:{reader.line_num}"
                missing = [column for column, value in values.items() if value is None]
                if None in values:
                    extra = values.pop(None)  # type: ignore[call-overload]
                    yield Row(where, values, f"has {len(extra)} fields more than the header")
                elif missing:
                    yield Row(where, values, f"ends before column {missing[0]!r}")
                else:
                    yield Row(where, values)
        except UnicodeDecodeError as error:  # raised for a whole block of lines
            raise RequestError(f"{path}:{_undecodable_line(path)}: not readable as UTF-8: {error.reason}") from error
        except csv.Error as error:
            raise RequestError(f"{path}:{reader.line_num + 1}: not readable as CSV: {error}") from error


def _undecodable_line(path: Path) -> int | None:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return None


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig"), parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:
                yield Row(where, {}, f"not valid JSON: {getattr(error, 'msg', error)}")
                continue
            yield _object_row(where, values)


def _json_rows(path: Path) -> Iterator[Row]:
    """A file that is one list of objects, as Alpaca's and ShareGPT's are."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig").strip() or "[]", parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        advice = "; a file with one object per line is named .jsonl" if error.msg == "Extra data" else ""
        raise RequestError(f"{path}:{error.lineno}: not readable as JSON: {error.msg}{advice}.") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: not readable as JSON: {error}.") from error
    if not isinstance(found, list):
        raise RequestError(f"{path}: holds a {type(found).__name__}; a .json file must be one list of objects.")
    return (_object_row(f"{path}:row {index}", values) for index, values in enumerate(found))


def _object_row(where: str, values: Any) -> Row:
    if isinstance(values, dict):
        return Row(where, values)
    return Row(where, {}, f"holds a {type(values).__name__}, not an object with columns")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = (values for batch in file.iter_batches() for values in batch.to_pylist())
            for index, values in enumerate(rows):
                yield Row(f"{path}:row {index}", values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # damaged pages are an OSError
        raise RequestError(f"{path}: not readable as Parquet: {error}") from error
