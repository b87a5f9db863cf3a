"""How the tasks of a fleet become verdicts on its adapters: who votes, what Holm changes, and in which words."""

import numpy as np
import pytest

from tasks.forgetting.family import AdapterVerdict, holm, judge_fleet
from tests.forgetting.records import binary, nll
from tests.forgetting.test_clustered import judged as grouped
from tests.forgetting.test_informative import judged as base_with

LEARNED = binary(1, 20, 100, role="target", task="pokemon")
UNLEARNED = binary(9, 1, 100, role="target", task="pokemon")
KEPT = binary(0, 0, 80, task="arc")
ALSO_KEPT = binary(2, 2, 300, task="mmlu")
FORGOT = binary(30, 2, 300, margin=0.02, task="boolq")
OPEN = binary(3, 1, 100, task="piqa")
CEILING = base_with(300, 300)

NO_TARGET = "no target task votes, so nothing shows that the adapter learned its task"
NO_GENERAL = "no general task votes, so nothing shows that the adapter kept what the base could do"


def one(*tasks, alpha=0.05, pool_margin=0.05, **more) -> AdapterVerdict:
    return judge_fleet({"it": tasks}, alpha=alpha, pool_margin=pool_margin, **more)["it"]


def as_supporting(task):
    return task.model_copy(update={"tier": "supporting"})


def as_advisory(task):
    return task.model_copy(update={"tier": "advisory"})


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.05]) == [0.05]


def test_a_pass_rests_on_the_target_each_critical_task_and_the_pool():
    got = one(LEARNED, KEPT, ALSO_KEPT)
    assert got.verdict == "PASS"
    assert got.pool.n_tasks == 2
    assert got.p_value == max(KEPT.p_value, ALSO_KEPT.p_value, LEARNED.p_value, got.pool.p_value) == got.p_adjusted
    assert got.reasons == [
        "gained on pokemon; dropped on none of arc, mmlu beyond the margins; the drop over 2 general tasks is "
        "0 points on average; one of 5 points or more is ruled out (p < 0.001); each shown on its own (largest "
        "p = 0.021)"
    ]
    assert got.warnings == []
    assert one(LEARNED, KEPT).pool is None
    assert "Holm" in got.tasks[0].reason and one(KEPT).tasks[0].reason == KEPT.reason  # a family of one has no Holm
    assert one(LEARNED, KEPT).verdict == "PASS"


def test_no_level_is_split_among_the_tasks_an_adapter_must_pass():
    """Three at p = .046: each label falls to Holm over four tests, the release does not (intersection-union)."""
    close = [binary(0, 0, 60, task=f"t{i}") for i in range(3)]
    got = one(LEARNED, *close)
    assert (got.verdict, got.p_value) == ("PASS", close[0].p_value)
    assert [task.verdict for task in got.tasks] == ["PASS", *["INCONCLUSIVE"] * 3]
    assert [task.p_value_adjusted for task in got.tasks[1:]] == pytest.approx([3 * close[0].p_value] * 3)
    assert "(p = 0.046; p = 0.138 after Holm over 4 tests)" in got.tasks[1].reason
    assert got.tasks[1].model_copy(update={"reason": ""}) == close[0].model_copy(
        update={
            "reason": "",
            "verdict": "INCONCLUSIVE",
            "p_value_adjusted": got.tasks[1].p_value_adjusted,
            "p_breach_adjusted": got.tasks[1].p_breach_adjusted,
        }
    )


def test_what_is_open_keeps_an_adapter_inconclusive():
    got = one(LEARNED, KEPT, OPEN, ALSO_KEPT)
    assert (got.verdict, got.p_value) == ("INCONCLUSIVE", OPEN.p_value)
    (reason,) = got.reasons
    assert reason.startswith("INCONCLUSIVE on general task piqa: lost 3 and gained 1 of 100 documents; a drop of 5 ")
    assert "(p = 0.130; p = 0.130 after Holm over 4 tests); at these rates about 365 documents" in reason


def test_a_breach_fails():
    got = one(OPEN, LEARNED, FORGOT)
    assert got.verdict == "FAIL"
    assert [reason[:40] for reason in got.reasons] == [
        "INCONCLUSIVE on general task piqa: lost ",
        "FAIL on general task boolq: lost 30 and ",
        "the drop over 2 general tasks is 5.67 po",
    ]
    assert one(UNLEARNED, KEPT).verdict == "FAIL"
    assert one(LEARNED, KEPT, as_supporting(FORGOT), pool_margin=0.5).verdict == "FAIL"
    assert [reason[:28] for reason in one(FORGOT).reasons] == ["FAIL on general task boolq: ", NO_TARGET[:28]]


@pytest.mark.parametrize(
    ("tasks", "reasons"),
    [([LEARNED], [NO_GENERAL]), ([KEPT], [NO_TARGET]), ([], [NO_TARGET, NO_GENERAL])],
)
def test_both_roles_must_vote(tasks, reasons):
    got = one(*tasks)
    assert (got.verdict, got.reasons, got.p_value, got.p_adjusted) == ("INCONCLUSIVE", reasons, 1.0, 1.0)


def test_a_supporting_task_counts_in_the_pool_and_need_not_pass_alone():
    got = one(LEARNED, KEPT, as_supporting(OPEN))
    assert (got.verdict, got.pool.n_tasks) == ("PASS", 2)
    assert "piqa" not in got.reasons[0]
    assert one(LEARNED, *map(as_supporting, (KEPT, OPEN))).verdict == "PASS"
    alone = one(LEARNED, as_supporting(ALSO_KEPT))
    assert (alone.verdict, alone.pool.n_tasks) == ("PASS", 1)
    assert one(LEARNED, nll(0.0).model_copy(update={"tier": "supporting"})).reasons == [NO_GENERAL]


def test_the_pool_alone_can_hold_an_adapter_back():
    tasks = [binary(9, 0, 300, margin=0.06, task=f"t{i}") for i in range(3)]
    got = one(LEARNED, *tasks, pool_margin=0.02)
    assert all(task.verdict == "PASS" for task in got.tasks)
    assert got.verdict == "INCONCLUSIVE"
    assert got.reasons == [
        "the drop over 3 general tasks is 3 points on average; one of 2 points or more cannot be ruled out "
        f"(p = {got.pool.p_value:.3f})"
    ]


def test_what_is_only_shown_changes_nothing_but_draws_a_warning():
    shown = [as_advisory(FORGOT), binary(40, 0, 200, decides=False), *[as_advisory(OPEN)] * 20]
    plain, got = one(LEARNED, KEPT, ALSO_KEPT), one(LEARNED, KEPT, ALSO_KEPT, *shown)
    changed = {"tasks", "warnings"}
    assert got.model_dump(exclude=changed) == plain.model_dump(exclude=changed)
    assert got.tasks[:3] == plain.tasks
    assert got.tasks[3].verdict == "FAIL"
    (first, second) = got.warnings
    assert first.startswith("advisory task boolq failed: lost 30 and gained 2 of 300 documents; a drop of more")
    assert second.startswith("advisory task arc failed: lost 40")
    assert one(LEARNED, as_advisory(KEPT)).reasons == [NO_GENERAL]


def test_a_task_that_could_not_notice_is_no_evidence_but_may_fail():
    got = one(LEARNED, CEILING)
    assert (got.verdict, got.reasons, got.pool) == ("INCONCLUSIVE", [NO_GENERAL], None)
    assert got.warnings == [f"general task quiz: {CEILING.note}"]
    assert got.tasks[1].p_value_adjusted is None
    beside = one(LEARNED, KEPT, CEILING)
    assert (beside.verdict, beside.pool) == ("PASS", None)
    assert "quiz" not in beside.reasons[0]
    assert one(LEARNED, KEPT, base_with(300, 300, lost=60)).verdict == "FAIL"


def test_too_few_documents_hold_a_critical_task_open_and_warn_of_a_supporting_one():
    few = grouped(np.zeros(2900), np.repeat(np.arange(29), 100))
    got = one(LEARNED, KEPT, few)
    assert (got.verdict, got.p_value, got.tasks[2].p_value_adjusted) == ("INCONCLUSIVE", 1.0, None)
    assert "29 groups of documents are too few for a verdict" in got.reasons[0]
    got = one(LEARNED, KEPT, as_supporting(few))
    assert got.verdict == "PASS"
    assert got.warnings == [
        "supporting task drop: 29 groups of documents are too few for a verdict, which takes at least 30"
    ]
    graded = nll(5.0, n=99)
    assert one(LEARNED, KEPT, graded).verdict == "INCONCLUSIVE"  # however far it rose


def test_holm_over_the_adapters_of_a_run():
    """p = .046 may go alone; as one of two only if the other one is as sure of itself."""
    close, sure = [LEARNED, binary(0, 0, 60)], [LEARNED, binary(0, 0, 300)]
    both = judge_fleet({"a": close, "b": sure}, alpha=0.05, pool_margin=0.02)
    assert [both[name].verdict for name in "ab"] == ["PASS", "PASS"]
    assert both["a"].p_adjusted == close[1].p_value
    assert both["a"].reasons[0].endswith("(largest p = 0.046; p = 0.046 after Holm over 2 adapters)")
    twins = judge_fleet({"a": close, "b": close}, alpha=0.05, pool_margin=0.02)
    assert [twins[name].verdict for name in "ab"] == ["INCONCLUSIVE"] * 2
    assert twins["a"].p_adjusted == 2 * close[1].p_value
    assert twins["a"].reasons == [
        "every claim holds by itself, but not among those of the whole run "
        "(largest p = 0.046; p = 0.092 after Holm over 2 adapters)"
    ]
    assert one(*close).verdict == "PASS"


def test_a_label_of_one_adapter_counts_those_of_the_others():
    breach = binary(18, 2, 300, margin=0.02, task="boolq")  # p = .011
    assert one(LEARNED, breach).verdict == "FAIL"
    fleet = {name: [LEARNED, breach if name == "a" else KEPT] for name in "abc"}
    got = judge_fleet(fleet, alpha=0.05, pool_margin=0.02)["a"]
    assert got.verdict == "INCONCLUSIVE"
    assert got.tasks[1].p_breach_adjusted == pytest.approx(6 * breach.p_breach)


def test_where_the_caller_divided_alpha_adapters_stand_alone():
    breach = binary(18, 2, 300, margin=0.02, task="boolq")
    fleet = {name: [LEARNED, breach if name == "a" else KEPT] for name in "abc"}
    got = judge_fleet(fleet, alpha=0.03, pool_margin=0.02, adjust="none")
    assert [got[name].verdict for name in "abc"] == ["FAIL", "PASS", "PASS"]
    assert got["a"].tasks[1].p_breach_adjusted == pytest.approx(2 * breach.p_breach)  # among its own tasks
    assert got["b"].p_adjusted == got["b"].p_value
    assert "Holm over 3" not in got["b"].reasons[0]
    for name, tasks in fleet.items():
        assert got[name] == one(*tasks, alpha=0.03, pool_margin=0.02)


def test_a_verdict_survives_json_and_an_empty_fleet_has_none():
    got = one(LEARNED, KEPT, ALSO_KEPT, OPEN)
    assert AdapterVerdict.model_validate_json(got.model_dump_json()) == got
    assert judge_fleet({}, alpha=0.05, pool_margin=0.02) == {}
