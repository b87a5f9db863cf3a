"""Some tensors of a merge by hand, computed a second time from what PEFT makes of each adapter.

PEFT merges one layer of a real model in float32; what that added takes the place of the delta that was read here, and
is combined as before. So a scale, a rank or an orientation that was misread is seen, of however many adapters.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from infra.errors import StageError
from tasks.merging.deltas import Added, Delta, LowRank
from tasks.merging.naming import stored_name
from tasks.merging.weights import Weights
from tasks.training.models import load_base

TENSORS = 4  # that are computed again, spread over the model
TOLERANCE = 0.1  # share of the change, as Euclidean norms: float32's last digit may tip the rounding of single values

Deltas = Mapping[str, Delta]


def check_against_peft(
    base: Weights,
    merged: Weights,
    adapters: Sequence[Path],
    deltas: Sequence[Deltas],
    combined: Callable[[Sequence[Deltas]], Deltas],
) -> None:
    """StageError unless tensors of `merged` are `base` and `combined` of what PEFT says that the adapters add."""
    low_rank = [
        name
        for name in base.names
        if (found := [one[name] for one in deltas if name in one]) and all(isinstance(one, LowRank) for one in found)
    ]
    names = low_rank[:: max(1, len(low_rank) // TENSORS)][:TENSORS]
    added = [
        _added_by_peft(base, adapter, [name for name in names if name in one])
        for adapter, one in zip(adapters, deltas, strict=True)
    ]
    again = combined(added)
    for name in names:
        before, after = base.read(name), merged.read(name)
        wanted = again[name].apply(before.float()).to(before.dtype).float()
        off, change = torch.dist(after.float(), wanted), torch.dist(wanted, before.float())
        if not off <= TOLERANCE * change:
            raise StageError(
                f"{name} is not what PEFT's own merge of these adapters gives: off by {off:.2g}, where their change is "
                f"{change:.2g} (Euclidean norms, allowed {TOLERANCE:.0%}). This is a fault of this program; please "
                "report it with the adapters' adapter_config.json."
            )


def _added_by_peft(base: Weights, adapter: Path, names: Sequence[str]) -> dict[str, Delta]:
    """{tensor: what merging this adapter adds to it}"""
    if not names:
        return {}
    model = PeftModel.from_pretrained(load_base(base.folder, "none", "cpu"), adapter)
    layers = {
        _stored(path.removeprefix("base_model.model."), base): layer
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    added: dict[str, Delta] = {}
    for name in names:
        if name not in layers:
            raise StageError(f"{adapter}: PEFT puts no adapter on {name}, which it was merged into.")
        before, layer = base.read(name).float(), layers[name]
        weight = layer.get_base_layer().weight
        weight.data = before.clone()
        layer.merge()  # type: ignore[operator]
        added[name] = Added(weight.data - before)
    return added


def _stored(module: str, base: Weights) -> str | None:
    try:
        return stored_name(f"{module}.weight", base.names)
    except LookupError:
        return None
