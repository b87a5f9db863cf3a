"""The tensors of a folder of safetensors files: names, shapes and places from the headers, values one at a time.

A model may be larger than memory, so nothing here loads a file. Which files count is decided as transformers does:
model.safetensors by itself wherever it is there, else the shards that the index names; what an earlier save left
behind is no part of the model. The format is safetensors' own: eight bytes
of header length, the header as JSON, then the values, each tensor at the offsets that the header says.
"""

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from infra.errors import IntegrityError, RequestError, StageError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies."""

    shard: str  # file name
    dtype: str  # as safetensors spells it: "BF16"
    shape: tuple[int, ...]
    start: int  # first byte, from the start of the file
    end: int  # the byte after the last


class Weights:
    """Tensors of `<stem>.safetensors`, or without one of the shards that `<stem>.safetensors.index.json` names."""

    def __init__(self, folder: Path, stem: str = "model"):
        """RequestError if there is no such file, or no way to tell which; IntegrityError if one is not what it says."""
        self.folder = folder
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        self.index = index if index.is_file() and not single.is_file() else None
        placed = _read_index(self.index) if self.index else {}
        self.shards = sorted(set(placed.values())) if self.index else [_only_file(folder, stem)]
        self._entries: dict[str, Entry] = {}
        for shard in self.shards:
            for name, entry in self._read_header(shard).items():
                if name in self._entries:
                    raise IntegrityError(f"{folder}: {name} is both in {self._entries[name].shard} and in {shard}.")
                self._entries[name] = entry
        for name, shard in placed.items():
            if name not in self._entries or self._entries[name].shard != shard:
                raise IntegrityError(f"{self.index}: says that {name} is in {shard}, which does not hold it.")

    @property
    def names(self) -> list[str]:
        """In the order of the files, and there in that of the bytes."""
        return list(self._entries)

    def entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise StageError(f"{self.folder} holds no tensor {name}; it holds {len(self._entries)} others.")
        return self._entries[name]

    def read(self, name: str) -> torch.Tensor:
        """A copy of one tensor, in its own dtype and shape."""
        entry = self.entry(name)
        if entry.dtype not in DTYPES:
            raise StageError(f"{self.folder}: {name} is {entry.dtype}; known are {', '.join(DTYPES)}.")
        return self.read_bytes(name).view(DTYPES[entry.dtype]).reshape(entry.shape)

    def read_bytes(self, name: str) -> torch.Tensor:
        """A copy of one tensor's bytes (uint8), whatever numbers they are."""
        entry = self.entry(name)
        raw = torch.empty(entry.end - entry.start, dtype=torch.uint8)
        with (self.folder / entry.shard).open("rb", buffering=0) as file:
            read_into(file.fileno(), raw.numpy().data, entry.start)
        return raw

    def _read_header(self, shard: str) -> dict[str, Entry]:
        """The tensors of one file in the order of their bytes."""
        path = self.folder / shard
        if not path.is_file():
            raise IntegrityError(f"{self.index}: names {shard}, which is not there; fetch it again.")
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(_LONGEST_HEADER, size - 8):
                raise IntegrityError(f"{path} ({size} bytes) is cut short or no safetensors file; fetch it again.")
            header = _parsed(path, file.read(length))
        if not isinstance(header, dict):
            raise IntegrityError(f"{path}: its header is no JSON object; fetch it again.")
        header.pop("__metadata__", None)  # as a rule {"format": "pt"}
        try:
            entries = {name: _entry(shard, 8 + length, said) for name, said in header.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{path}: its header does not describe tensors ({error!r}); fetch it again."
            ) from error
        end = 8 + length
        for name, entry in (ordered := sorted(entries.items(), key=lambda item: (item[1].start, item[1].end))):
            if entry.start != end:
                raise IntegrityError(f"{path}: {name} starts at byte {entry.start}, not at {end}; fetch it again.")
            end = entry.end
        if end != size:
            raise IntegrityError(f"{path} has {size} bytes, its header tells of {end}: cut short; fetch it again.")
        return dict(ordered)


def read_into(file: int, buffer: memoryview, start: int) -> None:
    """Fill `buffer` with the bytes of the open `file` from `start` on."""
    done = 0
    while done < len(buffer):
        read = os.preadv(file, [buffer[done:]], start + done)
        if not read:
            raise IntegrityError(f"a weights file ends at byte {start + done}: it was cut short while it was read.")
        done += read


def _entry(shard: str, offset: int, said: dict[str, Any]) -> Entry:
    shape, (start, end) = tuple(int(size) for size in said["shape"]), said["data_offsets"]
    if said["dtype"] in DTYPES and prod(shape) * DTYPES[said["dtype"]].itemsize != end - start:
        raise ValueError(f"{said['dtype']} of shape {shape} in {end - start} bytes")
    return Entry(shard, str(said["dtype"]), shape, offset + start, offset + end)


def _read_index(path: Path) -> dict[str, str]:
    """{tensor: file name}"""
    try:
        placed: dict[str, str] = dict(_parsed(path, path.read_bytes())["weight_map"])
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} has no weight_map of tensors to files; fetch it again.") from error
    if outside := sorted({shard for shard in placed.values() if not shard or Path(shard).name != shard}):
        raise IntegrityError(f"{path}: names {', '.join(outside)}; allowed are files beside it.")
    return placed


def _only_file(folder: Path, stem: str) -> str:
    wanted = f"{stem}.safetensors"
    if (folder / wanted).is_file():
        return wanted
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "") or "nothing"
    raise RequestError(
        f"{folder} holds {shown}; needed is {wanted}, or {wanted}.index.json with the files that it names. Other "
        "formats are not read: load the model with transformers and save it with save_pretrained."
    )


def _parsed(path: Path, raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise IntegrityError(f"{path}: what it says of itself is no JSON ({error}); fetch it again.") from error
