"""A pack: a part of a fleet's work that another machine does, and the answer that it leaves.

    parent   members of a fleet -> packs -> job.json of each in the store -> a flow run of the GPU pool for each
    worker   job.json -> the same function that the parent would have called, on the worker's own devices -> answer.json
    parent   the answers -> one answer, as if all had been done here

Both files lie under work/packs/<kind>-<digest of the job>/ and hold references into the store, never a weight. Nothing
of one run is in a job, so a second parent asks the same, and finds the packs that already ran.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.hashing import SHORT, digest_json
from infra.storage import Store
from tasks.artifacts import StageResult
from tasks.caching import git_commit, library_versions
from tasks.evaluation.scoring import Scores, SelfTest
from tasks.recipe.schema import Adapter, Recipe
from tasks.training.fleet import TrainedFleet

JOB, SENT, ANSWER = "job.json", "sent.json", "answer.json"


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainPack(_Closed):
    """The recipe with no adapters but the pack's own, and what they are trained from."""

    kind: Literal["train"] = "train"
    recipe: Recipe
    base: StageResult
    data: dict[str, StageResult]
    memory: dict[str, dict[str, int]]  # bytes, by adapter and kind of device, where preflight was asked

    @property
    def title(self) -> str:
        return ", ".join(adapter.name for adapter in self.recipe.adapters)


class EvaluatePack(_Closed):
    """The arguments of the evaluate task; `members` is by side."""

    kind: Literal["evaluate"] = "evaluate"
    recipe: Recipe
    quantization: str
    members: dict[str, Adapter]
    base: StageResult
    data: dict[str, StageResult]
    trained: dict[str, StageResult]
    suites: str  # digest of the folder of the user's own tasks, which each machine has for itself
    look: int
    self_tests: tuple[SelfTest, ...]
    base_only: bool

    @property
    def title(self) -> str:
        return f"the base in {self.quantization}" if self.base_only else ", ".join(self.members)


Pack = TrainPack | EvaluatePack
AnyPack = Annotated[Pack, Field(discriminator="kind")]


class Job(_Closed):
    """What job.json holds: the pack, and what results depend on besides."""

    pack: AnyPack
    code: dict[str, str | None]  # the commit, and the versions of libraries

    @property
    def place(self) -> str:
        """The folder of this job in the store."""
        return f"work/packs/{self.key}"

    @property
    def key(self) -> str:
        """What its claim is called."""
        return f"{self.pack.kind}-{digest_json(self.model_dump(mode='json'))[:SHORT]}"


class Evaluated(_Closed):
    """What the evaluate task returns."""

    scores: Scores
    failed: dict[str, str]


class Answer(_Closed):
    """What answer.json holds: what came of the pack, or why nothing did; `request` if the recipe is to blame."""

    run_id: str  # of the worker's run, which tells an answer from the last one
    trained: TrainedFleet | None = None
    evaluated: Evaluated | None = None
    error: str | None = None
    request: bool = False

    def results(self) -> list[StageResult]:
        """Every artifact that it speaks of."""
        if self.trained:
            return list(self.trained.trained.values())
        cells = list(self.evaluated.scores.values()) if self.evaluated else []
        return [part for some in cells for parts in some.values() for part in parts]

    def found(self) -> "Answer":
        """The same, with every artifact marked as one that was there already."""

        def marked(result: StageResult) -> StageResult:
            return result.model_copy(update={"cached": True})

        if self.trained:
            trained = {name: marked(result) for name, result in self.trained.trained.items()}
            return self.model_copy(update={"trained": replace(self.trained, trained=trained)})
        if self.evaluated:
            scores = {
                side: {name: [marked(part) for part in parts] for name, parts in cells.items()}
                for side, cells in self.evaluated.scores.items()
            }
            return self.model_copy(update={"evaluated": self.evaluated.model_copy(update={"scores": scores})})
        return self

    def failed(self) -> Mapping[str, str]:
        """Why a member came to nothing, by name."""
        done = self.trained or self.evaluated
        return done.failed if done else {}


def job_of(pack: Pack) -> Job:
    """The job, whose place is the same for every run: whether a reference was found or made is left out."""

    def settled(results: Mapping[str, StageResult]) -> dict[str, StageResult]:
        return {name: result.model_copy(update={"cached": False}) for name, result in sorted(results.items())}

    changes = {"base": pack.base.model_copy(update={"cached": False}), "data": settled(pack.data)}
    if isinstance(pack, EvaluatePack):
        changes["trained"] = settled(pack.trained)
        changes["self_tests"] = tuple(
            SelfTest(test.side, test.role, test.adapter and test.adapter.model_copy(update={"cached": False}))
            for test in pack.self_tests
        )
    return Job(pack=pack.model_copy(update=changes), code=code_here())


def code_here() -> dict[str, str | None]:
    """What a parent and its workers must have in common; "commit" is None if nobody knows it."""
    return {"commit": git_commit(), **library_versions()}


def read_answer(store: Store, place: str) -> Answer | None:
    """The answer at `place`, or None: there is none yet, or none that this code understands."""
    try:
        return Answer.model_validate(store.read_json(f"{place}/{ANSWER}"))
    except ValidationError:
        return None
