"""Packs, artifacts and answers for the tests of packs: real ones, in a store of the test's own."""

from pathlib import Path
from typing import Any

from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.evaluation.scoring import BASE, SelfTest
from tasks.packs.pack import ANSWER, Answer, Evaluated, EvaluatePack, Job, TrainPack
from tasks.packs.training import pack_of
from tasks.recipe.schema import Recipe
from tasks.runs import Run
from tasks.training.fleet import TrainedFleet
from tests.packs.test_planner import fleet


def artifact(run: Run, name: str, text: str = "") -> StageResult:
    """One of this name, with one file, whose content is `text`; made once."""

    def make(work: Path, output: Path) -> dict[str, Any]:
        (output / "content.txt").write_text(text or name)
        return {"name": name, "figure": 0.1}

    return run.once(Work("make", 1, "things", name, {"name": name, "text": text}, {}), make)


def data_of(run: Run, recipe: Recipe) -> dict[str, StageResult]:
    return {one.name: artifact(run, f"rows-{one.name}") for one in recipe.adapters}


def train_pack(run: Run, recipe: Recipe | None = None) -> TrainPack:
    """A pack of all of `recipe`, as a rule of one adapter named a0."""
    recipe = recipe or fleet("lora")
    memory = {one.name: {"cpu": 1} for one in recipe.adapters}
    return pack_of(recipe, recipe.adapters, artifact(run, "base"), data_of(run, recipe), memory)


def evaluate_pack(run: Run, recipe: Recipe | None = None, suites: str = "") -> EvaluatePack:
    recipe = recipe or fleet("lora")
    return EvaluatePack(
        recipe=recipe,
        quantization="none",
        members={one.name: one for one in recipe.adapters},
        base=artifact(run, "base"),
        data=data_of(run, recipe),
        trained={one.name: artifact(run, f"adapter-{one.name}") for one in recipe.adapters},
        suites=suites,
        look=1,
        self_tests=(SelfTest("batches", {"batch_size": 1}), SelfTest("worse", {}, artifact(run, "damaged"))),
        base_only=False,
    )


def trained(run: Run, pack: TrainPack, **failed: str) -> TrainedFleet:
    """What a worker makes of `pack`: an artifact for each adapter but those that failed."""
    names = [one.name for one in pack.recipe.adapters]
    return TrainedFleet(
        recipe=pack.recipe,
        data=pack.data,
        trained={name: artifact(run, f"adapter-{name}") for name in names if name not in failed},
        failed=failed,
        transient=(),
        searches={},
    )


def evaluated(run: Run, pack: EvaluatePack, base: str = "", **failed: str) -> Evaluated:
    """What a worker makes of `pack`; `base` is the content of the base's scores."""
    sides = [] if pack.base_only else [side for side in pack.members if side not in failed]
    scores = {side: {"t": [artifact(run, f"{side}-t")]} for side in sides}
    return Evaluated(scores={BASE: {"t": [artifact(run, "base-t", base)]}, **scores}, failed=failed)


def write_answer(run: Run, job: Job, answer: Answer) -> None:
    run.store.write_json(f"{job.place}/{ANSWER}", answer.model_dump(mode="json"))
