"""Which adapters train together, in one process on one frozen base.

A pack takes a whole device, and holds adapters of one precision. With several devices there are as many packs, each
about as long as the others: the longest adapter first, each into the pack with least to do (list scheduling by longest
processing time). What does not fit into the memory of any makes a pack more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.device_memory import MARGIN, Device
from tasks.artifacts import StageResult
from tasks.recipe.schema import Adapter
from tasks.training.schedule import steps_of

MOST = 64  # adapters of a pack: their claims are held one inside the other (pack_task.py)


@dataclass(frozen=True)
class Member:
    """An adapter that is to be trained, and its rows."""

    adapter: Adapter
    data: StageResult

    @property
    def name(self) -> str:
        return self.adapter.name


@dataclass(frozen=True)
class Size:
    """What forming packs looks at. Bytes are those of a process that trains this adapter alone."""

    name: str
    quantization: str
    rows: int  # to be trained, over all steps
    memory: int
    shared: int  # of it, what all adapters of a process need once: base, workspace, libraries


def rows_in_all(rows: int, training: Mapping[str, Any]) -> int:
    """How many rows a training of one process goes through, of `rows` that there are."""
    a_step = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    return steps_of(rows, training) * a_step


def memory_of(pack: Iterable[Size]) -> int:
    """Bytes of the process that trains them all."""
    return bytes_together([(one.memory, one.shared) for one in pack])


def bytes_together(members: Sequence[tuple[int, int]]) -> int:
    """Of a process that trains several adapters, each of which alone takes (in all, of it what they share)."""
    return max(shared for _, shared in members) + sum(own - shared for own, shared in members)


def room(devices: Sequence[Device]) -> float | None:
    """Bytes that a process may take on any of the devices; None if none of them says what is free."""
    known = [device.free_bytes for device in devices if device.free_bytes is not None]
    return (1 - MARGIN) * min(known) if known else None


def form_packs(
    adapters: Iterable[Size], *, devices: int, room: float | None, limit: int | None
) -> list[tuple[Size, ...]]:
    """The packs, the longest first. One adapter may always be alone: whether it fits is said elsewhere."""
    by_precision: dict[str, list[Size]] = {}
    for one in sorted(adapters, key=lambda one: -one.rows):
        by_precision.setdefault(one.quantization, []).append(one)
    packs: list[list[Size]] = []
    for same in by_precision.values():
        open_ones: list[list[Size]] = [[] for _ in same[:devices]]
        for one in same:
            fitting = [pack for pack in open_ones if not pack or _fits([*pack, one], room, limit)]
            if not fitting:
                fitting = [[]]
                open_ones += fitting
            min(fitting, key=_rows).append(one)
        packs += open_ones
    return sorted(map(tuple, packs), key=lambda pack: -_rows(pack))


def _fits(pack: Sequence[Size], room: float | None, limit: int | None) -> bool:
    return len(pack) <= min(limit or MOST, MOST) and (room is None or memory_of(pack) <= room)


def _rows(pack: Sequence[Size]) -> int:
    return sum(one.rows for one in pack)
