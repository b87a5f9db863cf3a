"""The command as a user meets it: what it prints where, and the code it exits with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import PROJECT

DEMO = PROJECT / "deployments" / "recipes" / "demo.yaml"


def tunefleet(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=_environment(), timeout=120)


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


def test_words_that_are_no_command_exit_with_2(tmp_path: Path) -> None:
    done = tunefleet("trian", cwd=tmp_path)
    assert done.returncode == 2
