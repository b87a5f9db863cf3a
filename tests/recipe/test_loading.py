"""From a YAML file and --set to a recipe, or to everything that is wrong with it, each with its place."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.errors import RequestError
from tasks.recipe.loading import load_recipe
from tasks.recipe.schema import Cure, Recipe, Replay

RECIPE = """\
name: fleet
lora: {r: 8}
adapters:
  - name: one
    data:
      path: rows.csv
      messages: {user: "{{ q }}", assistant: "{{ a }}"}
    training:
      max_steps: 5
  - name: two.en
    data:
      rows:
        - {q: a question, a: an answer}
      messages: {user: "{{ q }}", assistant: "{{ a }}"}
evaluation:
  general:
    - {task: hellaswag, limit: 10}
    - winogrande
"""
ONE_ROW = """\
name: fleet
adapters:
  - name: one
    data:
      rows:
        - {q: a question, a: %s}
      messages: {user: "{{ q }}", assistant: "{{ a }}"}
"""
Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a recipe from its text, as the file recipe.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)

    def loading(text: str | bytes, *overrides: str) -> Recipe:
        Path("recipe.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return load_recipe("recipe.yaml", overrides)

    return loading


@pytest.fixture
def faults(load: Load) -> Callable[..., list[str]]:
    def failing(text: str | bytes, *overrides: str) -> list[str]:
        with pytest.raises(RequestError) as error:
            load(text, *overrides)
        return [str(fault) for fault in error.value.faults]

    return failing


def at(recipe: Recipe, path: str) -> Any:
    """The value at a dotted path of attributes and indices."""
    return reduce(
        lambda place, key: place[int(key)] if key.isdecimal() else getattr(place, key), path.split("."), recipe
    )


# --- files that are no recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "recipe.yaml: holds no keys; `tunefleet init` writes a recipe to start from"),
        ("# only a comment\n", "recipe.yaml: holds no keys; `tunefleet init` writes a recipe to start from"),
        ("- a\n- b\n", "recipe.yaml: holds no keys; `tunefleet init` writes a recipe to start from"),
        ("name: a\nlora: [1\nmethod: lora\n", "recipe.yaml:3: not valid YAML: expected ',' or ']', but got ':'"),
        ("name: a: b\n", "recipe.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("name: a\n---\nname: b\n", "recipe.yaml:2: not valid YAML: but found another document"),
        ("a: !!python/object:os.system {}\n", "recipe.yaml:1: not valid YAML: could not determine a constructor for"),
        ("? [a, b]\n: c\n", "recipe.yaml:1: not valid YAML: found unhashable key"),
        (b"name: \xff\n", "recipe.yaml: cannot be read as a recipe: 'utf-8' codec can't decode"),
    ],
)
def test_what_cannot_be_read_says_where(faults: Callable[..., list[str]], text: str | bytes, says: str):
    (fault,) = faults(text)
    assert fault.startswith(says)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_what_is_not_there_says_so(tmp_path: Path, name: str):
    with pytest.raises(RequestError, match="cannot be read as a recipe"):
        load_recipe(tmp_path / name)


# --- everything that is wrong, at once

WRONG = """\
name: Fleet
mehtod: lora
lora:
  r: 0
  target_modules: q_proj
  r: many
training: {learning_rate: fast, max_steps: 0}
adapters:
  - name: one
    data:
      path: rows.csv
      rows: []
      messages: {user: "{{ q }}"}
  - data: {rows: [q], messages: {user: u, assistant: a}, helld_out: 3}
    target:
      splits: []
evaluation:
  general:
    - {task: hellaswag, margn: 0.1}
    - ""
publish:
  to:
    - {}
"""


def test_all_faults_at_once_each_with_its_line(faults: Callable[..., list[str]]):
    found = faults(WRONG, "gate.alpha=2", "no-value", "training.max_steps=-1")
    assert sorted(found) == sorted(
        [
            "recipe.yaml:6: key 'r' is given twice; keep one",
            "--set no-value: has the form --set KEY=VALUE, e.g. --set training.learning_rate=1e-4",
            "recipe.yaml:1 name: got 'Fleet': string should match pattern '^[a-z0-9][a-z0-9._-]{0,63}$'",
            "recipe.yaml:2 mehtod: unknown key 'mehtod'; did you mean 'method'?",
            "recipe.yaml:6 lora.r: got 'many': input should be a valid integer, unable to parse string as an integer",
            "recipe.yaml:5 lora.target_modules: got 'q_proj': input should be 'all-linear' or a valid list",
            "recipe.yaml:7 training.learning_rate: got 'fast': input should be a valid number, "
            "unable to parse string as a number",
            "--set training.max_steps=-1: training.max_steps: got -1: input should be greater than or equal to 1",
            "recipe.yaml:13 adapters.0.data.messages.assistant: is required but not given",
            "recipe.yaml:14 adapters.1.name: is required but not given",
            "recipe.yaml:14 adapters.1.data.helld_out: unknown key 'helld_out'; did you mean 'held_out'?",
            "recipe.yaml:14 adapters.1.data.rows.0: got 'q': input should be a valid group of keys",
            "recipe.yaml:16 adapters.1.target.splits: list should have at least 1 item after validation, not 0",
            "recipe.yaml:19 evaluation.general.0.margn: unknown key 'margn'; did you mean 'margin'?",
            "recipe.yaml:20 evaluation.general.1: got '': string should have at least 1 character",
            "recipe.yaml:23 publish.to.0: got no place; give exactly one of folder, s3, hub",
            "--set gate.alpha=2: gate.alpha: got 2: input should be less than 0.5",
        ]
    )


def test_rules_over_several_keys_name_their_place(faults: Callable[..., list[str]]):
    assert faults(RECIPE.replace("path: rows.csv", "path: rows.csv\n      hub: some/set")) == [
        "recipe.yaml:5 adapters.0.data: got path and hub; give exactly one of path, hub, rows, generate"
    ]
    assert faults(RECIPE.replace("two.en", "one")) == [
        "recipe.yaml: adapter named twice: one; each needs a name of its own"
    ]


def test_an_adapter_that_is_wrong_does_not_make_the_list_too_short(faults: Callable[..., list[str]]):
    assert faults("name: a\nadapters:\n  - {}\n") == [
        "recipe.yaml:3 adapters.0.name: is required but not given",
        "recipe.yaml:3 adapters.0.data: is required but not given",
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "lora: {lora_alhpa: 16}",
            "recipe.yaml:19 lora.lora_alhpa: unknown key 'lora_alhpa'; did you mean 'lora_alpha'?",
        ),
        (
            "training: {lr: 1}",
            "recipe.yaml:19 training.lr: unknown key 'lr'; allowed are beta, early_stopping_patience, ",
        ),
        ("gate: {alhpa: 1}", "recipe.yaml:19 gate.alhpa: unknown key 'alhpa'; did you mean 'alpha'?"),
        ("bsae: {}", "recipe.yaml:19 bsae: unknown key 'bsae'; did you mean 'base'?"),
        ("base: 5", "recipe.yaml:19 base: got 5: input should be a valid group of keys"),
        ("publish: {to: s3}", "recipe.yaml:19 publish.to: got 's3': input should be a valid list"),
        (
            "publish: {to: [{fodler: a}]}",
            "recipe.yaml:19 publish.to.0.fodler: unknown key 'fodler'; did you mean 'folder'?",
        ),
    ],
)
def test_unknown_keys_and_wrong_types(faults: Callable[..., list[str]], line: str, says: str):
    assert faults(RECIPE.replace("lora: {r: 8}\n", "") + f"# a comment\n{line}\n")[0].startswith(says)


def test_keys_given_twice_at_any_depth(faults: Callable[..., list[str]]):
    text = RECIPE + "name: again\nevaluation:\n  general:\n    - {task: a, limit: 1, limit: 2}\n"
    assert faults(text) == [
        "recipe.yaml:19: key 'name' is given twice; keep one",
        "recipe.yaml:20: key 'evaluation' is given twice; keep one",
        "recipe.yaml:22: key 'limit' is given twice; keep one",
    ]


# --- --set


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("name=other", "name", "other"),
        ("lora.r=4", "lora.r", 4),
        ("lora.lora_alpha=32", "lora.lora_alpha", 32),  # a new key
        ("gate.margin=0.1", "gate.margin", 0.1),  # in a new group
        ("training.learning_rate=1e-4", "training.learning_rate", 1e-4),
        ("training={seed: 3}", "training.seed", 3),
        ("lora.target_modules=[q_proj]", "lora.target_modules", ("q_proj",)),
        ("adapters.one.training.max_steps=", "adapters.0.training.max_steps", None),
        ("adapters.one.training.max_steps=9", "adapters.0.training.max_steps", 9),
        ("adapters.0.training.max_steps=9", "adapters.0.training.max_steps", 9),
        ("adapters.two.en.lora.r=2", "adapters.1.lora.r", 2),  # the name has a dot
        ("adapters.1.lora.r=2", "adapters.1.lora.r", 2),
        ("adapters.two.en.data.rows.0.a=other", "adapters.1.data.rows", ({"q": "a question", "a": "other"},)),
        ("evaluation.general.hellaswag.limit=3", "evaluation.general.0.limit", 3),
        ("evaluation.general.winogrande=boolq", "evaluation.general.1.task", "boolq"),
        ("evaluation.general.1={task: boolq, limit: 2}", "evaluation.general.1.limit", 2),
        ("evaluation.probes=[a=b]", "evaluation.probes", ("a=b",)),
        ("adapters.two.en.data.rows.0.a=no", "adapters.1.data.rows", ({"q": "a question", "a": "no"},)),
    ],
)
def test_set(load: Load, override: str, path: str, value: Any):
    assert at(load(RECIPE), path) != value
    assert at(load(RECIPE, override), path) == value


def test_later_overrides_win_and_build_on_earlier_ones(load: Load):
    recipe = load(RECIPE, "training={seed: 1, max_steps: 7}", "training.seed=2", "adapters.one.name=uno", "lora.r=2")
    assert (recipe.training.seed, recipe.training.max_steps, recipe.adapters[0].name, recipe.lora.r) == (2, 7, "uno", 2)
    assert recipe.adapters[0].training.seed == 2 and recipe.adapters[0].training.max_steps == 5


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora.r", "has the form --set KEY=VALUE"),
        ("=8", "has the form --set KEY=VALUE"),
        ("", "has the form --set KEY=VALUE"),
        ("lora.r=[1", "the value is not valid YAML: "),
        ("name.first=a", "'name' is a value, not a group of keys"),
        ("lora.r.x=1", "'r' is a value, not a group of keys"),
        ("adapters.three.lora.r=1", "no item 'three'; there is one, two.en"),
        ("adapters.2.lora.r=1", "no item '2'; there is one, two.en"),
        ("adapters.-1.lora.r=1", "no item '-1'; there is one, two.en"),
        ("adapters.²=1", "no item '²'; there is one, two.en"),
        ("evaluation.general.boolq.limit=1", "no item 'boolq'; there is hellaswag, winogrande"),
    ],
)
def test_bad_forms_of_set(faults: Callable[..., list[str]], override: str, says: str):
    (fault,) = faults(RECIPE, override)
    assert fault.startswith(f"--set {override}: {says}")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora.r=0", "lora.r: got 0: "),
        ("lora={r: 0}", "lora.r: got 0: "),  # below the key that was set, though the file has a line for lora.r
        ("adapters.one.lora.rr=1", "adapters.0.lora.rr: unknown key 'rr'; did you mean 'r'?"),
        ("adapters.1.lora.r=0", "adapters.1.lora.r: got 0: "),
        ("adapters.one={name: one}", "adapters.0.data: is required but not given"),
        ("training.max_steps=1.5", "training.max_steps: got 1.5: "),
        ("evaluation.general.winogrande={}", "evaluation.general.1.task: is required but not given"),
        ("publish.to.0.hub=a/b", "publish.to: input should be a valid list"),  # a list that the file does not have
        ("adapters=[]", "adapters: list should have at least 1 item"),
        ("lr=1", "lr: unknown key 'lr'"),
    ],
)
def test_what_an_override_breaks_is_said_of_the_override(faults: Callable[..., list[str]], override: str, says: str):
    (fault,) = faults(RECIPE, override)
    assert fault.startswith(f"--set {override}: {says}")


def test_what_the_file_breaks_is_not_said_of_an_override(faults: Callable[..., list[str]]):
    assert faults(RECIPE.replace("max_steps: 5", "max_steps: 0"), "adapters.one.training.seed=3", "lora.r=3") == [
        "recipe.yaml:9 adapters.0.training.max_steps: got 0: input should be greater than or equal to 1"
    ]


def test_an_override_of_what_an_alias_shares_stays_in_its_place(load: Load):
    text = RECIPE.replace("lora: {r: 8}\n", "").replace(
        "    training:\n      max_steps: 5\n", "    training: &fast {max_steps: 5}\n"
    )
    text = text.replace("  - name: two.en\n", "  - name: two.en\n    training: *fast\n")
    recipe = load(text, "adapters.one.training.max_steps=9")
    assert [adapter.training.max_steps for adapter in recipe.adapters] == [9, 5]


# --- YAML as editors understand it


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-03-05", "2024-03-05"),
        ("1_000", "1_000"),
        ("true", True),
        ("~", None),
        ("null", None),
        ("0777", 777),
        ("0o17", 15),
        ("0x1f", 31),
        ("-3", -3),
        ("5e-4", 5e-4),
        (".5", 0.5),
        ("'7'", "7"),
        ("=", "="),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(load: Load, written: str, value: Any):
    (row,) = load(ONE_ROW % written).adapters[0].data.rows
    assert (row["a"], type(row["a"])) == (value, type(value))


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("[1, a]", [1, "a"]),
        ("{b: [null]}", {"b": [None]}),
        ("[{role: user, content: hi}]", [{"role": "user", "content": "hi"}]),
    ],
)
def test_cells_hold_lists_and_groups_as_in_json(load: Load, written: str, value: Any):
    (row,) = load(ONE_ROW % written).adapters[0].data.rows
    assert row["a"] == value


@pytest.mark.parametrize("written", [".nan", ".inf", "[.nan]", "{b: .inf}"])
def test_what_no_cell_can_hold(faults: Callable[..., list[str]], written: str):
    (fault,) = faults(ONE_ROW % written)
    assert fault.startswith("recipe.yaml:6 adapters.0.data.rows.0.a") and "finite number" in fault


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: &x [*x]\n", 1), ("a: 1\nb: &x\n  - {c: *x}\n", 3), ("name: a\nlora: &x {r: *x}\n", 2)],
)
def test_an_alias_of_what_it_stands_in(faults: Callable[..., list[str]], text: str, line: int):
    (fault,) = faults(text)
    assert fault.startswith(f"recipe.yaml:{line}: ")
    assert "the alias stands inside what it refers to" in fault


def test_what_is_nested_without_end(faults: Callable[..., list[str]]):
    assert faults("a: " + "[" * 5000) == ["recipe.yaml: nested without end, or too deeply to be read"]
    assert faults("name: a\nlora: &x {<<: *x}\n")
    assert faults(ONE_ROW % "1", "adapters.0.data.rows=&x [{q: *x}]")


def test_merge_keys_work(load: Load):
    recipe = load(
        RECIPE.replace("lora: {r: 8}", "lora: &lora {r: 8}").replace(
            "    training:\n      max_steps: 5\n", "    lora: {<<: *lora, lora_alpha: 4}\n"
        )
    )
    assert (recipe.adapters[0].lora.r, recipe.adapters[0].lora.lora_alpha) == (8, 4)


# --- paths


def test_input_paths_are_taken_from_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "recipes" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("recipes/recipe.yaml").write_text(RECIPE)

    def load(*overrides: str) -> Recipe:
        return load_recipe("recipes/recipe.yaml", overrides)

    folder = tmp_path / "recipes"
    cases = [
        ("adapters.one.data.path=rows.csv", "adapters.0.data.path", str(folder / "rows.csv")),
        ("adapters.one.data.path=../rows.csv", "adapters.0.data.path", str(tmp_path / "rows.csv")),
        ("adapters.one.data.path=/data/rows.csv", "adapters.0.data.path", "/data/rows.csv"),
        ("adapters.one.data.path=~/rows.csv", "adapters.0.data.path", str(tmp_path / "home/rows.csv")),
        ("evaluation.include_path=suites", "evaluation.include_path", str(folder / "suites")),
        ("cure.replay.prompts=asked.txt", "cure.replay.prompts", str(folder / "asked.txt")),
        ("cure.replay.prompts=/data/asked.txt", "cure.replay.prompts", "/data/asked.txt"),
        ("base.model=base", "base.model", str(folder / "base")),
        ("base.model=./missing", "base.model", str(folder / "missing")),
        ("base.model=~/model", "base.model", str(tmp_path / "home/model")),
        ("base.model=/models/a", "base.model", "/models/a"),
        ("base.model=org/model", "base.model", "org/model"),
        ("base.model=s3://bucket/model", "base.model", "s3://bucket/model"),
        ("base.chat_template=chat.jinja", "base.chat_template", str(folder / "chat.jinja")),
        ("base.model=package://module/file.gguf", "base.model", "package://module/file.gguf"),
        ("publish.to=[{folder: out}]", "publish.to.0.folder", "out"),  # destinations: from the current folder
    ]
    for override, path, value in cases:
        assert at(load(override), path) == value, override
    assert load().adapters[1].data.path is None and load().evaluation.include_path is None
    assert load().cure is None and load("cure.scales=[0.5]").cure == Cure(scales=(0.5,))
    assert load("cure.replay.share=0.3").cure == Cure(replay=Replay(share=0.3))


def test_a_recipe_is_loaded_resolved_and_survives_yaml(load: Load):
    recipe = load(RECIPE)
    assert recipe == recipe.resolved()
    assert recipe.adapters[0].lora.r == 8 and recipe.adapters[0].training.max_steps == 5
    assert load(yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True)) == recipe
