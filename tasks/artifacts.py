"""What stages hand to each other: small frozen references and figures, never live objects."""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from infra.storage import ArtifactRef
from tasks.recipe.schema import Adapter, Recipe


class StageResult(BaseModel):
    """A finished stage: the artifact, the figures its manifest states, and whether it was there already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: ArtifactRef
    facts: dict[str, Any]
    cached: bool


def quantization_of(recipe: Recipe, adapter: Adapter) -> Literal["none", "nf4"]:
    """The precision of the base that `adapter` is compared with: the one it trains on.

    A prompt trains on none; it is asked in the precision of the recipe's own method.
    """
    method = recipe.method if adapter.method == "prompt" else adapter.method
    return "nf4" if method == "qlora" else "none"


@dataclass
class AdapterOutcome:
    """What became of one adapter of a fleet; the flow fills it in as it goes."""

    adapter: Adapter
    quantization: Literal["none", "nf4"]
    base: StageResult | None = None
    data: StageResult | None = None
    trained: StageResult | None = None  # for a prompt, its examples
    judged: StageResult | None = None
    merged: StageResult | None = None
    gguf: StageResult | None = None
    verdict: dict[str, Any] | None = None  # the content of verdict.json
    cells: dict[str, list[StageResult]] = field(default_factory=dict)  # its records, by task
    cure: dict[str, Any] | None = None  # what was tried when it forgot, and what was kept
    win_rate: dict[str, Any] | None = None  # what the recipe's judge said of its answers
    release: str | None = None  # NAME@v3, once it is registered
    published: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    @property
    def name(self) -> str:
        return self.adapter.name

    @property
    def method(self) -> str:
        return str(self.adapter.method)

    @property
    def status(self) -> str:
        """published, passed, failed, inconclusive, error; or compared, for a prompt, which has no gate."""
        if self.error or self.verdict is None:
            return "error"
        if self.method == "prompt":
            return "compared"
        if self.published:
            return "published"
        return {"PASS": "passed", "FAIL": "failed", "INCONCLUSIVE": "inconclusive"}[self.verdict["verdict"]]
