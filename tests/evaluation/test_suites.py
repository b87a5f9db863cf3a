"""The general tasks that ship with the project: their documents, their scores, and that lm-eval runs them offline."""

import hashlib
import json
import math
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.evaluation.suites import capitals, minimal_pairs, pydoc_text

PROJECT = Path(__file__).resolve().parents[2]
SUITES = PROJECT / "tasks" / "evaluation" / "suites"
COUNTS = {"capitals_choice": 194, "capitals_open": 180, "minimal_pairs": 448, "pydoc_perplexity": 112}

# The documents that each version of a task stands for. Other documents need another version in the YAML, because
# stored scores of the old ones do not compare. pydoc_perplexity is missing: its text belongs to the interpreter.
PINNED = {
    "capitals_choice": (1.0, "3826677fc9b3382b"),
    "capitals_open": (1.0, "aff712728f62a74d"),
    "minimal_pairs": (1.0, "2aaf07c8d0c8ba3b"),
}


def documents() -> dict[str, list[dict[str, Any]]]:
    return {
        "capitals_choice": capitals.choice_documents(),
        "capitals_open": capitals.open_documents(),
        "minimal_pairs": minimal_pairs.documents(),
        "pydoc_perplexity": pydoc_text.documents(),
    }


def digests() -> dict[str, str]:
    return {
        task: hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
        for task, found in documents().items()
    }


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_makes_the_same_documents(hash_seed: str) -> None:
    code = "import json; from tests.evaluation.test_suites import digests; print(json.dumps(digests()))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout) == digests()


@pytest.mark.parametrize("task", PINNED)
def test_changed_documents_need_a_new_version(task: str) -> None:
    version = yaml.load((SUITES / f"{task}.yaml").read_text(), Loader=YamlWithFunctions)["metadata"]["version"]
    assert (version, digests()[task]) == PINNED[task]


class YamlWithFunctions(yaml.SafeLoader):
    """Reads lm-eval's `!function` as the string behind it."""


YamlWithFunctions.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.mark.parametrize("task", COUNTS)
def test_documents_are_distinct(task: str) -> None:
    found = [json.dumps(document, sort_keys=True) for document in documents()[task]]
    assert len(found) == COUNTS[task]
    assert len(set(found)) == len(found)


def test_choices_are_four_capitals_of_one_region() -> None:
    regions = {row["capital"]: row["region"] for row in capitals.countries()}
    answers = {row["country"]: row["capital"] for row in capitals.countries()}
    for document in capitals.choice_documents():
        assert len(set(document["choices"])) == 4
        assert document["choices"][document["answer"]] == answers[document["country"]]
        assert {regions[choice] for choice in document["choices"]} == {document["region"]}
    places = Counter(document["answer"] for document in capitals.choice_documents())
    assert min(places.values()) > 194 / 4 / 2


def test_open_questions_cannot_be_answered_by_an_echo() -> None:
    asked = {document["country"]: document for document in capitals.open_documents()}
    assert not {"Mexico", "Luxembourg", "Singapore", "Guinea-Bissau", "San Marino", "El Salvador"} & asked.keys()
    assert asked["United Kingdom"] | {"region": ""} == {
        "country": "United Kingdom",
        "name": "the United Kingdom",
        "capital": "London",
        "region": "",
    }
    for document in asked.values():
        assert not capitals.names_capital(f"What is the capital city of {document['name']}?", document["capital"])


def test_every_country_with_an_article_is_in_the_data() -> None:
    assert {row["country"] for row in capitals.countries()} >= capitals.WITH_ARTICLE


@pytest.mark.parametrize(
    ("answer", "capital", "expected"),
    [
        ("London", "London", True),
        ("The capital is LONDON.", "London", True),
        ("It's London, of course", "London", True),
        ("**London**", "London", True),
        ("Londonderry", "London", False),
        ("Lon don", "London", False),
        ("", "London", False),
        ("B", "London", False),
        ("Sao Tome", "São Tomé", True),
        ("São Tomé", "São Tomé", True),
        ("SA\u0303O TOME\u0301", "São Tomé", True),
        ("Chisinau!", "Chișinău", True),
        ("Washington, D.C.", "Washington D.C.", True),
        ("Washington DC is the capital", "Washington D.C.", True),
        ("Washington", "Washington D.C.", False),
        ("Saint George's.", "St. George's", True),
        ("St Georges", "St. George's", True),
        ("N’Djamena", "N'Djamena", True),
        ("Ndjamena", "N'Djamena", True),
        ("Port au Prince", "Port-au-Prince", True),
        ("Port Louis", "Port-au-Prince", False),
        ("Delhi", "New Delhi", False),
        ("New\nDelhi", "New Delhi", True),
        ("Delhi, New", "New Delhi", False),
        ("Paris.It is", "Paris", True),
        ("Romero", "Rome", False),
    ],
)
def test_answer_names_the_capital(answer: str, capital: str, expected: bool) -> None:
    assert capitals.score_answer({"capital": capital}, [answer]) == {"contains": float(expected)}


def test_minimal_pairs_differ_in_one_or_two_words() -> None:
    sentences = []
    for document in minimal_pairs.documents():
        first, second = (sentence.split() for sentence in document["sentences"])
        # A pair of "that the farmer fixed the car" and "what the farmer fixed the car" has the same length as well.
        assert len(first) == len(second) <= 12
        assert 1 <= sum(a != b for a, b in zip(first, second, strict=True)) <= 2
        sentences += document["sentences"]
    assert len(set(sentences)) == len(sentences)


def test_minimal_pairs_are_balanced() -> None:
    found = minimal_pairs.documents()
    phenomena = Counter(document["phenomenon"] for document in found)
    assert len(phenomena) == 14
    assert set(phenomena.values()) == {minimal_pairs.PAIRS_PER_PHENOMENON}
    assert {document["phenomenon"] for document in found[:14]} == phenomena.keys()
    assert 0.45 < sum(document["grammatical"] for document in found) / len(found) < 0.55


def test_pydoc_documents_are_prose_and_do_not_overlap() -> None:
    found = pydoc_text.documents()
    assert all(pydoc_text.SHORTEST <= len(document["text"]) <= pydoc_text.LONGEST for document in found)
    assert len({document["topic"] for document in found}) >= 40
    assert max(Counter(document["topic"] for document in found).values()) <= 5
    paragraphs = [paragraph for document in found for paragraph in document["text"].split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert not [paragraph for paragraph in paragraphs if "::=" in paragraph]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory, and no way to any host."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a general task went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(task: str) -> Any:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(SUITES), include_defaults=False)
    return manager.load([task])["tasks"][task]


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("capitals_choice", ("The capital of Afghanistan is", " Tokyo")),
        ("capitals_open", ("What is the capital of Afghanistan?",)),
        ("minimal_pairs", ("", "The young teacher walks to work every day.")),
        ("pydoc_perplexity", ()),
    ],
)
def test_lm_eval_builds_the_requests_offline(task: str, arguments: tuple[str, ...], offline: Path) -> None:
    loaded = load(task)
    loaded.build_all_requests()
    assert len(loaded.eval_docs) == COUNTS[task]
    assert loaded.instances[0].args[: len(arguments)] == arguments
    assert list(offline.iterdir()) == []


def test_the_place_of_the_right_sentence_does_not_matter(offline: Path) -> None:
    loaded = load("minimal_pairs")
    for document in loaded.eval_docs:
        swapped = {**document, "sentences": document["sentences"][::-1], "grammatical": 1 - document["grammatical"]}
        scores = [(-20.5, False), (-21.0, False)]
        assert loaded.process_results(document, scores) == loaded.process_results(swapped, scores[::-1])


@pytest.mark.parametrize("knows", [True, False])
def test_lm_eval_scores_what_a_model_says(knows: bool, offline: Path) -> None:
    """A stand-in model that knows every answer, or none, gets the highest score, or the lowest."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    right = {f"The capital of {d['name']} is {d['choices'][d['answer']]}" for d in capitals.choice_documents()}
    right |= {d["sentences"][d["grammatical"]] for d in minimal_pairs.documents()}
    capital = {f"What is the capital of {d['name']}?": d["capital"] for d in capitals.open_documents()}

    class Known(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [(-1.0 if ("".join(r.args) in right) == knows else -2.0, False) for r in requests]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return [-math.log(2) * len(r.args[0].encode()) for r in requests]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [f"It is {capital[r.args[0]] if knows else 'Atlantis'}." for r in requests]

    manager = TaskManager(include_path=str(SUITES), include_defaults=False)
    results = simple_evaluate(model=Known(), tasks=list(COUNTS), task_manager=manager, bootstrap_iters=0)
    assert results is not None
    assert results["results"]["capitals_choice"]["acc,none"] == knows
    assert results["results"]["capitals_open"]["contains,none"] == knows
    assert results["results"]["minimal_pairs"]["acc,none"] == knows
    assert results["results"]["pydoc_perplexity"]["bits_per_byte,none"] == pytest.approx(1)
    assert {task: len(samples) for task, samples in results["samples"].items()} == COUNTS
