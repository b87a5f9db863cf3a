"""Merging a LoRA adapter: Tunefleet's stream against PEFT in memory and against copying the files, interleaved.

    python benchmarks/merge.py [--base FOLDER | --synthetic-gb 6] [--repeats 3] [--json]

In every repeat each contestant merges once, in a process of its own and in the same environment; who begins rotates.

    tunefleet   read_deltas and write_merged: tensor by tensor, hashed on the way
    peft        PeftModel.from_pretrained(...).merge_and_unload(), then save_pretrained
    copy        the base's files copied as they are: no merge, but what a disk and a page cache allow

What is merged is random: benchmarks/merge_models.py.

    memory     most resident memory of the process, less what it held after its imports. Pages of a file that is mapped
               count while they are resident; the page cache, which read and write go through, does not
    anonymous  the same without mapped files, whose pages the kernel can drop: looked up 50 times a second
    work       seconds from after the imports until the files are written; Tunefleet's are on the disk then (fsync)
    on disk    work, and then sync, for all; what contestants before wrote is on the disk when one starts
    whole      seconds from the start of the process to its end, without the sync

Ratios are above 1 where Tunefleet is better, and compare runs of one repeat; against `copy` a goal is 0.5, twice its
time. What the stage does afterwards (hash every file again, compare every tensor with the base's) is told as `check`.
The figures count only if both merged models are the same (exit code 1 otherwise): every number of every tensor within
one step of bfloat16 and what PEFT loses by rounding the update before the sum; untouched tensors the same bytes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merge_models import synthetic, write_adapter
from train import embedded_base, spread

from infra.settings import PROJECT
from tasks.training.launching import device_environment

CONTESTANTS = ("tunefleet", "peft", "copy")
GOALS = {"memory": 5.0, "work": 1.0, "copy": 0.5}
Run = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of the base model (default: the embedded SmolLM2-135M)")
    parser.add_argument("--synthetic-gb", type=float, help="size of a random Llama to merge into instead, 10^9 bytes")
    parser.add_argument("--repeats", type=int, default=3, help="times that each contestant runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and the rest to stderr")
    parser.add_argument("--contestant", nargs=4, help=argparse.SUPPRESS)  # name, base, adapter, output: one run
    asked = parser.parse_args()
    if asked.contestant:
        name, *folders = asked.contestant
        print(json.dumps(merge_once(name, *map(Path, folders))))
        return 0
    if asked.repeats < 1 or (asked.synthetic_gb or 1) < 1:
        parser.error("--repeats and --synthetic-gb are at least 1")

    def say(line: str) -> None:
        print(line, file=sys.stderr if asked.json else sys.stdout, flush=True)

    with tempfile.TemporaryDirectory(prefix="tunefleet-benchmark-") as name:
        work = Path(name)
        base = asked.base or (synthetic(work / "base", asked.synthetic_gb) if asked.synthetic_gb else embedded_base())
        adapter = write_adapter(base, work / "adapter")
        size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
        say(f"base of {size / 1e9:.2f} GB in {len([*base.glob('*.safetensors')])} files")
        repeats: list[dict[str, Run]] = []
        difference: dict[str, Any] = {}
        for number in range(asked.repeats):
            runs: dict[str, Run] = {}
            first = number % len(CONTESTANTS)
            for who in CONTESTANTS[first:] + CONTESTANTS[:first]:
                runs[who] = measured(who, base.absolute(), adapter, work / who)
                if number or who == "copy":  # the merged models of the first repeat are compared
                    shutil.rmtree(work / who)
            if not number:
                difference = compared(base, work / "tunefleet", work / "peft")
                shutil.rmtree(work / "tunefleet")
                shutil.rmtree(work / "peft")
            repeats.append(runs)
            say(f"repeat {number + 1}     memory MiB  anonymous MiB   work s  whole s  on disk s")
            for who, run in runs.items():
                say(line_of(who, run))

    ratios = {
        f"{kind} against {rival}": spread([better_by(runs["tunefleet"], runs[rival], kind) for runs in repeats])
        for rival, kinds in {"peft": ("memory", "anonymous", "work", "whole", "disk"), "copy": ("work", "disk")}.items()
        for kind in kinds
    }
    for kind, one in ratios.items():
        say(f"{kind:22} {one['median']:6.2f}  ({one['min']:.2f} to {one['max']:.2f})")
    say(f"{difference['changed']} tensors changed, {difference['same']} the same bytes; {difference['exact']:.2%} of "
        f"the changed numbers equal PEFT's, {difference['beyond']} are further off than rounding explains: "
        f"{'the same model' if difference['ok'] else 'NOT THE SAME MODEL, no figure counts'}")  # fmt: skip
    if asked.json:
        print(json.dumps({"bytes": size, "ratios": ratios, "goals": GOALS, "outputs": difference, "repeats": repeats}))
    return 0 if difference["ok"] else 1


def line_of(who: str, run: Run) -> str:
    memory = f"{run['memory'] / 2**20:10.0f} {run['anonymous'] / 2**20:14.0f}"
    check = f"   check {run['check_s']:.1f} s" if "check_s" in run else ""
    return f"  {who:10} {memory} {run['work_s']:8.2f} {run['whole_s']:8.2f} {run['disk_s']:10.2f}{check}"


def better_by(ours: Run, rival: Run, kind: str) -> float:
    key = kind if kind in ours else f"{kind}_s"
    return rival[key] / max(ours[key], 1e-9)


# --- the contestants


def measured(who: str, base: Path, adapter: Path, output: Path) -> Run:
    """Run one contestant to its end; its figures, in bytes and seconds."""
    os.sync()
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, "--contestant", who, str(base), str(adapter), str(output)],
        env=os.environ | device_environment("cpu", 1) | {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    ended = time.monotonic()
    if done.returncode:
        sys.exit(f"{who} ended with {done.returncode}")
    run: Run = json.loads(done.stdout.splitlines()[-1])
    run["whole_s"] = ended - started - run.get("check_s", 0) - run["sync_s"]
    run["disk_s"] = run["work_s"] + run["sync_s"]
    return run


def merge_once(who: str, base: Path, adapter: Path, output: Path) -> Run:
    """In this process: import, merge, and look at clock and memory."""
    prepared: dict[str, Callable[[Path, Path, Path], Callable[[], Any]]] = {
        "tunefleet": prepare_tunefleet,
        "peft": prepare_peft,
        "copy": lambda base, _adapter, output: lambda: shutil.copytree(base, output),
    }
    act = prepared[who](base, adapter, output)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
    before = memory_of_this_process()
    anonymous, over = [before["RssAnon"]], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            anonymous.append(memory_of_this_process()["RssAnon"])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.monotonic()
    check = act()
    ended = time.monotonic()
    over.set()
    watcher.join()
    peak = memory_of_this_process()["VmHWM"] - before["VmRSS"]
    os.sync()
    synced = time.monotonic()
    run = {
        "memory": peak,
        "anonymous": max(anonymous) - before["RssAnon"],
        "work_s": ended - started,
        "sync_s": synced - ended,
    }
    if who == "tunefleet":
        check()
        run["check_s"] = time.monotonic() - synced
    return run


def prepare_tunefleet(base: Path, adapter: Path, output: Path) -> Callable[[], Callable[[], None]]:
    from tasks.merging.deltas import read_deltas
    from tasks.merging.streaming import write_merged
    from tasks.merging.weights import Weights

    def act() -> Callable[[], None]:
        weights = Weights(base)
        deltas = read_deltas(adapter, weights)
        said = write_merged(base, deltas, output)

        def check() -> None:
            from tasks.merging.checking import check_files, check_tensors

            check_files(output, said["files"])
            check_tensors(weights, Weights(output), deltas.keys())

        return check

    return act


def prepare_peft(base: Path, adapter: Path, output: Path) -> Callable[[], None]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401 - its module is part of the imports

    def act() -> None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output)

    return act


def memory_of_this_process() -> dict[str, int]:
    """{"VmRSS": bytes, "VmHWM": bytes, "RssAnon": bytes, ...} as the kernel counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }


# --- whether both made the same


def compared(base: Path, ours: Path, theirs: Path) -> dict[str, Any]:
    """How the two merged models differ, tensor by tensor."""
    import torch

    from tasks.merging.weights import Weights

    before, mine, other = Weights(base), Weights(ours), Weights(theirs)
    changed = same = beyond = equal = total = 0
    missing = set(mine.names) ^ set(other.names)  # a tied head may be written or left out
    for name in sorted(set(mine.names) & set(other.names)):
        a, b, w = mine.read(name), other.read(name), before.read(name)
        if torch.equal(a, w):
            same += 1
            beyond += int((a != b).sum())
            continue
        changed += 1
        total += a.numel()
        apart = a != b
        a, b, w = (values[apart].float() for values in (a, b, w))
        equal += apart.numel() - a.numel()
        step = torch.maximum(a.abs(), b.abs()) * 2**-7 + (a - w).abs() * 2**-8
        beyond += int(((a - b).abs() > step).sum())
    ok = not beyond and not missing and changed > 0
    return {
        "changed": changed,
        "same": same,
        "exact": equal / max(total, 1),
        "beyond": beyond,
        "missing": sorted(missing),
        "ok": ok,
    }


if __name__ == "__main__":
    sys.exit(main())
