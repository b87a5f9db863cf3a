"""Verbs for whoever runs the machines."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands.options import AsJson, StoreOption


def doctor(
    recipe: Annotated[Path | None, Parameter(help="look also at what this recipe needs: base, memory, places")] = None,
    *,
    store: StoreOption = None,
    json_: AsJson = False,
) -> int:
    """Check this machine, the libraries, the store, the Prefect server with its workers, and what a recipe needs.

    Starts no server and changes nothing; every question to another machine has a time limit. Exit code 2 if something
    would keep a run from working.

    Example: tunefleet doctor deployments/recipes/demo.yaml
    """
    from infra.settings import default_store
    from tasks.operations.doctor.examine import examine
    from tasks.operations.doctor.table import conclusion, of_status, print_report

    print("looking; every check has a time limit", file=sys.stderr)
    report = examine(recipe, store or default_store())
    faults = of_status(report, "fault")
    if json_:
        areas = {area: [asdict(finding) for finding in findings] for area, findings in report.items()}
        answer = {"ok": not faults, "conclusion": conclusion(report), "areas": areas}
        print(json.dumps(answer, ensure_ascii=False))
    else:
        from rich.console import Console

        print_report(report, Console(width=None if sys.stdout.isatty() else 120, highlight=False))
    return 2 if faults else 0
