"""The benchmark of scoring runs, says its figures in the promised form, and both contestants agree. No timing."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import PROJECT
from tests.tiny import save_tiny_base

pytestmark = pytest.mark.slow


def test_base_and_adapters_come_out_the_same_and_every_ratio_is_told(tmp_path: Path) -> None:
    script, base = PROJECT / "benchmarks" / "evaluate.py", save_tiny_base(tmp_path / "base")
    options = ["--suite", "choice", "--limit", "3", "--batch", "2", "--repeats", "1", "--json"]
    ended = subprocess.run(
        [sys.executable, script, "--base", base, *options], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["same"] and report["agreement"]["documents"] == 15
    assert report["agreement"]["difference"] <= 1e-3
    assert set(report["ratios"]) == {"whole", "scoring"}
    assert all(0 < one["min"] <= one["median"] <= one["max"] for one in report["ratios"].values())
    (repeat,) = report["repeats"]
    assert set(repeat) == {"tunefleet", "lm_eval"}


@pytest.mark.parametrize(("other", "same"), [(-1.0, True), (-1.5, False), (float("nan"), False)])
def test_what_is_no_number_is_not_the_same(monkeypatch: pytest.MonkeyPatch, other: float, same: bool) -> None:
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    compared = importlib.import_module("evaluate").compared
    runs = {
        who: {"whole_s": 1.0, "scoring_s": 1.0, "answers": {("base", "task", "0"): [-0.5, number]}}
        for who, number in (("tunefleet", other), ("lm_eval", -1.0))
    }
    report = compared([runs])
    assert report["same"] is same and report["agreement"]["other_numbers"] == (not same)
