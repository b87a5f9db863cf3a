"""Tunefleet's packed training against plain TRL: the same adapters, interleaved, several times; the ratio counts.

    python benchmarks/train.py [--scene prompt|distinct|fleet|all] [--base FOLDER] [--steps 60] [--batch 8]
                               [--repeats 5] [--json]

Three scenes, which benchmarks/train_scenes.py describes: one adapter whose rows share a long system prompt, one whose
rows share nothing, and a fleet of four. In every repeat each contestant trains once, in fresh processes and in the same
environment; who begins rotates. Of one adapter the contestants are

    packed         `python -m tasks.training.packed job.json`      both with a recipe's defaults:
    trl            `python -m tasks.training job.json`             a checkpoint every minute
    tuned          TRL set as Tunefleet sets it        both by benchmarks/plain_trl.py,
    defaults       TRL as it comes                     which says what they leave out

and of the fleet

    packed         the same command, which trains all four in one process
    in turn        tuned TRL, a process for each adapter, one after the other
    two at a time  the same, the next one starting whenever one of two ends; each has half of the cores

Every ratio is above 1 where packed training is better, and compares runs of one repeat:

    steady   tokens per second from the end of step 3 to the end of the last step, by the arrival of one line a step
    step     the same of the median step, each compared with the rival's on the same rows: what other work on the
             machine does for a while, and what ours does now and then (checkpoints), is left out
    whole    seconds from the first start of a process to the last end: imports, loading, tokenising, training, saving
    cpu      seconds of CPU over the same; less is disturbed by other work on the machine
    memory   most memory held: of two processes that run together the sum of their peaks, in which pages that both map
             (the libraries' code) count twice. Against `in turn` it says how near to one training's a pack's is

The figures count only if all did the same work (exit code 1 otherwise): as many tokens, and losses as near to those of
tuned TRL as FIRST and STEP say below. What a flow does around training (Prefect, the store, ingestion) is not part of
this.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from train_scenes import SCENES, WARM_UP, Run, contestants, member_job, run, write_rows

from infra.settings import PROJECT, cache_folder
from infra.stage_process import hand_over
from tasks.recipe.schema import Base

# times better: of one adapter in steady tokens per second, of the fleet in whole seconds
GOALS = {
    "prompt": {"tuned": {"steady": 3.0}, "defaults": {"steady": 5.0}},
    "distinct": {"tuned": {"steady": 1.1}},
    "fleet": {"in turn": {"whole": 2.0}, "two at a time": {"whole": 2.0}},
}
FIGURES = {"steady": "steady_s", "whole": "whole_s", "cpu": "cpu_s", "memory": "peak_bytes"}  # of a run; less is better
REFERENCES = ("tuned", "in turn", "two at a time")  # whose losses ours have to be; `defaults` tells of every tenth only

# Largest differences from tuned TRL's losses, as `differences` counts them, on the embedded base. bfloat16 keeps 8 bits
# of a sum, and which ones depends on the order: another one for packed training and, on CPUs whose kernels go by the
# number of rows (AMX), for our own TRL, which leaves prompts out of the head. Before anything was learned, the loss of
# 8 rows was within 1.2 % of the same in float32, in packed training as in TRL, and the two were up to 1.3 % apart.
# Later, too, they cross each other, by 0.015 a step (standard deviation): the mean of n steps is held to five times
# that over the root of n. Half the learning rate moves it by 0.4, a doubled rank, at first, by 0.024.
FIRST = {"packed": 0.03, "trl": 1e-5}
STEP = 5 * 0.015
Repeats = Sequence[dict[str, Run]]
Curve = Sequence[dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=(*SCENES, "all"), default="all", help="what is trained (default: all three)")
    parser.add_argument("--base", type=Path, help="folder of the base model (default: the embedded SmolLM2-135M)")
    parser.add_argument("--steps", type=int, default=60, help=f"optimizer steps, {WARM_UP + 2} to 1000")
    parser.add_argument("--batch", type=int, default=8, help="rows per step")
    parser.add_argument("--repeats", type=int, default=5, help="times that each contestant runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and the rest to stderr")
    asked = parser.parse_args()
    if not WARM_UP + 2 <= asked.steps <= 1000 or asked.repeats < 1 or asked.batch < 1:
        parser.error(f"--steps is {WARM_UP + 2} to 1000, --batch and --repeats are at least 1")

    def say(line: str) -> None:
        print(line, file=sys.stderr if asked.json else sys.stdout, flush=True)

    base = (asked.base or embedded_base()).absolute()
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    say(f"base {base.name}: {weights / 2**20:.0f} MiB of weights")
    reports = {}
    for scene in SCENES if asked.scene == "all" else [asked.scene]:
        repeats = []
        with tempfile.TemporaryDirectory(prefix="tunefleet-benchmark-") as name:
            write_rows(scene, Path(name) / "data", asked.steps * asked.batch)
            for number in range(asked.repeats):
                runs = one_repeat(scene, base, Path(name), number=number, steps=asked.steps, batch=asked.batch)
                repeats.append(runs)
                tell_repeat(scene, number, runs, say)
        reports[scene] = {**compared(repeats), "goals": GOALS[scene], "repeats": repeats}
        tell_report(scene, reports[scene], say)
    same = all(report["same_work"] for report in reports.values())
    if asked.json:
        settings = {"steps": asked.steps, "batch": asked.batch, "base_bytes": weights}
        print(json.dumps({"same_work": same, **settings, "scenes": reports}))
    return 0 if same else 1


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


def one_repeat(scene: str, base: Path, work: Path, *, number: int, steps: int, batch: int) -> dict[str, Run]:
    """The runs of all contestants, in the order in which they ran. `work` holds the rows, in data/."""
    rivals = contestants(scene)
    first = number % len(rivals)
    runs = {}
    for who in [*rivals][first:] + [*rivals][:first]:
        folder = work / f"{number}-{who}"
        members = [member_job(one, work / "data", folder, steps=steps, batch=batch) for one in SCENES[scene]]
        runs[who] = run(rivals[who], base, members, folder)
    for one in runs.values():
        if "steady_s" in one:
            one["tokens_per_second"] = steady_tokens(runs["trl"]) / one["steady_s"]
    return runs


def steady_tokens(ours: Run) -> int:
    """Tokens of the steps whose time counts as steady: the same for all contestants, whose batches are the same."""
    (member,) = ours["members"].values()
    return member["tokens"] - member["curve"][WARM_UP - 1]["tokens"]


# --- what the figures say


def compared(repeats: Repeats) -> dict[str, Any]:
    """The ratios over all repeats, and whether they compare like with like."""
    rivals = [who for who in repeats[0] if who != "packed"]
    ratios = {who: [better_by(runs["packed"], runs[who]) for runs in repeats] for who in rivals}
    losses = loss_differences(repeats, FIRST)
    members = repeats[0]["packed"]["members"]
    steps = min(len(one["curve"]) for one in members.values())
    allowed = {who: {"first": FIRST[who], "quarter": STEP / math.sqrt(steps // 4)} for who in losses}
    agree = all(
        one[key] <= limit
        for who, limits in allowed.items()
        for key, limit in limits.items()
        for one in losses[who].values()
    )
    tokens = {
        name: sorted({run["members"][name]["tokens"] for runs in repeats for run in runs.values()}) for name in members
    }
    return {
        "ratios": {
            who: {kind: spread([one[kind] for one in all_]) for kind in all_[0]} for who, all_ in ratios.items()
        },
        "losses": losses,
        "losses_of_references": loss_differences(repeats, ["two at a time"]),  # from "in turn": what rounding does
        "allowed": allowed,
        "tokens": tokens,
        "computed_tokens": {name: one["computed_tokens"] for name, one in members.items()},
        "same_work": agree and all(len(counts) == 1 for counts in tokens.values()),
    }


def better_by(ours: Run, rival: Run) -> dict[str, float]:
    ratios = {kind: rival[figure] / ours[figure] for kind, figure in FIGURES.items() if figure in ours}
    if "step_s" not in ours:
        return ratios
    each = [theirs / own for own, theirs in zip(ours["step_s"], rival["step_s"], strict=True)]
    return {"steady": ratios["steady"], "step": statistics.median(each), **ratios}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def loss_differences(repeats: Repeats, those: Iterable[str]) -> dict[str, dict[str, dict[str, float]]]:
    """{one of `those`: {another reference: the largest of each of `differences`}} over all repeats and members."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for who in (name for name in those if name in repeats[0]):
        for reference in (name for name in REFERENCES if name in repeats[0] and name != who):
            each = [
                differences(runs[who]["members"][name]["curve"], runs[reference]["members"][name]["curve"])
                for runs in repeats
                for name in runs[who]["members"]
            ]
            found.setdefault(who, {})[reference] = {key: largest(one[key] for one in each) for key in each[0]}
    return found


def differences(ours: Curve, theirs: Curve) -> dict[str, float]:
    """How far the losses of two trainings of the same steps are apart.

    "first": the first step's, as a share of it; "quarter": the mean over a quarter of all steps, the worst of four;
    "step": any step's.
    """
    pairs = [(own["loss"], other["loss"]) for own, other in zip(ours, theirs, strict=True)]
    apart = [own - other for own, other in pairs]
    quarters = [apart[len(apart) * number // 4 : len(apart) * (number + 1) // 4] for number in range(4)]
    return {
        "first": abs(apart[0]) / pairs[0][1],
        "quarter": largest(abs(statistics.fmean(each)) for each in quarters),
        "step": largest(map(abs, apart)),
    }


def largest(values: Iterable[float]) -> float:
    """NaN if one of them is NaN, which max() may pass over."""
    return max(values, key=lambda value: (math.isnan(value), value))


# --- telling


def tell_repeat(scene: str, number: int, runs: dict[str, Run], say: Callable[[str], None]) -> None:
    """A line for each contestant."""
    of_one = "steady_s" in runs["packed"]
    title = f"{scene}, repeat {number + 1}"
    say(f"{title:22} {'tokens/s   whole s = start + steps + end' if of_one else 'whole s'}   cpu s   peak MiB")
    for who, one in runs.items():
        whole = f"{one['whole_s']:7.1f}"
        if of_one:
            parts = f"{one['start_s']:5.1f} + {one['steps_s']:5.1f} + {one['end_s']:3.1f}"
            whole = f"{one['tokens_per_second']:8.1f} {one['whole_s']:9.1f} = {parts}"
        say(f"  {who:20} {whole} {one['cpu_s']:7.1f} {one['peak_bytes'] / 2**20:10.0f}")


def tell_report(scene: str, report: dict[str, Any], say: Callable[[str], None]) -> None:
    for who, ratios in report["ratios"].items():
        for kind, one in ratios.items():
            goal = report["goals"].get(who, {}).get(kind)
            say(f"against {who:13}  {kind:6} {one['median']:5.2f} ({one['min']:.2f} to {one['max']:.2f})"
                f"{f'   goal {goal:g}' if goal else ''}")  # fmt: skip
    for name, computed in report["computed_tokens"].items():
        counts = report["tokens"][name]
        share = f"{computed / max(counts):.0%}"
        say(f"{name}: {' or '.join(map(str, counts))} tokens, of which packed training computed {computed} ({share})")
    for who, found in {**report["losses_of_references"], **report["losses"]}.items():
        allowed = report["allowed"].get(who, {})
        for reference, one in found.items():
            told = [f"{key} {value:.2g}" + (f" (allowed {allowed[key]:.2g})" if key in allowed else "")
                    for key, value in one.items()]  # fmt: skip
            say(f"losses of {who} against {reference} differ by: {', '.join(told)}")
    say(f"{scene}: {'the same work' if report['same_work'] else 'NOT THE SAME WORK, no figure counts'}")


if __name__ == "__main__":
    sys.exit(main())
