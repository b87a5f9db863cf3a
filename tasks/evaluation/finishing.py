"""What an evaluation that was stopped has finished: kept cell by cell, and believed only if it is whole.

A cell's folder appears at once, when all of it is written, and then FOLDER.facts.json beside it. The facts are not in
the folder because they name seconds, and what is stored is to have the same digest each time.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from infra import stage_process
from infra.errors import StageError
from tasks.evaluation.records import read_records

Facts = dict[str, Any]
ABANDONED = 24 * 3600  # seconds after which nobody writes to a half finished folder any more


def finished(output: Path, key: str) -> Facts | None:
    """The facts of a cell that an earlier process finished in this folder; None if it is to be scored."""
    if not _facts_of(output).exists():
        return None
    kept = json.loads(_facts_of(output).read_text(encoding="utf-8"))
    try:
        whole = kept["key"] == key and len(read_records(output / "records.parquet")) == kept["facts"]["n"]
    except (OSError, StageError):  # taken away, half written, or by another version of the engine
        whole = False
    return kept["facts"] if whole else None


def finish(output: Path, key: str, score: Callable[[Path], Facts]) -> Facts:
    """Let `score` leave its files in a folder beside `output`, and put that in its place when they are whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    try:
        facts = score(aside)
        if found := finished(output, key):  # by another run that needs the same
            return found
        shutil.rmtree(output, ignore_errors=True)
        aside.replace(output)
        stage_process.write_json(_facts_of(output), {"key": key, "facts": facts})
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return facts


def discard(output: Path) -> None:
    """Take away what is left of a cell that has gone into the store, also by processes that were killed long ago.

    What is younger may be another run's, which needs the same and is still at it.
    """
    _facts_of(output).unlink(missing_ok=True)
    shutil.rmtree(output, ignore_errors=True)
    for aside in output.parent.glob(f".{output.name}-*"):
        with suppress(FileNotFoundError):  # that run finished meanwhile
            if time.time() - aside.stat().st_mtime > ABANDONED:
                shutil.rmtree(aside, ignore_errors=True)


def _facts_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.facts.json")
