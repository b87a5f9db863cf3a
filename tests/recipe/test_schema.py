"""The recipe's model: its rules, its JSON schema, and what an adapter inherits from the fleet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError

from infra.settings import PROJECT
from tasks.recipe.loading import load_recipe
from tasks.recipe.schema import Adapter, Lora, Recipe, Training
from tasks.recipe.starter import STARTER
from tasks.recipe.yaml_core import CoreLoader

RECIPES = sorted((PROJECT / "deployments" / "recipes").rglob("*.yaml"))
DATA = {"rows": [{"q": "1+1", "a": 2}], "messages": {"user": "{{ q }}", "assistant": "{{ a }}"}}
SMALL = {"name": "small", "adapters": [{"name": "one", "data": DATA}]}

LORA = {
    "r": st.integers(1, 64),
    "lora_alpha": st.floats(0.5, 64),
    "target_modules": st.just("all-linear") | st.lists(st.sampled_from(["q_proj", "v_proj"]), max_size=2),
    "use_rslora": st.booleans(),
}
TRAINING = {"learning_rate": st.floats(1e-6, 1), "max_steps": st.none() | st.integers(1, 99), "seed": st.integers(0, 9)}


def some(keys: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """`model` and every model that it is made of."""
    yield model
    for field in model.model_fields.values():
        for part in _parts(field.annotation):
            yield from models(part)


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _parts(part)


def validator() -> Draft202012Validator:
    schema = Recipe.model_json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


# --- the JSON schema


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_project_is_valid_for_editors_and_loads(path: Path):
    validator().validate(yaml.load(path.read_text(), Loader=CoreLoader))
    recipe = load_recipe(path)
    validator().validate(recipe.model_dump(mode="json"))


def test_there_are_recipes():
    assert RECIPES


def test_the_starter_is_valid_for_editors_and_loads(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(STARTER)
    validator().validate(yaml.load(STARTER, Loader=CoreLoader))
    assert load_recipe(tmp_path / "recipe.yaml").adapters[0].data.generate == "iso-dates"


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"evaluation": {"general": ["hellaswag", {"task": "winogrande", "limit": 5}]}}, True),
        ({"evaluation": {"general": [""]}}, False),
        ({"evaluation": {"general": [{"limit": 5}]}}, False),
        ({"lora": {"target_modules": "all-linear"}}, True),
        ({"lora": {"target_modules": ["q_proj"]}}, True),
        ({"lora": {"target_modules": "q_proj"}}, False),
        ({"lora": {"r": 0}}, False),
        ({"lora": {"rank": 8}}, False),
        ({"training": {"max_steps": None}}, True),
        ({"gate": {"alpha": 0.5}}, False),
        ({"adapters": []}, False),
        ({"name": "Not A Name"}, False),
        ({"nmae": "x"}, False),
    ],
)
def test_editors_and_the_model_agree(change: dict[str, Any], valid: bool):
    content = {**SMALL, **change}
    assert validator().is_valid(content) == valid
    if valid:
        Recipe.model_validate(content)
    else:
        with pytest.raises(ValidationError):
            Recipe.model_validate(content)


def test_a_general_task_may_be_just_its_name():
    recipe = Recipe.model_validate({**SMALL, "evaluation": {"general": ["hellaswag"]}})
    assert [(task.task, task.margin) for task in recipe.evaluation.general] == [("hellaswag", None)]


def test_every_number_says_what_it_counts():
    silent = [
        f"{model.__name__}.{name}"
        for model in {id(model): model for model in models(Recipe)}.values()
        for name, field in model.model_fields.items()
        if ("int" in str(field.annotation) or "float" in str(field.annotation)) and not field.description
    ]
    assert silent == []
    assert {Lora, Training, Adapter} <= set(models(Recipe))


@pytest.mark.parametrize(
    "model", list({id(model): model for model in models(Recipe)}.values()), ids=lambda m: m.__name__
)
def test_unknown_keys_are_refused_everywhere(model: type[BaseModel]):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model.model_validate({"no_such_key": 1})


# --- rules over several keys


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"rows": None}, "got no source; give exactly one of path, hub, rows, generate"),
        ({"path": "a.csv"}, "got path and rows; give exactly one"),
        ({"rows": None, "generate": "iso-dates"}, "`generate` needs `limit`"),
        ({"held_out": 1.5}, "held_out is 1.5; give a fraction below 1 or a whole number of rows"),
        ({"held_out": -1}, "greater than or equal to 0"),
        ({"held_out": float("inf")}, "finite number"),
        ({"generate": "haiku", "rows": None}, "Input should be 'iso-dates'"),
    ],
)
def test_rules_of_data(data: dict[str, Any], says: str):
    with pytest.raises(ValidationError, match=says):
        Recipe.model_validate({**SMALL, "adapters": [{"name": "one", "data": {**DATA, **data}}]})


@pytest.mark.parametrize("held_out", [0, 0.5, 0.999, 1, 2, 20.0])
def test_held_out_is_a_fraction_or_a_number(held_out: float):
    adapter = {"name": "one", "data": {**DATA, "held_out": held_out}}
    assert Adapter.model_validate(adapter).data.held_out == held_out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"adapters": SMALL["adapters"] * 2}, "adapter named twice: one"),
        ({"adapters": [{**SMALL["adapters"][0], "name": "base"}]}, "no adapter may be called base"),
        ({"evaluation": {"general": ["a", "b", "a"]}}, "general task named twice: a"),
        ({"publish": {"to": [{}]}}, "got no place; give exactly one of folder, s3, hub"),
        ({"publish": {"to": [{"folder": "a", "hub": "b/c"}]}}, "got folder and hub; give exactly one"),
        ({"publish": {"to": [{"s3": "bucket/prefix"}]}}, "should match pattern"),
        (
            {"adapters": [{**SMALL["adapters"][0], "target": {"decides": "train"}}]},
            r"decides is 'train', which is not among splits \['held_out'\]",
        ),
    ],
)
def test_rules_over_several_keys(change: dict[str, Any], says: str):
    with pytest.raises(ValidationError, match=says):
        Recipe.model_validate({**SMALL, **change})


def test_a_recipe_is_frozen():
    recipe = Recipe.model_validate(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.adapters[0].data.seed = 1


# --- what an adapter inherits


def fleet(fleet_lora: dict, fleet_training: dict, own_lora: dict | None, own_training: dict | None) -> Recipe:
    adapters = [
        {"name": "one", "data": DATA, "lora": own_lora, "training": own_training},
        {"name": "two", "data": DATA},
    ]
    return Recipe.model_validate({**SMALL, "lora": fleet_lora, "training": fleet_training, "adapters": adapters})


@given(some(LORA), some(TRAINING), st.none() | some(LORA), st.none() | some(TRAINING))
def test_an_adapter_overrides_key_by_key(fleet_lora: dict, fleet_training: dict, own_lora: dict, own_training: dict):
    one, two = fleet(fleet_lora, fleet_training, own_lora, own_training).resolved().adapters
    assert one.lora == Lora(**{**fleet_lora, **(own_lora or {})})
    assert one.training == Training(**{**fleet_training, **(own_training or {})})
    assert (two.lora, two.training) == (Lora(**fleet_lora), Training(**fleet_training))


@given(some(LORA), some(TRAINING), st.none() | some(LORA), st.none() | some(TRAINING))
def test_a_way_through_json_changes_nothing(fleet_lora: dict, fleet_training: dict, own_lora: dict, own_training: dict):
    """Prefect carries a recipe as JSON, resolved or not."""
    recipe = fleet(fleet_lora, fleet_training, own_lora, own_training)
    resolved = recipe.resolved()
    assert resolved.resolved() == resolved
    for carried in (recipe, resolved, recipe.model_copy()):
        back = Recipe.model_validate(json.loads(json.dumps(carried.model_dump(mode="json"))))
        assert back == carried
        assert back.resolved() == resolved
        assert back.resolved().model_dump(mode="json") == resolved.model_dump(mode="json")


def test_a_resolved_recipe_spells_everything_out():
    for adapter in fleet({"r": 4}, {}, {"lora_alpha": 32}, None).resolved().model_dump(mode="json")["adapters"]:
        assert adapter["lora"].keys() == Lora.model_fields.keys()
        assert adapter["training"].keys() == Training.model_fields.keys()
        assert adapter["method"] == "qlora"


@pytest.mark.parametrize(("own", "method"), [(None, "lora"), ("lora", "lora"), ("qlora", "qlora")])
def test_the_method_is_the_fleets_if_left_out(own: str | None, method: str):
    recipe = Recipe.model_validate(
        {**SMALL, "method": "lora", "adapters": [{"name": "one", "data": DATA, "method": own}]}
    )
    assert recipe.resolved().adapters[0].method == method
