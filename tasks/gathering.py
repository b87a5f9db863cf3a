"""Waiting for tasks that run side by side: all must succeed, or each may fail for itself."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from infra.errors import Fault, RequestError, TunefleetError


def all_results(futures: Mapping[str, Any]) -> dict[str, Any]:
    """The results of all futures; the faults of every wrong request at once, or else the first other error."""
    results: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, future in futures.items():
        try:
            results[name] = future.result()
        except RequestError as error:
            faults += [Fault(str(fault), name) for fault in error.faults]
    if faults:
        raise RequestError(faults)
    return results


def each_result(futures: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, TunefleetError]]:
    """({name: result}, {name: why it failed}); what this project did not foresee is raised."""
    results: dict[str, Any] = {}
    errors: dict[str, TunefleetError] = {}
    for name, future in futures.items():
        try:
            results[name] = future.result()
        except TunefleetError as error:
            errors[name] = error
    return results, errors


class Stopwatch(dict[str, float]):
    """Seconds per stage: `with watch("train"): ...`."""

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self[stage] = time.monotonic() - started
