"""Tunefleet's training against plain TRL: the same adapter, interleaved, several times; what counts is the ratio.

    python benchmarks/train.py [--base FOLDER] [--steps 60] [--batch 8] [--repeats 3] [--json]

In every repeat each contestant trains once, in a process of its own and in the same environment; who begins rotates.

    tunefleet   `python -m tasks.training job.json`, with a recipe's defaults: a checkpoint every minute
    tuned       TRL set as Tunefleet sets it        both by benchmarks/plain_trl.py,
    defaults    TRL as it comes                     which says what they leave out

Every ratio is above 1 where Tunefleet is better, and compares runs of one repeat:

    steady   tokens per second from the end of step 3 to the end of the last step, by the arrival of one line a step
    step     the same of the median step, each compared with the rival's on the same rows: what other work on the
             machine does for a while, and what ours does now and then (checkpoints), is left out
    whole    seconds from the start of the process to its end: imports, loading, tokenising, training, saving
    cpu      seconds of CPU over the same; less is disturbed by other work on the machine
    memory   most memory that the process ever held

The figures count only if all did the same work: as many tokens, and against `tuned` the same loss at every step (exit
code 1 otherwise). What a flow does around training (Prefect, the store, ingestion) is not part of this.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from infra.settings import PROJECT, cache_folder
from infra.stage_process import hand_over, split_progress
from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Accelerate, Base, Data, Lora, Training
from tasks.training.launching import device_environment

PLAIN_TRL = str(Path(__file__).with_name("plain_trl.py"))
CONTESTANTS = {
    "tunefleet": ["-m", "tasks.training"],
    "tuned": [PLAIN_TRL, "tuned"],
    "defaults": [PLAIN_TRL, "defaults"],
}
MESSAGES = {"user": "Rewrite as YYYY-MM-DD: {{ written }}", "assistant": "{{ iso }}"}
RIVALS = ("tuned", "defaults")
RATIOS = {"steady": "steady_s", "whole": "whole_s", "cpu": "cpu_s", "memory": "peak_bytes"}  # of a run; less is better
WARM_UP = 3  # steps in which buffers are allocated and pages are touched for the first time
TOLERANCE = 1e-6  # of a step's loss, absolute: both compute the same numbers, in the same order
Run = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of the base model (default: the embedded SmolLM2-135M)")
    parser.add_argument("--steps", type=int, default=60, help=f"optimizer steps, {WARM_UP + 2} to 1000")
    parser.add_argument("--batch", type=int, default=8, help="rows per step")
    parser.add_argument("--repeats", type=int, default=3, help="times that each contestant runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and the rest to stderr")
    asked = parser.parse_args()
    if not WARM_UP + 2 <= asked.steps <= 1000 or asked.repeats < 1 or asked.batch < 1:
        parser.error(f"--steps is {WARM_UP + 2} to 1000, --batch and --repeats are at least 1")

    def say(line: str) -> None:
        print(line, file=sys.stderr if asked.json else sys.stdout, flush=True)

    with tempfile.TemporaryDirectory(prefix="tunefleet-benchmark-") as name:
        base, data = asked.base or embedded_base(), Path(name) / "data"
        data.mkdir()
        rows = Data(generate="iso-dates", limit=asked.steps * asked.batch, held_out=0, messages=MESSAGES)
        build_dataset(rows, data, needs_held_out=False)
        repeats: list[dict[str, Run]] = []
        for number in range(asked.repeats):
            runs: dict[str, Run] = {}
            first = number % len(CONTESTANTS)
            for who in [*CONTESTANTS][first:] + [*CONTESTANTS][:first]:
                folder = Path(name) / f"{number}-{who}"
                job = training_job(base.absolute(), data, folder / "adapter", asked.steps, asked.batch)
                runs[who] = measured(CONTESTANTS[who], job, folder)
            repeats.append(runs)
            say(f"repeat {number + 1}       tokens/s   whole s = start + steps + end   cpu s   peak MiB")
            for who, run in runs.items():
                run["tokens_per_second"] = steady_tokens(runs["tunefleet"]) / run["steady_s"]
                say(line_of(who, run))

    report = compared(repeats)
    for rival, ratios in report["ratios"].items():
        for kind, one in ratios.items():
            say(f"against {rival:8}  {kind:6}  {one['median']:5.2f}  ({one['min']:.2f} to {one['max']:.2f})")
    difference, same = report["largest_loss_difference"], report["same_work"]
    say(f"losses of every step against tuned differ by at most {difference:.2g} (allowed {TOLERANCE:g}); tokens "
        f"{report['tokens']}: {'the same work' if same else 'NOT THE SAME WORK, no figure counts'}")  # fmt: skip
    if asked.json:
        settings = {"steps": asked.steps, "batch": asked.batch, "repeats": repeats}
        print(json.dumps({**report, **settings}))
    return 0 if same else 1


def line_of(who: str, run: Run) -> str:
    parts = f"{run['start_s']:5.1f} + {run['steps_s']:5.1f} + {run['end_s']:3.1f}"
    figures = f"{run['whole_s']:9.1f} = {parts} {run['cpu_s']:7.1f} {run['peak_bytes'] / 2**20:10.0f}"
    return f"  {who:10} {run['tokens_per_second']:10.1f} {figures}"


def embedded_base() -> Path:
    """The recipes' default base as safetensors; imported once, in a process of its own, which then frees its memory."""
    folder = cache_folder() / "benchmarks" / "base"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            output = Path(work) / "base"
            job = hand_over({"model": Base().model, "revision": None, "output": str(output)}, Path(work))
            subprocess.run([sys.executable, "-m", "tasks.ingestion", str(job)], check=True, cwd=PROJECT)
            output.rename(folder)
    return folder


def training_job(base: Path, data: Path, output: Path, steps: int, batch: int) -> dict[str, Any]:
    """As tasks/training/task.py writes it for a recipe that names only these."""
    training = Training(max_steps=steps, per_device_train_batch_size=batch, logging_steps=1).model_dump(mode="json")
    return {
        "name": "benchmark",
        "method": "lora",
        "base": str(base),
        "base_name": base.name,
        "data": str(data),
        "lora": Lora().model_dump(mode="json"),
        "training": {**training, "gradient_checkpointing": False},  # what "auto" comes to where memory suffices
        "accelerate": Accelerate().model_dump(mode="json"),
        "device": "cpu",
        "checkpoints": str(output.parent / "checkpoints"),
        "output": str(output),
    }


def measured(command: list[str], job: dict[str, Any], folder: Path) -> Run:
    """Run one training to its end, and look at the clock whenever it tells of a step."""
    Path(job["output"]).mkdir(parents=True)
    file = hand_over(job, folder)
    ends: dict[int, float] = {}  # {step: when it was over}
    with (folder / "errors.txt").open("w+") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *command, str(file)],
            env=os.environ | device_environment("cpu", 1),
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout
        for line in process.stdout:
            event = split_progress(line)[1]
            if event:
                ends[event["step"]] = time.monotonic()
        _, status, usage = os.wait4(process.pid, 0)  # unlike wait(), it tells the memory of this child alone
        ended = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()[-4000:]}")
    result = json.loads((folder / "result.json").read_text())
    last = job["training"]["max_steps"]
    return {
        "whole_s": ended - started,
        "start_s": ends[1] - started,
        "steps_s": ends[last] - ends[1],
        "end_s": ended - ends[last],
        "steady_s": ends[last] - ends[WARM_UP],
        "step_s": [ends[step] - ends[step - 1] for step in range(WARM_UP + 1, last + 1)],
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "tokens": result["tokens"],
        "curve": result["curve"],
    }


def steady_tokens(ours: Run) -> int:
    """Tokens of the steps whose time counts as steady: the same for all contestants, whose batches are the same."""
    return ours["tokens"] - ours["curve"][WARM_UP - 1]["tokens"]


def compared(repeats: list[dict[str, Run]]) -> dict[str, Any]:
    """The ratios over all repeats, and whether they compare like with like."""
    ratios = {rival: [better_by(runs["tunefleet"], runs[rival]) for runs in repeats] for rival in RIVALS}
    difference = max(
        abs(ours["loss"] - theirs["loss"])
        for runs in repeats
        for ours, theirs in zip(runs["tunefleet"]["curve"], runs["tuned"]["curve"], strict=True)
    )
    tokens = {run["tokens"] for runs in repeats for run in runs.values()}
    return {
        "ratios": {
            rival: {kind: spread([one[kind] for one in all_]) for kind in all_[0]} for rival, all_ in ratios.items()
        },
        "largest_loss_difference": difference,
        "tokens": sorted(tokens),
        "same_work": difference <= TOLERANCE and len(tokens) == 1,
    }


def better_by(ours: Run, rival: Run) -> dict[str, float]:
    steps = [theirs / own for own, theirs in zip(ours["step_s"], rival["step_s"], strict=True)]
    ratios = {kind: rival[figure] / ours[figure] for kind, figure in RATIOS.items()}
    return {**ratios, "step": statistics.median(steps)}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    sys.exit(main())
