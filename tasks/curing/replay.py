"""Rows that keep the base as it was: which general prompts are asked, and how the answers join the training rows.

Replay of what a model itself says needs none of the data that it was once trained on: pseudo-rehearsal (Robins 1995,
Connection Science 7), for language models arXiv 2403.01244. tasks/curing/answering.py lets the base answer.
"""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.errors import RequestError, StageError
from infra.settings import PROJECT
from tasks.ingestion.dataset import read_jsonl
from tasks.ingestion.splitting import not_asked

GENERAL_PROMPTS = PROJECT / "data" / "general_prompts.txt"
REPLAY = "replay.jsonl"


def read_prompts(path: str | None) -> list[str]:
    """The lines of a text file (of the one that ships for None), without empty ones and repetitions."""
    file = Path(path) if path else GENERAL_PROMPTS
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"cure.replay.prompts {str(file)!r} cannot be read: {error}. It is a text file with one prompt a line; "
            "paths are relative to the recipe."
        ) from error
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise RequestError(f"cure.replay.prompts {str(file)!r} holds no prompt; write one a line.")
    return prompts


def mix(
    data: Path, replay: Path, output: Path, *, share: float, seed: int, examined: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the data set in `data` to `output` with replayed rows in train.jsonl; return its figures.

    They are `share` of all training rows, drawn without repetition; all of them if they do not suffice, and the
    figures say so. A prompt that the data set asks itself is not replayed: two answers would contradict each other, or
    a held-out row would be trained on. Neither is one that occurs in `examined`, the prompts of the general tasks: what
    the gate asks must not be trained on. What is held out and validated on stays byte by byte.
    """
    report = json.loads((data / "report.json").read_text(encoding="utf-8"))
    if report["kind"] != "chat":
        raise StageError(
            f"the rows are of kind {report['kind']}, and replayed rows are chats; the rows of a data set are of one "
            "kind. Write the rows as chats (data.messages), or leave cure.replay out."
        )
    train, kept = read_jsonl(data / "train.jsonl"), ("validation.jsonl", "held_out.jsonl")
    asked = train + [row for name in kept for row in read_jsonl(data / name)]
    answered = [
        row
        for row in not_asked(read_jsonl(replay / REPLAY), asked)
        if not any(row["prompt"][-1]["content"] in prompt for prompt in examined)
    ]
    wanted = round(len(train) * share / (1 - share))
    chance = random.Random(seed)
    drawn = chance.sample(answered, min(wanted, len(answered)))
    if not drawn:
        raise StageError(
            f"no replayed row can join {len(train)} training rows: share {share:g} of them is {wanted} rows, and there "
            f"are {len(answered)}. Raise cure.replay.share, or give more prompts in cure.replay.prompts."
        )
    mixed = train + drawn
    chance.shuffle(mixed)
    with (output / "train.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in mixed)
    for name in kept:
        shutil.copyfile(data / name, output / name)
    figures = {"train": len(mixed), "replayed": len(drawn), "replay_wanted": wanted}
    report = {**report, **figures}
    (output / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    return {key: value for key, value in report.items() if key != "dropped"}
