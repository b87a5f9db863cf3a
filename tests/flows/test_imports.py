"""Flows stay light: importing any of them loads no training library, and `--help` starts at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import PROJECT

HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "lm_eval")
FLOWS = sorted(path.stem for path in (PROJECT / "flows").glob("*.py") if path.stem != "__init__")


def loaded_by(statement: str, watched: tuple[str, ...]) -> list[str]:
    """Which of `watched` a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {watched!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.slow
@pytest.mark.parametrize("flow", FLOWS)
def test_importing_a_flow_loads_no_training_library(flow: str) -> None:
    assert loaded_by(f"import flows.{flow}", HEAVY) == []


def test_the_check_would_notice() -> None:
    assert loaded_by("import json", ("json",)) == ["json"]


def test_help_loads_neither_prefect_nor_a_training_library() -> None:
    watched = (*HEAVY, "prefect", "pydantic", "fsspec", "boto3", "huggingface_hub")
    assert loaded_by("from flows.cli import app; app.help_print([])", watched) == []


def test_no_flow_bears_the_name_of_a_library() -> None:
    """Loading a flow by its path puts flows/ first on sys.path."""
    installed = {path.stem for path in (Path(sys.prefix) / "lib").glob("python3*/site-packages/*")} | set(HEAVY)
    assert installed.isdisjoint(FLOWS)
    assert sys.stdlib_module_names.isdisjoint(FLOWS)


def test_infra_imports_no_workflow_engine_and_no_stage() -> None:
    modules = [path.stem for path in (PROJECT / "infra").glob("*.py") if path.stem != "__init__"]
    statement = "\n".join(f"import infra.{module}" for module in modules)
    assert loaded_by(statement, (*HEAVY, "prefect", "tasks")) == []
