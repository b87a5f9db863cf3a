"""Factual recall: the documents of capitals_choice and capitals_open, and the score of the latter.

Both read data/capitals.csv. The choice task shows four capitals of one region. The open task leaves out every country
that shares a word with its capital (Mexico City, Luxembourg, Guinea-Bissau ...), where repeating the question would
count as knowing the answer. One name is accepted per capital, the same for the base and for its adapters.
"""

import csv
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

CAPITALS = Path(__file__).resolve().parents[3] / "data" / "capitals.csv"
SEED = 0
DISTRACTORS = 3

# Countries that English names with the article.
WITH_ARTICLE = frozenset(
    {
        "Bahamas",
        "Central African Republic",
        "Comoros",
        "DR Congo",
        "Dominican Republic",
        "Gambia",
        "Maldives",
        "Marshall Islands",
        "Netherlands",
        "Philippines",
        "Republic of the Congo",
        "Solomon Islands",
        "United Arab Emirates",
        "United Kingdom",
        "United States",
    }
)


def in_a_sentence(country: str) -> str:
    return f"the {country}" if country in WITH_ARTICLE else country


def words(text: str) -> list[str]:
    """The words of a text for comparison: no accents, case or punctuation; "D.C." is one word, "Saint" is "St."."""
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
    joined = re.sub(r"\b(\w)\.(?=\w\b)", r"\1", re.sub(r"['’‘ʻʼ`]", "", plain))
    return ["st" if word == "saint" else word for word in re.findall(r"\w+", joined)]


def names_capital(answer: str, capital: str) -> bool:
    """Whether the answer contains the capital as whole words, in order and next to each other."""
    return f" {' '.join(words(capital))} " in f" {' '.join(words(answer))} "


def score_answer(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's process_results: `contains` is 1 if the only answer names the capital, else 0."""
    return {"contains": float(names_capital(results[0], doc["capital"]))}


def countries() -> list[dict[str, str]]:
    with CAPITALS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def choice_documents() -> list[dict[str, Any]]:
    rows = countries()
    documents = []
    for row in rows:
        # Seeded by the country, so that a row added to the file changes no other document's order.
        random = Random(f"{SEED}/{row['country']}")
        others = [r["capital"] for r in rows if r["region"] == row["region"] and r["capital"] != row["capital"]]
        choices = [row["capital"], *random.sample(others, DISTRACTORS)]
        random.shuffle(choices)
        documents.append(
            {
                "country": row["country"],
                "name": in_a_sentence(row["country"]),
                "region": row["region"],
                "choices": choices,
                "answer": choices.index(row["capital"]),
            }
        )
    return documents


def open_documents() -> list[dict[str, Any]]:
    return [
        {**row, "name": in_a_sentence(row["country"])}
        for row in countries()
        if not set(words(row["country"])) & set(words(row["capital"]))
    ]


def choice_dataset(**_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(choice_documents())}


def open_dataset(**_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(open_documents())}
