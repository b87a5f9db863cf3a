"""What an adapter does to each tensor of its base, by the base's own tensor names.

    adapter_config.json, adapter_model.safetensors (PEFT 0.19 and later) -> {tensor: Delta}

The sums are PEFT's own, in its order, so that merging gives what `merge_and_unload` gives on a float32 model. What is
not understood to the last key is refused, and all that is wrong with an adapter is said at once: a key that is passed
over would be a part of the training that is lost without a word.
"""

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from transformers import AutoConfig

from infra.errors import Fault, RequestError
from tasks.merging.adapter_config import read_config
from tasks.merging.naming import stored_name
from tasks.merging.weights import Weights

FLOATS = ("F32", "F16", "BF16")  # number formats that a sum can be stored in
_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+?)(?:\.base_layer)?\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|weight|bias)(?:(?<=lora_magnitude_vector)\.weight)?"
)
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")  # store weights as (in, out)


class Delta(ABC):
    """A change of one tensor. All tensors are float32, in the shape that the base stores."""

    @abstractmethod
    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The changed tensor; `weight` stays as it is."""

    def difference(self, weight: torch.Tensor) -> torch.Tensor:
        """What it adds to `weight`."""
        return self.apply(weight) - weight

    def rows(self, start: int, stop: int) -> "Delta | None":
        """The same change of rows `start` to `stop` alone; None if rows depend on each other."""
        return None


@dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """W + scale * left @ right (LoRA, arXiv 2106.09685); with `magnitude` each row or column of the sum is then
    brought to that length (DoRA, arXiv 2402.09353, equation 5)."""

    left: torch.Tensor  # (rows, rank)
    right: torch.Tensor  # (rank, columns)
    scale: float
    magnitude: torch.Tensor | None = None  # (rows) if of_rows, else (columns)
    of_rows: bool = True

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        total = self._product().add_(weight)
        if self.magnitude is None:
            return total
        lengths = torch.linalg.norm(total, dim=1 if self.of_rows else 0)
        return total.mul_((self.magnitude / lengths).unsqueeze(1 if self.of_rows else 0))

    def difference(self, weight: torch.Tensor) -> torch.Tensor:
        return self._product() if self.magnitude is None else self.apply(weight) - weight

    def rows(self, start: int, stop: int) -> "Delta | None":
        if self.magnitude is None:
            return LowRank(self.left[start:stop], self.right, self.scale)
        if not self.of_rows:
            return None
        return LowRank(self.left[start:stop], self.right, self.scale, self.magnitude[start:stop])

    def _product(self) -> torch.Tensor:
        return torch.mm(self.left, self.right).mul_(self.scale)


@dataclass(frozen=True, eq=False)
class Added(Delta):
    """W + update: a bias of the adapter's own."""

    update: torch.Tensor

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.update

    def rows(self, start: int, stop: int) -> Delta:
        return Added(self.update[start:stop])


@dataclass(frozen=True, eq=False)
class Replaced(Delta):
    """Another tensor in place of W: modules_to_save, and biases that were trained."""

    value: torch.Tensor

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        return self.value.float()

    def rows(self, start: int, stop: int) -> Delta:
        return Replaced(self.value[start:stop])


def read_deltas(adapter: Path, weights: Weights, *, tied: bool | None = None) -> dict[str, Delta]:
    """{tensor of the base: what the adapter does to it}

    `tied` says whether the base's head is its embedding; None asks its config.json. RequestError names all that
    cannot be merged, and all that does not fit this base.
    """
    config = read_config(adapter)
    stored = Weights(adapter, "adapter_model")
    found: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    unknown = []
    for key in stored.names:
        match = _KEY.fullmatch(key)
        if match and "lora_" not in match["module"] and match["part"] not in found[match["module"]]:
            found[match["module"]][match["part"]] = stored.read(key)
        else:
            unknown.append(key)
    if unknown:
        shown = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise RequestError(
            f"{adapter}: {shown}: no tensors of a LoRA adapter that can be merged; allowed are lora_A, lora_B, "
            "lora_embedding_A, lora_embedding_B, lora_magnitude_vector, and whole weights and biases. Release the "
            "adapter itself (publish.what: [adapter])."
        )
    reader = _Reader(config, weights, tied)
    for module, parts in found.items():
        try:
            reader.read(module, parts)
        except _Unfit as fault:
            reader.faults.append(Fault(str(fault), str(adapter)))
    if reader.faults:
        raise RequestError(reader.faults)
    if not reader.deltas:
        raise RequestError(f"{adapter} holds no tensors: there is nothing to merge.")
    return reader.deltas


class _Unfit(Exception):
    """A module of the adapter that cannot be merged into this base."""


class _Reader:
    """Turns one module's tensors after the other into deltas."""

    def __init__(self, config: LoraConfig, weights: Weights, tied: bool | None):
        base = AutoConfig.from_pretrained(weights.folder)
        text = base.get_text_config()
        self.tied = bool(base.tie_word_embeddings or text.tie_word_embeddings) if tied is None else tied
        self.vocabulary: int | None = getattr(text, "vocab_size", None)
        self.transposed = base.model_type in _CONV1D_MODELS  # PEFT goes by the layer, not by its key fan_in_fan_out
        self.config, self.weights, self.names = config, weights, dict.fromkeys(weights.names)
        self.deltas: dict[str, Delta] = {}
        self.faults: list[Fault] = []

    def read(self, module: str, parts: dict[str, torch.Tensor]) -> None:
        whole = {part: parts.pop(part) for part in ("weight", "bias") if part in parts}
        if parts:
            self._read_lora(module, parts)
        for part, value in whole.items():
            self._replace(module, part, value)

    def _read_lora(self, module: str, parts: dict[str, torch.Tensor]) -> None:
        bias, magnitude = parts.pop("lora_B.bias", None), parts.pop("lora_magnitude_vector", None)
        kind = "lora_embedding_{}" if any(part.startswith("lora_embedding") for part in parts) else "lora_{}.weight"
        a, b = parts.pop(kind.format("A"), None), parts.pop(kind.format("B"), None)
        if a is None or b is None or parts:
            raise _Unfit(f"{module}: of {kind.format('A')} and {kind.format('B')} one is missing, or there are others")
        if (magnitude is not None) != self.config.use_dora:
            raise _Unfit(f"{module}: use_dora is {self.config.use_dora}, but lora_magnitude_vector says otherwise")
        scale = self._scale(module, a, b)
        embedding = kind.startswith("lora_embedding")
        self._low_rank(module, a.float(), b.float(), scale, magnitude, embedding=embedding)
        if bias is not None:
            self._put(module, "bias", Added(bias.float() * scale), tuple(bias.shape))

    def _scale(self, module: str, a: torch.Tensor, b: torch.Tensor) -> float:
        """lora_alpha / r, of rsLoRA lora_alpha / sqrt(r) (arXiv 2312.03732), each by the pattern that PEFT takes."""
        config = self.config
        ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
        rank = ranks.get(get_pattern_key(list(ranks), module), config.r)
        alpha = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
        if a.ndim != 2 or b.ndim != 2:
            raise _Unfit(f"{module}: A is {tuple(a.shape)} and B {tuple(b.shape)}; convolutions cannot be merged here")
        if not a.shape[0] == b.shape[1] == rank:
            raise _Unfit(
                f"{module}: A is {tuple(a.shape)} and B {tuple(b.shape)}, but adapter_config.json says rank {rank}"
            )
        return alpha / (sqrt(rank) if config.use_rslora else rank)

    def _low_rank(
        self,
        module: str,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        magnitude: torch.Tensor | None,
        *,
        embedding: bool,
    ) -> None:
        """`a` is (rank, in) and `b` (out, rank); embeddings and Conv1D store their weight as (in, out)."""
        wide, tall = b.shape[0], a.shape[1]  # out, in
        name = self._name(module, "weight", rows=tall if embedding else wide)
        square = wide == tall
        if embedding or (self.transposed if square else self.weights.entry(name).shape == (tall, wide)):
            delta = LowRank(a.T.contiguous(), b.T.contiguous(), scale, _float(magnitude), of_rows=False)
            shape = (tall, wide)
        else:
            delta, shape = LowRank(b, a, scale, _float(magnitude)), (wide, tall)
        if magnitude is not None and tuple(magnitude.shape) != (wide,):
            raise _Unfit(f"{module}: lora_magnitude_vector is {tuple(magnitude.shape)}, B gives ({wide},)")
        self._put(module, "weight", delta, shape)

    def _replace(self, module: str, part: str, value: torch.Tensor) -> None:
        path = module.split(".")
        above = [".".join(path[:length]) for length in range(1, len(path) + 1)]  # a saved module may hold others
        saved = any(one.endswith(end) for one in above for end in self.config.modules_to_save or ())  # PEFT's rule
        if saved or (part == "bias" and self.config.bias != "none"):
            self._put(module, part, Replaced(value), tuple(value.shape))
            return
        name = self._name(module, part)  # PEFT saves the base's embedding beside an adapter that trained or met it
        if tuple(value.shape) != self.weights.entry(name).shape or not _same(value, self.weights.read(name)):
            raise _Unfit(
                f"{module}.{part} stands in the adapter as a whole and differs from the base's, but is no module of "
                "modules_to_save: the adapter was trained on another base, or on a changed vocabulary"
            )

    def _name(self, module: str, part: str, rows: int | None = None) -> str:
        """What the base calls it; `rows` of a weight that is to be changed tells an embedding or head from others."""
        if rows is not None and self.tied and rows == self.vocabulary:
            raise _Unfit(
                f"{module}: the base's head and embedding are one tensor, and the adapter was trained on one of the "
                "two. Merging would change both. Release the adapter itself (publish.what: [adapter]), or train on a "
                "copy of the base that was saved with tie_word_embeddings: false"
            )
        try:
            return stored_name(f"{module}.{part}", self.names)
        except LookupError as error:
            raise _Unfit(f"the base {self.weights.folder} has no {module}.{part}; {error}") from error

    def _put(self, module: str, part: str, delta: Delta, shape: tuple[int, ...]) -> None:
        name = self._name(module, part, rows=shape[0] if part == "weight" else None)
        entry = self.weights.entry(name)
        if entry.shape != shape:
            raise _Unfit(f"{name} is {entry.shape} in the base, the adapter's change is {shape}: made for another base")
        if entry.dtype not in FLOATS:
            raise _Unfit(
                f"{name} is {entry.dtype} in the base; a sum can be stored in {', '.join(FLOATS)}. Merge into the "
                "weights that this base was quantised from"
            )
        if name in self.deltas:
            raise _Unfit(f"the adapter changes {name} in two ways; that cannot be merged")
        self.deltas[name] = delta


def _float(magnitude: torch.Tensor | None) -> torch.Tensor | None:
    return None if magnitude is None else magnitude.float()


def _same(copy: torch.Tensor, original: torch.Tensor) -> bool:
    return torch.equal(copy, original.to(copy.dtype)) or torch.equal(copy.to(original.dtype), original)
