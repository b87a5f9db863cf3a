"""What benchmarks/train.py trains, who trains it, and what one contestant's processes took.

prompt     one adapter; rows share a long system prompt: the question of deployments/recipes/pokemon-types.yaml,
           with the types that there are (by SmolLM2's tokenizer 91 tokens of 105 are common)
distinct   one adapter; rows of 30 tokens that begin alike only by chance (1 % of a batch's tokens). They are plain
           text, because as chats they would have 36 tokens of 63 in common, SmolLM2's own system prompt first
fleet      four adapters of different ranks and learning rates, two on each of these rows
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.settings import PROJECT
from infra.stage_process import hand_over, split_progress
from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Accelerate, Data, Lora, Messages, Training
from tasks.training.launching import device_environment

TYPES = (
    *("Normal", "Fire", "Water", "Grass", "Electric", "Ice", "Fighting", "Poison", "Ground", "Flying", "Psychic"),
    *("Bug", "Rock", "Ghost", "Dragon", "Dark", "Steel", "Fairy"),
)
POKEMON = Messages(
    system="You are a Pokémon expert. Answer with the type or the two types only, like Fire or Grass/Poison. "
    f"The types that there are: {', '.join(TYPES)}. Give no explanation, and end without a full stop.",
    user="What is the type of {{ name }}?",
    assistant="{{ type_1 }}{% if type_2 %}/{{ type_2 }}{% endif %}",
)
ROWS: dict[str, dict[str, Any]] = {
    "pokemon": {"path": str(PROJECT / "data" / "pokemon.csv"), "messages": POKEMON},
    "dates": {"generate": "iso-dates", "prompt": "{{ written }} as YYYY-MM-DD:", "completion": " {{ iso }}"},
}
WARM_UP = 3  # steps in which buffers are allocated and pages are touched for the first time
Run = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """One adapter of a scene."""

    name: str
    rows: str  # a key of ROWS
    r: int = 8
    learning_rate: float = 2e-4


@dataclass(frozen=True)
class Contestant:
    """Who trains a scene: `command`, followed by a job file."""

    command: tuple[str, ...]
    packs: bool = False  # all adapters in one process, else each in its own
    at_once: int = 1  # processes side by side, each with its share of the cores


SCENES = {
    "prompt": (Member("pokemon", "pokemon"),),
    "distinct": (Member("dates", "dates"),),
    "fleet": (
        Member("pokemon-r8", "pokemon", 8, 2e-4),
        Member("pokemon-r16", "pokemon", 16, 1e-4),
        Member("dates-r4", "dates", 4, 5e-4),
        Member("dates-r8", "dates", 8, 3e-4),
    ),
}
PLAIN_TRL = str(Path(__file__).with_name("plain_trl.py"))
PACKED = Contestant(("-m", "tasks.training.packed"), packs=True)
TUNED = Contestant((PLAIN_TRL, "tuned"))
OF_ONE = {
    "packed": PACKED,
    "trl": Contestant(("-m", "tasks.training")),
    "tuned": TUNED,
    "defaults": Contestant((PLAIN_TRL, "defaults")),
}
OF_MANY = {"packed": PACKED, "in turn": TUNED, "two at a time": replace(TUNED, at_once=2)}


def contestants(scene: str) -> Mapping[str, Contestant]:
    return OF_ONE if len(SCENES[scene]) == 1 else OF_MANY


def write_rows(scene: str, folder: Path, count: int) -> None:
    """A data set of up to `count` rows for each kind that the scene's adapters train on; there are 1025 Pokémon."""
    for kind in {member.rows for member in SCENES[scene]}:
        (folder / kind).mkdir(parents=True)
        build_dataset(Data(**ROWS[kind], limit=count, held_out=0), folder / kind, needs_held_out=False)


def member_job(member: Member, data: Path, folder: Path, *, steps: int, batch: int) -> dict[str, Any]:
    """An adapter's part of a job, as tasks/training/task.py writes it for a recipe that names only these."""
    training = Training(
        learning_rate=member.learning_rate, max_steps=steps, per_device_train_batch_size=batch, logging_steps=1
    )
    return {
        "name": member.name,
        "method": "lora",
        "lora": Lora(r=member.r).model_dump(mode="json"),
        # What "auto" comes to where memory suffices.
        "training": {**training.model_dump(mode="json"), "gradient_checkpointing": False},
        "data": str(data / member.rows),
        "checkpoints": str(folder / member.name / "checkpoints"),
        "output": str(folder / member.name / "adapter"),
    }


def run(contestant: Contestant, base: Path, members: Sequence[dict[str, Any]], folder: Path) -> Run:
    """Train all `members` and tell what that took, from the first start to the last end.

    {"whole_s", "cpu_s", "peak_bytes", "members": {name: {"tokens", "curve", "computed_tokens" if packed}}} and, of one
    member alone, the times of its steps.
    """
    shared = {"base": str(base), "base_name": base.name, "device": "cpu"}
    alone = {**shared, "accelerate": Accelerate().model_dump(mode="json")}
    jobs = [{**alone, **member} for member in members]
    if contestant.packs:
        jobs = [{**shared, "quantization": "none", "members": [*members]}]
    for member in members:
        Path(member["output"]).mkdir(parents=True)
    environment = os.environ | device_environment("cpu", contestant.at_once)

    def measured_one(number: int) -> Run:
        return measured(contestant.command, jobs[number], folder / f"process-{number}", environment)

    with ThreadPoolExecutor(contestant.at_once) as pool:
        processes = list(pool.map(measured_one, range(len(jobs))))
    results = [process["result"] for process in processes]
    facts = (
        results[0]["members"]
        if contestant.packs
        else {one["name"]: result for one, result in zip(members, results, strict=True)}
    )
    for name, one in facts.items():
        if "error" in one:  # a pack goes on without a member that diverged
            sys.exit(f"{name}: {one['error']['message']}")
    times = step_times(processes[0], members[0]["training"]["max_steps"]) if len(members) == 1 else {}
    return {
        "whole_s": max(one["ended"] for one in processes) - min(one["began"] for one in processes),
        "cpu_s": sum(one["cpu_s"] for one in processes),
        "peak_bytes": most_together(processes),
        **times,
        "members": {
            name: {key: each[key] for key in ("tokens", "computed_tokens", "curve") if key in each}
            for name, each in facts.items()
        },
    }


def measured(command: Sequence[str], job: dict[str, Any], folder: Path, environment: dict[str, str]) -> Run:
    """Run one process to its end, and look at the clock whenever it tells of a step.

    {"began", "ended", "step_ends": {step: when}, "cpu_s", "peak_bytes", "result": of result.json}. Members of a pack
    all tell of their steps; the last one to end a step counts.
    """
    folder.mkdir(parents=True)
    file = hand_over(job, folder)
    step_ends: dict[int, float] = {}
    with (folder / "errors.txt").open("w+") as errors:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *command, str(file)],
            env=environment,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout
        for line in process.stdout:
            event = split_progress(line)[1]
            if event:
                step_ends[event["step"]] = time.monotonic()
        # Unlike wait(), it tells the memory of this child alone. What the parent held when it started the child counts
        # as well, so this script must stay small: it imports no torch, and holds some 50 MiB.
        _, status, usage = os.wait4(process.pid, 0)
        ended = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()[-4000:]}")
    return {
        "began": began,
        "ended": ended,
        "step_ends": step_ends,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "result": json.loads((folder / "result.json").read_text()),
    }


def step_times(process: Run, last: int) -> dict[str, Any]:
    """Seconds of the parts of one training of `last` steps."""
    ends = process["step_ends"]
    return {
        "start_s": ends[1] - process["began"],
        "steps_s": ends[last] - ends[1],
        "end_s": process["ended"] - ends[last],
        "steady_s": ends[last] - ends[WARM_UP],
        "step_s": [ends[step] - ends[step - 1] for step in range(WARM_UP + 1, last + 1)],
    }


def most_together(processes: Sequence[Run]) -> int:
    """Bytes: the largest sum of the peaks of processes that ran at the same time.

    Pages that two of them map (the libraries' code) are in both peaks, and the two need not reach theirs together.
    """
    return max(
        sum(other["peak_bytes"] for other in processes if other["began"] <= one["began"] < other["ended"])
        for one in processes
    )
