"""Records and arguments that `compare` refuses, each with its whole message."""

import pytest

from infra.errors import IntegrityError, RequestError
from tasks.forgetting.verdict import compare
from tests.forgetting.records import flips


def without(records, *ids):
    return {k: v for k, v in records.items() if k not in ids}


FIVE = {f"d{i}": 0.5 for i in range(5)}


@pytest.mark.parametrize(
    ("base", "adapter", "message"),
    [
        (
            FIVE,
            without(FIVE, "d1", "d3"),
            "task arc: of 5 documents, 2 without a record of the adapter (first: 'd1', 'd3'). "
            "Evaluate base and adapter on it again",
        ),
        (
            without(FIVE, "d0"),
            without(FIVE, "d1") | {"d2": float("nan")},
            "task arc: of 5 documents, 1 without a record of the adapter (first: 'd1'); "
            "1 without a record of the base (first: 'd0'); 1 without a finite score of the adapter (first: 'd2'). "
            "Evaluate base and adapter on it again",
        ),
        (
            dict.fromkeys(FIVE, float("inf")),
            FIVE | {"d4": None},
            "task arc: of 5 documents, 5 without a finite score of the base (first: 'd0', 'd1', 'd2', ...); "
            "1 without a finite score of the adapter (first: 'd4'). Evaluate base and adapter on it again",
        ),
        (
            FIVE,
            {},
            "task arc: of 5 documents, 5 without a record of the adapter (first: 'd0', 'd1', 'd2', ...). "
            "Evaluate base and adapter on it again",
        ),
    ],
)
def test_records_that_do_not_pair_are_refused(base, adapter, message):
    with pytest.raises(IntegrityError) as caught:
        compare(task="arc", role="general", metric="acc", base=base, adapter=adapter, margin=0.05)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": {}, "adapter": {}}, "task arc has no documents: check its dataset, its split and its limit"),
        ({"margin": -0.1}, "task arc: margin -0.1 must be a finite number, 0 or more"),
        ({"margin": float("nan")}, "task arc: margin nan must be a finite number, 0 or more"),
        (
            {"margin": 5},
            "task arc: margin 5 must be below 1: with right/wrong scores it is a share of documents",
        ),
        (
            {"alpha": 0.5, "margin": -1},
            "task arc: margin -1 must be a finite number, 0 or more\n"
            "task arc: alpha 0.5 must lie between 0 and 0.5, for instance 0.05",
        ),
        ({"chance": 25}, "task arc: chance 25 must be the score of guessing: 0 or more, below 1"),
        (
            {"metric": "word_nll_per_token"},
            "task arc: word_nll_per_token is a loss: compare it with higher_is_better=False",
        ),
    ],
)
def test_arguments_that_make_no_test_are_refused(arguments, message):
    good = {"task": "arc", "role": "general", "metric": "acc", "margin": 0.05, **flips(1, 1, 10)}
    with pytest.raises(RequestError) as caught:
        compare(**good | arguments)
    assert str(caught.value) == message


def test_one_graded_document_is_refused():
    with pytest.raises(RequestError, match="at least 2"):
        compare(task="t", role="general", metric="rouge", base={"a": 0.5}, adapter={"a": 0.4}, margin=0.05)


@pytest.mark.parametrize("missing", [None, "", 7, float("nan")])
def test_a_document_without_a_group_is_refused(missing):
    clusters = {"d0": "a", "d1": "b", "d2": missing, "d3": "a", "nobody asked": "c"}
    with pytest.raises(IntegrityError) as caught:
        compare(task="arc", role="general", metric="acc", base=FIVE, adapter=FIVE, margin=0.05, clusters=clusters)
    assert str(caught.value) == (
        "task arc: of 5 documents, 2 without a group (first: 'd2', 'd4'). Name a column that all of them have"
    )
