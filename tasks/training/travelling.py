"""Checkpoints of a training that is spread over machines which share no disk: they lie on machine 0's.

They travel between the processes, as the gradients do: to all machines before one is resumed from, and to machine 0
what the others' processes wrote into one (the state of their random numbers). On one machine nothing travels.

For ddp. Under fsdp and deepspeed every process writes and reads its share of what may be a hundred gigabytes.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed

from tasks.training import checkpoints

PART = 64 * 2**20  # bytes in one message


def newest_whole(folder: Path) -> Path | None:
    """checkpoints.newest_whole of the first process's folder, with the best weights; on every machine."""
    if not is_spread():
        return checkpoints.newest_whole(folder)
    found = checkpoints.newest_whole(folder) if _is_first() else None
    best = checkpoints.best_step(found) if found else None
    names: list[str] = _from_first([found.name, *([f"best-{best}"] if best is not None else [])] if found else [])
    for name in names:
        to_all(folder / name)
    return folder / names[0] if names else None


def to_all(folder: Path) -> None:
    """Copy a folder of the first process to the same place on the other machines."""
    if not is_spread():
        return
    writes = _leads_another_machine()
    if writes:
        shutil.rmtree(folder, ignore_errors=True)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()] if _is_first() else []
    for name, size in _from_first([(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]):
        target = folder / name if writes or _is_first() else Path(os.devnull)
        if writes:
            target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("rb" if _is_first() else "wb") as file:
            for _ in range(0, size, PART):
                part = _from_first(file.read(PART) if _is_first() else None)
                if not _is_first():
                    file.write(part)
    torch.distributed.barrier()


def to_first(folder: Path) -> None:
    """Move what the processes of other machines wrote below `folder` to the same place on machine 0."""
    if not is_spread():
        return
    torch.distributed.barrier()  # all have written
    leads = _leads_another_machine()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()] if leads else []
    brought: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(brought, {str(one.relative_to(folder)): one.read_bytes() for one in files})
    if leads:
        shutil.rmtree(folder, ignore_errors=True)
    elif _is_first():
        for name, content in (item for one in brought for item in one.items()):
            (folder / name).write_bytes(content)


def is_spread() -> bool:
    """Whether this training runs on several machines, as torchrun tells each of its processes."""
    return os.environ.get("GROUP_WORLD_SIZE", "1") != "1"


def _is_first() -> bool:
    return os.environ["RANK"] == "0"


def _leads_another_machine() -> bool:
    return os.environ["LOCAL_RANK"] == "0" and not _is_first()


def _from_first(value: Any) -> Any:
    """The first process's value, in all of them."""
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
