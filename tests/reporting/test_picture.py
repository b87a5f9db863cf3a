"""The picture of a fleet: what stands where, in words as well; texts stay texts."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from infra.storage import Store
from tasks.reporting.picture import DROPS, FULL, GAINS, ROW, fleet_picture
from tasks.reporting.prefect_artifacts import leave_picture
from tests.reporting.test_summary import general, judged, learned, outcome, summary

SVG = "{http://www.w3.org/2000/svg}"


def drawn(content: dict[str, Any], most: int | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(fleet_picture(content, most))


def words(svg: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in svg.iter(f"{SVG}text")]


def count(svg: ElementTree.Element, shape: str) -> int:
    return len(list(svg.iter(f"{SVG}{shape}")))


def test_gain_and_worst_drop_are_written_with_unit_and_n() -> None:
    content = summary(judged("dates", learned(60), general("pairs", 12, 2), general("capitals", 60, 2)))
    said = words(drawn(content))
    assert "dates" in said and "FAIL" in said
    assert "+60.0 (+51.8 to +67.7) points, n 100" in said
    assert "capitals -19.3, allowed -5.0 points, n 300" in said


def test_a_loss_that_fell_is_a_gain() -> None:
    (text,) = (one for one in words(drawn(summary(outcome("tuned", "lora", "none", "PASS")))) if "nats" in one)
    assert text == "+0.500 (+0.400 to +0.600) nats, n 120"


@pytest.mark.parametrize(
    ("lost", "verdict", "shapes"), [(2, "PASS", (3, 0)), (60, "FAIL", (1, 0)), (11, "INCONCLUSIVE", (1, 2))]
)
def test_a_verdict_is_a_word_and_a_shape(lost: int, verdict: str, shapes: tuple[int, int]) -> None:
    """Discs of what passed are filled with a colour, rings of what is open with white; what failed is no circle."""
    svg = drawn(summary(judged("a", learned(60), general("pairs", lost, 2))))
    circles = [one.get("fill") == "#fff" for one in svg.iter(f"{SVG}circle")]
    assert verdict in words(svg)
    assert (circles.count(False), circles.count(True)) == shapes


def test_a_drop_of_the_whole_margin_stands_on_the_dashed_line() -> None:
    content = summary(judged("a", learned(60), general("pairs", 2, 2)))
    task = next(one for one in content["adapters"][0]["tasks"] if one["role"] == "general")
    task |= {"delta": -task["margin"], "ci_low": -task["margin"], "ci_high": 0.0, "verdict": "PASS"}
    svg = drawn(content)
    (line,) = (one for one in svg.iter(f"{SVG}line") if one.get("class") == "margin")
    middle = sum(DROPS) / 2
    assert float(line.get("x1") or 0) == pytest.approx(middle + (DROPS[1] - middle) / FULL, abs=0.1)
    assert line.get("x1") in {one.get("cx") for one in svg.iter(f"{SVG}circle")}
    task["delta"] = -9 * task["margin"]
    assert "▶" in words(drawn(content)), "beyond the end"


def test_gains_of_one_unit_share_a_scale() -> None:
    svg = drawn(
        summary(*(judged(name, learned(gain), general("pairs", 2, 2)) for name, gain in (("a", 90), ("b", 60))))
    )
    ends = [
        [float(one) for one in re.findall(r"[MH]([\d.]+)", path.get("d") or "")[:2]] for path in svg.iter(f"{SVG}path")
    ]
    first, second = (pair for pair in ends if pair and pair[0] < GAINS[1])
    assert first[1] == GAINS[1] and sum(GAINS) / 2 < second[0] < second[1] < first[0]


def test_texts_stay_texts() -> None:
    died = outcome("died", "lora", "none", None, error="</text><script>alert(1)</script>\x00\x1b[31m & \ud800 \u202e")
    died.verdict = None
    content = summary(died)
    content["adapters"][0]["name"] = "<b>&\"'"
    content["recipe"]["name"] = "]]><!--"
    svg = drawn(content)
    assert count(svg, "script") == 0 and "<b>&\"'" in words(svg) and "error" in words(svg)
    assert any(one.startswith("</text><script>") for one in words(svg))
    fleet_picture(content).encode()


def test_an_error_is_shown_beside_a_verdict_and_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_aVerySecretThing")
    died = outcome("died", "lora", "none", None, error="403 for hf_aVerySecretThing")
    died.verdict = None
    unsent = judged("unsent", learned(60), general("pairs", 2, 2), error="no such bucket")
    said = words(drawn(summary(died, unsent)))
    assert "403 for ***" in said and "error" in said and "PASS, error" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_an_interval_that_is_not_known_is_not_drawn(value: float | None) -> None:
    content = summary(judged("a", learned(60), general("pairs", 2, 2)))
    assert count(drawn(content), "path") == 2
    for task in content["adapters"][0]["tasks"]:
        task |= {"ci_low": value, "ci_high": value}
    svg = drawn(content)
    assert count(svg, "path") == 0 and "+60.0 points, n 100" in words(svg)


def test_a_large_fleet_is_cut_where_it_is_only_shown() -> None:
    content = summary(*(judged(f"a{number}", learned(60), general("pairs", 2, 2)) for number in range(5)))
    assert "and 3 more adapters: see the dashboard" in words(drawn(content, 2))
    whole = drawn(content)
    assert not any("more adapters" in one for one in words(whole))
    assert int(whole.get("height") or 0) - int(drawn(content, 2).get("height") or 0) == 3 * ROW


def test_it_is_kept_beside_the_summary_or_somebody_is_told(tmp_path: Path) -> None:
    store, said = Store(str(tmp_path)), list[str]()
    content = summary(judged("a", learned(60), general("pairs", 2, 2)))
    leave_picture(store, content, lambda text, *values: said.append(text % values))
    assert (tmp_path / "runs/1/fleet.svg").read_text() == fleet_picture(content) and not said
    leave_picture(store, json.loads("{}"), lambda text, *values: said.append(text % values))
    assert said == ["the run's picture is not kept: KeyError: 'run_id'"]
