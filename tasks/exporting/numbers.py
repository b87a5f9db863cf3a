"""How numbers are stored in a GGUF, and how far each kind may round.

    f32 exact   f16, bf16 rounded once   q8_0, q4_0 32 numbers of a row share one 16-bit scale

Vectors (norms, biases) stay f32: they are small, and llama.cpp wants them so. A row that does not divide into blocks of
32 is stored as f16. At q4_0 the embeddings and the head are q8_0: every answer goes through them.
"""

from collections.abc import Iterator, Sequence

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from infra.errors import RequestError

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
PIECE = 2**22  # numbers
LARGEST_F16 = 65504.0
SMALLEST_F16 = 2.0**-24  # the distance of neighbours below 2**-14


def type_for(name: str, shape: Sequence[int], wanted: str) -> GGMLQuantizationType:
    """How the tensor with the GGUF name `name` is stored in a file of the type `wanted` (a key of TYPES)."""
    kind = TYPES[wanted][0]
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    if kind is GGMLQuantizationType.Q4_0 and name in ("token_embd.weight", "output.weight"):
        kind = GGMLQuantizationType.Q8_0
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else GGMLQuantizationType.F16


def bytes_of(shape: Sequence[int], kind: GGMLQuantizationType) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * size


def encode(name: str, values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes of `values` (float32, any shape) in the file; RequestError if they are not numbers or do not fit."""
    largest = max(float(values.max()), -float(values.min()))
    if not np.isfinite(largest):
        raise RequestError(f"{name} holds NaN or infinite weights; there is nothing to export.")
    if kind is GGMLQuantizationType.F16 and largest > LARGEST_F16:
        raise RequestError(f"{name} holds {largest:g}, f16 ends at {LARGEST_F16:g}; export it as bf16 or f32.")
    rows = values.reshape(-1, values.shape[-1])
    stored = np.empty((len(rows), bytes_of(rows.shape[1:], kind)), dtype=np.uint8)
    for piece in pieces(rows):
        stored[piece] = gguf.quantize(rows[piece], kind).view(np.uint8)
    return stored


def differs(stored: np.ndarray, values: np.ndarray, kind: GGMLQuantizationType) -> bool:
    """Whether some number of `stored`, as gguf's reader gives it, is further from `values` than its type may round."""
    rows, held = values.reshape(-1, values.shape[-1]), stored.reshape(-1, stored.shape[-1])
    return not all(
        (np.abs(gguf.dequantize(held[piece], kind) - rows[piece]) <= allowed_error(rows[piece], kind)).all()
        for piece in pieces(rows)
    )


def pieces(rows: np.ndarray) -> Iterator[slice]:
    """The rows in parts that are small beside a large tensor: rounding takes several copies of what it works on."""
    step = max(1, PIECE // rows.shape[1])
    return (slice(start, start + step) for start in range(0, len(rows), step))


def allowed_error(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The most by which each of `values` may differ once it was stored; broadcasts against them.

    Half the distance of neighbouring numbers; for a block with the scale d = largest / 127 half a step of d, or with
    d = largest / 8 a whole one (it has -8 but no +8), and the rounding of d itself.
    """
    magnitude = np.abs(values)
    if kind is GGMLQuantizationType.F32:
        return np.zeros_like(magnitude)
    if kind is GGMLQuantizationType.F16:
        return magnitude * 2.0**-11 + SMALLEST_F16 / 2
    if kind is GGMLQuantizationType.BF16:
        return magnitude * 2.0**-8
    steps, share = (127, 0.5) if kind is GGMLQuantizationType.Q8_0 else (8, 1.0)
    largest = magnitude.reshape(-1, 32).max(axis=1, keepdims=True)
    bound = largest * (share / steps * 1.001 + 2.0**-11) + steps * SMALLEST_F16
    return np.broadcast_to(bound, (len(bound), 32)).reshape(values.shape)
