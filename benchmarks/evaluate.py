"""Scoring a base and four adapters: Tunefleet in one process against five stock `lm_eval` commands, interleaved.

    python benchmarks/evaluate.py [--suite choice|offline] [--base FOLDER] [--batch 8] [--limit N] [--repeats 3]

Both score the same documents in float32 on the CPU, with the same batch size and environment; who begins alternates.
Two suites:

    choice    multiple choice with answers of several tokens: 160 questions on a short text, five sentences each
    offline   the suite that ships (general-offline), without chat template: the command has one setting for all tasks

The adapters are random and small, so that their answers are near the base's and not the same. Ratios are above 1 where
Tunefleet is better, and compare runs of one repeat:

    whole     seconds from the start of the first process to the end of the last: imports, loading, scoring, files
    scoring   seconds of scoring alone: ours from the cells' facts, which include making the requests; lm_eval's from
              the first sign of life of its progress bars to the last one

The figures count only if every document of every side came out the same (exit code 1 otherwise): the same likeliest
choice, log-likelihoods within 1e-3, the same generated text.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train import embedded_base, spread

from infra.settings import PROJECT
from infra.stage_process import hand_over
from tasks.evaluation.catalogue import SUITES
from tasks.evaluation.records import read_records
from tasks.recipe.schema import SUITES as NAMED
from tasks.recipe.schema import Lora
from tasks.training.launching import device_environment

ADAPTERS = ("one", "two", "three", "four")
QUESTIONS, CHOICES = 160, 5
GOALS = {"choice": 8, "offline": 5}  # times faster, in scoring
TOLERANCE = 1e-3  # of a log-likelihood, absolute
TASK = """task: typed_pokemon
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
num_fewshot: 0
doc_to_text: "{{text}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
Answers = dict[tuple[str, str, str], list[Any]]  # {(side, task, document): texts, or log-likelihoods}
Run = dict[str, Any]
Sides = dict[str, Path | None]  # the folder of each side's adapter; none for the base


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=GOALS, default="choice")
    parser.add_argument("--base", type=Path, help="folder of the base model (default: the embedded SmolLM2-135M)")
    parser.add_argument("--batch", type=int, default=8, help="documents per forward pass")
    parser.add_argument("--limit", type=int, help="documents per task (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="times that both run")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and the rest to stderr")
    asked = parser.parse_args()
    if asked.repeats < 1 or asked.batch < 1:
        parser.error("--repeats and --batch are at least 1")

    def say(line: str) -> None:
        print(line, file=sys.stderr if asked.json else sys.stdout, flush=True)

    with tempfile.TemporaryDirectory(prefix="tunefleet-benchmark-") as name:
        work, base = Path(name), (asked.base or embedded_base()).absolute()
        folder = choice_suite(work / "tasks") if asked.suite == "choice" else SUITES
        tasks = ["typed_pokemon"] if asked.suite == "choice" else list(NAMED["general-offline"])
        sides: Sides = {"base": None} | write_adapters(base, work / "adapters")
        settings = {"tasks": tasks, "include_path": str(folder), "batch": asked.batch, "limit": asked.limit}
        repeats: list[dict[str, Run]] = []
        for number in range(asked.repeats):
            runs: dict[str, Run] = {}
            contestants = [("tunefleet", ours), ("lm_eval", stock)]
            for who, contestant in contestants if number % 2 == 0 else contestants[::-1]:
                runs[who] = contestant(base, sides, settings, work / f"{number}-{who}")
                say(f"repeat {number + 1}  {who:10} whole {runs[who]['whole_s']:7.1f} s, "
                    f"scoring {runs[who]['scoring_s']:7.1f} s")  # fmt: skip
            repeats.append(runs)

    report = compared(repeats)
    for kind, one in report["ratios"].items():
        say(f"{asked.suite}  {kind:8} {one['median']:5.2f}  ({one['min']:.2f} to {one['max']:.2f})")
    agreed = report["agreement"]
    say(f"{agreed['documents']} documents of each run: {agreed['other_choices']} with another likeliest choice, "
        f"{agreed['other_texts']} with another text, {agreed['other_numbers']} log-likelihoods not within "
        f"{TOLERANCE:g} (largest difference {agreed['difference']:.2g}): "
        f"{'the same' if report['same'] else 'NOT THE SAME, no figure counts'}")  # fmt: skip
    if asked.json:
        runs_s = [{who: [run["whole_s"], run["scoring_s"]] for who, run in runs.items()} for runs in repeats]
        print(json.dumps({**report, "suite": asked.suite, "goal": GOALS[asked.suite], "repeats": runs_s}))
    return 0 if report["same"] else 1


def choice_suite(folder: Path) -> Path:
    """Questions on short texts, whose answers are sentences that differ from their first words on or later."""
    with (PROJECT / "data" / "pokemon.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    drawn, documents = random.Random(0), []
    for _ in range(QUESTIONS):
        told = drawn.sample(rows, 6)
        facts = [
            f"{row['name']} is of the type {' and '.join(filter(None, [row['type_1'], row['type_2']]))}."
            for row in told
        ]
        text = f"Here is what a young trainer wrote down about six creatures. {' '.join(facts)}"
        kinds = sorted({fact.partition(" is ")[2] for fact in facts})
        right = drawn.randrange(len(told))
        answer = facts[right].partition(" is ")[2]
        wrong = [kind for kind in kinds if kind != answer]
        extra = ["of no type that is known.", "of every type there is.", "of the type that nobody likes.", "not there."]
        choices = [answer, *(wrong + extra)[: CHOICES - 1]]
        drawn.shuffle(choices)
        documents.append(
            {
                "text": f"{text}\nQuestion: What does the text say about {told[right]['name']}?\nAnswer:",
                "choices": [f"{told[right]['name']} is {choice}" for choice in choices],
                "answer": choices.index(answer),
            }
        )
    folder.mkdir(parents=True)
    data = folder / "typed_pokemon.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    (folder / "typed_pokemon.yaml").write_text(TASK.replace("DATA", str(data)))
    return folder


def write_adapters(base: Path, folder: Path) -> Sides:
    """LoRA adapters (r 8 on every linear layer) of small random numbers."""
    import torch

    from tasks.training.models import add_adapter, load_base

    for seed, name in enumerate(ADAPTERS):
        torch.manual_seed(seed)
        model = add_adapter(load_base(base, "none", "cpu"), Lora().model_dump())
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=2e-3)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in ADAPTERS}


def environment() -> dict[str, str]:
    return os.environ | device_environment("cpu", 1) | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(PROJECT)}


def ours(base: Path, sides: Sides, settings: dict[str, Any], folder: Path) -> Run:
    """One process for all sides, as a flow starts it."""
    cells = {
        side: [
            {
                "kind": "general",
                "name": task,
                "include_path": settings["include_path"],
                "limit": settings["limit"],
                "num_fewshot": None,
                "apply_chat_template": False,
                "key": f"{side}-{task}",
                "output": str(folder / side / task),
            }
            for task in settings["tasks"]
        ]
        for side in sides
    }
    job = {
        "base": str(base),
        "quantization": "none",
        "dtype": "float32",
        "device": "cpu",
        "batch_size": settings["batch"],
        "sides": [
            {"name": side, "cells": cells[side], **({"adapter": str(adapter)} if adapter else {})}
            for side, adapter in sides.items()
        ],
    }
    folder.mkdir()
    started = time.monotonic()
    finish([sys.executable, "-m", "tasks.evaluation", str(hand_over(job, folder))], folder)
    whole = time.monotonic() - started
    facts = json.loads((folder / "result.json").read_text())["facts"]
    answers: Answers = {}
    for side, task in ((side, task) for side in sides for task in settings["tasks"]):
        for record in read_records(folder / side / task / "records.parquet"):
            given = record["loglikelihoods"] if record["response"] is None else [record["response"]]
            answers[side, task, record["doc_id"]] = given
    scoring = sum(fact["scored_in_seconds"] for fact in facts.values())
    return {"whole_s": whole, "scoring_s": scoring, "answers": answers}


def stock(base: Path, sides: Sides, settings: dict[str, Any], folder: Path) -> Run:
    """`lm_eval`, once for each side."""
    whole = scoring = 0.0
    answers: Answers = {}
    for side, adapter in sides.items():
        output = folder / side
        output.mkdir(parents=True)
        command = [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
            *("--model_args", f"pretrained={base},dtype=float32" + (f",peft={adapter}" if adapter else "")),
            *("--tasks", ",".join(settings["tasks"]), "--include_path", settings["include_path"]),
            *("--batch_size", str(settings["batch"]), "--log_samples", "--output_path", str(output)),
            *(("--limit", str(settings["limit"])) if settings["limit"] else ()),
        ]
        started = time.monotonic()
        scoring += finish(command, output)
        whole += time.monotonic() - started
        for task in settings["tasks"]:
            (file,) = output.rglob(f"samples_{task}_*.jsonl")
            for line in file.read_text(encoding="utf-8").splitlines():
                sample = json.loads(line)
                given = [response[0] for response in sample["resps"]]
                answers[side, task, str(sample["doc_id"])] = [one[0] if isinstance(one, list) else one for one in given]
    return {"whole_s": whole, "scoring_s": scoring, "answers": answers}


def finish(command: list[str], folder: Path) -> float:
    """Run a command to its end; seconds between the first and the last sign of life of its progress bars."""
    first = last = 0.0
    told = b""
    process = subprocess.Popen(
        command, env=environment(), cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0
    )
    assert process.stderr
    while chunk := process.stderr.read(65536):
        told = (told + chunk)[-8000:]
        if b"Running " in chunk:
            last = time.monotonic()
            first = first or last
    if process.wait():
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{told.decode(errors='replace')}")
    return last - first


def compared(repeats: list[dict[str, Run]]) -> dict[str, Any]:
    """The ratios over all repeats, and how far the answers agree."""
    ratios = {
        kind: spread([runs["lm_eval"][f"{kind}_s"] / runs["tunefleet"][f"{kind}_s"] for runs in repeats])
        for kind in ("whole", "scoring")
    }
    agreement = [agreement_of(runs["tunefleet"]["answers"], runs["lm_eval"]["answers"]) for runs in repeats]
    worst = {key: max(one[key] for one in agreement) for key in agreement[0]}
    same = not any(worst[key] for key in worst if key.startswith("other_"))
    missing = any(runs["tunefleet"]["answers"].keys() != runs["lm_eval"]["answers"].keys() for runs in repeats)
    return {"ratios": ratios, "agreement": worst, "same": same and not missing}


def agreement_of(ours: Answers, theirs: Answers) -> dict[str, Any]:
    difference, other_numbers, other_choices, other_texts = 0.0, 0, 0, 0
    for document in ours.keys() & theirs.keys():
        one, other = ours[document], theirs[document]
        if isinstance(one[0], str):
            other_texts += one != other
            continue
        numbers = [float(value) for value in other]
        apart = [abs(a - b) for a, b in zip(one, numbers, strict=True)]
        difference = max(difference, *apart)
        other_numbers += sum(not each <= TOLERANCE for each in apart)  # NaN, too, which max passes over
        other_choices += one.index(max(one)) != numbers.index(max(numbers))
    return {
        "documents": len(ours),
        "difference": difference,
        "other_numbers": other_numbers,
        "other_choices": other_choices,
        "other_texts": other_texts,
    }


if __name__ == "__main__":
    sys.exit(main())
