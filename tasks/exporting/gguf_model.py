"""A Hugging Face folder as one GGUF file, which llama.cpp runs: settings, tokenizer, chat template, weights.

    every name, shape and type is known before the first byte -> header -> tensor after tensor -> read back, compared

One tensor is in memory at a time, as float32 and as stored. Reading back compares every number with its source, within
what its type may round; so a file that is there is one that was checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from infra.errors import StageError
from tasks.exporting.architecture import Architecture, architecture_of
from tasks.exporting.numbers import TYPES, bytes_of, differs, encode, type_for
from tasks.exporting.vocabulary import Vocabulary, read_vocabulary
from tasks.exporting.weights import open_weights, read_float32


@dataclass(frozen=True)
class Planned:
    """A tensor that the file will hold."""

    name: str  # in llama.cpp
    source: str | None  # in transformers; None for one that is computed
    shape: tuple[int, ...]
    kind: GGMLQuantizationType


def write_model(folder: Path, file: Path, type: str) -> dict[str, Any]:
    """Write the model in `folder` to `file` and check it; returns the facts of the manifest.

    RequestError for a model that a GGUF cannot hold as it is; StageError if the file is not what was written.
    """
    from transformers import AutoConfig

    weights = open_weights(folder)
    architecture = architecture_of(AutoConfig.from_pretrained(folder))
    names = architecture.gguf_names(weights.names)
    extra = architecture.extra_tensors()
    plan = [Planned(name, None, values.shape, GGMLQuantizationType.F32) for name, values in extra.items()]
    for source, name in names.items():
        shape = weights.entry(source).shape
        plan.append(Planned(name, source, shape, type_for(name, shape, type)))
    rows = next(one.shape[0] for one in plan if one.name == "token_embd.weight")
    vocabulary = read_vocabulary(folder, rows)

    def values(one: Planned) -> np.ndarray:
        if one.source is None:
            return extra[one.name]
        return architecture.arranged(one.name, read_float32(weights, one.source))

    writer = GGUFWriter(file, architecture.name)
    writer.add_type("model")
    writer.add_name(folder.name)
    writer.add_file_type(TYPES[type][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    architecture.describe(writer)
    writer.add_vocab_size(rows)
    vocabulary.describe(writer)
    write_tensors(writer, ((one.name, one.shape, one.kind) for one in plan), (values(one) for one in plan))
    _check(file, plan, (values(one) for one in plan), vocabulary, architecture)
    return {
        "type": type,
        "bytes": file.stat().st_size,
        "tensors": len(plan),
        "architecture": architecture.name,
        "tokenizer_pre": vocabulary.pre,
        "kept_wider": sorted({one.name for one in plan if len(one.shape) > 1 and one.kind != TYPES[type][0]}),
        "notes": architecture.notes + vocabulary.notes,
    }


def write_tensors(
    writer: GGUFWriter,
    tensors: Iterator[tuple[str, tuple[int, ...], GGMLQuantizationType]],
    values: Iterator[np.ndarray],
) -> None:
    """Write the header of `tensors` (name, shape, type), then the float32 `values` of each, one at a time."""
    announced = list(tensors)
    for name, shape, kind in announced:
        writer.add_tensor_info(name, shape, np.dtype(np.float32), bytes_of(shape, kind), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for (name, _, kind), one in zip(announced, values, strict=True):
            writer.write_tensor_data(encode(name, one, kind))
    finally:
        writer.close()


def check_tensors(
    reader: GGUFReader, tensors: list[tuple[str, tuple[int, ...], GGMLQuantizationType]], values: Iterator[np.ndarray]
) -> None:
    """StageError unless the file holds exactly `tensors`, and in each the `values`, within what its type may round."""
    held = [(one.name, tuple(map(int, one.shape[::-1])), one.tensor_type) for one in reader.tensors]  # innermost first
    if held != tensors:
        raise StageError(f"the GGUF holds other tensors than were written: {len(held)} of {len(tensors)}.")
    for stored, wanted in zip(reader.tensors, values, strict=True):
        if differs(stored.data, wanted, stored.tensor_type):
            raise StageError(f"{stored.name} reads back as other numbers than {stored.tensor_type.name} rounds to.")


def _check(
    file: Path, plan: list[Planned], values: Iterator[np.ndarray], vocabulary: Vocabulary, architecture: Architecture
) -> None:
    reader = GGUFReader(file)
    check_tensors(reader, [(one.name, one.shape, one.kind) for one in plan], values)
    wanted: dict[str, Any] = {
        "general.architecture": architecture.name,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.eos_token_id": vocabulary.stops[0],
    }
    if isinstance(vocabulary.template, str):
        wanted["tokenizer.chat_template"] = vocabulary.template
    for key, value in wanted.items():
        field = reader.get_field(key)
        if field is None or field.contents() != value:
            raise StageError(f"{key} reads back as something else than was written.")
