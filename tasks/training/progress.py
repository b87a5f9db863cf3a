"""What is told of a training while it goes on: lines of the log, and a bar in Prefect's UI."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast
from uuid import UUID

from httpx import HTTPError
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.reporting.prefect_artifacts import artifact_key


class Progress:
    """Of one adapter. `on_validation(step, loss)` hears every validation loss; what it raises ends the training."""

    def __init__(self, name: str, on_validation: Callable[[int, float], None] | None = None):
        self._name, self._on_validation, self._log = name, on_validation, get_run_logger()
        self._bar: UUID | None = None
        with suppress(HTTPError):  # no training ends because the API is away
            self._bar = cast(UUID, create_progress_artifact(progress=0.0, key=artifact_key("train", name)))

    def show(self, event: dict[str, Any]) -> None:
        """What the training's process said (infra/stage_process.py)."""
        if "validation_loss" in event:
            self._log.info("%s: step %d, validation loss %.4f", self._name, event["step"], event["validation_loss"])
            if self._on_validation:
                self._on_validation(event["step"], event["validation_loss"])
            return
        self._log.info(
            "%s: step %d of %d, loss %.3f, %.0f tokens/s, %.0f s left",
            *(self._name, event["step"], event["steps"], event["loss"]),
            *(event["tokens_per_second"], event["seconds_left"]),
        )
        if self._bar:
            with suppress(HTTPError):
                update_progress_artifact(self._bar, progress=100 * event["step"] / event["steps"])
