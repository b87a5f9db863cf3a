"""The documents on which an adapter and its base part ways, the most telling first: what was asked, what each said.

A verdict counts flips; this names them. Of right/wrong scores it holds every document lost or gained, of graded scores
the `MOST` that moved most. "moved" says how far, adapter minus base:

    choice      the probability of the right choice among the choices, from their log-likelihoods
    written     1 for an answer that became right, -1 for one that became wrong: a text has no probability here
    graded      the difference of the two scores
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from infra.errors import IntegrityError

MOST = 20  # documents kept of a task with graded scores
Record = Mapping[str, Any]
Flip = dict[str, Any]


def flips_of(
    base_records: Sequence[Record], adapter_records: Sequence[Record], *, higher_is_better: bool
) -> list[Flip]:
    """The flips of one task by |moved|, from the records of both sides (tasks/evaluation/records.py).

    Records pair by document, whatever stood before its question. IntegrityError if one side lacks a document.
    """
    base, adapter = _by_document(base_records), _by_document(adapter_records)
    if base.keys() != adapter.keys():
        lacking = sorted(base.keys() ^ adapter.keys())
        raise IntegrityError(f"{len(lacking)} documents have a record on one side only (first: {lacking[0][0]!r})")
    scores = [record["score"] for side in (base, adapter) for record in side.values()]
    if all(score in (0, 1) for score in scores):
        found = [_right_wrong(base[key], adapter[key]) for key in base if base[key]["score"] != adapter[key]["score"]]
        return sorted(found, key=lambda flip: -abs(flip["moved"]))
    pairs = [(base[key], adapter[key]) for key in base if base[key]["score"] != adapter[key]["score"]]
    pairs.sort(key=lambda pair: -abs(pair[1]["score"] - pair[0]["score"]))
    return [_graded(*pair, higher_is_better=higher_is_better) for pair in pairs[:MOST]]


def write_flips(path: Path, flips: Iterable[Flip]) -> None:
    """One JSON object a line; an empty file where nothing flipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(flip, ensure_ascii=False) + "\n" for flip in flips), encoding="utf-8")


def read_flips(path: Path) -> list[Flip]:
    # Not splitlines: models write line separators that JSON leaves as they are.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _by_document(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    return {(record["doc_id"], record["doc_digest"]): record for record in records}


def _flip(kind: str, moved: float, base: Record, adapter: Record, right: int | None = None) -> Flip:
    return {
        "doc_id": base["doc_id"],
        "kind": kind,
        "moved": moved,
        "prompt": adapter["prompt"],
        "target": base["target"],
        "right_choice": right,
        "base": _answer(base),
        "adapter": _answer(adapter),
    }


def _right_wrong(base: Record, adapter: Record) -> Flip:
    lost = base["score"] > adapter["score"]
    right = _right_choice(base if lost else adapter)
    moved = -1.0 if lost else 1.0
    if right is not None:
        moved = _probability(adapter, right) - _probability(base, right)
    return _flip("lost" if lost else "gained", moved, base, adapter, right)


def _graded(base: Record, adapter: Record, *, higher_is_better: bool) -> Flip:
    moved = adapter["score"] - base["score"]
    return _flip("better" if (moved > 0) == higher_is_better else "worse", moved, base, adapter)


def _answer(record: Record) -> dict[str, Any]:
    """{"text", "choice", "score"}: what was written, or the choice's text, where it is on record, and its place."""
    choice = _chosen(record)
    texts = record.get("choices")
    text = record["response"] if choice is None else texts[choice].strip() if texts else None
    return {"text": text, "choice": choice, "score": record["score"]}


def _likelihoods(record: Record) -> list[float] | None:
    """One per choice; None for an answer in words, and for a text that is only read."""
    values = record["loglikelihoods"]
    return None if values is None or len(values) < 2 else values


def _chosen(record: Record) -> int | None:
    """The place of the choice that the metric takes for the answer: lm-eval's acc_norm divides by its characters."""
    values = _likelihoods(record)
    if values is None:
        return None
    if record["metric"] == "acc_norm" and record.get("choices"):
        lengths = [max(1, len(text.removeprefix(" "))) for text in record["choices"]]
        values = [value / length for value, length in zip(values, lengths, strict=True)]
    return int(np.argmax(values))


def _right_choice(right_one: Record) -> int | None:
    """The place of the right choice: what the side that got it right chose, else the target where that is a number."""
    values = _likelihoods(right_one)
    if values is None:
        return None
    if right_one["metric"] == "acc" or (right_one["metric"] == "acc_norm" and right_one.get("choices")):
        return _chosen(right_one)
    target = str(right_one["target"]).strip()
    return int(target) if target.isdigit() and int(target) < len(values) else None


def _probability(record: Record, choice: int) -> float:
    """Of a choice among all of them."""
    return float(softmax(_likelihoods(record))[choice])
