"""What may pass by itself is tried again; a wrong request, a full memory, a failed gate and a bug are not."""

import pytest

from infra.errors import GateNotPassed, OutOfMemoryError, PreemptedError, RequestError, TransientError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (TransientError, 4),
        (PreemptedError, 4),
        (RequestError, 1),
        (OutOfMemoryError, 1),
        (GateNotPassed, 1),
        (KeyError, 1),
    ],
)
def test_only_transient_errors_are_tried_again(prefect_api: None, error: type[Exception], calls: int) -> None:
    from prefect import flow, task

    from tasks.retrying import STAGE

    called: list[int] = []

    @task(**{**STAGE, "retry_delay_seconds": 0, "retry_jitter_factor": None})
    def fail() -> None:
        called.append(1)
        raise error("always")

    @flow
    def once() -> None:
        fail()

    with pytest.raises(error):
        once()
    assert len(called) == calls
