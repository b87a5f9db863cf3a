"""`.eval_results/<benchmark>.yaml`: the scores that the Hub shows beside a model and on a benchmark's leaderboard.

Only for benchmarks that are registered: the Hub keeps an allow-list of data sets that have an `eval.yaml`. Of those,
lm-eval has the ones below; their task ids are those that EvalEval's converter for the Hub uses
(github.com/evaleval/every_eval_ever, tools/hf-community-evals) and the list is also in github.com/huggingface/
community-evals (BENCHMARK_TRACKER.md, March 2026). The format is https://huggingface.co/docs/hub/eval-results; on these
leaderboards values are percentages.

A benchmark counts only when it was scored whole: as many documents as it has, by the metric that it is known by. So a
run with a `limit`, or one that stopped as soon as it was decided, leaves no file. Nor does a task that ships here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from tasks.recipe.schema import Artifact


@dataclass(frozen=True)
class Benchmark:
    """A registered benchmark, and what it takes to have scored all of it."""

    dataset: str
    task: str
    documents: int
    metric: str


_GSM8K = Benchmark("openai/gsm8k", "gsm8k", 1319, "exact_match")
_MMLU_PRO = Benchmark("TIGER-Lab/MMLU-Pro", "mmlu_pro", 12032, "exact_match")
_GPQA_CHOICE = Benchmark("Idavidrein/gpqa", "diamond", 198, "acc")
_GPQA_WRITTEN = Benchmark("Idavidrein/gpqa", "diamond", 198, "exact_match")

REGISTERED = {
    "gsm8k": _GSM8K,
    "gsm8k_cot": _GSM8K,
    "mmlu_pro": _MMLU_PRO,
    "gpqa_diamond_zeroshot": _GPQA_CHOICE,
    "gpqa_diamond_n_shot": _GPQA_CHOICE,
    "gpqa_diamond_cot_zeroshot": _GPQA_WRITTEN,
    "gpqa_diamond_cot_n_shot": _GPQA_WRITTEN,
    "gpqa_diamond_generative_n_shot": _GPQA_WRITTEN,
}


def was_scored(what: Artifact, method: str) -> bool:
    """Whether the scores are those of the very files: of the adapter, or of a fully fine-tuned model."""
    return what == ("merged" if method == "full" else "adapter")


def eval_results(
    tasks: Sequence[Mapping[str, Any]], *, what: Artifact, method: str, quantization: str, date: str
) -> dict[str, str]:
    """{path: YAML} for a release whose verdict has these `tasks`; nothing for what was not itself scored.

    `date` is the day of the release, YYYY-MM-DD.
    """
    if not was_scored(what, method):
        return {}
    found = {}
    for task in tasks:
        benchmark = REGISTERED.get(task["task"])
        if benchmark is None or task["role"] != "general" or task["n"] != benchmark.documents:
            continue
        if task["metric"].split(",")[0] != benchmark.metric:
            continue
        precision = "base in 4-bit NF4" if quantization == "nf4" else "16-bit"
        entry = EvalResultEntry(
            dataset_id=benchmark.dataset,
            task_id=benchmark.task,
            value=round(100 * task["adapter"], 2),
            date=date,
            notes=f"lm-eval task {task['task']}, {task['metric']}, {precision}",
        )
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
        found[f".eval_results/{task['task']}.yaml"] = text
    return found
