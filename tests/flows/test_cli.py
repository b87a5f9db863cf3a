"""The command as a user meets it: what it prints where, and the code it exits with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import PROJECT
from tests.flows.recipes import write_tiny_recipe

DEMO = PROJECT / "deployments" / "recipes" / "demo.yaml"


def tunefleet(*words: str | Path, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=_environment(), timeout=timeout)


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(PROJECT)}


def test_init_writes_a_recipe_that_is_valid_and_is_never_overwritten(tmp_path: Path) -> None:
    first = tunefleet("init", "mine.yaml", cwd=tmp_path)
    assert first.returncode == 0 and "tunefleet validate mine.yaml" in first.stdout
    assert tunefleet("validate", "mine.yaml", cwd=tmp_path).returncode == 0
    (tmp_path / "mine.yaml").write_text("name: kept\n")
    again = tunefleet("init", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 2 and "exists already" in again.stderr
    assert (tmp_path / "mine.yaml").read_text() == "name: kept\n"


@pytest.mark.parametrize("recipe", sorted(DEMO.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_ship_are_valid(recipe: Path, tmp_path: Path) -> None:
    done = tunefleet("validate", recipe, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {one["name"] for one in answer["recipe"]["adapters"]} == answer["data"].keys()


def test_schema_prints_json(tmp_path: Path) -> None:
    done = tunefleet("schema", cwd=tmp_path)
    assert json.loads(done.stdout)["title"] == "Recipe"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validate", "absent.yaml"], "absent.yaml: cannot be read as a recipe"),
        (["validate", DEMO, "--set", "lora.dropout=0.1"], "unknown key 'dropout'; did you mean 'lora_dropout'"),
        (["validate", DEMO, "--set", "gate.alpha=2"], "--set gate.alpha=2"),
        (["validate", DEMO, "--set", "adapters.iso-dates.data.messages.user='{{ date }}'"], "column 'date' is not in"),
        (["validate", DEMO, "--set", "adapters.mirror.data.rows=[]"], "has no rows"),
        (
            ["run", DEMO, "--set", "adapters.0.data={path: no.csv, messages: {user: a, assistant: b}}"],
            "no.csv does not",
        ),
        (["run", "absent.yaml"], "absent.yaml: cannot be read as a recipe"),
    ],
)
def test_a_wrong_request_exits_with_2_and_says_why(words: list[str | Path], message: str, tmp_path: Path) -> None:
    done = tunefleet(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".tunefleet" / "adapters").exists()


@pytest.mark.slow
def test_plan_and_preview_look_at_a_recipe_and_leave_nothing(tiny_base: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_base)
    planned = tunefleet("plan", recipe, "--json", "--store", tmp_path / "store", "--set", "lora.r=4", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    answer = json.loads(planned.stdout)
    assert [one["name"] for one in answer["adapters"]] == ["learns", "idles"]
    assert [one["steps"] for one in answer["adapters"]] == [40, 2]
    assert {"trainable_params", "memory", "fits", "seconds", "disk", "cached"} <= answer["adapters"][0].keys()
    shown = tunefleet("preview", recipe, "--adapter", "idles", "--rows", "1", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "«ok<|im_end|>»" in shown.stdout and "learns" not in shown.stdout
    assert planned.stderr == shown.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "tiny.yaml"]


@pytest.mark.slow
def test_a_plan_names_every_fault(tiny_base: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_base)
    wrong = ["--set", "lora.target_modules=[q_prj]", "--set", "training.max_length=8"]
    done = tunefleet("plan", recipe, *wrong, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    for adapter in ("learns", "idles"):
        assert f"error: adapter '{adapter}': target_modules q_prj match nothing" in done.stderr
        assert f"error: adapter '{adapter}': 16 of 16 train rows are longer than max_length=8" in done.stderr


@pytest.mark.parametrize("verb", ["plan", "preview"])
def test_an_adapter_that_is_not_in_the_recipe(verb: str, tmp_path: Path) -> None:
    done = tunefleet(verb, DEMO, "--adapter", "mirrer", cwd=tmp_path)
    assert done.returncode == 2 and "its adapters are iso-dates, mirror" in done.stderr


def test_words_that_are_no_command_exit_with_2(tmp_path: Path) -> None:
    done = tunefleet("trian", cwd=tmp_path)
    assert done.returncode == 2
