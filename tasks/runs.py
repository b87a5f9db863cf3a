"""One run of a flow: its id, its store, and the child processes of its stages."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from infra.gpus import CPU, devices
from infra.launch import run_stage
from infra.storage import Store
from tasks.artifacts import StageResult
from tasks.caching import Work, run_stage_once
from tasks.training.launching import device_environment

Listener = Callable[[str], None]
ProgressListener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """Passed to every stage: plain strings, so that it can cross to another machine."""

    run_id: str
    store_uri: str
    on: Literal["here", "workers"] = "here"  # where what takes a GPU is done

    @property
    def store(self) -> Store:
        return Store(self.store_uri)

    def once(self, work: Work, make: Callable[[Path, Path], dict[str, Any]]) -> StageResult:
        return run_stage_once(self.store, work, make, run_id=self.run_id)


def new_run(store: str, on: Literal["here", "workers"] = "here") -> Run:
    """A run id that sorts by time (UTC) and is unique; RequestError if the store cannot be written."""
    opened = Store(store)
    opened.check_writable()
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Run(run_id=f"{now}-{secrets.token_hex(2)}", store_uri=opened.root, on=on)


# What most stages import, and what takes them longest.
IMPORTS = (
    "pydantic",
    "torch",
    "transformers.models.auto.modeling_auto",
    "bitsandbytes",
    "peft",
    "datasets",
    "trl.trainer.sft_trainer",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
)


def child(
    module: str,
    job: Mapping[str, Any],
    work: Path,
    *,
    on_line: Listener,
    on_progress: ProgressListener | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run a stage's module in its own process with the libraries kept quiet and offline where they would chatter.

    Where there is no GPU it is forked from a process that serves all stages of this one and has done their imports,
    unless `preloaded` is given as None: for a process that runs one stage only.
    """
    without_gpu = job.get("device", CPU) == CPU and devices() == [CPU]
    env = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",
        "PYTHONUNBUFFERED": "1",
        # Stages that take no device get the same environment: then one warm process is enough for all of them.
        **(device_environment(CPU, 1) if without_gpu else {}),
        **options.pop("env", {}),
    }
    options = {"preloaded": IMPORTS if without_gpu else None, **options}
    return run_stage(module, job, folder=work, on_line=on_line, on_progress=on_progress, env=env, **options)
