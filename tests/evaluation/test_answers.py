"""A target's metrics against values worked out by hand."""

import math

import pytest

from infra.errors import RequestError
from tasks.evaluation.answers import SCORES
from tasks.evaluation.documents import check_metric, target_task
from tests.tiny import tiny_tokenizer

# 6 words against 7: 5 of 6 words are there ("the" once), 2 of 5 pairs, 1 of 4 triples and, smoothed, half of 1 of 3.
MAT = math.exp(1 - 7 / 6) * (5 / 6 * 2 / 5 * 1 / 4 * 1 / 6) ** 0.25


@pytest.mark.parametrize(
    ("metric", "answer", "wanted", "score"),
    [
        ("exact_match", " Paris\n", "Paris", 1),
        ("exact_match", "paris", "Paris", 0),
        ("f1", "The cat sat.", "a cat sat down", 4 / 5),
        ("f1", "the the cat cat", "cat", 2 / 3),
        ("f1", "dog", "cat", 0),
        ("f1", "", "cat", 0),
        ("f1", "the", "", 1),
        # Lin (2004), section 3.1, with equal weight of precision and recall
        ("rouge_l", "police kill the gunman", "police killed the gunman", 3 / 4),
        ("rouge_l", "the gunman kill police", "police killed the gunman", 2 / 4),
        ("rouge_l", "The police killed the gunman!", "police killed the gunman", 8 / 9),
        ("rouge_l", "сто двадцать один", "сто один", 4 / 5),
        ("rouge_l", "??", "?", 0),
        ("rouge_l", " ?", "?", 1),
        ("bleu", "the cat is on the mat", "there is a cat on the mat", MAT),
        ("bleu", " Paris ", "Paris", 1),
        ("bleu", "Rome", "Paris", 0),
        ("bleu", "", "Paris", 0),
    ],
)
def test_scores_are_those_worked_out_by_hand(metric: str, answer: str, wanted: str, score: float) -> None:
    assert SCORES[metric](answer, wanted) == pytest.approx(score)


@pytest.mark.parametrize("metric", SCORES)
def test_the_task_scores_by_the_metric_that_it_names(metric: str) -> None:
    task = target_task(
        "t", tiny_tokenizer(), [{"prompt": "q", "completion": " a b c d e"}], max_new_tokens=4, metric=metric
    )
    (document,) = task["custom_dataset"]()["test"]
    assert [one["metric"] for one in task["metric_list"]] == [metric]
    scores = [task["process_results"](document, [answer]) for answer in (" a b c d e ", "a b c d x", "z")]
    assert scores[0] == {metric: pytest.approx(1)} and scores[2] == {metric: 0}
    assert (0 < scores[1][metric] < 1) == (metric != "exact_match")


@pytest.mark.parametrize(("row", "own"), [({"chosen": "a", "rejected": "b"}, "acc"), ({"text": "a"}, "nll_per_token")])
def test_a_metric_of_answers_does_not_fit_other_rows(row: dict[str, str], own: str) -> None:
    check_metric(row, "exact_match")
    with pytest.raises(RequestError, match=f"target.metric: 'f1' scores an answer, and .* are scored by {own}"):
        check_metric(row, "f1")
