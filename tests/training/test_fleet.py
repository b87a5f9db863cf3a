"""Packs of a fleet, from what preflight knows of its adapters."""

from pathlib import Path

import pytest

from infra.device_memory import Device
from tasks.runs import new_run
from tasks.training.fleet import Needs, packs_of
from tasks.training.sharing import Member
from tests.packs.making import artifact
from tests.packs.test_planner import fleet

GIB = 2**30


def needs(own: int, shared: int = 10) -> Needs:
    return {"cuda": (own + shared) * GIB, "cuda_shared": shared * GIB, "cpu": 1, "cpu_shared": 1}


@pytest.mark.parametrize(
    ("free", "memory", "limit", "expected"),
    [
        (80, {"a0": needs(5), "a1": needs(6), "a2": needs(7)}, None, ["a0, a1, a2"]),
        (30, {"a0": needs(5), "a1": needs(6), "a2": needs(7)}, None, ["a0, a1", "a2"]),  # a tenth of 30 stays free
        (29, {"a0": needs(5), "a1": needs(6)}, None, ["a0, a1", "a2"]),  # a2 is taken to be like a1
        (40, {"a0": needs(5), "a1": needs(6), "other": needs(20)}, None, ["a0, a1, a2"]),  # and not like others
        (30, {}, None, ["a0, a1, a2"]),  # nothing is known
        (80, {}, 2, ["a0, a1", "a2"]),
    ],
)
def test_packs_of_a_fleet(
    tmp_path: Path, free: int, memory: dict[str, Needs], limit: int | None, expected: list[str]
) -> None:
    run, recipe = new_run(str(tmp_path / "store")), fleet("lora", "lora", "lora", per_device=limit)
    rows = artifact(run, "rows").model_copy(update={"facts": {"train": 8}})
    members = [Member(one, rows) for one in recipe.adapters]
    packs = packs_of(recipe, members, memory, [Device("cuda:0", "GPU", free * GIB)])
    assert [pack.title for pack in packs] == expected


def test_a_long_title_is_cut_and_says_how_many(tmp_path: Path) -> None:
    run, recipe = new_run(str(tmp_path / "store")), fleet(*["lora"] * 40)
    rows = artifact(run, "rows").model_copy(update={"facts": {"train": 8}})
    (pack,) = packs_of(recipe, [Member(one, rows) for one in recipe.adapters], {}, [Device("cpu", "cpu", None)])
    assert pack.title.startswith("a0, a1, a2, ") and pack.title.endswith("… (40)") and len(pack.title) < 120
