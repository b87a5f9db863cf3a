"""Technical prose: the documents of pydoc_perplexity, cut from the language reference that CPython ships for help().

A document is a run of neighbouring paragraphs of one topic. Grammar rules and tables end a run, and a paragraph that
several topics share is used once. The documents are dealt topic by topic, one round after the other, so that the long
topics do not crowd out the short ones. The text belongs to the interpreter: another minor version of Python has other
documents, and its scores do not compare.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

DOCUMENTS = 112
SHORTEST, LONGEST = 250, 450  # characters
PROSE = 0.8  # least fraction of a paragraph's characters that are letters or white space


def is_prose(paragraph: str) -> bool:
    """Whether this is running text or ordinary code, not a heading, a grammar rule or a table."""
    if "::=" in paragraph or "***" in paragraph or "===" in paragraph or "---" in paragraph:
        return False
    return sum(c.isalpha() or c.isspace() for c in paragraph) >= PROSE * len(paragraph)


def runs(topic_text: str) -> Iterator[list[str]]:
    """The maximal runs of neighbouring prose paragraphs."""
    run: list[str] = []
    for paragraph in topic_text.split("\n\n"):
        if is_prose(paragraph):
            run.append(paragraph.strip("\n"))
        else:
            yield run
            run = []
    yield run


def cut(run: list[str]) -> Iterator[list[str]]:
    """Non-overlapping stretches of a run whose joined length lies in the allowed range, from left to right."""
    start = 0
    while start < len(run):
        for end in range(start + 1, len(run) + 1):
            length = len("\n\n".join(run[start:end]))
            if length >= SHORTEST:
                break
        if SHORTEST <= length <= LONGEST:
            yield run[start:end]
            start = end
        else:
            start += 1


def documents() -> list[dict[str, str]]:
    from pydoc_data.topics import topics

    seen: set[str] = set()
    by_topic = []
    for topic in sorted(topics):
        texts = []
        for run in runs(topics[topic]):
            for paragraphs in cut(run):
                if seen.isdisjoint(paragraphs):
                    seen.update(paragraphs)
                    texts.append("\n\n".join(paragraphs))
        by_topic.append([{"topic": topic, "text": text} for text in texts])
    dealt = [document for one_round in zip_longest(*by_topic) for document in one_round if document]
    # lm-eval pads the rolling requests of a batch to its longest and takes them in the order given.
    return sorted(dealt[:DOCUMENTS], key=lambda document: len(document["text"]), reverse=True)


def dataset(**_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(documents())}
