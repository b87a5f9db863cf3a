"""What is said of this machine and its libraries, without asking anybody."""

import os
from pathlib import Path

import pytest

from infra.gpus import CPU, devices
from tasks.operations.doctor import machine
from tasks.operations.doctor.credentials import look_at_credentials
from tasks.operations.doctor.finding import GIB
from tasks.operations.doctor.libraries import pins, ranges
from tests.publishing.s3_server import S3Server

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("commit", "status", "found"),
    [
        (COMMIT, "ok", "commit 0123456, nothing changed"),
        (COMMIT + "+", "warning", "files that differ"),
    ],
)
def test_the_checkout(commit: str, status: str, found: str) -> None:
    finding = machine.checkout(commit)
    assert finding.status == status and found in finding.found


@pytest.mark.parametrize(("has_git", "status"), [(False, "absent"), (True, "warning")])
def test_without_a_commit(has_git: bool, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROJECT", tmp_path)
    if has_git:
        (tmp_path / ".git").mkdir()
    assert machine.checkout(None).status == status


def test_python_and_memory() -> None:
    assert machine.python().status == "ok"
    assert [machine.memory(size).status for size in (GIB, 20 * GIB)] == ["warning", "ok"]


def test_the_disk_is_that_of_the_first_folder_that_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.disk(tmp_path / "not" / "yet").status in ("ok", "warning")
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(machine, "_NO_DISK", 2**60)
    assert machine.disk(tmp_path).status == "fault"


@pytest.mark.skipif(devices() != [CPU], reason="this machine has a GPU")
def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (finding,) = machine.gpus()
    assert finding.status == "absent" and finding.found.startswith("no NVIDIA GPU was found")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = machine.gpus()
    assert "CUDA_VISIBLE_DEVICES is ''" in finding.found


# --- versions


def test_ranges_name_all_that_is_missing_or_outside(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[project]\ndependencies = ["packaging", "pydantic<1", "no-such-thing>=1", "rich>=1"]\n')
    finding = ranges(pyproject)
    assert finding.status == "fault" and "requirements/run.txt" in finding.advice
    assert "no-such-thing is missing" in finding.found and " is not <1" in finding.found
    assert "rich" not in finding.found and "packaging" not in finding.found
    pyproject.write_text('[project]\ndependencies = ["packaging", "rich>=1"]\n')
    assert ranges(pyproject).status == "ok"


def test_pins_name_what_differs(tmp_path: Path) -> None:
    from importlib.metadata import version

    run = tmp_path / "run.txt"
    same = f"rich=={version('rich')}  # a table\n# a comment\nno-such-thing==1 ; sys_platform == 'win32'\n"
    run.write_text(same)
    assert pins(run).status == "ok"
    run.write_text(same + "no-such-thing==1\n" + "".join(f"none-{number}==1\n" for number in range(9)))
    finding = pins(run)
    assert finding.status == "warning"
    assert finding.found.startswith("10 of 11 differ") and "no-such-thing missing (1)" in finding.found
    assert finding.found.endswith("and 4 more")


# --- credentials


def test_nobody_has_credentials(nobodys_accounts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert [(one.check, one.status) for one in look_at_credentials()] == [("Hugging Face", "absent"), ("AWS", "absent")]


def test_credentials_are_named_and_never_shown(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-value")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    findings = list(look_at_credentials())
    assert [one.status for one in findings] == ["ok", "ok", "ok"]
    said = " ".join(one.found for one in findings)
    assert "HF_TOKEN" in said and "the environment" in said and s3.endpoint_url in said and "OPENAI_API_KEY" in said
    for secret in ("hf_secret_value", "sk-secret-value", s3.secret_key):
        assert secret not in said


def test_a_broken_aws_profile_is_a_fault(nobodys_accounts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    (finding,) = (one for one in look_at_credentials() if one.check == "AWS")
    assert finding.status == "fault" and "nobody" in finding.found
    assert os.environ["AWS_PROFILE"] == "nobody"
