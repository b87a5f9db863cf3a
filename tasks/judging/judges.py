"""The recipe's judge as a function from questions to replies, and whether it is the model that it judges.

The stage's key holds the judge's own content where that is known: a model that runs here is imported as a base is,
once, under its digest. What stands behind an endpoint can change without a word; there, address and name are all there
is. Which variable holds the key changes no verdict.
"""

import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from infra.gpus import device_slot, devices
from tasks.artifacts import StageResult
from tasks.caching import library_versions
from tasks.judging import endpoint
from tasks.judging.win_rate import Ask
from tasks.recipe.schema import Judge
from tasks.runs import Run, child
from tasks.training.launching import device_environment

Logger = logging.Logger | logging.LoggerAdapter[Any]
_QUANTISED = re.compile(r"[.-](?:[IT]?Q\d\w*|F16|BF16|F32)$", re.IGNORECASE)  # as files of GGUF are named


def what_decides(judge: Judge) -> dict[str, Any]:
    """The part of a stage's spec that says who judges, besides the digest of a model that runs here."""
    if judge.endpoint:
        return {"endpoint": judge.endpoint.rstrip("/"), "name": judge.name}
    versions = library_versions()
    return {
        "device": devices()[0].partition(":")[0],
        "engine": {name: versions[name] for name in ("torch", "transformers")},
    }


def asking(run: Run, judge: Judge, model: StageResult | None, *, work: Path, logger: Logger) -> Ask:
    """How the judge is asked: over the network, or in a process of its own with `model`, which then is its import."""
    if model is None:
        return partial(endpoint.ask, url=str(judge.endpoint), name=str(judge.name), key_variable=judge.api_key)

    def show(event: dict[str, Any]) -> None:
        logger.info("the judge has answered %d of %d questions", event["done"], event["of"])

    def ask(questions: Sequence[str]) -> list[str]:
        with device_slot(1, on_wait=logger.info) as device:
            job = {
                "model": str(run.store.fetch(model.ref)),
                "device": "cpu" if device == "cpu" else "cuda:0",
                "questions": list(questions),
            }
            env = device_environment(device, 1)
            return child("tasks.judging", job, work, on_line=logger.debug, on_progress=show, env=env)["replies"]

    return ask


def is_the_base(judge: Judge, model: StageResult | None, *, base_model: str, base_digest: str | None) -> bool:
    """Whether the judge is the base, by content or, as far as an endpoint tells, by name.

    Models favour answers that they would give themselves (Panickssery et al. 2024, arXiv 2404.13076).
    """
    if model and model.ref.digest == base_digest:
        return True
    return _family(judge.name or judge.model or "") == _family(base_model)


def _family(model: str) -> str:
    """The last part of a model's name, without what tells only how it is stored."""
    last = model.rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
    return _QUANTISED.sub("", last)
