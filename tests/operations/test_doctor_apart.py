"""A check in a process of its own: whatever becomes of it is a finding, and nothing of it stays."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from infra.redaction import without_secrets
from tasks.operations.doctor.apart import apart
from tasks.operations.doctor.finding import Finding, fault, ok


def two() -> Iterator[Finding]:
    print("a library talks")
    yield ok("first", "there")
    yield ok("second", "there, too")


def silent_after_one(pid_file: str) -> Iterator[Finding]:
    yield ok("first", "there")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pid_file).write_text(str(child.pid))
    time.sleep(600)


def killed() -> Iterator[Finding]:
    yield ok("first", "there")
    os.kill(os.getpid(), signal.SIGSEGV)


def broken(word: str) -> Iterator[Finding]:
    yield ok("first", "there")
    raise RuntimeError(f"no such {word}")


def results(function, *arguments: str, seconds: float = 60) -> list[Finding]:
    with apart("the check", function, *arguments, seconds=seconds, advice="do something") as running:
        return running.findings()


def test_what_it_finds_comes_back_whatever_libraries_print() -> None:
    assert results(two) == [ok("first", "there"), ok("second", "there, too")]


def test_one_that_hangs_is_given_up_and_nothing_of_it_stays(tmp_path: Path) -> None:
    found = results(silent_after_one, str(tmp_path / "pid"), seconds=8)
    assert found == [ok("first", "there"), fault("the check", "no answer within 8 s", "do something")]
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 30
    while time.monotonic() < until and is_alive(pid):
        time.sleep(0.05)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_how_it_ended_is_told() -> None:
    assert results(killed)[1:] == [
        fault("the check", "the check ended with signal SIGSEGV: it said nothing", "do something")
    ]
    assert results(broken, "thing")[1:] == [
        fault("the check", "the check ended with exit code 1: RuntimeError: no such thing", "do something")
    ]


def test_modules_come_from_the_project_wherever_it_is_called(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("raise SystemExit('nor this')")
    monkeypatch.chdir(tmp_path)
    assert len(results(two)) == 2


def test_secrets_are_blanked() -> None:
    environment = {
        "HF_TOKEN": "hf_0123456789",
        "PREFECT_API_AUTH_STRING": "admin:opensesame",
        "HF_TOKEN_PATH": "/root/token",  # a place, not a secret
        "TOKENIZERS_PARALLELISM": "false",
    }
    text = (
        "hf_0123456789 of /root/token, false: http://user:word@host/api, admin:opensesame, "
        "https://host/key?X-Signature=abc&more"
    )
    assert without_secrets(text, environment) == (
        "*** of /root/token, false: http://***@host/api, ***, https://host/key?***"
    )
