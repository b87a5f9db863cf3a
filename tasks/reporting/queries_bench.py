"""What the general tasks can see, as the fleet measured it: documents that margins need, and the engine's noise."""

import math
from collections.abc import Sequence
from typing import Any

MARGINS = (0.01, 0.02, 0.03, 0.05, 0.1)  # share of documents; of losses, by which perplexity may grow
ALPHA = 0.05  # where no adapter has a level

Json = dict[str, Any]


def needed_by_task(tasks: Sequence[Json]) -> list[Json]:
    """`tasks` with "settles", the smallest margin that their documents settle, and "needed" for some margins.

    As in any plan, adapters that forgot the task are not counted: what it takes to clear one that forgot nothing.
    """
    from tasks.planning.power import needed_graded, needed_right_wrong, smallest_drop, smallest_drop_graded

    answer = []
    for task in tasks:
        graded, alpha = task["kind"] == "graded", task["alpha"] or ALPHA
        spread = task["sd"] if graded else task["disagreement"]
        margins = [math.log1p(margin) for margin in MARGINS] if task["unit"] == "nats" else list(MARGINS)
        settles, needed = None, []
        if spread is not None:
            settle, need = (smallest_drop_graded, needed_graded) if graded else (smallest_drop, needed_right_wrong)
            settles = settle(task["n"], spread, alpha)
            needed = [{"margin": margin, "documents": need(margin, spread, alpha)} for margin in margins]
        answer.append({**task, "settles": settles, "needed": needed})
    return answer


def noise_floor(tests: Sequence[Json]) -> list[Json]:
    """How far the base differs from itself in other batches: the newest of each base and precision."""
    found: dict[tuple[str, str], Json] = {}
    for test in tests:  # the newest run first
        if test["kind"] == "again":
            kept = ("base_model", "precision", "run_id", "flips", "largest_difference", "said")
            found.setdefault((test["base_model"], test["precision"]), {key: test[key] for key in kept})
    return list(found.values())
