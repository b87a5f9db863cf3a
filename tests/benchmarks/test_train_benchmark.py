"""The benchmark runs, says its figures in the promised form, and its contestants do the same work. No timing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import PROJECT
from tests.tiny import save_tiny_base

pytestmark = pytest.mark.slow


def test_all_contestants_train_the_same_adapter_and_every_ratio_is_told(tmp_path: Path) -> None:
    script, base = PROJECT / "benchmarks" / "train.py", save_tiny_base(tmp_path / "base")
    ended = subprocess.run(
        [sys.executable, script, "--base", base, "--steps", "6", "--batch", "2", "--repeats", "1", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["same_work"] and report["largest_loss_difference"] <= 1e-6
    assert set(report["ratios"]) == {"tuned", "defaults"}
    for rival in report["ratios"].values():
        assert set(rival) == {"steady", "step", "whole", "cpu", "memory"}
        assert all(0 < one["min"] <= one["median"] <= one["max"] for one in rival.values())
    (runs,) = report["repeats"]
    assert [point["step"] for point in runs["tunefleet"]["curve"]] == [1, 2, 3, 4, 5, 6]
    losses = [[point["loss"] for point in runs[who]["curve"]] for who in ("tunefleet", "tuned")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and losses[0][-1] != losses[0][0]
