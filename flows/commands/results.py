"""Verbs that look at what a run left."""

import json
import sys
from typing import Annotated

from cyclopts import Parameter

from flows.commands.options import AsJson, StoreOption
from infra.errors import RequestError


def flips(
    run_: Annotated[str, Parameter(name="RUN", help="a run's id, or latest")],
    adapter: Annotated[str | None, Parameter(name="ADAPTER", help="only this adapter")] = None,
    *,
    task: Annotated[str | None, Parameter(help="only this task")] = None,
    lost: Annotated[bool, Parameter(negative=(), help="only documents that got worse")] = False,
    gained: Annotated[bool, Parameter(negative=(), help="only documents that got better")] = False,
    number: Annotated[int, Parameter(name=("-n", "--number"), help="documents of each adapter and task")] = 10,
    store: StoreOption = None,
    json_: AsJson = False,
) -> int:
    """Show the documents on which an adapter and its base part ways, both answers side by side.

    Example: tunefleet flips latest mirror --task capitals_open --lost
    """
    if number < 1:
        raise RequestError(f"-n is {number}; allowed are 1 and more.")
    from infra.settings import default_store
    from infra.storage import Store
    from tasks.reporting.flips import find_flips, print_flips

    worse, better = ("lost", "worse"), ("gained", "better")
    kinds = (worse if lost or not gained else ()) + (better if gained or not lost else ())
    opened = Store(store or default_store())
    answer = find_flips(opened, run_, adapter=adapter, task=task, kinds=kinds, most=number)
    if json_:
        print(json.dumps(answer, ensure_ascii=False))
        return 0
    from rich.console import Console

    print_flips(answer, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    return 0
