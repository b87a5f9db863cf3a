"""Scoring: each side answers its cells in turn, and each cell leaves one record per document.

A *cell* is one task answered by one side: the base, an adapter on it, a fully fine-tuned model in its place, or the
base behind examples. Cells are scored one at a time, so that the batches of a task never depend on which other tasks
stand beside it, and are the same for base and adapter. lm-eval's own request cache stays off: its key leaves the
model out.
"""

import json
import time
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from infra import stage_process
from infra.errors import StageError
from tasks.evaluation.bench import Bench, as_trained
from tasks.evaluation.catalogue import task_manager
from tasks.evaluation.documents import NO_SHOTS, probe_task, target_task
from tasks.evaluation.records import records_of, write_records
from tasks.ingestion.dataset import read_jsonl

SEED = 1234  # of few-shot draws; generation is greedy


def score_cell(lm: HFLM, cell: dict[str, Any], output: Path) -> dict[str, Any]:
    """Score one task and leave records.parquet and results.json in `output`; return the task's figures."""
    if cell["kind"] != "general":
        lm = as_trained(lm)
    loaded, template = _load(cell, lm)
    started = time.monotonic()
    # lm-eval's `evaluate`, not `simple_evaluate`: that one also asks git and pip about the machine, a second each time.
    results = evaluate(
        lm=lm,
        task_dict=loaded,
        limit=cell.get("limit") if cell["kind"] == "general" else None,
        apply_chat_template=template,
        fewshot_as_multiturn=template,
        bootstrap_iters=0,
        log_samples=True,
    )
    if results is None:
        raise StageError(f"lm-eval gave no results for {cell['name']}.")
    records, metric, higher_is_better = records_of(results, cell["kind"], lm.tok_encode)
    if not records:
        raise StageError(f"task {cell['name']} has no documents.")
    write_records(records, output / "records.parquet")
    kept = {key: results[key] for key in ("results", "versions", "n-shot", "n-samples") if key in results}
    (output / "results.json").write_text(json.dumps(kept, indent=1, sort_keys=True, default=str))
    scores = [record["score"] for record in records if record["score"] is not None]
    return {
        "task": cell["name"],
        "metric": metric,
        "higher_is_better": higher_is_better,
        "n": len(records),
        "score": sum(scores) / len(scores) if scores else None,
        "chat_template": template,
        "scored_in_seconds": round(time.monotonic() - started, 3),
    }


def _load(cell: dict[str, Any], lm: HFLM) -> tuple[Any, bool]:
    """The cell's task or group as lm-eval loads it, ready to evaluate; and whether to apply the chat template."""
    name = cell["name"]
    template = False
    if cell["kind"] == "general":
        spec: Any = name
        template = cell["apply_chat_template"]
    elif cell["kind"] == "target":
        rows = read_jsonl(Path(cell["data"]) / f"{cell['split']}.jsonl")[: cell["limit"]]
        prompting = json.loads((Path(cell["prompt"]) / "prompt.json").read_text()) if cell.get("prompt") else NO_SHOTS
        longest, room = cell["max_new_tokens"], lm.max_length
        spec = target_task(name, lm.tokenizer, rows, max_new_tokens=longest, prompting=prompting, room=room)
    else:
        spec = probe_task(name, lm.tokenizer, cell["questions"], max_new_tokens=cell["max_new_tokens"])
    manager = task_manager(spec if isinstance(spec, str) else None, cell.get("include_path"))
    loaded = manager.load([spec])
    tasks = loaded["tasks"].values()
    if template is None:
        template = all(task.config.output_type == "generate_until" for task in tasks)
    for task in tasks:
        if cell.get("num_fewshot") is not None or task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=cell.get("num_fewshot") or 0)
        task.set_fewshot_seed(seed=SEED)
    return loaded, template


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Score the cells of every side in `job`; a side that fails is reported and does not stop the others."""
    bench = Bench(Path(job["base"]), job["quantization"], job["device"], job["batch_size"])
    cells = sum(len(side["cells"]) for side in job["sides"])
    facts: dict[str, Any] = {}
    failed: dict[str, str] = {}

    def answer(side: dict[str, Any]) -> None:  # a function, so that nothing keeps a side's model beyond its turn
        model, adapter = (Path(side[role]) if side.get(role) else None for role in ("model", "adapter"))
        with bench.answering_as_model(model) if model else bench.answering_as(adapter) as lm:
            for cell in side["cells"]:
                output = Path(cell["output"])
                output.mkdir(parents=True, exist_ok=True)
                facts[cell["key"]] = score_cell(lm, cell, output)
                stage_process.progress(side=side["name"], done=len(facts), of=cells, **facts[cell["key"]])

    for side in sorted(job["sides"], key=lambda side: bool(side.get("model"))):  # the base is put away only once
        try:
            answer(side)
        except StageError as error:
            failed[side["name"]] = str(error)
    return {"facts": facts, "failed": failed}
