"""Pairs the scores of base and adapter by document, and refuses what does not pair.

A document without a score on one side is an error, never a pair left out: documents that fail to score are seldom
like the others, and a gate that drops them can pass on what is left.
"""

import math
import numbers
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from infra.errors import IntegrityError, RequestError

_SHOWN = 3  # document ids named in a message


def paired(
    task: str, base: Mapping[str, float], adapter: Mapping[str, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of base and adapter, document for document, each of shape (n,) in the base's order of documents.

    Raises `RequestError` if there are no documents, `IntegrityError` for missing records and for scores that are not
    finite numbers, with counts and the first ids.
    """
    if not base and not adapter:
        raise RequestError(f"task {task} has no documents: check its dataset, its split and its limit")
    problems = [
        _problem("without a record of the adapter", [i for i in base if i not in adapter]),
        _problem("without a record of the base", [i for i in adapter if i not in base]),
        _problem("without a finite score of the base", [i for i, score in base.items() if not _finite(score)]),
        _problem("without a finite score of the adapter", [i for i, score in adapter.items() if not _finite(score)]),
    ]
    if any(problems):
        expected = len(base.keys() | adapter.keys())
        found = "; ".join(filter(None, problems))
        raise IntegrityError(f"task {task}: of {expected} documents, {found}. Evaluate base and adapter on it again")
    return np.array([float(s) for s in base.values()]), np.array([float(adapter[i]) for i in base])


def grouped(task: str, documents: Iterable[str], clusters: Mapping[str, str]) -> NDArray[np.int64]:
    """The number of each document's group, from 0 in order of appearance; shape (n,).

    Raises `IntegrityError` if a document has no group: counted as a group of its own it could make a claim stronger.
    """
    ids = list(documents)
    if problem := _problem(
        "without a group", [i for i in ids if not (isinstance(clusters.get(i), str) and clusters[i])]
    ):
        raise IntegrityError(f"task {task}: of {len(ids)} documents, {problem}. Name a column that all of them have")
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(clusters[i], len(numbers)) for i in ids])


def _problem(what: str, ids: list[str]) -> str:
    if not ids:
        return ""
    more = ", ..." if len(ids) > _SHOWN else ""
    return f"{len(ids)} {what} (first: {', '.join(map(repr, ids[:_SHOWN]))}{more})"


def _finite(score: object) -> bool:
    return isinstance(score, numbers.Real | np.bool_) and math.isfinite(score)
