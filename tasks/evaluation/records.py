"""Per-document records: what was asked, what came back, the score. Enough to recompute every verdict.

One Parquet file a cell, one row a document, in the order asked:

    doc_id          string   document, unique within the task ("subtask:7" in a group)
    doc_digest      string   SHA-256 of the document, as lm-eval hashes it
    prompt_digest   string   SHA-256 of everything the model read: the prompt, and the choices behind it
    prompt          string   the text the model saw first
    target          string   what was wanted
    response        string   the text generated; null for likelihood tasks
    choices         list<string>  what the log-likelihoods are of; null for generated text and whole texts
    loglikelihoods  list<double>  one per choice, natural logarithm; null for generated text
    score           double   the metric below for this document; null for probes
    metric          string   one for the whole file
    cluster         string   documents with the same one belong together; null where they stand alone
    tokens          int64    tokens that the loss is the mean of; null for other metrics
    bytes           int64    UTF-8 bytes of a text that is scored as a whole; null for others

Clusters are what the column that the recipe names says, or the subtask of a group for the name "task". A file with
other columns is from another version of the engine and is refused.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import Fault, RequestError, StageError
from infra.hashing import digest_json
from tasks.evaluation.metrics import CHANCE, LOSS, Metric, metric_of

SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("doc_digest", pa.string()),
        ("prompt_digest", pa.string()),
        ("prompt", pa.string()),
        ("target", pa.string()),
        ("response", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("loglikelihoods", pa.list_(pa.float64())),
        ("score", pa.float64()),
        ("metric", pa.string()),
        ("cluster", pa.string()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
    ]
)
SUBTASK = "task"  # the name of a cluster that is no column: the subtask of a group
Record = dict[str, Any]
Paths = Path | Sequence[Path]
Same = Literal["prompt_digest", "doc_digest"]


def records_of(
    results: Any,
    kind: str,
    count_tokens: Callable[..., int],
    *,
    several: bool = False,
    metric: str | None = None,
    clusters: str | None = None,
) -> tuple[list[Record], Metric]:
    """(records, their metric) of what lm-eval returned for one task or group.

    `several` says that it is a group, of which a part may hold documents of one task only. `count_tokens` says how many
    tokens of the arguments of a request were scored: (text) or (context, continuation).
    """
    records: list[Record] = []
    used: set[Metric] = set()
    for task, samples in sorted(results["samples"].items()):
        chosen = metric_of(task, results, metric)
        used.add(chosen)
        for sample in samples:
            if sample["filter"] != chosen.filter:
                continue
            record = _record(sample, results["configs"][task]["output_type"], count_tokens)
            if any(map(math.isnan, record["loglikelihoods"] or ())):  # the first of choices would win
                raise StageError(
                    f"{task}, document {sample['doc_id']}: a log-likelihood is not a number (NaN); look at the model's "
                    "weights: its training may have diverged."
                )
            record["cluster"] = _cluster(sample["doc"], clusters, task, several) if clusters else None
            record["doc_id"] = f"{task}:{sample['doc_id']}" if several else str(sample["doc_id"])
            record["metric"] = chosen.name
            if chosen.name == LOSS:
                record["score"] = -record["loglikelihoods"][0] / record["tokens"] if record["tokens"] else math.nan
            else:
                record["tokens"] = record["bytes"] = None
                record["score"] = None if kind == "probe" else chosen.score(sample)
            if kind != "probe" and not math.isfinite(record["score"]):
                raise StageError(
                    f"{task}, document {sample['doc_id']}: the metric {chosen.name!r} is {record['score']}, which is "
                    "no number to compare; look at the model's weights, and at the document."
                )
            records.append(record)
    if len(used) > 1:
        names = ", ".join(sorted(f"{one.name} ({one.filter})" for one in used))
        raise RequestError(
            Fault(
                f"the tasks of this group have different metrics: {names}; name one that all of them have as `metric`, "
                "or list them one by one",
                "evaluation.general",
            )
        )
    return records, used.pop()


def _record(sample: dict[str, Any], output_type: str, count_tokens: Callable[..., int]) -> Record:
    """A document's record but for what the metric and the group add."""
    asked = _behind_the_prompt([[part for part in one if isinstance(part, str)] for one in sample["arguments"]])
    answers = [response[0] for response in sample["resps"][: len(asked)]]
    generated, rolling = output_type == "generate_until", output_type == "loglikelihood_rolling"
    choices = None
    if not generated and not rolling:
        choices = [continuation for _, continuation in asked]
        if len(choices) > 1 and len(set(choices)) == 1:  # of Winogrande's kind: what differs stands before
            choices = [context for context, _ in asked]
    return {
        "doc_digest": sample["doc_hash"],
        "prompt_digest": digest_json(asked),
        "prompt": asked[0][0],
        "target": str(sample["target"]),
        "response": answers[0] if generated else None,
        "choices": choices,
        "loglikelihoods": None if generated else [_loglikelihood(answer) for answer in answers],
        "tokens": None if generated or len(asked) > 1 else count_tokens(*asked[0]),
        "bytes": len(asked[0][0].encode()) if rolling else None,
    }


def _behind_the_prompt(asked: list[list[str]]) -> list[list[str]]:
    """The requests but for those of `acc_mutual_info`: every choice once more, behind nothing."""
    half = len(asked) // 2
    if half and asked[half:] == [["", one[-1]] for one in asked[:half]] and asked[0][0]:
        return asked[:half]
    return asked


def _loglikelihood(response: Any) -> float:
    """lm-eval gives (log-likelihood, is greedy) for a choice and a bare number for a rolling one."""
    return float(response[0] if isinstance(response, tuple | list) else response)


def _cluster(document: dict[str, Any], column: str, task: str, several: bool) -> str:
    """The cluster that a document belongs to; passages of two subtasks are two, even where they have one number."""
    if column == SUBTASK:
        return task
    if document.get(column) is None:
        known = ", ".join(sorted(key for key, value in document.items() if value is not None))
        raise RequestError(
            Fault(
                f"{task}: `clusters` is {column!r}, and a document has no such column; it has {known}. {SUBTASK!r} "
                "stands for the subtask of a group",
                "evaluation.general",
            )
        )
    value = document[column]
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return f"{task}:{text}" if several else text


def write_records(records: list[Record], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), path)


def read_records(path: Path) -> list[Record]:
    """StageError for a file that this version of the engine did not write."""
    try:
        found = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise StageError(f"{path} is no whole Parquet file of records: {error}; score the task again.") from error
    if not found.equals(SCHEMA):
        types = [dict(zip(schema.names, schema.types, strict=True)) for schema in (found, SCHEMA)]
        differ = sorted(name for name in types[0].keys() | types[1].keys() if types[0].get(name) != types[1].get(name))
        raise StageError(
            f"{path} holds the records of another version of the engine (different columns: {', '.join(differ)}); "
            "score the task again."
        )
    return pq.read_table(path).to_pylist()


def scores_by_document(paths: Paths, same: Same = "prompt_digest") -> dict[str, float]:
    """{document: score} of a task, or of several of its parts together.

    Keyed by id and content, so that a changed document cannot be paired by accident. Content is what the model was
    asked; the document itself where one of the two answers had examples before it.
    """
    scores = {}
    for key, record in _by_document(paths, same):
        if record["score"] is None or not math.isfinite(record["score"]):
            raise StageError(f"document {record['doc_id']} has no score ({record['score']}); it cannot be compared.")
        scores[key] = record["score"]
    return scores


def clusters_by_document(paths: Paths, same: Same = "prompt_digest") -> dict[str, str] | None:
    """{document: cluster}, keyed as the scores are; None where documents stand alone."""
    clusters = {key: record["cluster"] for key, record in _by_document(paths, same)}
    if all(cluster is None for cluster in clusters.values()):
        return None
    if missing := [key for key, cluster in clusters.items() if cluster is None]:
        raise StageError(f"{len(missing)} of {len(clusters)} documents have no cluster, among them {missing[0]}.")
    return clusters


def chance_of(paths: Paths) -> float | None:
    """The score of somebody who picks a choice at random; None where the metric or the task knows no such score."""
    records = [record for _, record in _by_document(paths, "doc_digest")]
    counts = [len(record["loglikelihoods"] or ()) for record in records]
    if not counts or min(counts) < 2 or records[0]["metric"] not in CHANCE:
        return None
    return sum(1 / count for count in counts) / len(counts)


def _by_document(paths: Paths, same: Same) -> list[tuple[str, Record]]:
    """Every record of the files with its key; StageError where they do not add up to one task."""
    found: dict[str, Record] = {}
    for path in [paths] if isinstance(paths, Path) else paths:
        for record in read_records(path):
            if record["doc_id"] in found:
                raise StageError(f"{path}: document {record['doc_id']} occurs twice; the parts are not of one task.")
            found[record["doc_id"]] = record
    if len(metrics := {record["metric"] for record in found.values()}) > 1:
        raise StageError(f"the parts of this task have different metrics: {', '.join(sorted(metrics))}.")
    return [(f"{record['doc_id']} {record[same]}", record) for record in found.values()]
