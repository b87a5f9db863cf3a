"""The win rate: how often an adapter's answer is preferred to the base's, each document judged in both orders.

A judge prefers a place, often the first, whatever stands there: of GPT-4's verdicts one in three changed when the
answers were swapped, of weaker judges' more (Zheng et al. 2023, arXiv 2306.05685). So an answer wins only if it wins in
both orders. A document scores 1 if the adapter's does, 0 if the base's does, and 0.5 otherwise: equals, verdicts that
changed sides, replies without one. A judge that only ever says "A" finds a win rate of 0.5.

The interval: with w wins and l losses in n documents the rate is (1 + (w - l) / n) / 2. (w - l) / n is a difference of
paired proportions, just what Tango's score interval is for (tasks/forgetting/tango.py), with ties in the place of
documents without a flip. It needs no spread in the sample: ten wins in ten documents do not prove a rate of 1, where
Student's interval would have no width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import StageError
from tasks.forgetting import tango
from tasks.judging.answers import Pair
from tasks.judging.question import letter_in, question

Ask = Callable[[Sequence[str]], list[str]]  # from texts for the judge to its replies, in the same order
Verdict = Literal["base", "adapter", "tie", "unreadable", "same"]

UNREADABLE_UP_TO = 0.2  # share of replies; with more, what is left is no sample of the documents any more
WORTH = {"base": 0.0, "adapter": 1.0}  # of a document that one side won in both orders
SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("doc_digest", pa.string()),
        ("prompt", pa.string()),
        ("base", pa.string()),
        ("adapter", pa.string()),
        ("base_first", pa.string()),  # who won with the base's answer as A
        ("adapter_first", pa.string()),  # and with the adapter's; "same" if nobody was asked
        ("score", pa.float64()),
    ]
)
_SHOWN = 120  # characters of a reply in a message


def judged(pairs: Sequence[Pair], criteria: str, ask: Ask) -> list[dict[str, Any]]:
    """One row of SCHEMA for each pair. Answers that are the same are no question.

    StageError if too many of the judge's replies cannot be read.
    """
    open_pairs = [pair for pair in pairs if not pair.same]
    texts = [
        question(criteria, pair.prompt, *answers)
        for pair in open_pairs
        for answers in ((pair.base, pair.adapter), (pair.adapter, pair.base))
    ]
    replies = ask(texts) if texts else []
    letters = [letter_in(reply) for reply in replies]
    unread = [reply for reply, letter in zip(replies, letters, strict=True) if letter is None]
    if len(unread) > UNREADABLE_UP_TO * len(texts):
        raise StageError(
            f"{len(unread)} of {len(texts)} replies of the judge do not begin with A, B or C (at most "
            f"{UNREADABLE_UP_TO:.0%} may), for example {unread[0][:_SHOWN]!r}. Take a judge that answers with one "
            "letter; one that thinks aloud first has no room to finish."
        )
    verdicts = {
        pair: (_winner(letters[2 * place], "base", "adapter"), _winner(letters[2 * place + 1], "adapter", "base"))
        for place, pair in enumerate(open_pairs)
    }
    return [_row(pair, *verdicts.get(pair, ("same", "same"))) for pair in pairs]


def _winner(letter: str | None, first: Verdict, second: Verdict) -> Verdict:
    winners: dict[str | None, Verdict] = {"A": first, "B": second, "C": "tie", None: "unreadable"}
    return winners[letter]


def _row(pair: Pair, base_first: Verdict, adapter_first: Verdict) -> dict[str, Any]:
    return {
        **vars(pair),
        "base_first": base_first,
        "adapter_first": adapter_first,
        "score": WORTH.get(base_first, 0.5) if base_first == adapter_first else 0.5,
    }


def figures(rows: Sequence[dict[str, Any]], alpha: float) -> dict[str, Any]:
    """The facts of judged rows, with the two-sided interval at confidence 1 - 2 `alpha`.

    `ties` are all documents without a winner. Among them `same` were not asked, and of `swayed` each order named
    another side; `unreadable` counts replies, of which a document has two.
    """
    n, scores = len(rows), [row["score"] for row in rows]
    verdicts = [(row["base_first"], row["adapter_first"]) for row in rows]
    wins, losses = scores.count(1.0), scores.count(0.0)
    low, high = tango.interval(lost=wins, gained=losses, n=n, alpha=alpha)  # of (wins - losses) / n
    return {
        "n": n,
        "win_rate": sum(scores) / n,
        "wins": wins,
        "losses": losses,
        "ties": n - wins - losses,
        "same": verdicts.count(("same", "same")),
        "swayed": sum(set(both) == {"base", "adapter"} for both in verdicts),
        "unreadable": sum(both.count("unreadable") for both in verdicts),
        "ci_low": (1 + low) / 2,
        "ci_high": (1 + high) / 2,
    }


def write_judgements(rows: Sequence[dict[str, Any]], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), path)
