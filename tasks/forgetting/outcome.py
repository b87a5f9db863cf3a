"""What is known about one adapter on one task: the record that every later step of the verdict reads.

`compare` fills it from scores; `judge_fleet` looks at the records of a whole fleet together and labels them anew.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Role = Literal["target", "general"]
Tier = Literal["critical", "supporting", "advisory"]
Kind = Literal["right/wrong", "graded"]


class Flips(BaseModel):
    """Documents whose right/wrong score changed; none for graded scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lost: int = Field(ge=0, description="documents that only the base got right")
    gained: int = Field(ge=0, description="documents that only the adapter got right")


class TaskVerdict(BaseModel):
    """One adapter against its base on one task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    role: Role
    metric: str
    n: int = Field(ge=1, description="documents, each scored under both models")
    base: float = Field(description="mean score of the base, in units of the metric")
    adapter: float = Field(description="mean score of the adapter, in units of the metric")
    delta: float = Field(description="adapter minus base, in units of the metric")
    ci_low: float = Field(description="lower bound of delta at confidence 1 - 2 alpha, in units of the metric")
    ci_high: float = Field(description="upper bound of delta at confidence 1 - 2 alpha, in units of the metric")
    p_value: float = Field(ge=0, le=1, description="p-value of the claim that a PASS makes, 0 to 1")
    p_breach: float = Field(ge=0, le=1, description="p-value of the claim that a FAIL makes, 0 to 1")
    margin: float = Field(
        ge=0, description="worsening allowed (general) or gain wanted (target): share of documents, or metric units"
    )
    verdict: Outcome
    flips: Flips
    reason: str = Field(description="the verdict in one plain sentence, with its figures")
    decides: bool = Field(default=True, description="whether the task votes on the adapter or is only shown")
    tier: Tier = Field(default="critical", description="how much a general task's vote weighs; see docs/STATISTICS.md")
    vote: bool = Field(default=True, description="whether a PASS would be evidence; a FAIL counts all the same")
    note: str = Field(default="", description="why a PASS would be no evidence; empty if it is")
    too_few: str = Field(default="", description="why no verdict may rest on this many documents; empty if it may")
    needed: int | None = Field(
        default=None, description="documents that would decide if the rates stay as seen; None if no number would"
    )
    clusters: int | None = Field(default=None, description="groups of documents that belong together; None if single")
    design_effect: float | None = Field(
        default=None, ge=1, description="documents that say together as much as one independent one; None if single"
    )
    sd: float | None = Field(
        default=None, description="standard deviation of the differences, in units of the metric; None for one document"
    )
    kl: float | None = Field(default=None, description="mean divergence from the base, nats per token; only shown")
    p_value_adjusted: float | None = Field(
        default=None, description="p_value after Holm over the run's tasks; None if it was not among them"
    )
    p_breach_adjusted: float | None = Field(
        default=None, description="p_breach after Holm over the run's tasks; None if it was not among them"
    )
    kind: Kind = Field(default="graded", description="which test the scores called for")
    higher_is_better: bool = True
    over: str = Field(default="the base", description="what a target must surpass, as the reason names it")

    @property
    def votes(self) -> bool:
        """Whether it can move the adapter's verdict in either direction."""
        return self.decides and self.tier != "advisory"
