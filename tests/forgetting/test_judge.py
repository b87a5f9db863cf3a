"""How the tasks' verdicts become the adapter's."""

import pytest

from tasks.forgetting.verdict import judge
from tests.forgetting.records import binary

LEARNED = binary(1, 20, 100, role="target")
KEPT = binary(0, 0, 60)
FORGOT = binary(18, 2, 300, margin=0.02)
OPEN = binary(3, 1, 100)


@pytest.mark.parametrize(
    ("verdicts", "outcome", "reasons"),
    [
        (
            [LEARNED, KEPT],
            "PASS",
            [
                "gained on arc and dropped on none of arc beyond the margins, each shown on its own "
                f"(largest p = {KEPT.p_value:.3f})"
            ],
        ),
        ([LEARNED, KEPT, OPEN], "INCONCLUSIVE", [f"INCONCLUSIVE on general task arc: {OPEN.reason}"]),
        (
            [OPEN, LEARNED, FORGOT],
            "FAIL",
            [
                f"INCONCLUSIVE on general task arc: {OPEN.reason}",
                f"FAIL on general task arc: {FORGOT.reason}",
            ],
        ),
        (
            [LEARNED],
            "INCONCLUSIVE",
            ["no general task votes, so nothing shows that the adapter kept what the base could do"],
        ),
        ([KEPT], "INCONCLUSIVE", ["no target task votes, so nothing shows that the adapter learned its task"]),
        (
            [FORGOT],
            "FAIL",
            [
                f"FAIL on general task arc: {FORGOT.reason}",
                "no target task votes, so nothing shows that the adapter learned its task",
            ],
        ),
        (
            [],
            "INCONCLUSIVE",
            [
                "no target task votes, so nothing shows that the adapter learned its task",
                "no general task votes, so nothing shows that the adapter kept what the base could do",
            ],
        ),
    ],
)
def test_judge(verdicts, outcome, reasons):
    assert judge(verdicts) == (outcome, reasons)


def test_only_deciding_tasks_vote():
    shown = binary(18, 2, 300, margin=0.02, decides=False)
    assert shown.verdict == "FAIL"
    assert judge([LEARNED, KEPT, shown])[0] == "PASS"
    assert judge([LEARNED, binary(0, 0, 60, decides=False)])[0] == "INCONCLUSIVE"
