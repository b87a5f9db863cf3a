"""Which cells a fleet of several methods needs, what names them, and that shared ones are scored once."""

from pathlib import Path
from typing import Any

from infra.storage import ArtifactRef
from tasks.artifacts import StageResult, quantization_of
from tasks.evaluation.scoring import LIBRARIES, SELF_TEST_DOCUMENTS, Cell, SelfTest, cells_of, score
from tasks.recipe.schema import Recipe
from tasks.runs import Run

ROWS = {"rows": [{"prompt": "a", "completion": "b"}], "held_out": 0}
RECIPE = Recipe.model_validate(
    {
        "name": "mixed",
        "method": "lora",
        "adapters": [
            {"name": "tuned", "data": ROWS},
            {"name": "whole", "method": "full", "data": ROWS},
            {"name": "bare", "method": "prompt", "data": ROWS},
            {"name": "shown", "method": "prompt", "num_fewshot": 2, "data": ROWS},
        ],
        "evaluation": {"general": ["capitals_open"], "probes": ["Who?"]},
    }
).resolved()
KINDS = {"tuned": "adapters", "whole": "models", "bare": "prompts", "shown": "prompts"}


def result(kind: str, name: str) -> StageResult:
    ref = ArtifactRef(kind=kind, name=name, digest=f"digest of {name}", uri=f"/{name}")
    return StageResult(ref=ref, facts={}, cached=False)


def cells(names: list[str], recipe: Recipe = RECIPE, **options: Any) -> list[Cell]:
    return cells_of(
        recipe,
        {adapter.name: adapter for adapter in RECIPE.adapters if adapter.name in names},
        quantization="none",
        device="cpu",
        base=result("bases", "base"),
        data={name: result("datasets", "rows") for name in names},
        trained={name: result(KINDS[name], name) for name in names},
        folder_of=lambda one: one.ref.uri,
        **options,
    )


def test_a_prompt_is_asked_its_target_only_and_without_examples_it_is_the_base() -> None:
    made = cells(list(KINDS))
    asked: dict[str, set[str]] = {}
    for cell in made:
        asked.setdefault(cell.side, set()).add(cell.name)
    general = {"capitals_open", "probes"}
    assert asked == {
        "base": general | {f"{name}.held_out" for name in KINDS},
        **{name: general | {f"{name}.held_out"} for name in ("tuned", "whole")},
        **{name: {f"{name}.held_out"} for name in ("bare", "shown")},
    }
    keys = {(cell.side, cell.name): cell.key for cell in made}
    base_keys = {keys["base", f"{name}.held_out"] for name in KINDS}
    assert len(base_keys) == 1, "the base is asked the same rows once, whatever is compared with it"
    assert keys["bare", "bare.held_out"] in base_keys
    assert len({*base_keys, *(keys[name, f"{name}.held_out"] for name in ("tuned", "whole", "shown"))}) == 4


def test_keys_of_base_and_adapters_hold_nothing_of_prompts() -> None:
    """Their specs are what they were before there were prompts: no cache is lost, and none is wrong."""
    common = {"engine", "batch_size", "quantization", "device", "kind"}
    for cell in cells(list(KINDS)):
        if cell.name.endswith(".held_out"):
            assert cell.spec.keys() == common | {"split", "max_new_tokens", "limit", "metric"}
            own = {"shown": {"prompt"}, "tuned": {"adapter"}, "whole": {"adapter"}}.get(cell.side, set())
            assert cell.upstream.keys() == {"base", "data"} | own
            assert ("prompt" in cell.job) == (cell.side == "shown")
        assert cell.spec["engine"].keys() == {*LIBRARIES, "python"}


def test_keys_hold_the_versions_of_all_that_decides_a_score() -> None:
    engine = cells(list(KINDS))[0].spec["engine"]
    assert engine.keys() >= {"tokenizers", "datasets", "sacrebleu", "rouge_score", "lm_eval", "transformers"}


def test_prompts_alone_ask_the_base_nothing_else() -> None:
    assert {cell.name for cell in cells(["bare", "shown"])} == {"bare.held_out", "shown.held_out"}


def test_cells_with_one_key_are_scored_once(tmp_path: Path) -> None:
    made = [cell for cell in cells(list(KINDS)) if cell.name.endswith(".held_out")]
    asked: list[dict[str, Any]] = []

    def score_missing(sides: list[dict[str, Any]], work: Path) -> dict[str, Any]:
        jobs = [job for side in sides for job in side["cells"]]
        asked.extend(jobs)
        for job in jobs:
            Path(job["output"]).mkdir(parents=True)
            (Path(job["output"]) / "records.parquet").write_text(job["key"])
        return {"facts": {job["key"]: {"n": 1} for job in jobs}, "failed": {}}

    scores, failed = score(Run("r", str(tmp_path)), made, score_missing=score_missing)
    assert not failed and {side: len(named) for side, named in scores.items()} == {"base": 4} | dict.fromkeys(KINDS, 1)
    assert len(asked) == len({job["key"] for job in asked}) == 4
    (bare,), (base,) = scores["bare"]["bare.held_out"], scores["base"]["tuned.held_out"]
    assert bare.ref == base.ref


def test_prompts_are_asked_in_the_precision_of_the_recipes_method() -> None:
    for method, wanted in (("qlora", "nf4"), ("lora", "none"), ("full", "none"), ("prompt", "none")):
        recipe = RECIPE.model_copy(update={"method": method})
        found = {adapter.name: quantization_of(recipe, adapter) for adapter in RECIPE.adapters}
        assert found == {"tuned": "none", "whole": "none", "bare": wanted, "shown": wanted}


def test_several_strengths_of_one_adapter_share_the_base() -> None:
    (tuned,) = (adapter for adapter in RECIPE.adapters if adapter.name == "tuned")
    made = cells_of(
        RECIPE,
        {"tuned.x0.5": tuned, "tuned.x0.25": tuned},
        quantization="none",
        device="cpu",
        base=result("bases", "base"),
        data={"tuned": result("datasets", "rows")},
        trained={side: result("adapters", side) for side in ("tuned.x0.5", "tuned.x0.25")},
        folder_of=lambda one: one.ref.uri,
    )
    keys = {(cell.side, cell.name): cell.key for cell in made}
    known = {(cell.side, cell.name): cell.key for cell in cells(list(KINDS))}
    assert {name for side, name in keys if side == "base"} == {"capitals_open", "probes", "tuned.held_out"}
    assert all(known[place] == key for place, key in keys.items() if place[0] == "base")
    assert len(set(keys.values())) == len(keys) == 9


def test_each_look_has_documents_of_its_own_and_only_the_first_has_targets() -> None:
    gate = RECIPE.gate.model_copy(update={"looks": 3})
    recipe = RECIPE.model_copy(update={"gate": gate})
    looks = [cells(["tuned", "bare"], recipe, look=look) for look in (1, 2, 3)]
    general = [{cell.key for cell in made if cell.name == "capitals_open"} for made in looks]
    assert [len(keys) for keys in general] == [2, 2, 2] and len(set().union(*general)) == 6
    assert {cell.name for cell in looks[0]} > {"tuned.held_out", "bare.held_out", "probes"}
    assert {cell.name for made in looks[1:] for cell in made} == {"capitals_open"}
    assert [cell.job["part"] for cell in looks[1]] == [[2, 3]] * 2


def test_self_tests_answer_a_part_of_the_general_tasks_under_keys_of_their_own() -> None:
    tests = [
        SelfTest("_again", {"again": True}),
        SelfTest("_one-answer", {"trained": True}, result("adapters", "same")),
    ]
    made = cells(["tuned"], self_tests=tests)
    own = {cell.side: cell for cell in made if cell.side.startswith("_")}
    assert own.keys() == {"_again", "_one-answer"} and {cell.name for cell in own.values()} == {"capitals_open"}
    assert {cell.job["limit"] for cell in own.values()} == {SELF_TEST_DOCUMENTS}
    assert "adapter" in own["_one-answer"].upstream and "adapter" not in own["_again"].upstream
    assert len({cell.key for cell in made}) == len(made)
    assert {cell.key for cell in made} > {cell.key for cell in cells(["tuned"])}, "the fleet's own keys stay"
