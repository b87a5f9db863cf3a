"""Which engine trains an adapter: the packed one if the recipe does not ask for TRL, and if it takes the adapter."""

from dataclasses import dataclass
from typing import Any, Literal

from infra.storage import Store
from tasks.artifacts import StageResult
from tasks.recipe.schema import Adapter
from tasks.training.packed.suited import reason_for_trl


@dataclass(frozen=True)
class Engine:
    name: Literal["packed", "trl"]
    reason: str | None = None  # why it is TRL, though the recipe asks for packed


def engine_of(adapter: Adapter, config: dict[str, Any], *, kind: str) -> Engine:
    """`config` is the base's config.json, `kind` that of the rows."""
    assert adapter.training, "the recipe was not resolved"
    if adapter.training.engine == "trl":
        return Engine("trl")
    reason = reason_for_trl(adapter, config, is_preference=kind == "preference")
    return Engine("trl", reason) if reason else Engine("packed")


def config_of(store: Store, base: StageResult) -> dict[str, Any]:
    """The base's config.json; its weights are not fetched."""
    return store.read_json(f"{store.relative(base.ref.uri)}/config.json") or {}
