"""The benchmark runs, says its figures in the promised form, and its contestants do the same work. No timing."""

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.settings import PROJECT
from tests.tiny import save_tiny_base

FOLDER = PROJECT / "benchmarks"
OF_ONE = {"packed", "trl", "tuned", "defaults"}
OF_MANY = {"packed", "in turn", "two at a time"}
FLEET = {"pokemon-r8", "pokemon-r16", "dates-r4", "dates-r8"}
SCENES = {"prompt": (OF_ONE, {"pokemon"}), "distinct": (OF_ONE, {"dates"}), "fleet": (OF_MANY, FLEET)}


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_all_contestants_train_the_same_adapters_and_every_ratio_is_told(tmp_path: Path, scene: str) -> None:
    base, (contestants, members) = save_tiny_base(tmp_path / "base"), SCENES[scene]
    options = ["--scene", scene, "--steps", "6", "--batch", "4", "--repeats", "1", "--json"]
    ended = subprocess.run(
        [sys.executable, FOLDER / "train.py", "--base", base, *options], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    whole = json.loads(ended.stdout)
    (report,) = whole["scenes"].values()
    assert whole["same_work"] and report["same_work"] and whole["base_bytes"] > 100_000
    assert set(report["ratios"]) == contestants - {"packed"} >= set(report["goals"])
    kinds = {"whole", "cpu", "memory"} | ({"steady", "step"} if contestants == OF_ONE else set())
    for ratios in report["ratios"].values():
        assert set(ratios) == kinds
        assert all(0 < one["min"] <= one["median"] <= one["max"] for one in ratios.values())
    (runs,) = report["repeats"]
    assert set(runs) == contestants
    for name in members:
        (tokens,), computed = report["tokens"][name], report["computed_tokens"][name]
        shared = 1 - computed / tokens
        assert 0.5 < shared < 0.75 if name.startswith("pokemon") else 0 <= shared < 0.15
        curve = runs["packed"]["members"][name]["curve"]
        assert [point["step"] for point in curve] == [1, 2, 3, 4, 5, 6]
        assert curve[0]["loss"] != curve[-1]["loss"]
    assert report["losses"].get("trl", {"tuned": {"step": 0}})["tuned"]["step"] <= 1e-6
    together = runs["two at a time"]["peak_bytes"] / runs["in turn"]["peak_bytes"] if scene == "fleet" else 2
    assert 1.7 < together < 2.3  # twice one process's, whichever two those were


def made_up(losses: Sequence[float], tokens: int) -> dict[str, Any]:
    """A contestant's run of one adapter."""
    curve = [{"step": step, "loss": loss, "tokens": 10 * step} for step, loss in enumerate(losses, start=1)]
    member = {"tokens": tokens, "curve": curve, "computed_tokens": tokens // 2}
    times = {"steady_s": 1.0, "whole_s": 1.0, "cpu_s": 1.0, "peak_bytes": 1, "step_s": [0.5, 0.5]}
    return {**times, "members": {"one": member}}


TRUE = [3.0, 2.5, 2.0, 1.5, 1.0, 0.9, 0.8, 0.7]  # the mean of a quarter, two steps, may differ by 0.053
NAN = float("nan")
SAME = {
    "the very same": ({}, True),
    "packed, within the limits": ({"packed": [3.08, 2.4, 2.05, 1.55, 1.0, 0.9, 0.7, 0.8]}, True),
    "packed, another first loss": ({"packed": [3.1, 2.4, *TRUE[2:]]}, False),
    "packed, another beginning": ({"packed": [3.06, 2.56, *TRUE[2:]]}, False),
    "packed, another middle": ({"packed": [*TRUE[:4], 0.94, 0.84, *TRUE[6:]]}, False),
    "packed, another end": ({"packed": [*TRUE[:6], 0.86, 0.76]}, False),
    "packed, no number at the end": ({"packed": [*TRUE[:7], NAN]}, False),
    "packed, no number at first": ({"packed": [NAN, *TRUE[1:]]}, False),
    "trl, another first loss": ({"trl": [3.001, *TRUE[1:]]}, False),
    "trl, another end": ({"trl": [*TRUE[:6], 0.86, 0.76]}, False),
    "trl, no number in between": ({"trl": [*TRUE[:3], NAN, *TRUE[4:]]}, False),
    "tuned, another end": ({"tuned": [*TRUE[:6], 0.86, 0.76]}, False),
    "defaults may differ": ({"defaults": [9.0]}, True),
}


@pytest.mark.parametrize(("others", "same"), SAME.values(), ids=SAME)
@pytest.mark.parametrize("bad_first", [True, False])
def test_other_losses_are_not_the_same_work(
    monkeypatch: pytest.MonkeyPatch, others: dict[str, list[float]], same: bool, bad_first: bool
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    compared = importlib.import_module("train").compared
    clean = {who: made_up(TRUE, 80) for who in ("packed", "trl", "tuned", "defaults")}
    runs = {who: made_up(others.get(who, TRUE), 80) for who in clean}
    assert compared([runs, clean] if bad_first else [clean, runs])["same_work"] is same


@pytest.mark.parametrize("who", ["packed", "trl", "tuned", "defaults"])
def test_another_number_of_tokens_is_not_the_same_work(monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    compared = importlib.import_module("train").compared
    report = compared(
        [{one: made_up(TRUE, 81 if one == who else 80) for one in ("packed", "trl", "tuned", "defaults")}]
    )
    assert not report["same_work"] and report["tokens"] == {"one": [80, 81]}


@pytest.mark.parametrize("off", ["in turn", "two at a time"])
def test_a_fleet_is_held_against_both_of_its_rivals(monkeypatch: pytest.MonkeyPatch, off: str) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    compared = importlib.import_module("train").compared
    runs = {who: made_up([*TRUE[:6], 0.9, 0.8] if who == off else TRUE, 80) for who in OF_MANY}
    assert not compared([runs])["same_work"]


def test_who_runs_together_counts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    most_together = importlib.import_module("train_scenes").most_together
    spans = [(0, 10, 5), (0, 4, 3), (4, 9, 4), (10, 12, 8)]  # (began, ended, peak)
    processes = [{"began": began, "ended": ended, "peak_bytes": peak} for began, ended, peak in spans]
    assert most_together(processes) == 9
    assert most_together(processes[3:]) == 8


def test_the_parent_stays_small_or_its_memory_would_count_as_its_children_s() -> None:
    heavy = "import sys, train; print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    told = subprocess.run([sys.executable, "-c", heavy], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
