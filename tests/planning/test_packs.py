"""What a plan says of engines and packs, on the tiny base."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.device_memory import Device
from tasks.planning import plan as planning
from tasks.planning.plan import make_plan
from tasks.planning.plan_table import print_plan
from tasks.recipe.schema import Recipe
from tests.planning.test_plan import DATA, recipe
from tests.tiny import save_tiny_base

PAIRS = {"rows": [{"prompt": f"{n:02d}?", "chosen": "yes", "rejected": "no"} for n in range(10)], "held_out": 2}
CHECKED = {**DATA, "validation": 2}
SWEEP = {"sampler": "tpe", "over": {"lora.r": {"low": 2, "high": 4}}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def fleet(base: Path, tmp_path: Path) -> Recipe:
    return recipe(
        *(tmp_path, base),
        {"name": "short", "training": {"max_steps": 2}},
        {"name": "long", "training": {"max_steps": 9}, "lora": {"r": 4}},
        {"name": "four-bit", "method": "qlora"},
        {"name": "asked", "training": {"engine": "trl"}},
        {"name": "pairs", "data": PAIRS},
        {"name": "whole", "method": "full"},
        {"name": "prompted", "method": "prompt"},
        {"name": "searched", "data": CHECKED, "sweep": SWEEP},
    )


def plan(fleet: Recipe, store: Path, **changes: Any) -> dict[str, Any]:
    return make_plan(fleet.model_copy(update=changes), str(store))


def test_each_adapter_has_its_engine_and_a_reason_where_it_is_not_the_one_asked_for(
    fleet: Recipe, tmp_path: Path
) -> None:
    found = {one["name"]: (one["engine"], one["engine_reason"]) for one in plan(fleet, tmp_path / "store")["adapters"]}
    assert found == {
        **dict.fromkeys(("short", "long", "four-bit", "searched"), ("packed", None)),
        "asked": ("trl", None),
        "pairs": ("trl", "preference pairs (DPO)"),
        "whole": ("trl", "method: full"),
        "prompted": (None, None),
    }


def test_packs_are_those_of_the_run(fleet: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def packs(*free: int, **changes: Any) -> list[list[str]]:
        devices = [Device(f"cuda:{number}", "GPU", one) for number, one in enumerate(free)]
        monkeypatch.setattr(planning, "local_devices", lambda: devices)
        return [pack["adapters"] for pack in plan(fleet, tmp_path / "store", **changes)["packs"]]

    monkeypatch.setattr(planning, "matmul_flops", lambda *_: 1e12)  # there is no such GPU here
    assert packs(2**40) == [["long", "short"], ["four-bit"]]
    assert packs(2**40, 2**40) == [["long"], ["four-bit"], ["short"]]
    assert packs(2**40, adapters_per_device=1) == [["long"], ["four-bit"], ["short"]]


def test_memory_of_a_pack_counts_the_base_once_and_decides_on_it(
    fleet: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = plan(fleet, tmp_path / "store")
    alone = {one["name"]: one["memory"] for one in roomy["adapters"] if one["memory"]}
    (needed,) = (pack["memory_bytes"] for pack in roomy["packs"] if len(pack["adapters"]) == 2)
    short = alone["short"]
    once = short["weights"] - short["optimizer"] // 2 + short["head"] + short["overhead"]
    assert needed == alone["short"]["total"] + alone["long"]["total"] - once
    for free, together in ((needed / 0.9 + 2, 2), (needed / 0.9 - 2, 1)):
        monkeypatch.setattr(planning, "local_devices", lambda free=free: [Device("cpu", "cpu", round(free))])
        packs = plan(fleet, tmp_path / "store")["packs"]
        assert max(len(pack["adapters"]) for pack in packs) == together
        assert all(pack["memory_bytes"] == alone[pack["adapters"][0]]["total"] for pack in packs if together == 1)


def test_the_table_says_it(fleet: Recipe, tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    print_plan(plan(fleet, tmp_path / "store"), console)
    lines = console.export_text().splitlines()
    together, *by_trl = (line for line in lines if "trained" in line)
    assert together.startswith("trained together, in one process of 77") and together.endswith(" MiB: long, short")
    assert by_trl == [
        "pairs is trained by TRL, not packed: preference pairs (DPO)",
        "whole is trained by TRL, not packed: method: full",
    ]
