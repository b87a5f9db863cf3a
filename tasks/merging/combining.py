"""Several adapters of one base made into one change of each tensor.

    linear  sum of weight_i * update_i
    ties    of each update only its largest values, of these only those of the sign that prevails, and their mean
            (TIES-Merging, arXiv 2306.01708)
    dare    of each update a random part, scaled up by as much as was dropped, and their weighted sum
            (DARE, arXiv 2311.03099)

All three work on the updates as they are added to the base, so ranks and kinds of adapters may differ. As in PEFT and
mergekit, trimming looks at one tensor at a time; the papers' own code trims over a whole adapter. The dense updates of
a tensor exist only while it is merged.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

import torch

from infra.errors import Fault, RequestError
from tasks.merging.deltas import Delta

Method = Literal["linear", "ties", "dare"]


def combine(
    deltas: Sequence[Mapping[str, Delta]],
    *,
    weights: Sequence[float],
    method: Method,
    density: float = 0.5,
    seed: int = 0,
) -> dict[str, Delta]:
    """{tensor: what the adapters `deltas`, each times its weight, do to it together}

    `density` is the share of values that ties and dare keep, above 0 to 1. DARE's choice rests on `seed`, the
    tensor's name and the adapter's place alone. RequestError names every argument that is not allowed.
    """
    faults = [
        *([] if deltas else ["no adapters; give at least one"]),
        *([] if len(weights) == len(deltas) else [f"{len(weights)} weights for {len(deltas)} adapters; give one each"]),
        *(
            f"weight {weight} is no finite number other than 0"
            for weight in weights
            if not isfinite(weight) or not weight
        ),
        *([] if method in get_args(Method) else [f"method {method!r}; allowed are {', '.join(get_args(Method))}"]),
        *([] if 0 < density <= 1 else [f"density {density}; allowed is above 0 to 1"]),
    ]
    if faults:
        raise RequestError([Fault(fault) for fault in faults])
    combined: dict[str, Delta] = {}
    for name in dict.fromkeys(name for adapter in deltas for name in adapter):
        there = [index for index, adapter in enumerate(deltas) if name in adapter]
        parts = tuple(deltas[index][name] for index in there)
        shares = tuple(float(weights[index]) for index in there)
        if method == "linear":
            combined[name] = Linear(parts, shares)
        elif method == "ties":
            combined[name] = Ties(parts, shares, density)
        else:
            combined[name] = Dare(parts, shares, density, tuple(_seed(seed, name, index) for index in there))
    return combined


@dataclass(frozen=True, eq=False)
class Linear(Delta):
    """W + sum of shares[i] * update i."""

    parts: tuple[Delta, ...]
    shares: tuple[float, ...]

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.difference(weight)

    def difference(self, weight: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(weight)
        for index, share in enumerate(self.shares):
            total.add_(self._update(index, weight), alpha=share)
        return total

    def rows(self, start: int, stop: int) -> Delta | None:
        found = [part.rows(start, stop) for part in self.parts]
        parts = tuple(part for part in found if part is not None)
        return Linear(parts, self.shares) if len(parts) == len(found) else None

    def _update(self, index: int, weight: torch.Tensor) -> torch.Tensor:
        return self.parts[index].difference(weight)


@dataclass(frozen=True, eq=False)
class Dare(Linear):
    """Linear, of updates of which each value was dropped with probability 1 - density, else divided by density."""

    density: float
    seeds: tuple[int, ...]

    def rows(self, start: int, stop: int) -> None:
        return None  # the random numbers are drawn for the tensor as a whole

    def _update(self, index: int, weight: torch.Tensor) -> torch.Tensor:
        update = self.parts[index].difference(weight)
        kept = torch.rand(update.shape, generator=torch.Generator().manual_seed(self.seeds[index])) < self.density
        return update.mul_(kept).div_(self.density)


@dataclass(frozen=True, eq=False)
class Ties(Delta):
    """W + disjoint mean of the trimmed updates; an adapter that leaves the tensor alone has no say in it."""

    parts: tuple[Delta, ...]
    shares: tuple[float, ...]
    density: float

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.difference(weight)

    def difference(self, weight: torch.Tensor) -> torch.Tensor:
        updates = [_trimmed(part.difference(weight), self.density) for part in self.parts]
        votes = torch.stack(updates).sum(dim=0)
        sign = torch.where(votes >= 0, 1.0, -1.0)
        total, voters = torch.zeros_like(weight), torch.zeros_like(weight)
        for update, share in zip(updates, self.shares, strict=True):
            agrees = update.sign() == sign
            total.add_(update.mul_(agrees), alpha=share)
            voters.add_(agrees)
        return total.div_(voters.clamp_(min=1))


def _trimmed(update: torch.Tensor, density: float) -> torch.Tensor:
    """`update` with all but its int(density * size) largest values, by magnitude, set to 0; equals count as one."""
    count = int(density * update.numel())
    if count == 0:
        return torch.zeros_like(update)
    sizes = update.abs()
    least = sizes.flatten().kthvalue(update.numel() - count + 1).values
    return update.mul_(sizes >= least)


def _seed(seed: int, name: str, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}/{name}".encode()).digest()[:8], "little") >> 1
