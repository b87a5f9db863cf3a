"""The summary's figures that no other tool can see to, the exit code, and what a terminal shows of both."""

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from infra.storage import ArtifactRef
from tasks.artifacts import AdapterOutcome, StageResult
from tasks.forgetting.family import judge_fleet
from tasks.forgetting.outcome import TaskVerdict
from tasks.forgetting.verdict import compare
from tasks.recipe.schema import Adapter, Recipe
from tasks.reporting.summary import exit_code, summarise
from tasks.reporting.table import print_summary
from tests.forgetting.records import flips, losses

ROWS = {"rows": [{"prompt": "a", "completion": "b"}]}
TASK = {
    **{"task": "own.held_out", "role": "target", "metric": "nll_per_token", "n": 120, "base": 2.0, "adapter": 1.5},
    **{"delta": -0.5, "ci_low": -0.6, "ci_high": -0.4, "margin": 0.105, "verdict": "PASS", "decides": True},
    "higher_is_better": False,
    "flips": {"lost": 0, "gained": 0},
}
TRIAL = {"name": "lora-trial0", "number": 0, "settings": {"training.learning_rate": 0.00123456}, "state": "complete",
         "loss": 1.25, "step": 8, "error": None, "kept": True}  # fmt: skip
COMPARISON = {
    **{"adapter": "tuned", "over": "shown", "task": "tuned.held_out", "metric": "exact_match", "n": 50},
    **{"adapter_score": 0.75, "over_score": 0.25, "delta": 0.5, "ci_low": 0.4, "ci_high": 0.6, "p_value": 0.001},
    **{"flips": {"lost": 0, "gained": 25}, "answer": "yes"},
    "quantization": {"adapter": "nf4", "over": "nf4"},
}


def result(kind: str, name: str, **facts: Any) -> StageResult:
    ref = ArtifactRef(kind=kind, name=name, digest="d" * 64, uri=f"/store/{name}")
    return StageResult(ref=ref, facts=facts, cached=False)


def outcome(name: str, method: str, quantization: Any, verdict: str | None, **fields: Any) -> AdapterOutcome:
    adapter = Adapter.model_validate({"name": name, "method": method, "data": ROWS, "num_fewshot": 0})
    content = {"verdict": verdict, "reasons": [], "tasks": [TASK]}
    return AdapterOutcome(adapter, quantization, trained=result("prompts", name), verdict=content, **fields)


def summary(*fleet: AdapterOutcome, self_tests: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    recipe = Recipe.model_validate({"name": "r", "adapters": [{"name": one.name, "data": ROWS} for one in fleet]})
    return summarise(
        run_id="1",
        recipe=recipe,
        store="/store",
        base=result("bases", "base", model="tiny", revision=None),
        fleet=fleet,
        made=[],
        comparisons=[COMPARISON],
        searches={"lora": [TRIAL]},
        self_tests=self_tests,
        probes=[],
        timings={},
    )


def judged(name: str, *tasks: TaskVerdict, **fields: Any) -> AdapterOutcome:
    """An adapter with a verdict as the judging stage writes it."""
    one = judge_fleet({name: tasks}, alpha=0.05, pool_margin=0.02)[name]
    content = one.model_dump() | {"rule": {"alpha": 0.05, "pool_margin": 0.02, "adjust": "holm"}}
    adapter = Adapter.model_validate({"name": name, "method": "lora", "data": ROWS})
    trained = result("adapters", name, trainable_params=10, total_params=100, steps=3, seconds=2.0, loss=0.5)
    stored = result("verdicts", name)
    return AdapterOutcome(adapter, "none", trained=trained, judged=stored, verdict=content, **fields)


def general(task: str, lost: int, gained: int, n: int = 300, **more: Any) -> TaskVerdict:
    return compare(task=task, role="general", metric="acc", margin=0.05, **flips(lost, gained, n), **more)


def learned(gained: int) -> TaskVerdict:
    return compare(task="own.held_out", role="target", metric="exact_match", margin=0.1, **flips(0, gained, 100))


def printed(content: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_summary(content, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("verdict", "error", "status", "code"),
    [
        ("PASS", None, "passed", 0),
        ("FAIL", None, "failed", 3),
        ("INCONCLUSIVE", None, "inconclusive", 3),
        ("PASS", "boom", "error", 1),
    ],
)
def test_a_prompt_beside_an_adapter_never_changes_the_exit_code(
    verdict: str, error: str | None, status: str, code: int
) -> None:
    content = summary(outcome("shown", "prompt", "none", None), outcome("tuned", "lora", "none", verdict, error=error))
    assert [one["status"] for one in content["adapters"]] == ["compared", status]
    assert exit_code(content) == code
    assert exit_code(summary(outcome("shown", "prompt", "none", None))) == 0


def test_each_precision_of_the_base_is_named_once() -> None:
    fleet = [outcome("a", "lora", "none", "PASS"), outcome("b", "qlora", "nf4", "PASS")]
    assert summary(*fleet, outcome("c", "full", "none", "PASS"))["base"]["quantization"] == "nf4+none"
    assert summary(fleet[1], outcome("c", "prompt", "nf4", None))["base"]["quantization"] == "nf4"


def test_the_table_tells_prompts_from_adapters_and_answers_the_question() -> None:
    text = printed(summary(outcome("tuned", "lora", "none", "PASS"), outcome("shown", "prompt", "none", None)))
    assert "shown  COMPARED  prompt, nothing trained, 0 examples before the question" in text
    assert text.count("not published") == 1
    assert "fall > 0.105" in text
    (line,) = (
        line.split()
        for line in text.partition("Was training worth it over prompting?")[2].splitlines()
        if "+50" in line
    )
    assert line == ["tuned", "shown", "50", "75.0", "%", "25.0", "%", "+50.0", "+40.0", "to", "+60.0", "yes"]


def test_what_the_verdict_says_of_the_whole_stands_in_the_summary() -> None:
    one = judged("tuned", learned(60), general("a", 2, 2), general("b", 30, 0, tier="advisory"), general("c", 3, 1))
    (adapter,) = summary(one)["adapters"]
    assert adapter["verdict_uri"] == "/store/tuned" and adapter["rule"]["alpha"] == 0.05
    assert adapter["pool"]["n_tasks"] == 2 and adapter["p_value"] <= adapter["p_adjusted"] <= 1
    assert adapter["pool"]["drop"] == pytest.approx(1 / 300)
    assert any("advisory task b failed" in warning for warning in adapter["warnings"])
    assert adapter["cure"] is adapter["win_rate"] is None
    text = printed(summary(one))
    assert "general, advisory" in text and "general tasks on average: -0.3 points over 2 right/wrong tasks" in text
    assert "advisory task b failed" in text


def test_a_prompt_has_none_of_it() -> None:
    (adapter,) = summary(outcome("shown", "prompt", "none", None))["adapters"]
    assert adapter["warnings"] == [] and adapter["pool"] is adapter["verdict_uri"] is adapter["p_value"] is None


def test_what_is_open_says_how_many_documents_it_takes() -> None:
    one = judged("tuned", learned(60), general("a", 9, 3, n=100))
    (task,) = (task for task in one.verdict["tasks"] if task["task"] == "a")  # type: ignore[index]
    assert task["verdict"] == "INCONCLUSIVE" and task["needed"] > 100
    assert f"INCONCLUSIVE, needs about {task['needed']:,}" in " ".join(printed(summary(one)).split())


def test_the_interval_has_the_confidence_of_its_level() -> None:
    one = judged("tuned", learned(60), general("a", 2, 2))
    assert "90 % interval" in printed(summary(one))
    one.verdict["rule"]["alpha"] = 0.005  # type: ignore[index]
    assert "99 % interval" in printed(summary(one))


def test_the_comparisons_have_the_confidence_of_the_recipes_level() -> None:
    content = summary(judged("tuned", learned(60)))
    content["recipe"]["gate"]["alpha"] = 0.01
    heading, _, rest = printed(content).partition("Was training worth it over prompting?")
    assert "90 % interval" in heading and "98 % interval" in rest and "90 %" not in rest


def test_what_must_not_rise_is_not_said_to_drop() -> None:
    scores = losses(0.0, n=200, noise=0.05)
    prose = compare(task="prose", role="general", metric="nll_per_token", margin=0.05, higher_is_better=False, **scores)
    lines = printed(summary(judged("tuned", learned(60), general("a", 2, 2), prose))).splitlines()
    assert [line.split()[0] for line in lines if "rise < 0.050" in line] == ["prose"]
    assert [line.split()[0] for line in lines if "drop <" in line] == ["a"]


def test_what_concerns_the_whole_run_stands_before_its_adapters() -> None:
    content = summary(judged("tuned", learned(60)))
    quiet = printed(content)
    content["warnings"] = ["no general task asks for an open answer [sic]"]
    assert printed(content) == "no general task asks for an open answer [sic]\n" + quiet


def point(kind: str, scale: float, share: float | None, gain: float, drop: float, verdict: str) -> dict[str, Any]:
    general = [{"task": "a", "delta": -drop, "verdict": verdict}]
    target = {"delta": gain, "ci_low": gain - 0.05, "ci_high": gain + 0.05}
    pool = {"n_tasks": 2, "drop": drop, "margin": 0.02}
    return {"kind": kind, "scale": scale, "share": share, "name": f"{kind}{scale}", "digest": "d", "verdict": verdict,
            "target": target, "general": general, "pool": pool}  # fmt: skip


def test_a_cure_shows_what_was_learned_against_what_was_forgotten() -> None:
    curve = [
        point("scale", 1.0, None, 0.9, 0.4, "FAIL"),
        point("scale", 0.5, None, 0.85, 0.01, "PASS"),
        point("replay", 1.0, 0.5, 0.8, 0.1, "FAIL"),
    ]
    cure = {"kept": {"kind": "scale", "scale": 0.5, "share": None}, "curve": curve, "said": "scale 0.5 passes [sic]"}
    one = judged("tuned", learned(60), general("a", 2, 2), cure=cure)
    content = summary(one)
    assert content["adapters"][0]["cure"] == cure and content["adapters"][0]["status"] == "passed"
    table = printed(content).partition("Cure: learned against forgotten")[2]
    rows = {" ".join(words[:2]): words for words in map(str.split, table.splitlines()) if words}
    assert rows["as trained"][2:] == ["+90.0", "+85.0", "to", "+95.0", "-40.0", "-40.0", "FAIL", "FAIL"]
    assert rows["kept ->"][2:] == ["scale", "0.5", "+85.0", "+80.0", "to", "+90.0", "-1.0", "-1.0", "PASS"]
    assert rows["replay, share"][-2:] == ["FAIL", "FAIL"] and table.count("kept ->") == 1
    assert "cure: scale 0.5 passes [sic]" in table
    for one_point, alpha in zip(curve, (0.05, 0.0125, 0.0125), strict=True):
        one_point["alpha"] = alpha
    own = " ".join(printed(summary(one)).split())
    assert "+85.0 to +95.0 (90 %)" in own and "+80.0 to +90.0 (97.5 %)" in own
    none = printed(summary(judged("tuned", learned(60), cure={**cure, "kept": None})))
    assert "kept ->" not in none and "as trained" in none


def test_a_win_rate_is_one_line() -> None:
    rate = {"n": 100, "win_rate": 0.62, "ci_low": 0.55, "ci_high": 0.69, "wins": 50, "losses": 26, "ties": 24,
            "unreadable": 3, "judge": "org/[judge]"}  # fmt: skip
    text = printed(summary(judged("tuned", learned(60), win_rate=rate)))
    assert "win rate over the base: 62.0 % (interval 55.0 % to 69.0 %) of 100 documents: 50 won, 26 lost," in text
    assert "3 replies unreadable; judge org/[judge]" in " ".join(text.split())


def test_self_tests_say_whether_damage_is_noticed() -> None:
    def test(kind: str, ok: bool, said: str, verdict: str = "FAIL") -> dict[str, Any]:
        return {"precision": "nf4", "kind": kind, "expected": "FAIL", "verdict": verdict, "noticed_by": ["a"], "ok": ok,
                "largest_difference": None, "said": said}  # fmt: skip

    tests = [
        test("again", True, "0 flips of 822", "INCONCLUSIVE"),  # too few documents for a PASS, and none of them moved
        test("noised", True, "noticed by a"),
        test("one-answer", False, "noticed by no task; not by a"),
    ]
    content = summary(judged("tuned", learned(60)), self_tests=tests)
    assert content["self_tests"] == tests
    text = printed(content)
    assert "self-test, 4 bit: ok the base against itself: 0 flips of 822" in text
    assert "self-test, 4 bit: ok a noised adapter: noticed by a" in text
    assert "self-test, 4 bit: NOT OK an adapter of one answer: noticed by no task; not by a" in text
