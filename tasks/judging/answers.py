"""The answers of base and adapter to the same documents, paired; what does not pair is an error."""

from dataclasses import dataclass
from pathlib import Path

from infra.errors import IntegrityError, RequestError
from tasks.evaluation.records import Record, read_records

_SHOWN = 3  # document ids named in a message


@dataclass(frozen=True)
class Pair:
    """One document: what was asked, and both answers."""

    doc_id: str
    doc_digest: str
    prompt: str  # as the base was asked, chat template and all
    base: str
    adapter: str

    @property
    def same(self) -> bool:
        """Whether there is nothing to compare: surrounding space is no answer, as in exact match."""
        return self.base.strip() == self.adapter.strip()


def pairs_of(base: Path, adapter: Path) -> list[Pair]:
    """Every document of two records.parquet of one target, in the base's order.

    IntegrityError if a document is on one side only or twice on one; RequestError if one has no generated answer.
    """
    sides = {"base": read_records(base), "adapter": read_records(adapter)}
    by_document = {side: {_key(record): record for record in records} for side, records in sides.items()}
    of_base, of_adapter = by_document["base"], by_document["adapter"]
    problems = [
        *_named("without a record of the adapter", [doc for doc in of_base if doc not in of_adapter]),
        *_named("without a record of the base", [doc for doc in of_adapter if doc not in of_base]),
    ]
    for side, records in sides.items():
        if len(records) > len(by_document[side]):
            problems.append(f"{len(records) - len(by_document[side])} that the {side} has twice")
    if problems or not of_base:
        what = "; ".join(problems) or "none at all"
        raise IntegrityError(f"answers to judge: documents {what}. Evaluate base and adapter on the target again.")
    mute = [record["doc_id"] for records in sides.values() for record in records if record["response"] is None]
    if mute:
        raise RequestError(
            f"answers to judge: {len(mute)} records hold no generated text (first: document {mute[0]}); rows of plain "
            "text and preference pairs are scored without answers: a judge is for chats and prompts with a completion."
        )
    return [
        Pair(*document, one["prompt"], base=one["response"], adapter=of_adapter[document]["response"])
        for document, one in of_base.items()
    ]


def _key(record: Record) -> tuple[str, str]:
    return record["doc_id"], record["doc_digest"]


def _named(what: str, documents: list[tuple[str, str]]) -> list[str]:
    if not documents:
        return []
    more = ", ..." if len(documents) > _SHOWN else ""
    return [f"{what}: {len(documents)} (first: {', '.join(doc_id for doc_id, _ in documents[:_SHOWN])}{more})"]
