"""The merged model's files, written one block of one tensor after the other: no model is built.

    base's shard -> block -> + delta in float32 -> cast -> the same place of a new shard
                                                     `-> SHA-256, in a thread beside the work

A shard of the output has the header, the order and the size of the base's: what no delta touches is copied as it
stands. The space is claimed before anything is computed, so a disk that is too small is found at once. Memory is a
few blocks, and a few times one tensor only where its rows depend on each other (see Delta.rows).
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from infra.errors import StageError
from infra.hashing import digest_file
from infra.storage import MANIFEST
from tasks.ingestion.base_model import WANTED
from tasks.merging.deltas import Delta
from tasks.merging.weights import DTYPES, Entry, Weights, read_into

BLOCK = 2 << 20  # bytes of a file that are worked on at a time; their float32 sum stays in a core's cache
_BUFFERS = 4  # blocks that may wait to be hashed
_TEMPLATES = "additional_chat_templates/*.jinja"  # the one folder inside a model's that transformers reads
_NOT_COPIED = ("*.safetensors", "*.index.json", MANIFEST, "merge.json")  # weights, and what is said of the base alone

Through = Callable[[torch.Tensor], torch.Tensor]


def write_merged(
    base: Path,
    deltas: Mapping[str, Delta],
    output: Path,
    *,
    rounded: Collection[str] = (),
    through: Through | None = None,
) -> dict[str, Any]:
    """Write `base` with `deltas` into the folder `output`; `rounded` tensors first go, as float32, `through` it.

    Returns {"files": {name: sha256}, "tensors_changed": those that have other bytes, "tensors_copied": the others}.
    StageError if the disk is too small or a sum is not finite; then no weights are left in `output`.
    """
    weights = Weights(base)
    plan = _Plan(weights, deltas, frozenset(rounded), through)
    if strange := sorted({*deltas, *plan.rounded} - set(weights.names)):
        raise StageError(f"{base} holds no tensor {', '.join(strange[:5])}, which was to be changed.")
    if output.resolve() == base.resolve():
        raise StageError(f"{output} is the base itself; give another folder to write to.")
    output.mkdir(parents=True, exist_ok=True)
    try:
        _claim_space(weights, output)
        files = {shard: _write_shard(shard, plan, output) for shard in weights.shards}
        files |= _copy_others(weights, output)
        _to_disk(output, files)
    except BaseException:
        for shard in weights.shards:
            (output / shard).unlink(missing_ok=True)
        raise
    return {
        "files": dict(sorted(files.items())),
        "tensors_changed": len(plan.changed),
        "tensors_copied": len(weights.names) - len(plan.changed),
    }


@dataclass
class _Plan:
    """What is to be done with each tensor, and what came of it."""

    weights: Weights
    deltas: Mapping[str, Delta]
    rounded: frozenset[str]
    through: Through | None
    changed: list[str] = field(default_factory=list)

    def touches(self, name: str) -> bool:
        return name in self.deltas or name in self.rounded


def _claim_space(weights: Weights, output: Path) -> None:
    """Make every shard at its full size, with its blocks on the disk."""
    sizes = {shard: (weights.folder / shard).stat().st_size for shard in weights.shards}
    for shard, size in sizes.items():
        try:
            with (output / shard).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            free, needed = shutil.disk_usage(output).free / 1e9, sum(sizes.values()) / 1e9
            raise StageError(
                f"{output}: no room for {shard} ({error.strerror}); the merged model needs {needed:.3f} GB, "
                f"{free:.3f} GB are free. Free some space, or write to another disk."
            ) from error


def _write_shard(shard: str, plan: _Plan, output: Path) -> str:
    """Fill one shard from its first byte to its last; returns its SHA-256."""
    source = plan.weights.folder / shard
    with source.open("rb", buffering=0) as old, (output / shard).open("r+b", buffering=0) as new:
        writer = _Writer(old.fileno(), new.fileno())
        try:
            for name, start, stop in _stretches(shard, plan, source.stat().st_size):
                if name is None:
                    for at in range(start, stop, BLOCK):
                        writer.write(writer.read(at, min(BLOCK, stop - at)))
                else:
                    _write_tensor(name, plan, writer)
        finally:
            digest = writer.close()
    return digest


def _stretches(shard: str, plan: _Plan, size: int) -> Iterator[tuple[str | None, int, int]]:
    """(tensor to change, first byte, byte after), or None for what is copied, over the whole file in order."""
    done = 0
    for name in plan.weights.names:
        entry = plan.weights.entry(name)
        if entry.shard == shard and plan.touches(name) and entry.end > entry.start:
            yield None, done, entry.start
            yield name, entry.start, entry.end
            done = entry.end
    yield None, done, size


def _write_tensor(name: str, plan: _Plan, writer: "_Writer") -> None:
    entry, delta = plan.weights.entry(name), plan.deltas.get(name)
    dtype = DTYPES[entry.dtype]
    changed = False
    for start, stop, part in _blocks(entry, delta, whole=name in plan.rounded):
        row = (entry.end - entry.start) // (entry.shape[0] if entry.shape else 1)
        raw = writer.read(entry.start + start * row, (stop - start) * row)
        stored = raw.view(dtype).view(stop - start, *entry.shape[1:]) if entry.shape else raw.view(dtype)[0]
        weight = stored.float()
        if name in plan.rounded and plan.through is not None:
            weight = plan.through(weight)
        after = (part.apply(weight) if part is not None else weight).to(dtype)
        if not _is_finite(after):
            raise StageError(f"{name}: the merged values are not finite (NaN or infinite in {entry.dtype}).")
        changed = changed or not _same_bytes(after, stored)
        stored.copy_(after)
        writer.write(raw)
    if changed:
        plan.changed.append(name)


def _blocks(entry: Entry, delta: Delta | None, *, whole: bool) -> Iterator[tuple[int, int, Delta | None]]:
    """(first row, row after, its part of `delta`): as many rows as a block holds, or all where they hang together."""
    rows = entry.shape[0] if entry.shape else 1
    step = max(1, BLOCK // 4 // max(1, prod(entry.shape[1:])))  # of their float32 values
    if whole or not entry.shape or delta is None or delta.rows(0, 1) is None:
        yield 0, rows, delta
        return
    for start in range(0, rows, step):
        yield start, min(start + step, rows), delta.rows(start, min(start + step, rows))


def _is_finite(values: torch.Tensor) -> bool:
    """A sum is NaN or infinite if any value is: one pass, and the slow answer only where it can be no."""
    return bool(values.sum(dtype=torch.float32).isfinite()) or bool(values.isfinite().all())


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = torch.equal(one, other)  # of finite values; only 0 and -0 are equal and differ
    return same and torch.equal(
        one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
    )


class _Writer:
    """Reads blocks of one file, writes them to the same place of another, and hashes them beside the work."""

    def __init__(self, old: int, new: int):
        self._old, self._new, self._at = old, new, 0
        self._free: SimpleQueue[torch.Tensor] = SimpleQueue()
        self._waiting: SimpleQueue[tuple[torch.Tensor, torch.Tensor] | None] = SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(torch.empty(BLOCK, dtype=torch.uint8))
        self._hash = hashlib.sha256()
        self._thread = Thread(target=self._digest, daemon=True, name="hash")
        self._thread.start()

    def read(self, start: int, size: int) -> torch.Tensor:
        """Bytes of the old file, in memory that `write` takes next; it waits if too many blocks are unhashed."""
        self._block = self._free.get()
        raw = self._block[:size] if size <= BLOCK else torch.empty(size, dtype=torch.uint8)
        read_into(self._old, raw.numpy().data, start)
        return raw

    def write(self, raw: torch.Tensor) -> None:
        """Put what `read` gave last behind what was written before."""
        data, done = raw.numpy().data, 0
        while done < len(data):
            done += os.pwrite(self._new, data[done:], self._at + done)
        self._at += done
        self._waiting.put((raw, self._block))

    def close(self) -> str:
        self._waiting.put(None)
        self._thread.join()
        return self._hash.hexdigest()

    def _digest(self) -> None:
        while work := self._waiting.get():
            raw, block = work
            self._hash.update(raw.numpy().data)
            del work, raw
            self._free.put(block)


def _copy_others(weights: Weights, output: Path) -> dict[str, str]:
    """The files that an import of a base keeps (configuration, tokenizer, chat templates, licence), and the index."""
    digests = {}
    for path in sorted([*weights.folder.iterdir(), *weights.folder.glob(_TEMPLATES)]):
        name = path.relative_to(weights.folder).as_posix()
        if path.is_file() and (path == weights.index or (_fits(path, WANTED) and not _fits(path, _NOT_COPIED))):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, output / name)
            digests[name] = digest_file(output / name)
    return digests


def _fits(path: Path, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in patterns)


def _to_disk(output: Path, files: Collection[str]) -> None:
    for name in files:
        with (output / name).open("rb") as file:
            os.fsync(file.fileno())
