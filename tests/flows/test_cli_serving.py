"""vllm, chat and compare as a user meets them, on a store with a tiny base and real adapters."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.settings import PROJECT
from tests.flows.test_cli import tunefleet
from tests.serving.fleet import RUN, Fleet, make_fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return make_fleet(tmp_path_factory.mktemp("fleet"))


def chat(fleet: Fleet, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.cli", "chat", *words, "--store", fleet.store.root]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    )


def test_vllm_prints_a_command_and_leaves_files(fleet: Fleet, tmp_path: Path) -> None:
    done = tunefleet("vllm", "--store", fleet.store.root, "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"vllm serve {fleet.base.uri} \\\n") and "--max-lora-rank 16" in done.stdout
    assert (tmp_path / "out" / "serve.sh").read_text().endswith(done.stdout)
    found = tunefleet("vllm", "shouts@v1", "--json", "--store", fleet.store.root, cwd=tmp_path)
    assert json.loads(found.stdout)["lora_modules"][0]["path"] == str(fleet.adapters["shouts"])
    failed = tunefleet("vllm", "--run", "latest", "--store", fleet.store.root, cwd=tmp_path)
    assert failed.returncode == 0 and f"note: {RUN}:whispers: FAIL" in failed.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vllm", "--channel", "canary"], "stands at the channel 'canary'"),
        (["vllm", "shouts", "--channel", "canary"], "'shouts@canary' is not there"),
        (["vllm", "--port", "0"], "--port is 0"),
        (["chat", "nobody"], "no release of 'nobody'"),
        (["chat", "--run", "latest", "asked"], "made no adapter 'asked'; it made shouts, dots.v2, whispers"),
        (["chat", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["compare", "shouts", "latest:nobody"], "made no adapter 'nobody'"),
    ],
)
def test_a_wrong_request_exits_with_2(words: list[str], said: str, fleet: Fleet, tmp_path: Path) -> None:
    done = tunefleet(*words, "--store", fleet.store.root, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_nothing_released_yet(tmp_path: Path) -> None:
    done = tunefleet("chat", "--store", tmp_path / "empty", cwd=tmp_path)
    assert done.returncode == 2 and "--run latest" in done.stderr


def test_compare_a_release_with_an_adapter_of_a_run(fleet: Fleet, tmp_path: Path) -> None:
    done = tunefleet("compare", "shouts", f"{RUN}:dots.v2", "--json", "--store", fleet.store.root, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["a"]["label"], answer["b"]["label"]) == ("shouts@v1", f"{RUN}:dots.v2")
    assert answer["base"]["same"] and not answer["same_adapter"]
    shown = tunefleet("compare", "shouts@stable", "shouts", "--store", fleet.store.root, cwd=tmp_path)
    assert "They are the same adapter, byte for byte." in shown.stdout


@pytest.mark.slow
def test_chat_answers_what_comes_through_a_pipe(fleet: Fleet) -> None:
    talk = chat(fleet, "--run", "latest", "--max-new-tokens", "6")
    answers, said = talk.communicate("/shouts hello\n/who\nhello\n", timeout=120)
    assert talk.returncode == 0 and said == ""
    lines = answers.split("\n")  # not splitlines: what a model writes may hold other separators
    assert lines[1:5] == [
        "* base",
        f"* shouts  {RUN}:shouts; PASS; trained on e.g. 'Shout 0'",
        f"* dots.v2  {RUN}:dots.v2; PASS; trained on e.g. 'Shout 0'",
        f"* whispers  {RUN}:whispers; FAIL; trained on e.g. 'Once upon'",
    ]
    for name in ("base", "shouts", "dots.v2", "whispers"):
        assert f"\n{name}: " in answers
    assert "> " not in answers and "loading" not in answers


@pytest.mark.slow
def test_interrupting_a_chat_ends_the_answer_then_the_chat(fleet: Fleet) -> None:
    """Ctrl-C reaches the whole foreground group, the command and its child; here both are in one session."""
    talk = chat(fleet, "shouts", "--max-new-tokens", "1500")
    assert talk.stdin and talk.stdout
    talk.stdin.write("/base a long story\n")
    talk.stdin.flush()
    assert talk.stdout.read(1)  # the answer has begun
    os.killpg(talk.pid, signal.SIGINT)
    line = talk.stdout.readline()
    while line and not line.endswith("(stopped)\n"):  # an answer may hold line breaks
        line = talk.stdout.readline()
    assert line, "the chat ended with the answer"
    talk.stdin.write("/who\n")
    talk.stdin.flush()
    assert talk.stdout.readline() == "* base\n"
    time.sleep(0.5)  # until it waits for the next line
    os.killpg(talk.pid, signal.SIGINT)
    assert talk.wait(timeout=30) == 0
    assert talk.stderr and talk.stderr.read() == ""


@pytest.mark.slow
def test_a_chat_that_is_asked_to_end_leaves_no_process(fleet: Fleet) -> None:
    talk = chat(fleet, "shouts", "--max-new-tokens", "4")
    assert talk.stdin and talk.stdout
    talk.stdin.write("/base hi\n")
    talk.stdin.flush()
    assert talk.stdout.read(1)
    talk.terminate()
    assert talk.wait(timeout=30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.killpg(talk.pid, 0)
