"""The loss curve, read from the trainer's own log: data for the manifest, figures for whoever waits.

The log is part of every checkpoint, so all of this is the same after a crash as without one.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

POINTS = 1000  # of a stored curve; longer ones are thinned
Log = Sequence[Mapping[str, Any]]


def curve(log: Log) -> list[dict[str, float]]:
    """Points {"step", "loss", "learning_rate", "grad_norm", "tokens"} and {"step", "validation_loss"}, by step."""
    return sorted([*training_points(log), *validation(log)], key=lambda point: point["step"])


def training_points(log: Log) -> list[dict[str, float]]:
    """The curve without its validations."""
    points = [
        {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry["learning_rate"],
         "grad_norm": float(entry.get("grad_norm", 0.0)), "tokens": int(entry["num_tokens"])}
        for entry in log if "learning_rate" in entry
    ]  # fmt: skip
    return _thinned(points)


def validation(log: Log) -> list[dict[str, float]]:
    return [{"step": entry["step"], "validation_loss": entry["eval_loss"]} for entry in log if "eval_loss" in entry]


def first_and_last_losses(log: Log, count: int) -> tuple[float, list[float]]:
    """The loss of the first optimizer step, and of up to `count` last ones."""
    first = next(entry["loss"] for entry in log if "learning_rate" in entry)
    last = islice((entry["loss"] for entry in reversed(log) if "learning_rate" in entry), count)
    return first, list(last)[::-1]


def tokens(log: Log) -> int:
    """Tokens that went through the model in training up to the end of `log`; every epoch counts again."""
    for entry in reversed(log):
        if "num_tokens" in entry:
            return int(entry["num_tokens"])
    return 0


def without_new_best(log: Log) -> int:
    """Validation losses since the best one."""
    seen = [point["validation_loss"] for point in validation(log)]
    return len(seen) - 1 - seen.index(min(seen)) if seen else 0


def _thinned(points: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most POINTS + 1 of them, evenly, the last one always."""
    stride = -(-len(points) // POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]
