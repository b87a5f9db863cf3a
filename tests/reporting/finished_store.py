"""A store as finished runs leave it, made by the real stages' own functions but for the models: small, and quick."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.storage import Store
from tasks.artifacts import AdapterOutcome, StageResult
from tasks.caching import Work, run_stage_once
from tasks.forgetting.family import judge_fleet
from tasks.forgetting.flips import write_flips
from tasks.forgetting.outcome import TaskVerdict
from tasks.forgetting.verdict import compare
from tasks.recipe.schema import Adapter, Recipe
from tasks.registry.records import ReleaseRecord, register
from tasks.reporting.summary import summarise
from tests.forgetting.records import flips, losses

FIRST, SECOND = "20261122-100000-aaaa", "20261123-110000-bbbb"
BASE_MODEL = "acme/tiny"
SECONDS = 2.5  # that answering each task took
RULE = {"alpha": 0.05, "pool_margin": 0.02, "adjust": "holm"}
CURVE = [
    {"step": 1, "loss": 2.0, "learning_rate": 5e-4, "grad_norm": 1.5, "tokens": 100},
    {"step": 2, "loss": 1.0, "learning_rate": 2.5e-4, "grad_norm": 1.0, "tokens": 200},
    {"step": 2, "validation_loss": 1.25},
]
PACE = [
    {"step": 1, "tokens_per_second": 40.0, "memory_bytes": 1000},
    {"step": 2, "tokens_per_second": 66.5, "memory_bytes": 1234},
]
TRAINED = {
    **{"trainable_params": 10, "total_params": 100, "steps": 2, "planned_steps": 2, "stopped_early": False},
    **{"seconds": 4.0, "tokens": 200, "loss": 1.0, "validation_loss": 1.25, "best_step": None, "curve": CURVE},
    "pace": PACE,
    **{"seed": 0, "device": "cuda:0", "world_size": 2, "gradient_checkpointing": False, "out_of_memory_at": [8]},
    **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "peak_memory_bytes": 1234},
    **{"engine": "packed", "pack": ["one", "two"], "computed_tokens": 120},
}
ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "prompt": [{"role": "user", "content": "Who?"}],
        "completion": [{"role": "assistant", "content": "K."}],
    },
    {"id": "b", "prompt": "1 +", "completion": " 1"},
    {"id": "c", "text": "Once <b>upon</b>"},
    {"id": "d", "prompt": "Ask", "chosen": "good", "rejected": "bad"},
]
SELF_TESTS = [
    {"precision": "none", "kind": "again", "expected": "PASS", "verdict": "PASS", "noticed_by": [], "ok": True,
     "largest_difference": 0.25, "said": "1 flips of 200", "flips": 1},
    {"precision": "none", "kind": "noised", "expected": "FAIL", "verdict": "FAIL", "noticed_by": ["pairs"], "ok": True,
     "largest_difference": None, "said": "noticed by pairs"},
]  # fmt: skip


def general(task: str, lost: int, gained: int, n: int = 300) -> TaskVerdict:
    return compare(task=task, role="general", metric="acc", margin=0.05, **flips(lost, gained, n))


def prose(rise: float) -> TaskVerdict:
    options = {"metric": "nll_per_token", "margin": 0.05, "higher_is_better": False}
    return compare(task="prose", role="general", **options, **losses(rise))


def target(name: str, gained: int) -> TaskVerdict:
    return compare(task=f"{name}.held_out", role="target", metric="exact_match", margin=0.1, **flips(0, gained, 100))


def flip(number: int, kind: str = "lost", **more: Any) -> dict[str, Any]:
    answer = {"text": "Paris", "choice": None, "score": 1.0}
    return {
        **{"doc_id": str(number), "kind": kind, "moved": -1.0, "prompt": f"Question {number}?", "target": "Paris"},
        **{"right_choice": None, "base": answer, "adapter": {"text": "Rome", "choice": None, "score": 0.0}, **more},
    }


def make(
    store: Store, run_id: str, stage: str, kind: str, name: str, files: Mapping[str, str], upstream: Mapping[str, str],
    facts: Mapping[str, Any] | None = None, spec: Any = None,
) -> StageResult:  # fmt: skip
    def write(work: Path, output: Path) -> dict[str, Any]:
        for path, text in files.items():
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            (output / path).write_text(text, encoding="utf-8")
        return dict(facts or {})

    asked = spec or {"name": name, "files": dict(files), "upstream": dict(upstream)}
    return run_stage_once(store, Work(stage, 1, kind, name, asked, upstream), write, run_id=run_id)


def base_of(store: Store, run_id: str) -> StageResult:
    facts = {"model": BASE_MODEL, "revision": "main"}
    return make(store, run_id, "import-base", "bases", "tiny", {"config.json": "{}"}, {}, facts)


def member(
    store: Store,
    run_id: str,
    name: str,
    *tasks: TaskVerdict,
    method: str = "lora",
    some_flips: Sequence[Mapping[str, Any]] = (),
    rows: Sequence[Mapping[str, Any]] = ROWS,
    **fields: Any,
) -> AdapterOutcome:
    """An adapter that was trained, scored, compared and judged; all flips are of its first task."""
    base = base_of(store, run_id)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    counts = {"kind": "chat", "train": len(rows), "validation": 0, "held_out": 100, "duplicates": 1, "malformed": 0}
    data = make(store, run_id, "ingest", "datasets", name, {"train.jsonl": text}, {}, counts)
    made_from = {"base": base.ref.digest, "data": data.ref.digest}
    weights = {"adapter_model.safetensors": f"{name} of {run_id}, {method}", "adapter_config.json": "{}"}
    trained = make(store, run_id, "train", "adapters", name, weights, made_from, TRAINED, {"method": method})
    used = {}
    for task in tasks:
        for side in ("base", name):
            who = "base" if side == "base" else "own"
            records = {"records.parquet": f"{side} of {run_id} on {task.task}"}
            facts = {"scored_in_seconds": SECONDS}
            cell = make(store, run_id, "score", "scores", f"{side}-{task.task}", records, made_from, facts)
            used[f"{who} {task.task} 0"] = cell.ref.digest
    compared = make(store, run_id, "compare", "comparisons", name, {"tasks.json": f"{run_id} {name}"}, used)
    verdict = judge_fleet({name: tasks}, alpha=0.05, pool_margin=0.02)[name].model_dump() | {"rule": RULE}

    def judge(work: Path, output: Path) -> dict[str, Any]:
        (output / "verdict.json").write_text(json.dumps(verdict))
        for index, task in enumerate(tasks):
            write_flips(
                output / "flips" / f"{task.task}.jsonl", [dict(one) for one in some_flips] if index == 0 else []
            )
        return {"verdict": verdict["verdict"]}

    upstream = {"adapter": trained.ref.digest, "own": compared.ref.digest}
    judged = run_stage_once(store, Work("judge", 2, "verdicts", name, RULE, upstream), judge, run_id=run_id)
    adapter = Adapter.model_validate({"name": name, "method": method, "data": {"rows": [{"text": "a"}]}})
    return AdapterOutcome(
        adapter, "nf4" if method == "qlora" else "none",
        **{"base": base, "data": data, "trained": trained, "judged": judged, "verdict": verdict, **fields},
    )  # fmt: skip


def finish(store: Store, run_id: str, *fleet: AdapterOutcome, **more: Any) -> dict[str, Any]:
    """The summary of a run of these, as it stands in the store."""
    adapters = [
        {"name": one.name, "method": one.method, "data": {"rows": [{"text": "a"}]}}
        | ({"num_fewshot": 0} if one.method == "prompt" else {})
        for one in fleet
    ]
    recipe = Recipe.model_validate({"name": "fleet", "adapters": adapters})
    summary = summarise(
        run_id=run_id,
        recipe=recipe,
        store=store.root,
        base=base_of(store, run_id),
        fleet=fleet,
        **{"made": [], "probes": [], "comparisons": [], "searches": {}, "self_tests": [], "timings": {}, **more},
    )
    summary["warnings"] = []
    store.write_json(f"runs/{run_id}/summary.json", summary)
    return summary


def release(store: Store, run_id: str, one: AdapterOutcome) -> ReleaseRecord:
    assert one.trained and one.base and one.data and one.judged and one.verdict
    return register(
        store,
        **{"name": one.name, "base_model": BASE_MODEL, "base_revision": "main", "method": one.method},
        **{"adapter": one.trained.ref, "base": one.base.ref, "data": one.data.ref, "verdict": one.judged.ref},
        **{"verdict_says": one.verdict["verdict"], "override": None, "recipe": {}, "run_id": run_id},
        **{"git_commit": None, "created": "2026-11-22T10:00:00+00:00"},
    )
