"""What is left of cells that are in the store: taken away, but not from a run that is still at it."""

import os
from pathlib import Path

from tasks.evaluation.finishing import ABANDONED, discard


def test_what_killed_processes_left_goes_too_and_what_is_young_stays(tmp_path: Path) -> None:
    for name in ("cell", ".cell-old", ".cell-young", ".other-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "records.parquet").write_text("half")
    (tmp_path / "cell.facts.json").write_text("{}")
    for name in (".cell-old", ".other-old"):
        then = (tmp_path / name).stat().st_mtime - ABANDONED - 60
        os.utime(tmp_path / name, (then, then))
    discard(tmp_path / "cell")
    assert {path.name for path in tmp_path.iterdir()} == {".cell-young", ".other-old"}
    discard(tmp_path / "cell")
