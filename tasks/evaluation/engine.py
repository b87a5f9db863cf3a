"""Scoring: the base is loaded once, adapters are swapped on it, each task leaves one record per document.

A *cell* is one task answered by one side (the base, or an adapter). Cells are scored one at a time, so that the
batches of a task never depend on which other tasks stand beside it, and are the same for base and adapter.
lm-eval's own request cache stays off: its key leaves the model out.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer

from infra import stage_process
from infra.errors import StageError
from tasks.evaluation.catalogue import task_manager
from tasks.evaluation.documents import generation_task, probe_documents, target_documents
from tasks.evaluation.records import records_of, write_records
from tasks.training.models import Quantization, load_base

SEED = 1234  # of few-shot draws; generation is greedy


class Bench:
    """One base model in memory, and the adapters that take turns on it."""

    def __init__(self, base: Path, quantization: Quantization, device: str, batch_size: int):
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self._base = load_base(base, quantization, device).eval()
        self._model: Any = self._base
        self._batch_size = batch_size
        _keep_packed(self._base)
        self._probe_logits(self._base)  # packs the weights, so that every side is answered from the same ones

    @contextmanager
    def answering_as(self, adapter: Path | None) -> Iterator[HFLM]:
        """lm-eval's model of one side: the base itself for None, else the base with this adapter on it.

        StageError if the adapter leaves the logits as they are: then the base would be scored under its name.
        """
        if adapter is None:
            yield self._as_lm(self._base)
            return
        before = self._probe_logits(self._base)
        adapted = PeftModel.from_pretrained(self._base, adapter).eval()
        try:
            if torch.equal(self._probe_logits(adapted), before):
                raise StageError(f"{adapter}: the adapter does not change the base's logits; it was not applied.")
            yield self._as_lm(adapted)
        finally:
            self._base = adapted.unload()

    def _as_lm(self, model: Any) -> HFLM:
        # Log-probabilities in float32: a softmax in bfloat16 rounds a document's sum to the nearest half.
        return HFLM(pretrained=model, tokenizer=self.tokenizer, batch_size=self._batch_size, softmax_dtype="float32")

    @torch.inference_mode()
    def _probe_logits(self, model: Any) -> torch.Tensor:
        """Logits (1, tokens, vocabulary) of a short fixed text."""
        ids = self.tokenizer("The quick brown fox jumps over the lazy dog.", return_tensors="pt").input_ids
        return model(ids.to(self._base.device)).logits.float()


def _keep_packed(model: Any) -> None:
    """Keep bitsandbytes from unpacking 4-bit weights whenever somebody asks for a state_dict, as PEFT does.

    On CPUs with AVX512-bf16, the first forward repacks the weights; Linear4bit's state_dict undoes that and quantises
    the scales anew, which changes them (seen in 0.50.2). So loading an adapter would change the base under it.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module._save_to_state_dict = MethodType(nn.Linear._save_to_state_dict, module)


def score_cell(lm: HFLM, cell: dict[str, Any], output: Path) -> dict[str, Any]:
    """Score one task and leave records.parquet and results.json in `output`; return the task's figures."""
    loaded, template = _load(cell, lm.tokenizer)
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


def _load(cell: dict[str, Any], tokenizer: Any) -> tuple[Any, bool]:
    """The cell's task or group as lm-eval loads it, ready to evaluate; and whether to apply the chat template."""
    if cell["kind"] == "general":
        spec: Any = cell["name"]
        template = cell["apply_chat_template"]
    else:
        if cell["kind"] == "target":
            documents = target_documents(tokenizer, Path(cell["data"]), cell["split"], cell["limit"])
        else:
            documents = probe_documents(tokenizer, cell["questions"])
        end, longest = tokenizer.eos_token, cell["max_new_tokens"]
        spec, template = generation_task(cell["name"], documents, end=end, max_new_tokens=longest), False
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
    done = 0
    facts: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for side in job["sides"]:
        try:
            with bench.answering_as(Path(side["adapter"]) if side["adapter"] else None) as lm:
                for cell in side["cells"]:
                    output = Path(cell["output"])
                    output.mkdir(parents=True, exist_ok=True)
                    facts[cell["key"]] = score_cell(lm, cell, output)
                    done += 1
                    stage_process.progress(side=side["name"], done=done, of=cells, **facts[cell["key"]])
        except StageError as error:
            failed[side["name"]] = str(error)
    return {"facts": facts, "failed": failed}
