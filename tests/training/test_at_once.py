"""How many trainings share a device."""

import pytest

from infra.device_memory import Device
from tasks.training.fleet import at_once

GIB = 2**30


def gpu(free_gib: float | None) -> Device:
    return Device("cuda:0", "GPU", None if free_gib is None else int(free_gib * GIB))


@pytest.mark.parametrize(
    ("limit", "gib", "free", "expected"),
    [
        (4, [10, 10, 10, 10], 80, 4),
        (4, [20, 20, 20, 20], 80, 3),  # a tenth of 80 stays free
        (4, [5, 60, 5, 5], 80, 3),  # the largest are counted, whichever come first
        (4, [100, 100], 80, 1),  # that one does not fit at all is for others to say
        (4, [30, 30], 80, 4),  # both fit, and there are no more
        (1, [100], 80, 1),
        (3, [], 80, 3),
        (3, [100], None, 3),  # nothing is known of the device
    ],
)
def test_as_many_as_fit(limit: int, gib: list[float], free: float | None, expected: int) -> None:
    assert at_once(limit, [{"cuda": int(one * GIB), "cpu": 1} for one in gib], [gpu(free)]) == expected


def test_the_device_with_least_free_decides() -> None:
    assert at_once(4, [{"cuda": 30 * GIB}] * 4, [gpu(80), gpu(40)]) == 1
