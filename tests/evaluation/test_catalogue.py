"""What is wrong with the named tasks, before anything is loaded: all of it at once, and what to write instead."""

from pathlib import Path
from typing import Any

import pytest

from infra.errors import Fault
from tasks.evaluation.catalogue import folder_digest, refused_tasks, task_faults, task_manager, unknown_tasks
from tests.evaluation.own_tasks import write_task

pytestmark = pytest.mark.slow  # lm-eval reads its thousands of files anew for each folder

ACC = {"metric": "acc", "higher_is_better": True}


def faults(folder: Path | None, *general: str | dict[str, Any], permitted: bool = False) -> list[Fault]:
    asked = [{"metric": None, **({"task": one} if isinstance(one, str) else one)} for one in general]
    return task_faults(asked, str(folder) if folder else None, permitted=permitted)


def said(found: list[Fault]) -> str:
    return "\n".join(map(str, found))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_task(tmp_path / "own", "mine", "multiple_choice", [{"q": "x", "choices": ["a"], "answer": 0}], ACC)


def test_what_is_right_has_no_faults(folder: Path) -> None:
    (folder / "both.yaml").write_text("group: both\ntask: [mine, hellaswag, {task: mine, task_alias: other}]\n")
    assert faults(folder, "mine", "both", "capitals_open", "mmlu", {"task": "mine", "metric": "acc"}) == []
    assert task_manager("mine", str(folder)).all_tasks == task_manager(None, str(folder)).all_tasks
    assert "hellaswag" in task_manager("both", str(folder)).all_tasks, "its members are lm-eval's own"


@pytest.mark.parametrize(
    ("name", "near"),
    [("hellaswagg", "hellaswag"), ("general-ofline", "general-offline"), ("mmul", "mmlu"), ("mien", "mine")],
)
def test_unknown_names_are_answered_with_near_ones(folder: Path, name: str, near: str) -> None:
    (fault,) = faults(folder, name, "mine")
    assert f"no lm-eval task is named {name!r}" in fault.message and near in fault.message.partition(";")[2]


def test_a_group_whose_member_nobody_defines_is_no_group(folder: Path) -> None:
    (folder / "both.yaml").write_text("group: both\ntask:\n  - group: inner\n    task: [mine, mien]\n  - hellaswagg\n")
    found = unknown_tasks(["both"], str(folder))
    assert "group 'both': no lm-eval task is named 'mien'; near names: mine" in said(found)
    assert "group 'both': no lm-eval task is named 'hellaswagg'" in said(found) and len(found) == 2


def test_files_that_lm_eval_would_leave_out_are_told(folder: Path) -> None:
    (folder / "torn.yaml").write_text("task: torn\ndoc_to_text: '{{q}}\nmetric_list: [\n")
    (folder / "including.yaml").write_text("include: absent.yaml\ntask: including\n")
    (folder / "copy.yaml").write_text("task: mine\n")
    (folder / "shared.yaml").write_text("output_type: multiple_choice\n")  # for others to include
    found = faults(folder, "mine")
    assert [Path(fault.message.split()[0]).name for fault in found] == ["including.yaml", "mine.yaml", "torn.yaml"]
    for message in ("absent.yaml", "defines 'mine', and", "line 2"):
        assert message in said(found)
    (folder / "other.yml").write_text("task: other\n")
    assert "lm-eval reads .yaml only, not other.yml" in said(unknown_tasks(["other"], str(folder)))
    assert "is not a folder" in said(faults(folder / "absent", "mine"))


def test_tasks_that_run_generated_code_need_permission(folder: Path) -> None:
    (folder / "code.yaml").write_text("group: code\ntask: [mine, humaneval]\n")
    names = ("mine", "code", "humaneval", "mbpp")
    found = faults(folder, *names)
    assert [fault.message.split()[0] for fault in found] == ["'code'", "'humaneval'", "'mbpp'"]
    assert "set evaluation.confirm_run_unsafe_code: true to allow it" in said(found)
    assert faults(folder, *names, permitted=True) == refused_tasks(["mine"], str(folder), False) == []


@pytest.mark.parametrize(
    ("task", "metric", "has"),
    [
        ("mine", "acc_norm", "task 'mine' has no metric 'acc_norm'; it has acc"),
        (
            "gsm8k",
            "exact_match,loose",
            "it has exact_match, each behind a comma with one of strict-match, flexible-extract",
        ),
        ("mmlu", "f1", "has no metric 'f1'; it has acc"),
        ("gsm8k", "exact_match,flexible-extract", None),
        ("hellaswag", "acc_norm", None),
        ("humaneval", "pass@1", None),  # made by a function: known when a document is scored
    ],
)
def test_a_metric_that_a_task_surely_lacks_is_told(folder: Path, task: str, metric: str, has: str | None) -> None:
    found = faults(folder, {"task": task, "metric": metric}, permitted=True)
    assert bool(found) == bool(has)
    assert (has or "") in said(found)


@pytest.mark.parametrize(
    "named",
    [
        "dataset_path: json\ndataset_kwargs: {data_files: {test: DATA/rows.jsonl}}\n",
        "dataset_path: json\ndataset_kwargs: {data_files: {test: [DATA/*.jsonl]}}\n",
        "dataset_path: json\ndataset_kwargs: {data_files: DATA/rows.jsonl}\n",
        "dataset_path: json\ndataset_kwargs: {data_dir: DATA}\n",
        "dataset_path: DATA\n",
    ],
)
def test_data_that_lies_elsewhere_belongs_to_the_users_tasks(folder: Path, tmp_path: Path, named: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.jsonl").write_text("{}")
    (folder / "other.yaml").write_text("task: other\n" + named.replace("DATA", str(data)))
    (folder / "remote.yaml").write_text(
        "task: remote\ndataset_path: json\ndataset_kwargs: {data_files: 'https://x/y'}\n"
    )
    (folder / "broken.yaml").write_text("task: [\n")
    before = folder_digest(str(folder))
    assert folder_digest(str(folder)) == before
    (data / "rows.jsonl").write_text("{ }")
    assert folder_digest(str(folder)) != before
