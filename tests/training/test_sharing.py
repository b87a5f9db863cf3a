"""Which adapters train together: by precision, by memory, by number, and evenly over the devices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.device_memory import Device
from tasks.recipe.schema import Training
from tasks.training.sharing import MOST, Size, form_packs, memory_of, room, rows_in_all


def size(name: str, rows: int = 1, quantization: str = "none", memory: int = 0, shared: int = 0) -> Size:
    return Size(name, quantization, rows, memory, shared)


def packs(*sizes: Size, devices: int = 1, room: float | None = None, limit: int | None = None) -> list[str]:
    formed = form_packs(sizes, devices=devices, room=room, limit=limit)
    return [" ".join(one.name for one in pack) for pack in formed]


OF_ROWS = [size(f"a{rows}", rows) for rows in (10, 70, 30, 50, 20)]
OF_BYTES = [size(f"m{own}", rows=100 - own, memory=100 + own, shared=100) for own in (10, 20, 30, 40)]


@pytest.mark.parametrize(
    ("sizes", "settings", "expected"),
    [
        (OF_ROWS, {}, ["a70 a50 a30 a20 a10"]),
        (OF_ROWS, {"devices": 2}, ["a70 a20", "a50 a30 a10"]),  # 90 rows each
        (OF_ROWS, {"devices": 9}, ["a70", "a50", "a30", "a20", "a10"]),
        (OF_ROWS, {"limit": 1}, ["a70", "a50", "a30", "a20", "a10"]),
        (OF_ROWS, {"limit": 2}, ["a70 a50", "a30 a20", "a10"]),
        (OF_ROWS, {"limit": 2, "devices": 2}, ["a70 a20", "a50 a30", "a10"]),
        ([size("a", 9), size("b", 5, "nf4"), size("c", 2), size("d", 1, "nf4")], {}, ["a c", "b d"]),
        ([size("a", 9), size("b", 5, "nf4"), size("c", 2), size("d", 1, "nf4")], {"devices": 2}, ["a", "b", "c", "d"]),
        (OF_BYTES, {"room": 200}, ["m10 m20 m30 m40"]),  # the base counts once: 100 + 10 + 20 + 30 + 40
        (OF_BYTES, {"room": 199}, ["m10 m20 m30", "m40"]),
        (OF_BYTES, {"room": 145}, ["m10 m20", "m30", "m40"]),
        (OF_BYTES, {"room": 50}, ["m10", "m20", "m30", "m40"]),  # none fits, and none is dropped
        (OF_BYTES, {"room": 199, "limit": 2}, ["m10 m20", "m30 m40"]),
        ([], {"devices": 2}, []),
    ],
)
def test_packs(sizes: list[Size], settings: dict, expected: list[str]) -> None:
    assert packs(*sizes, **settings) == expected


@pytest.mark.parametrize("limit", [None, 2 * MOST])
def test_a_pack_has_an_end_though_nothing_limits_it(limit: int | None) -> None:
    (first, second) = form_packs([size(f"a{n}") for n in range(MOST + 1)], devices=1, room=None, limit=limit)
    assert (len(first), len(second)) == (MOST, 1)


sizes = st.builds(
    lambda rows, quantization, own, shared: (rows, quantization, own + shared, shared),
    *(st.integers(1, 99), st.sampled_from(["none", "nf4"]), st.integers(0, 50), st.integers(0, 50)),
)


@given(st.lists(sizes, max_size=12), st.integers(1, 4), st.none() | st.integers(1, 200), st.none() | st.integers(1, 4))
def test_everybody_is_in_one_pack_that_holds_what_it_must(
    drawn: list[tuple], devices: int, room: int | None, limit: int | None
) -> None:
    adapters = [
        Size(f"a{number}", quantization, rows, *bytes_) for number, (rows, quantization, *bytes_) in enumerate(drawn)
    ]
    formed = form_packs(adapters, devices=devices, room=room, limit=limit)
    assert sorted(one.name for pack in formed for one in pack) == sorted(one.name for one in adapters)
    for pack in formed:
        assert len({one.quantization for one in pack}) == 1
        if len(pack) > 1:
            assert len(pack) <= (limit or MOST) and (room is None or memory_of(pack) <= room)


def test_what_is_shared_counts_once_and_is_as_large_as_the_largest() -> None:
    assert memory_of([size("a", memory=130, shared=100), size("b", memory=90, shared=80)]) == 100 + 30 + 10


@pytest.mark.parametrize(("free", "expected"), [([100], 90), ([100, 80], 72), ([None, 80], 72), ([None], None)])
def test_the_device_with_least_free_decides(free: list[int | None], expected: float | None) -> None:
    assert room([Device(f"cuda:{number}", "GPU", one) for number, one in enumerate(free)]) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 24),  # three batches of eight for 20 rows
        ({"num_train_epochs": 3}, 72),
        ({"max_steps": 10, "gradient_accumulation_steps": 2}, 160),
    ],
)
def test_rows_to_be_trained(settings: dict, expected: int) -> None:
    assert rows_in_all(20, Training(**settings).model_dump()) == expected
