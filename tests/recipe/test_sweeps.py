"""Grids become adapters: every combination once, each with a name of its own, and every mistake said before that."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import RequestError
from tasks.recipe.loading import load_recipe, prepared
from tasks.recipe.schema import Recipe
from tasks.recipe.sweeps import MOST, expand, number_kind, with_settings

DATA = {"rows": [{"q": "1+1", "a": 2}], "messages": {"user": "{{ q }}", "assistant": "{{ a }}"}}
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VALUES = {
    "training.learning_rate": st.floats(1e-6, 1),
    "training.seed": st.integers(0, 99),
    "data.seed": st.integers(0, 99),
    "lora.r": st.integers(1, 64),
    "lora.target_modules": st.just("all-linear") | st.lists(st.sampled_from(["q_proj", "V_proj"]), min_size=1),
    "lora.use_dora": st.booleans(),
    "data.messages.system": st.none() | st.text(max_size=80),
    "data.path": st.none(),
    "target.gain": st.floats(0, 0.5),
    "method": st.sampled_from(["lora", "qlora"]),
}


def grids() -> st.SearchStrategy[dict[str, list[Any]]]:
    def lists(key: str) -> st.SearchStrategy[list[Any]]:
        return st.lists(VALUES[key], min_size=1, max_size=3, unique_by=lambda value: json.dumps(value))

    keys = st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4, unique=True)
    return keys.flatmap(lambda chosen: st.fixed_dictionaries({key: lists(key) for key in chosen}))


def fleet(*adapters: dict[str, Any], **recipe: Any) -> Recipe:
    filled = [{"name": "one", "data": DATA, **adapter} for adapter in adapters]
    return Recipe.model_validate({"name": "fleet", "adapters": filled, **recipe})


def grid(over: dict[str, Any], **adapter: Any) -> dict[str, Any]:
    return {"sweep": {"sampler": "grid", "over": over}, **adapter}


def faults(recipe: Recipe) -> list[str]:
    with pytest.raises(RequestError) as error:
        prepared(recipe)
    return [str(fault) for fault in error.value.faults]


def at(adapter: dict[str, Any], key: str) -> Any:
    for step in key.split("."):
        adapter = adapter[step]
    return adapter


def names(recipe: Recipe) -> list[str]:
    return [adapter.name for adapter in recipe.adapters]


@given(grids(), st.sampled_from(["one", "a" * 64, "a.b-c"]))
def test_a_grid_is_every_combination_once_and_nothing_else_changes(over: dict[str, list[Any]], name: str):
    recipe = fleet(grid(over, name=name, training={"max_steps": 5}))
    expanded = expand(recipe)
    dumped = [adapter.model_dump(mode="json") for adapter in expanded.adapters]
    wanted = list(itertools.product(*over.values()))
    assert len(dumped) == math.prod(map(len, over.values()))
    for adapter, values in zip(dumped, wanted, strict=True):
        assert [at(adapter, key) for key in over] == list(values)
        assert adapter["sweep"] is None
        assert adapter["training"]["max_steps"] == 5 and adapter["data"]["rows"] == DATA["rows"]
    assert len(set(names(expanded))) == len(dumped)
    assert all(NAME.fullmatch(one) for one in names(expanded))
    assert expand(expanded) == expanded


def test_names_say_the_settings_as_long_as_they_fit():
    over = {"training.learning_rate": [5e-4, 1e-5], "lora.r": [8]}
    recipe = fleet({"name": "before"}, grid(over, name="iso-dates"), {"name": "after"})
    assert names(expand(recipe)) == [
        "before",
        "iso-dates-learning_rate0.0005-r8",
        "iso-dates-learning_rate1e-05-r8",
        "after",
    ]
    assert names(expand(fleet(grid(over, name="i" * 50)))) == ["i" * 50 + "-lr0.0005-r8", "i" * 50 + "-lr1e-05-r8"]
    longest = names(expand(fleet(grid(over, name="i" * 64))))
    assert all(re.fullmatch("i{55}-[0-9a-f]{8}", name) for name in longest) and len(set(longest)) == 2
    words = {"lora.target_modules": [["q_proj", "v_proj"], "all-linear"], "lora.use_dora": [True]}
    assert names(expand(fleet(grid(words)))) == [
        "one-target_modulesq_proj-v_proj-use_doratrue",
        "one-target_modulesall-linear-use_doratrue",
    ]


def test_values_that_read_alike_in_a_name_get_names_apart():
    found = names(expand(fleet(grid({"data.messages.system": ["A b", "a-b"]}))))
    assert len(set(found)) == 2 and all(NAME.fullmatch(name) for name in found)


def test_a_recipe_without_sweeps_stays_what_it_is():
    recipe = fleet({}, {"name": "two"})
    assert expand(recipe) == recipe
    assert prepared(recipe) == recipe.resolved()


def test_settings_win_over_the_adapters_keys_and_those_over_the_fleets():
    adapter = grid({"lora.r": [4, 16]}, lora={"r": 2, "lora_alpha": 3})
    for expected, one in zip([4, 16], prepared(fleet(adapter, lora={"lora_dropout": 0.5})).adapters, strict=True):
        assert (one.lora.r, one.lora.lora_alpha, one.lora.lora_dropout) == (expected, 3, 0.5)


def test_prepared_once_more_changes_nothing_also_after_json():
    recipe = prepared(fleet(grid({"lora.r": [4, 16]}), {"name": "two"}))
    assert prepared(recipe) == recipe
    assert prepared(Recipe.model_validate_json(recipe.model_dump_json())) == recipe


def test_few_shot_prompts_are_a_grid_too():
    recipe = prepared(fleet(grid({"num_fewshot": [0, 1, 4]}, method="prompt")))
    assert [adapter.num_fewshot for adapter in recipe.adapters] == [0, 1, 4]


# --- mistakes


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"training.learnig_rate": [1]}, "training.learnig_rate: unknown key 'learnig_rate'; did you mean 'learning_"),
        ({"lorra.r": [1]}, "lorra: unknown key 'lorra'; did you mean 'lora'?"),
        ({"lora.r": [8, "many"]}, "lora.r: got 'many': input should be a valid integer"),
        ({"lora.r": [0]}, "lora.r: got 0: input should be greater than or equal to 1"),
        ({"method.x": [1]}, "method: input should be 'prompt', 'lora', 'qlora' or 'full'"),
        ({"lora.r": {"low": 1, "high": 8}}, "got a range, which has no end of values; list the values"),
        ({"lora.r": []}, "got no values; list those to try"),
        ({"lora.r": [8, 4, 8]}, "got a value twice in [8, 4, 8]; keep one"),
        ({"name": ["a", "b"]}, "cannot be swept"),
        ({"sweep.seed": [1, 2]}, "cannot be swept"),
        ({"lora": [{"r": 4}], "lora.r": [8]}, "holds lora.r, which is swept as well; keep one of them"),
        ({"data.limit": [*range(1, 400)]}, f"the grid has 399 combinations; at most {MOST} are allowed"),
        ({"data.generate": ["iso-dates"]}, "data: got rows and generate; give exactly one of path, hub, rows"),
    ],
)
def test_what_a_grid_cannot_be(over: dict[str, Any], says: str):
    (fault,) = faults(fleet(grid(over)))
    assert fault.startswith("adapter 'one' sweep.over")
    assert says in fault


def test_all_mistakes_of_all_sweeps_at_once():
    found = faults(fleet(grid({"lora.rr": [1], "training.seed": ["x", "y"]}), grid({"lora.r": []}, name="two")))
    assert [fault.split(": ", 1)[0] for fault in found] == ["adapter 'one' sweep.over"] * 3 + [
        "adapter 'two' sweep.over lora.r"
    ]


def test_many_small_grids_are_too_many_together():
    adapters = [grid({"data.limit": [*range(1, 100)]}, name=f"a{number}") for number in range(3)]
    assert "grids make 297 adapters of this fleet; at most 256 are allowed" in faults(fleet(*adapters))
    assert len(prepared(fleet(*adapters[:2])).adapters) == 198


def test_a_fleet_without_grids_may_be_large():
    assert len(prepared(fleet(*({"name": f"a{number}"} for number in range(300)))).adapters) == 300


def test_names_that_a_sweep_makes_twice():
    (fault,) = faults(fleet(grid({"lora.r": [8]}), {"name": "one-r8"}))
    assert fault.startswith("adapter 'one-r8' name: a sweep makes a second adapter of this name")


def test_what_does_not_go_with_the_fleets_keys_is_a_fault():
    own = {"training": {"per_device_train_batch_size": 2}}
    (fault,) = faults(fleet(own, training={"min_per_device_train_batch_size": 4}))
    assert fault == "adapter 'one': min_per_device_train_batch_size is 4, above per_device_train_batch_size, 2"


# --- in a file

FILE = """\
name: fleet
training: {eval_steps: 5}
adapters:
  - name: one
    data:
      path: rows.csv
      messages: {user: "{{ q }}", assistant: "{{ a }}"}
      validation: 0.1
    sweep:
      over:
        lora.r: [4, 8]
        training.learning_rate: [1e-4]
"""


def test_a_file_is_expanded_after_its_overrides(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(FILE)
    recipe = load_recipe(tmp_path / "recipe.yaml", ["adapters.one.sweep.over.lora.r=[2, 3, 4]", "adapters.0.name=uno"])
    assert [adapter.lora.r for adapter in recipe.adapters] == [2, 3, 4]
    assert names(recipe)[0] == "uno-r2-learning_rate0.0001"
    assert {adapter.data.path for adapter in recipe.adapters} == {str(tmp_path / "rows.csv")}
    assert names(load_recipe(tmp_path / "recipe.yaml", ["adapters.one.sweep="])) == ["one"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("lora.r: [4, 8]", "lora.rr: [4, 8]", "recipe.yaml:11 adapter 'one' sweep.over: lora.rr: unknown key 'rr'"),
        ("lora.r: [4, 8]", "lora.r: []", "recipe.yaml:11 adapter 'one' sweep.over lora.r: got no values"),
        ("validation: 0.1", "validation: 0", "recipe.yaml:2 adapters 'one-r4-learning_rate0.0001', 'one-r8-learning_"),
    ],
)
def test_a_mistake_in_a_file_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, says: str
):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(FILE.replace(old, new))
    with pytest.raises(RequestError) as error:
        load_recipe("recipe.yaml")
    assert str(error.value).startswith(says)


def test_the_lines_of_what_stands_after_a_sweep_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    after = "  - name: two\n    num_fewshot: 1\n    data: {path: rows.csv, format: alpaca, validation: 1}\n"
    Path("recipe.yaml").write_text(FILE + after)
    with pytest.raises(RequestError, match=r"^recipe\.yaml:14 adapter 'two' num_fewshot: got 1 with method qlora"):
        load_recipe("recipe.yaml")


# --- the schema's numbers


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora.r", int),
        ("lora.lora_alpha", float),
        ("training.max_steps", int),
        ("training.eval_steps", float),
        ("lora.rank_pattern.q_proj", int),
        ("data.limit", int),
        ("lora.use_dora", None),
        ("lora.layers_to_transform", None),
        ("method", None),
        ("training.no_such_key", None),
        ("no.such.key", None),
    ],
)
def test_which_numbers_a_key_takes(key: str, kind: type | None):
    assert number_kind(key) is kind


def test_settings_that_do_not_fit_are_a_request_error():
    with pytest.raises(RequestError, match=r"adapter 'one' sweep\.over: lora\.r: got 0"):
        with_settings(fleet({}).adapters[0], {"lora.r": 0}, name="x")
