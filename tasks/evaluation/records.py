"""Per-document records: what was asked, what came back, the score. Enough to recompute every verdict.

One Parquet file a cell, one row a document, in the order asked:

    doc_id          string   document, unique within the task ("subtask:7" in a group)
    doc_digest      string   SHA-256 of the document, as lm-eval hashes it
    prompt_digest   string   SHA-256 of the text the model saw first
    prompt          string   that text
    target          string   what was wanted
    response        string   the text generated; null for likelihood tasks
    loglikelihoods  list<double>  one per choice, natural logarithm; null for generated text
    score           double   the metric below for this document; null for probes
    metric          string
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import StageError

SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("doc_digest", pa.string()),
        ("prompt_digest", pa.string()),
        ("prompt", pa.string()),
        ("target", pa.string()),
        ("response", pa.string()),
        ("loglikelihoods", pa.list_(pa.float64())),
        ("score", pa.float64()),
        ("metric", pa.string()),
    ]
)
Record = dict[str, Any]


def records_of(results: Any, kind: str, encode: Callable[[str], list[int]]) -> tuple[list[Record], str, bool]:
    """(records, metric, higher is better) of what lm-eval returned for one task or group.

    The metric is the first one that the task itself lists; perplexity tasks are kept as the mean negative
    log-likelihood per token (nats) of each document, which is what is compared.
    """
    records: list[Record] = []
    metrics: set[tuple[str, bool]] = set()
    several = len(results["samples"]) > 1
    for task, samples in sorted(results["samples"].items()):
        config = results["configs"][task]
        rolling = config["output_type"] == "loglikelihood_rolling"
        generated = config["output_type"] == "generate_until"
        metric, higher = ("nll_per_token", False) if rolling else _first_metric(task, config)
        metrics.add((metric, higher))
        first_filter = samples[0]["filter"] if samples else None
        for sample in samples:
            if sample["filter"] != first_filter:
                continue
            prompt = sample["arguments"][0][0]
            responses = [response[0] for response in sample["resps"]]
            likelihoods = None if generated else [_loglikelihood(response) for response in responses]
            score = -likelihoods[0] / len(encode(prompt)) if rolling and likelihoods else sample.get(metric)
            if kind != "probe" and (score is None or not math.isfinite(float(score))):
                raise StageError(f"{task}, document {sample['doc_id']}: the metric {metric!r} is {score}.")
            records.append(
                {
                    "doc_id": f"{task}:{sample['doc_id']}" if several else str(sample["doc_id"]),
                    "doc_digest": sample["doc_hash"],
                    "prompt_digest": sample["prompt_hash"],
                    "prompt": prompt,
                    "target": str(sample["target"]),
                    "response": responses[0] if generated else None,
                    "loglikelihoods": likelihoods,
                    "score": None if kind == "probe" else float(score),
                    "metric": metric,
                }
            )
    if len(metrics) > 1:
        raise StageError(f"the tasks of this group have different metrics, {sorted(metrics)}: list them one by one.")
    metric, higher = metrics.pop() if metrics else ("", True)
    return records, metric, higher


def _loglikelihood(response: Any) -> float:
    """lm-eval gives (log-likelihood, is greedy) for a choice and a bare number for a rolling one."""
    return float(response[0] if isinstance(response, tuple | list) else response)


def _first_metric(task: str, config: dict[str, Any]) -> tuple[str, bool]:
    listed = config.get("metric_list") or [{"metric": "acc", "higher_is_better": True}]
    first = listed[0]
    if not isinstance(first["metric"], str):
        raise StageError(f"{task}: its first metric has no name.")
    return first["metric"], bool(first.get("higher_is_better", True))


def write_records(records: list[Record], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), path)


def read_records(path: Path) -> list[Record]:
    return pq.read_table(path, schema=SCHEMA).to_pylist()


def scores_by_document(path: Path, same: Literal["prompt_digest", "doc_digest"] = "prompt_digest") -> dict[str, float]:
    """{document: score}, keyed by id and content, so that a changed document cannot be paired by accident.

    Content is what the model was asked; the document itself where one of the two answers had examples before it.
    """
    return {
        f"{record['doc_id']} {record[same]}": math.nan if record["score"] is None else record["score"]
        for record in read_records(path)
    }
