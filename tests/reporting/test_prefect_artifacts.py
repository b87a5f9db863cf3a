"""What Prefect's table says of an adapter; tests/operations/test_artifacts.py leaves it on a server."""

import pytest

from tasks.reporting.prefect_artifacts import adapter_row, artifact_key, dashboard_link, summary_link
from tests.reporting.test_summary import general, judged, learned, outcome, summary


def test_an_adapter_is_a_row_of_its_gain_its_worst_drop_and_its_release() -> None:
    tasks = (learned(60), general("pairs", 12, 2), general("capitals", 60, 2), general("pydoc", 2, 2))
    content = summary(judged("lost", *tasks), judged("kept", learned(60), general("pairs", 2, 2), release="kept@v3"))
    lost, kept = (adapter_row(one) for one in content["adapters"])
    assert lost == {
        "adapter": "lost",
        "verdict": "FAIL",
        "target": "+60.0 (+51.8 to +67.7)",
        "worst general task": "capitals -19.3 (FAIL)",
        "release": "",
        "error": "",
    }
    assert kept["release"] == "kept@v3" and kept["verdict"] == "PASS"


def test_the_worst_is_what_used_most_of_its_margin_not_what_dropped_most() -> None:
    wide = general("wide", 30, 2).model_copy(update={"margin": 0.5})
    narrow = general("narrow", 12, 2)
    (adapter,) = summary(judged("a", learned(60), wide, narrow))["adapters"]
    assert adapter_row(adapter)["worst general task"].startswith("narrow -3.3")


def test_an_adapter_without_a_verdict_has_its_error_for_a_row() -> None:
    died = outcome("died", "lora", "none", None, error="out of memory")
    died.verdict = None
    (adapter,) = summary(died)["adapters"]
    assert adapter_row(adapter) == {
        **{"adapter": "died", "verdict": "error", "target": "", "worst general task": "", "release": ""},
        "error": "out of memory",
    }


def test_an_error_is_short_and_without_secrets_in_prefect_s_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_aVerySecretThing")
    said = "403 for hf_aVerySecretThing\nat https://me:pass@hub.example/x?sig=abc " + 1000 * "x"
    (adapter,) = summary(outcome("died", "lora", "none", None, error=said))["adapters"]
    shown = adapter_row(adapter)["error"]
    assert shown.startswith("403 for *** at https://***@hub.example/x?*** xxx") and len(shown) <= 400
    assert adapter["error"] == said, "the summary has it whole"


@pytest.mark.parametrize(
    ("name", "key"), [("demo", "adapters-demo"), ("My_Recipe.2", "adapters-my-recipe-2"), ("größe", "adapters-gr--e")]
)
def test_keys_are_what_prefect_takes(name: str, key: str) -> None:
    assert artifact_key("adapters", name) == key


def test_the_link_is_the_store_s() -> None:
    assert summary_link({"store": "s3://b/p", "run_id": "7"}) == "s3://b/p/runs/7/summary.json"
    assert summary_link({"store": "/a b", "run_id": "7"}) == "file:///a%20b/runs/7/summary.json"


def test_the_dashboard_opens_at_a_view_where_people_can_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    view = "/adapter/iso dates#1@7"
    monkeypatch.delenv("TUNEFLEET_DASHBOARD_URL", raising=False)
    assert dashboard_link("/a b", view) == "file:///a%20b/dashboard/index.html#/adapter/iso%20dates%231@7"
    assert dashboard_link("s3://b/p") == "s3://b/p/dashboard/index.html"
    monkeypatch.setenv("TUNEFLEET_DASHBOARD_URL", "https://me-fleet.static.hf.space/")
    monkeypatch.setenv("TUNEFLEET_STORE", "/a b/")
    assert dashboard_link("/a b", "/fleet?q=7") == "https://me-fleet.static.hf.space/#/fleet?q=7"
    assert dashboard_link("/other").startswith("file:///other/"), "the address is that of one store"
