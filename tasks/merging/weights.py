"""The tensors of a folder of safetensors files: names, shapes and places from the headers, values one at a time.

A model may be larger than memory, so nothing here loads a file. Where there is an index it is believed, not the
folder: a shard that an earlier save left behind is no part of the model. The format is safetensors' own: eight bytes
of header length, the header as JSON, then the values, each tensor at the offsets that the header says.
"""

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from infra.errors import IntegrityError, StageError

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
    """Tensors of `<stem>.safetensors`, or of the shards that `<stem>.safetensors.index.json` names."""

    def __init__(self, folder: Path, stem: str = "model"):
        """StageError if there is no such file, or no way to tell which; IntegrityError if one is not what it says."""
        self.folder = folder
        self.index = folder / f"{stem}.safetensors.index.json"
        self._entries: dict[str, Entry] = {}
        self._metadata: dict[str, dict[str, str]] = {}
        placed = _read_index(self.index) if self.index.exists() else None
        for shard in sorted(set(placed.values())) if placed is not None else [_only_file(folder, stem)]:
            for name, entry in self._read_header(shard).items():
                if name in self._entries:
                    raise IntegrityError(f"{folder}: {name} is both in {self._entries[name].shard} and in {shard}.")
                self._entries[name] = entry
        for name, shard in (placed or {}).items():
            if name not in self._entries or self._entries[name].shard != shard:
                raise IntegrityError(f"{self.index}: says that {name} is in {shard}, which does not hold it.")

    @property
    def names(self) -> list[str]:
        """In the order of the files, and there in that of the bytes."""
        return list(self._entries)

    @property
    def shards(self) -> list[str]:
        return list(self._metadata)

    def entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise StageError(f"{self.folder} holds no tensor {name}; it holds {len(self._entries)} others.")
        return self._entries[name]

    def metadata(self, shard: str) -> dict[str, str]:
        """What the file says of itself, as a rule {"format": "pt"}."""
        return self._metadata[shard]

    def read(self, name: str) -> torch.Tensor:
        """A copy of one tensor, in its own dtype and shape."""
        entry = self.entry(name)
        if entry.dtype not in DTYPES:
            raise StageError(f"{self.folder}: {name} is {entry.dtype}; known are {', '.join(DTYPES)}.")
        raw = torch.empty(entry.end - entry.start, dtype=torch.uint8)
        with (self.folder / entry.shard).open("rb", buffering=0) as file:
            read_into(file.fileno(), raw.numpy().data, entry.start)
        return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def _read_header(self, shard: str) -> dict[str, Entry]:
        """The tensors of one file in the order of their bytes; its metadata is kept beside."""
        path = self.folder / shard
        if not path.is_file():
            raise IntegrityError(f"{self.folder}: {self.index.name} names {shard}, which is not there; fetch it again.")
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(_LONGEST_HEADER, size - 8):
                raise IntegrityError(f"{path} ({size} bytes) is cut short or no safetensors file; fetch it again.")
            header = _parsed(path, file.read(length))
        if not isinstance(header, dict):
            raise IntegrityError(f"{path}: its header is no JSON object; fetch it again.")
        self._metadata[shard] = header.pop("__metadata__", None) or {}
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
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if f"{stem}.safetensors" in found:
        return f"{stem}.safetensors"
    if not found:
        raise StageError(f"{folder} holds no {stem}.safetensors; give the folder of a model saved as safetensors.")
    raise StageError(f"{folder} holds {', '.join(found[:3])} but no {stem}.safetensors.index.json to say what counts.")


def _parsed(path: Path, raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise IntegrityError(f"{path}: what it says of itself is no JSON ({error}); fetch it again.") from error
