"""What a Prefect task of this project has in common: what is tried again, and what is left to the store.

Tried again, with growing pauses, is only what may pass by itself (TransientError). Results are not cached by Prefect
(see tasks/caching.py) and not persisted: what tasks return are small references into the store.
"""

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from infra.errors import TransientError


def is_transient(task: Any, run: Any, state: Any) -> bool:
    """Prefect's retry condition: true for errors that may go away by themselves."""
    try:
        state.result()
    except TransientError:
        return True
    except Exception:  # noqa: BLE001 - whatever else it was, it stays what it is
        return False
    return False


STAGE: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
GATE: dict[str, Any] = {"retries": 0, "cache_policy": NO_CACHE, "persist_result": False}
