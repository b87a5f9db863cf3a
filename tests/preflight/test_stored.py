"""What a preflight leaves in the store: the figures themselves, so that a later run reads its own and no older ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from infra.errors import RequestError
from tasks.artifacts import StageResult
from tasks.ingestion.task import import_base, ingest
from tasks.preflight.task import preflight
from tasks.recipe.schema import Recipe
from tasks.runs import Run, new_run
from tests.tiny import save_tiny_base

ROWS = [{"question": f"What is {number}?", "answer": "ok" * (1 + number % 3)} for number in range(12)]
DATA = {"rows": ROWS, "held_out": 2, "messages": {"user": "{{ question }}", "assistant": "{{ answer }}"}}


@pytest.mark.slow
def test_a_preflight_that_found_other_warnings_is_another_artifact(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    run = new_run(str(tmp_path / "store"))

    def facts(rank: int) -> dict[str, Any]:
        adapter = {"name": "one", "data": DATA, "lora": {"r": rank, "target_modules": ["q_proj"]}}
        content = {"name": "tiny", "base": {"model": str(base)}, "method": "lora", "adapters": [adapter]}
        recipe = Recipe.model_validate(content).resolved()
        with disable_run_logger():
            data = {"one": ingest.fn(run, recipe.adapters[0])}
            found = preflight.fn(run, recipe, import_base.fn(run, recipe.base), data)
        assert found.facts == json.loads((Path(found.ref.uri) / "facts.json").read_text())
        return dict(found.facts["one"])

    many, few = facts(64), facts(2)
    assert many["trainable_params"] == 32 * few["trainable_params"]
    assert any("rank 64 for 10 training rows" in one for one in many["warnings"]) and few["warnings"] == []


@pytest.mark.slow
def test_memory_is_estimated_where_adapters_could_share_a_device_and_only_there(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    here = new_run(str(tmp_path / "store"))

    def memory(run: Run, *ranks: int, **settings: Any) -> list[dict[str, int] | None]:
        adapters = [{"name": f"r{rank}", "data": DATA, "lora": {"r": rank}} for rank in ranks]
        content = {"name": "tiny", "base": {"model": str(base)}, "method": "lora", "adapters": adapters, **settings}
        recipe = Recipe.model_validate(content).resolved()
        with disable_run_logger():
            data = {one.name: ingest.fn(run, one) for one in recipe.adapters}
            facts = preflight.fn(run, recipe, import_base.fn(run, recipe.base), data).facts
        return [one.get("memory") for one in facts.values()]

    low, high = memory(here, 2, 8)
    assert low and high and low.keys() == {"cpu", "cpu_shared"}
    assert low["cpu_shared"] == high["cpu_shared"] < low["cpu"] < high["cpu"]
    assert memory(here, 2) == [low]  # the self-test's adapter may come beside it
    assert memory(here, 2, 8, adapters_per_device=1) == [None, None]
    elsewhere = memory(replace(here, on="workers"), 2, 8, adapters_per_device=2)
    assert elsewhere[0] and elsewhere[0].keys() == {"cpu", "cpu_shared", "cuda", "cuda_shared"}


@pytest.mark.slow
def test_gguf_is_looked_into_where_it_is_wanted_and_only_there(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    said = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**said, "hidden_act": "gelu"}))
    run = new_run(str(tmp_path / "store"))

    def found(*what: str) -> StageResult:
        adapter = {"name": "one", "data": DATA, "lora": {"r": 2, "target_modules": ["q_proj"]}}
        content = {"name": "tiny", "base": {"model": str(base)}, "method": "lora", "adapters": [adapter]}
        recipe = Recipe.model_validate({**content, "publish": {"what": what}}).resolved()
        with disable_run_logger():
            data = {"one": ingest.fn(run, recipe.adapters[0])}
            return preflight.fn(run, recipe, import_base.fn(run, recipe.base), data)

    assert "gguf" not in run.store.manifest(found("adapter", "merged").ref)["spec"]  # so its key is the old one
    with pytest.raises(RequestError, match=r"publish\.what: gguf: config\.json: hidden_act is 'gelu'"):
        found("adapter", "gguf")
