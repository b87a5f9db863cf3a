"""From rows to a data set: make of each what is trained on, drop what is malformed or twice, split, say what happened.

    rows -> templates, or the shape of the columns -> exact duplicates out -> train | validation | held-out

Written as train.jsonl, validation.jsonl, held_out.jsonl and report.json; a row of a .jsonl is {"id"} and one of the
four kinds of tasks/training/rendering.py. All rows of a data set are of one kind.
"""

import json
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

from infra.errors import Fault, RequestError
from infra.hashing import digest_json
from tasks.ingestion.formats import kind_of, made_by_shape
from tasks.ingestion.rows import Malformed, Row, read_rows, source_name
from tasks.ingestion.splitting import Split, near_copies, split_by_prompt
from tasks.ingestion.templates import given_templates, made_by_templates
from tasks.recipe.schema import Data

Made = dict[str, Any]  # a row as it is written
REPORTED = 100  # dropped rows that a report lists one by one
HEAD = 100  # rows in which a column has to turn up


def build_dataset(data: Data, output: Path, *, needs_held_out: bool) -> dict[str, Any]:
    """Write the data set of a recipe's `data` into the folder `output`; return its figures.

    RequestError names every malformed row (file and line) beyond `data.max_bad_rows`, and says so if the columns are
    not those that the templates or the format read, or nothing is left to train on, to validate with or to score.
    """
    made, bad = _make_rows(data)
    read = len(made) + len(bad)
    if len(bad) > data.max_bad_rows:
        advice = Fault(
            f"{len(bad)} of {read} rows are malformed and max_bad_rows is {data.max_bad_rows}: "
            "mend them, or raise max_bad_rows to drop so many.",
            source_name(data),
        )
        raise RequestError([*bad[:REPORTED], advice])

    distinct = list({row["id"]: row for row in made}.values())
    split = split_by_prompt(distinct, held_out=data.held_out, validation=data.validation, seed=data.seed)
    _check_sides(data, split, needs_held_out)
    for side, rows in split._asdict().items():
        _write_jsonl(output / f"{side}.jsonl", rows)
    report = {
        "kind": kind_of(split.train[0]),
        "read": read,
        **{side: len(rows) for side, rows in split._asdict().items()},
        "duplicates": len(made) - len(distinct),
        "malformed": len(bad),
        "near_copies": near_copies(split.train, split.validation + split.held_out),
    }
    # The file's name without its folder: the same rows are the same data set on every machine.
    dropped = [{"where": Path(fault.where or "").name, "why": fault.message} for fault in bad[:REPORTED]]
    (output / "report.json").write_text(json.dumps({**report, "dropped": dropped}, indent=1, ensure_ascii=False))
    return report


def _make_rows(data: Data) -> tuple[list[Made], list[Fault]]:
    """(what was made of the good rows, the faults of the others)"""
    rows = read_rows(data)
    head = list(islice(rows, HEAD))
    if not head:
        raise RequestError(f"{source_name(data)} has no rows; there is nothing to train on.")
    make = made_by_templates(data, head) if given_templates(data) else made_by_shape(data, head)
    made: list[Made] = []
    bad: list[Fault] = []
    form = None
    for row in chain(head, rows):
        try:
            if row.fault:
                raise Malformed(row.fault)
            one = make(row.values)
            form = form or (_form(one), row)
            _check_form(one, *form)
            made.append({"id": digest_json(one)[:16], **one})
        except Malformed as fault:
            bad.append(Fault(str(fault), row.where))
    return made, bad


def _form(made: Made) -> str:
    chat = isinstance(made.get("prompt"), list)
    if kind_of(made) == "preference":
        return f"a preference pair of {'chats' if chat else 'plain text'}"
    return "a chat" if chat else "plain text"


def _check_form(made: Made, wanted: str, first: Row) -> None:
    if _form(made) != wanted:
        raise Malformed(f"is {_form(made)}, and {first.where} is {wanted}; the rows of a data set are of one kind")


def _check_sides(data: Data, split: Split, needs_held_out: bool) -> None:
    count = sum(map(len, split))
    shares = f"held_out={data.held_out:g}" + (f" and validation={data.validation:g}" if data.validation else "")
    if not split.train:
        leaves = "leave" if data.validation else "leaves"
        raise RequestError(f"{source_name(data)}: {count} rows, of which {shares} {leaves} none to train on.")
    if needs_held_out and not split.held_out:
        raise RequestError(
            f"{source_name(data)}: the target scores held-out rows, but held_out={data.held_out:g} of {count} "
            "rows leaves none. Raise held_out, or set target.splits and target.decides to train."
        )
    if data.validation and not split.validation:
        raise RequestError(
            f"{source_name(data)}: validation={data.validation:g} of {count} rows leaves none for the validation loss. "
            "Raise it, or set it to 0 to train without."
        )


def read_jsonl(path: Path) -> list[Made]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _write_jsonl(path: Path, rows: Iterable[Made]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
