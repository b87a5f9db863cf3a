"""Verdicts become scores, scores a win rate: every combination once, and the interval against an independent one."""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from infra.errors import StageError
from tasks.judging.answers import Pair
from tasks.judging.win_rate import SCHEMA, figures, judged, write_judgements
from tests.judging.chat_server import answers_in


def pair(number: int, base: str = "worse", adapter: str = "better") -> Pair:
    return Pair(str(number), f"digest {number}", f"Question {number}?", base, adapter)


def replying(*replies: str):
    def ask(texts: Sequence[str]) -> list[str]:
        assert len(texts) == len(replies)
        return list(replies)

    return ask


def prefers(best: str):
    """A judge that knows what is best, wherever it stands."""

    def ask(texts: Sequence[str]) -> list[str]:
        return ["A" if answers_in(text)[0] == best else "B" if answers_in(text)[1] == best else "C" for text in texts]

    return ask


SCORES = {("B", "A"): 1.0, ("A", "B"): 0.0}  # (reply with the base first, with the adapter first)


@pytest.mark.parametrize("replies", list(product("ABC", repeat=2)))
def test_only_who_wins_in_both_orders_wins(replies: tuple[str, str]):
    (row,) = judged([pair(1)], "Which?", replying(*replies))
    assert row["score"] == SCORES.get(replies, 0.5)
    assert row["base_first"] == {"A": "base", "B": "adapter", "C": "tie"}[replies[0]]
    assert row["adapter_first"] == {"A": "adapter", "B": "base", "C": "tie"}[replies[1]]


def test_a_judge_that_knows_is_believed():
    pairs = [pair(1), pair(2, base="better", adapter="worse"), pair(3, base="poor"), pair(4, "x", "y")]
    rows = judged(pairs, "Which?", prefers("better"))
    assert [row["score"] for row in rows] == [1.0, 0.0, 1.0, 0.5]
    found = figures(rows, 0.05)
    assert (found["n"], found["wins"], found["losses"], found["ties"], found["win_rate"]) == (4, 2, 1, 1, 0.625)


def test_a_judge_that_always_says_the_same_tells_nothing():
    for letter in "ABC":
        rows = judged([pair(number) for number in range(5)], "Which?", lambda texts: [letter] * len(texts))  # noqa: B023
        found = figures(rows, 0.05)
        assert (found["win_rate"], found["ties"], found["swayed"]) == (0.5, 5, 0 if letter == "C" else 5)


def test_nobody_is_asked_about_the_same_answer():
    rows = judged([pair(1, "same ", "same"), pair(2)], "Which?", replying("B", "A"))
    assert [(row["base_first"], row["score"]) for row in rows] == [("same", 0.5), ("adapter", 1.0)]
    assert figures(rows, 0.05)["same"] == 1

    def nobody(_: Sequence[str]) -> list[str]:
        raise AssertionError("asked")

    assert figures(judged([pair(1, "a", "a")], "Which?", nobody), 0.05)["win_rate"] == 0.5


def test_replies_that_cannot_be_read_are_counted_up_to_a_fifth():
    pairs = [pair(number) for number in range(5)]
    rows = judged(pairs, "Which?", replying("B", "hm", "what?", "A", *("B", "A") * 3))
    assert [row["score"] for row in rows] == [0.5, 0.5, 1, 1, 1]
    found = figures(rows, 0.05)
    assert (found["unreadable"], found["wins"], found["ties"]) == (2, 3, 2)
    with pytest.raises(StageError, match="3 of 10 replies of the judge do not begin with A, B or C") as error:
        judged(pairs, "Which?", replying("I would rather not", "hm", "no", "A", *("B", "A") * 3))
    assert "'I would rather not'" in str(error.value)


@given(wins=st.integers(0, 40), losses=st.integers(0, 40), ties=st.integers(0, 40), alpha=st.floats(0.01, 0.2))
def test_the_interval_is_tangos_score_interval_of_the_paired_difference(
    wins: int, losses: int, ties: int, alpha: float
):
    n = wins + losses + ties
    if not n:
        return
    rows = [
        {"score": score, "base_first": "tie", "adapter_first": "tie"}
        for score, count in ((1.0, wins), (0.0, losses), (0.5, ties))
        for _ in range(count)
    ]
    found = figures(rows, alpha)
    assert found["win_rate"] == pytest.approx((wins + ties / 2) / n)
    assert 0 <= found["ci_low"] <= found["win_rate"] <= found["ci_high"] <= 1
    assert found["ci_high"] - found["ci_low"] > 0
    mirrored = figures([{**row, "score": 1 - row["score"]} for row in rows], alpha)
    assert (1 - mirrored["ci_high"], 1 - mirrored["ci_low"]) == pytest.approx((found["ci_low"], found["ci_high"]))
    for bound in (found["ci_low"], found["ci_high"]):
        if 0 < bound < 1:  # on the bound the score is the quantile: Tango 1998, formulas (5) and (7), written anew
            delta = 2 * bound - 1
            a, b = 2 * n, -wins - losses + (2 * n - wins + losses) * delta
            q21 = (math.sqrt(b * b - 4 * a * -losses * delta * (1 - delta)) - b) / (2 * a)
            z = (wins - losses - n * delta) / math.sqrt(n * (2 * q21 + delta * (1 - delta)))
            assert abs(z) == pytest.approx(norm.isf(alpha), rel=1e-4)


def test_what_is_kept_tells_who_said_what(tmp_path: Path):
    rows = judged([pair(1), pair(2, "a", "a")], "Which?", replying("B", "A"))
    write_judgements(rows, tmp_path / "records.parquet")
    kept = pq.read_table(tmp_path / "records.parquet")
    assert kept.schema.equals(SCHEMA)
    assert kept.to_pylist() == [
        {
            **{"doc_id": "1", "doc_digest": "digest 1", "prompt": "Question 1?", "base": "worse", "adapter": "better"},
            **{"base_first": "adapter", "adapter_first": "adapter", "score": 1.0},
        },
        {
            **{"doc_id": "2", "doc_digest": "digest 2", "prompt": "Question 2?", "base": "a", "adapter": "a"},
            **{"base_first": "same", "adapter_first": "same", "score": 0.5},
        },
    ]
