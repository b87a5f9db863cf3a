"""Scoring: each side answers its cells in turn, and each cell leaves one record per document.

A *cell* is one task answered by one side: the base, an adapter on it, a fully fine-tuned model in its place, the base
behind examples, or a damaged base. Cells are scored one at a time, so that the batches of a task never depend on which
other tasks stand beside it, and are the same for base and adapter. lm-eval's own request cache stays off: its key
leaves the model out.

A finished cell is not scored again, so a process that is stopped and started on the same folders goes on where it was.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate

from infra import stage_process
from infra.errors import Fault, RequestError, StageError, TransientError, TunefleetError
from tasks.evaluation.bench import Bench
from tasks.evaluation.documents import NO_SHOTS, probe_task, target_task
from tasks.evaluation.finishing import finish, finished
from tasks.evaluation.lm_tasks import load, running_code, same_random
from tasks.evaluation.metrics import LOSS
from tasks.evaluation.parts import ask_only, slice_of
from tasks.evaluation.records import Record, records_of, write_records
from tasks.evaluation.scoring import BASE
from tasks.evaluation.shared import SharedLM, as_trained
from tasks.ingestion.dataset import read_jsonl

LARGEST_EXPONENT = 700  # nats per token; e to a larger power is no float


def score_cell(lm: SharedLM, cell: dict[str, Any], output: Path) -> dict[str, Any]:
    """Score one task and leave records.parquet and results.json in `output`; return the task's figures."""
    if cell["kind"] != "general":
        lm = as_trained(lm)
    started = time.monotonic()
    permitted = bool(cell.get("confirm_run_unsafe_code"))
    with running_code(permitted):
        loaded, template, limit = _load(cell, lm)
        available = {name: len(task.eval_docs) for name, task in loaded["tasks"].items()}
        if part := cell.get("part"):
            _cut(loaded["tasks"], available, limit, tuple(part), cell["name"])
        lm.begin_cell(drafts_of(loaded["tasks"], limit), with_kl=not cell.get("self_test"))
        # `evaluate`, not `simple_evaluate`: that one also asks git and pip about the machine, a second each time.
        results = evaluate(
            lm=lm,
            task_dict=loaded,
            limit=limit,
            apply_chat_template=template,
            fewshot_as_multiturn=template,
            bootstrap_iters=0,
            log_samples=True,
            confirm_run_unsafe_code=permitted,
        )
    if results is None:
        raise StageError(f"lm-eval gave no results for {cell['name']}.")
    chosen = {key: cell.get(key) if cell["kind"] == "general" else None for key in ("metric", "clusters")}
    records, metric = records_of(results, cell["kind"], tokens_of(lm), several=len(available) > 1, **chosen)
    kept = {key: results[key] for key in ("results", "versions", "n-shot", "n-samples") if key in results}
    (output / "results.json").write_text(json.dumps(kept, indent=1, sort_keys=True, default=str))
    write_records(records, output / "records.parquet")
    return {
        "task": cell["name"],
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        "n": len(records),
        "generated": any(task.config.output_type == "generate_until" for task in loaded["tasks"].values()),
        "available": sum(available.values()),  # documents in the whole task
        "score": None if cell["kind"] == "probe" else sum(record["score"] for record in records) / len(records),
        "chat_template": template,
        **(loss_facts(records) if metric.name == LOSS else {}),
        **lm.cell_facts(),
        "scored_in_seconds": round(time.monotonic() - started, 3),
    }


def loss_facts(records: list[Record]) -> dict[str, float]:
    """Perplexity per token and, of whole texts, bits per byte; both over all documents together, as lm-eval's are."""
    nats = -sum(record["loglikelihoods"][0] for record in records)
    mean = nats / sum(record["tokens"] for record in records)
    facts = {"perplexity": math.exp(mean)} if mean < LARGEST_EXPONENT else {}
    if all(record["bytes"] for record in records):
        facts["bits_per_byte"] = nats / sum(record["bytes"] for record in records) / math.log(2)
    return facts


def tokens_of(lm: SharedLM) -> Callable[..., int]:
    """How many tokens a request is scored on: all of a text, or those of the continuation behind a context."""
    return lambda *texts: len(lm.tok_encode(*texts) if len(texts) == 1 else lm._encode_pair(*texts)[1])


def drafts_of(tasks: dict[str, Any], limit: int | None) -> dict[tuple[str, int], str]:
    """{(task, number of the document): reference answer} of all that is generated: the model only has to verify it.

    Whether there is a draft changes no score: not what a task draws at random, and not what it fails at.
    """
    with same_random():
        return {
            (task.config.task, number): answer
            for task in tasks.values()
            if task.config.output_type == "generate_until"
            for number, document in task.doc_iterator(limit=limit)
            if (answer := _reference(task, document))
        }


def _reference(task: Any, document: Any) -> str | None:
    """The wanted answer, the first of several; None where a task wants no text (IFEval: rules) or cannot tell."""
    try:
        target = task.doc_to_target(document)
        if isinstance(target, int) and task.config.doc_to_choice is not None:
            target = task.doc_to_choice(document)[target]
    except TunefleetError:  # a SIGTERM that came meanwhile
        raise
    except Exception:  # noqa: BLE001 (a task's own code can raise anything; where it matters, lm-eval meets it again)
        return None
    if isinstance(target, list | tuple) and target:
        target = target[0]
    return target if isinstance(target, str) else None


def _cut(tasks: dict[str, Any], available: dict[str, int], limit: int | None, part: tuple[int, int], name: str) -> None:
    """Leave of every task the documents of this part, and of a group the tasks that have any in it."""
    for task, count in available.items():
        if kept := slice_of(min(count, limit or count), part, task):
            ask_only(tasks[task], kept)
        else:
            del tasks[task]
    if not tasks:
        raise RequestError(
            Fault(f"part {part[0]} of {part[1]} of {name!r} has no documents; lower gate.looks", "gate.looks")
        )


def _load(cell: dict[str, Any], lm: SharedLM) -> tuple[Any, bool, int | None]:
    """The cell's task or group, ready to evaluate; whether to apply the chat template; how many documents to ask."""
    name = cell["name"]
    if cell["kind"] == "general":
        loaded, template = load(
            name,
            cell.get("include_path"),
            num_fewshot=cell.get("num_fewshot"),
            apply_chat_template=cell.get("apply_chat_template"),
            has_template=lm.tokenizer.chat_template is not None,
            permitted=bool(cell.get("confirm_run_unsafe_code")),
        )
        return loaded, template, cell.get("limit")
    if cell["kind"] == "target":
        rows = read_jsonl(Path(cell["data"]) / f"{cell['split']}.jsonl")[: cell["limit"]]
        prompting = json.loads((Path(cell["prompt"]) / "prompt.json").read_text()) if cell.get("prompt") else NO_SHOTS
        spec = target_task(
            name,
            lm.tokenizer,
            rows,
            max_new_tokens=cell["max_new_tokens"],
            metric=cell.get("metric") or "exact_match",
            prompting=prompting,
            room=lm.max_length,
        )
    else:
        spec = probe_task(name, lm.tokenizer, cell["questions"], max_new_tokens=cell["max_new_tokens"])
    return (*load(spec, None), None)


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Score the cells of every side in `job` ("dtype", if given, is torch's name for the base's precision).

    A side that fails is reported and does not stop the others, unless all would fail alike: the request is wrong, the
    memory is full, the process was asked to stop, or it is the base.

    A side is the base, or says what stands on or in place of it: {"adapter": folder}, {"model": folder},
    {"noised": {"seed", "strength"}} for the base with noise on its weights, {"again": true} for the base in batches of
    another kind.
    """
    dtype = {"dtype": getattr(torch, job["dtype"])} if job.get("dtype") else {}
    bench = Bench(Path(job["base"]), job["quantization"], job["device"], job["batch_size"], **dtype)
    cells = sum(len(side["cells"]) for side in job["sides"])
    facts: dict[str, Any] = {}
    failed: dict[str, str] = {}

    def answer(side: dict[str, Any]) -> None:  # a function, so that nothing keeps a side's model beyond its turn
        missing = []
        for cell in side["cells"]:
            if found := finished(Path(cell["output"]), cell["key"]):
                tell(side, cell, found)
            else:
                missing.append(cell)
        if missing:
            with _answering(bench, side) as lm:
                for cell in missing:
                    tell(side, cell, finish(Path(cell["output"]), cell["key"], partial(score_cell, lm, cell)))

    def tell(side: dict[str, Any], cell: dict[str, Any], found: dict[str, Any]) -> None:
        facts[cell["key"]] = found
        stage_process.progress(**{**found, "side": side["name"], "done": len(facts), "of": cells})

    for side in sorted(job["sides"], key=lambda side: bool(side.get("model"))):  # the base is put away only once
        try:
            answer(side)
        except Exception as error:  # whatever a library makes of an adapter, or a task's own code of its answers
            told = isinstance(error, StageError)
            if _of_all_sides(error) or (side["name"] == BASE and not told):
                raise
            failed[side["name"]] = str(error) if told else f"{type(error).__name__}: {error}"
    return {"facts": facts, "failed": failed}


def _of_all_sides(error: Exception) -> bool:
    full = stage_process.exit_code(error) == stage_process.EXIT_OUT_OF_MEMORY
    return full or isinstance(error, TransientError | RequestError)


def _answering(bench: Bench, side: dict[str, Any]) -> AbstractContextManager[SharedLM]:
    if side.get("model"):
        return bench.answering_as_model(Path(side["model"]))
    if noise := side.get("noised"):
        return bench.answering_as_noised(noise["seed"], noise["strength"])
    if side.get("again"):
        return bench.answering_again()
    return bench.answering_as(Path(side["adapter"]) if side.get("adapter") else None)
