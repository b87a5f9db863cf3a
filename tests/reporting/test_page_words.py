"""What is said beside the figures: units, signs and corrections as the results have them, and what is not known."""

from pathlib import Path
from typing import Any

import pytest

from infra.storage import Store
from tasks.reporting.dashboard import build_dashboard
from tests.reporting.browser import Page
from tests.reporting.page_store import adapter, cure, register, run_id, task, write_run

pytestmark = pytest.mark.slow
TEXT = "text.held_out"


def opened(tab: Page, folder: Path, row: dict[str, Any], view: str = "#/adapter/text") -> str:
    """The view's text, with the minus of a keyboard, of a store with this one adapter."""
    store = Store(str(folder))
    write_run(store, run_id(18), [row])
    tab.open(f"{Path(build_dashboard(store).page).as_uri()}{view}")
    return tab.text().replace("−", "-")


def of_plain_text(**more: Any) -> dict[str, Any]:
    """An adapter whose target is the loss on texts: 0.4 nats less than the base's."""
    row = adapter("text", run_id(18))
    target = task("perplexity", -0.4, 100, role="target", margin=0.1)
    return row | {"tasks": [target | {"task": TEXT, "verdict": "PASS"}, *row["tasks"][1:]]} | more


def test_the_cure_of_an_adapter_of_plain_text_is_in_nats_and_turned(tmp_path: Path, tab: Page) -> None:
    tried = cure()
    for one in tried["curve"]:
        one |= {"target_delta": -0.4 * one["scale"], "target_ci_low": -0.5, "target_ci_high": -0.1}
    text = opened(tab, tmp_path, of_plain_text(cure=tried))
    assert "+0.400 nats (+0.100 to +0.500)" in text and "+0.300 nats" in text
    assert "-8.0 points (-9.0 to -7.0)" in text  # of the general tasks


def test_a_comparison_with_a_prompt_is_turned(tmp_path: Path, tab: Page) -> None:
    one = {"over": "asked", "task": TEXT, "metric": "nll_per_token", "n": 100, "delta": -0.25, "answer": "better"}
    text = opened(tab, tmp_path, of_plain_text(comparisons=[one | {"ci_low": -0.3, "ci_high": -0.2}]))
    assert "+0.250 nats (+0.200 to +0.300)" in text
    one = {"over": "asked", "task": "gone", "metric": "exact_match", "n": 100, "delta": 0.25, "answer": "better"}
    text = opened(tab, tmp_path, of_plain_text(comparisons=[one | {"ci_low": 0.2, "ci_high": 0.3}]))
    assert "+25.0 points (+20.0 to +30.0)" in text


@pytest.mark.parametrize(
    ("adjust", "words", "never"),
    [
        ("holm", "corrected by Holm for all tests of the run", "alone"),
        ("none", "corrected by Holm for the tests of this adapter alone", "all tests of the run"),
        (None, "for which other tests it is corrected was not recorded", "by Holm"),
    ],
)
def test_p_values_are_said_to_be_corrected_for_what_they_are(
    tmp_path: Path, tab: Page, adjust: str | None, words: str, never: str
) -> None:
    text = opened(tab, tmp_path, adapter("text", run_id(18)) | {"adjust": adjust})
    assert words in text and never not in text


def test_a_task_without_a_margin_is_not_said_to_have_one_of_nothing(tmp_path: Path, tab: Page) -> None:
    row = adapter("text", run_id(18))
    row["tasks"] = [row["tasks"][0], *({**one, "margin": None} for one in row["tasks"][1:])]
    opened(tab, tmp_path, row, "#/heat")
    cells = tab.run("[...document.querySelectorAll('svg g[data-says]')].map(one => one.dataset.says)")
    assert len(cells) == 5 and all(", no margin, " in one and "margin 0" not in one for one in cells)
    tab.go("#/adapter/text")
    marks = tab.run("[...document.querySelectorAll('svg g[data-says]')].map(one => one.dataset.says)")
    assert sum(", no margin: " in one for one in marks) == 5


def test_a_release_without_results_is_not_known_and_no_other_task(tmp_path: Path, tab: Page) -> None:
    store = Store(str(tmp_path))
    other = adapter("other", run_id(18))
    other["tasks"] = [other["tasks"][0] | {"task": "an older target"}, *other["tasks"][1:]]
    write_run(store, run_id(18), [other])
    write_run(store, run_id(20), [adapter("other", run_id(20)), adapter("unknown", run_id(20))])
    register(store, "other", 1, run_id(18))
    register(store, "unknown", 1, run_id(17))  # of which nothing is left
    tab.open(Path(build_dashboard(store).page).as_uri())
    cells = tab.run("[...document.querySelectorAll('main section tbody tr')].map(row => [row.children[0].innerText,"
                    "row.children[3].innerText])")  # fmt: skip
    said = dict(cells)
    assert "another task then" in said["other"] and "→" not in said["other"]
    assert "not known then" in said["unknown"]


def test_who_shared_a_process_and_what_that_saved_is_said(tmp_path: Path, tab: Page) -> None:
    row = of_plain_text(engine="packed", pack=["text", "another", "third"], tokens=1000, computed_tokens=240)
    assert "packed, together with 2 others, 240 of 1,000 tokens computed" in opened(tab, tmp_path, row)


def test_an_adapter_of_before_packs_says_nothing_of_its_engine(tmp_path: Path, tab: Page) -> None:
    assert "Engine" not in opened(tab, tmp_path, of_plain_text())
