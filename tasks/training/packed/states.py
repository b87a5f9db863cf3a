"""Checkpoints of a pack: one folder a member, all written in the same round, and what to go on from.

    <the member's folder>/checkpoint-40/   state.safetensors    A and B, AdamW's moments
                                           trainer_state.json   log, best step; the round, and whose pack it was
                                           clock.json           seconds and pace before it
                          best-30/         state.safetensors    A and B

Rows of other members go through the same products, whose last bits hang on how many rows there are. So a pack goes on
from the last round that all its members have, or from the start, and then repeats itself to the byte. If the pack is
another than the one that wrote them, each member goes on from its own last step.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tasks.training import checkpoints

STATE, LOG, CLOCK = "state.safetensors", "trainer_state.json", "clock.json"


@dataclass(frozen=True)
class Saved:
    """One whole checkpoint of a member."""

    folder: Path
    log: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.log["global_step"])

    @property
    def round(self) -> int:
        return int(self.log["round"])

    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / STATE)

    def clock(self) -> dict[str, Any]:
        return json.loads((self.folder / CLOCK).read_text())


def save(folder: Path, tensors: Mapping[str, torch.Tensor], log: Mapping[str, Any], clock: Mapping[str, Any]) -> None:
    name = f"checkpoint-{log['global_step']}"
    beside = checkpoints.start(folder, name)
    save_file({key: one.detach().cpu() for key, one in tensors.items()}, beside / STATE)
    (beside / LOG).write_text(json.dumps(log))
    (beside / CLOCK).write_text(json.dumps(clock))
    checkpoints.finish(folder, name)
    checkpoints.drop_old(folder, best_now=log["best_global_step"])


def save_best(folder: Path, step: int, weights: torch.Tensor) -> None:
    beside = checkpoints.start(folder, f"best-{step}")
    save_file({"weights": weights.detach().cpu()}, beside / STATE)
    checkpoints.finish(folder, f"best-{step}")


def load_best(folder: Path, step: int) -> torch.Tensor:
    return load_file(folder / f"best-{step}" / STATE)["weights"]


def to_go_on_from(folders: Sequence[Path], pack: str) -> list[Saved | None]:
    """For each member's folder the checkpoint to resume, None for the start; `pack` names this set of members.

    Later ones are removed: of the few that are kept they would take the place of those that all have.
    """
    chosen = _chosen([whole(folder) for folder in folders], pack)
    for folder, one in zip(folders, chosen, strict=True):
        for path in folder.glob("checkpoint-*"):
            if checkpoints.step_of(path) > (one.step if one else 0):
                shutil.rmtree(path)
    return chosen


def _chosen(saved: Sequence[Sequence[Saved]], pack: str) -> list[Saved | None]:
    own = [[one for one in some if one.log["pack"] == pack] for some in saved]
    rounds = {one.round for some in own for one in some}
    for latest in sorted(rounds, reverse=True):
        chosen = [_of_round(some, latest) for some in own]
        if all(chosen):
            return chosen
    if saved == own and len(rounds) <= 1:  # killed while it wrote its first checkpoints
        return [None for _ in saved]
    return [some[-1] if some else None for some in saved]


def _of_round(saved: Sequence[Saved], latest: int) -> Saved | None:
    """The state that a member was in after that round: who had ended before was in its last one."""
    found = [one for one in saved if one.round == latest or (one.round < latest and one.log["ended"])]
    return found[-1] if found else None


def whole(folder: Path) -> list[Saved]:
    """The whole checkpoints in a folder, by step."""
    paths = sorted(folder.glob("checkpoint-*"), key=checkpoints.step_of)
    return [Saved(path, json.loads((path / LOG).read_text())) for path in paths if _is_usable(folder, path)]


def _is_usable(folder: Path, path: Path) -> bool:
    if not checkpoints.is_whole(path):
        return False
    best = checkpoints.best_step(path)
    return best is None or checkpoints.is_whole(folder / f"best-{best}")
