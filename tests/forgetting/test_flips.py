"""The documents on which two sides part ways: which they are, how far they moved, in which order they come."""

import math
from pathlib import Path
from typing import Any

import pytest

from infra.errors import IntegrityError
from tasks.forgetting.flips import MOST, flips_of, read_flips, write_flips


def record(doc_id: str, score: float, **more: Any) -> dict[str, Any]:
    return {
        **{"doc_id": doc_id, "doc_digest": f"digest of {doc_id}", "prompt": f"{doc_id}?", "target": "1"},
        **{"response": None, "choices": None, "loglikelihoods": None, "score": score, "metric": "exact_match"},
        **more,
    }


def choice(doc_id: str, score: float, likelihoods: list[float], **more: Any) -> dict[str, Any]:
    return record(doc_id, score, loglikelihoods=likelihoods, **{"metric": "acc", "choices": [" a", " bb"], **more})


def logs(*probabilities: float) -> list[float]:
    """Log-likelihoods of choices: what is common to them leaves the probabilities as they are."""
    return [math.log(one) - 40 for one in probabilities]


def test_choices_are_ranked_by_how_much_probability_moved() -> None:
    base = [
        choice("same", 1, logs(0.1, 0.9)),
        choice("hardly", 1, logs(0.45, 0.55)),
        choice("far", 1, logs(0.05, 0.95)),
        choice("won", 0, logs(0.7, 0.3)),
    ]
    adapter = [
        choice("won", 1, logs(0.2, 0.8)),
        choice("same", 1, logs(0.4, 0.6)),
        choice("far", 0, logs(0.9, 0.1)),
        choice("hardly", 0, logs(0.6, 0.4)),
    ]
    found = flips_of(base, adapter, higher_is_better=True)
    assert [(one["doc_id"], one["kind"]) for one in found] == [("far", "lost"), ("won", "gained"), ("hardly", "lost")]
    assert [one["moved"] for one in found] == pytest.approx([0.1 - 0.95, 0.8 - 0.3, 0.4 - 0.55])
    assert found[0]["base"] == {"text": "bb", "choice": 1, "score": 1}
    assert found[0]["adapter"] == {"text": "a", "choice": 0, "score": 0}
    assert found[0]["prompt"] == "far?" and found[0]["target"] == "1" and found[0]["right_choice"] == 1


def test_the_right_choice_is_not_read_from_the_target_where_the_target_is_its_text() -> None:
    base, adapter = choice("d", 1, logs(0.8, 0.2), target="1"), choice("d", 0, logs(0.3, 0.7), target="1")
    (one,) = flips_of([base], [adapter], higher_is_better=True)
    assert one["right_choice"] == 0 and one["moved"] == pytest.approx(-0.5)


def test_a_choice_by_normalised_likelihood_is_the_metrics_own() -> None:
    """ "bb" is the less likely one, and the likelier one per character."""
    base, adapter = (choice("d", right, [-3.0, second], metric="acc_norm") for right, second in ((1, -4.0), (0, -9.0)))
    (one,) = flips_of([base], [adapter], higher_is_better=True)
    assert one["right_choice"] == 1 and one["base"]["choice"] == 1 and one["adapter"]["choice"] == 0
    unknown = [{**side, "choices": None, "metric": "acc_norm", "target": "x"} for side in (base, adapter)]
    (one,) = flips_of(unknown[:1], unknown[1:], higher_is_better=True)
    assert one["right_choice"] is None and one["moved"] == -1.0 and one["adapter"]["text"] is None


def test_answers_in_words_move_by_one() -> None:
    base = [record("a", 1, response="Paris"), record("b", 0, response="no"), record("c", 1, response="x")]
    adapter = [record("a", 0, response="Blue."), record("b", 1, response="yes"), record("c", 1, response="y")]
    found = flips_of(base, adapter, higher_is_better=True)
    assert [(one["doc_id"], one["kind"], one["moved"]) for one in found] == [("a", "lost", -1.0), ("b", "gained", 1.0)]
    assert found[0]["base"]["text"] == "Paris" and found[0]["adapter"]["text"] == "Blue."


@pytest.mark.parametrize("higher", [True, False])
def test_of_graded_scores_the_ones_that_moved_most_are_kept(higher: bool) -> None:
    base = [record(str(i), 2.0, metric="nll_per_token", loglikelihoods=[-9.0]) for i in range(40)]
    adapter = [{**one, "score": 2.0 + (-1) ** i * i / 100} for i, one in enumerate(base)]
    found = flips_of(base, adapter, higher_is_better=higher)
    assert [one["doc_id"] for one in found] == [str(i) for i in range(39, 39 - MOST, -1)]
    assert found[0]["moved"] == pytest.approx(-0.39) and found[1]["moved"] == pytest.approx(0.38)
    assert [one["kind"] for one in found[:2]] == (["worse", "better"] if higher else ["better", "worse"])
    assert found[0]["base"] == {"text": None, "choice": None, "score": 2.0}


def test_examples_before_the_question_do_not_part_a_document() -> None:
    base, adapter = record("a", 0, response="x"), record("a", 1, response="y", prompt="an example; a?")
    (one,) = flips_of([base], [adapter], higher_is_better=True)
    assert one["kind"] == "gained" and one["prompt"] == "an example; a?"


def test_a_document_without_its_counterpart_is_an_error() -> None:
    with pytest.raises(IntegrityError, match="1 documents have a record on one side only \\(first: 'b'\\)"):
        flips_of([record("a", 1), record("b", 1)], [record("a", 1)], higher_is_better=True)
    with pytest.raises(IntegrityError, match="2 documents"):
        flips_of([record("a", 1)], [record("a", 1, doc_digest="another")], higher_is_better=True)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    base, adapter = record("a", 1, response="fine"), record("a", 0, response='"\u2028 line\n\x1b[31m é')
    found = flips_of([base], [adapter], higher_is_better=True)
    write_flips(tmp_path / "flips" / "task.jsonl", found)
    assert read_flips(tmp_path / "flips" / "task.jsonl") == found
    write_flips(tmp_path / "flips" / "none.jsonl", [])
    assert read_flips(tmp_path / "flips" / "none.jsonl") == []
