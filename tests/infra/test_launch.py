"""Stages in real processes, new and forked: what reaches the caller, what each ending becomes, and that nothing
outlives it.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from infra import errors, forked
from infra.errors import DivergedError, KilledError, OutOfMemoryError, PreemptedError, RequestError, StageError
from infra.launch import interruption_stops_stages
from infra.settings import PROJECT
from infra.stage_process import EXIT_OUT_OF_MEMORY, EXIT_PREEMPTED, outcome
from infra.supervise import LINGER_SECONDS, ORPHAN_GRACE_SECONDS
from tests.infra.toy_stage import Stage, is_alive, wait_until

IGNORE_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.fixture(params=["new", "forked"])
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Whatever holds of a stage in a new process holds of one that a warm process has forked."""
    is_forked = request.param == "forked"
    forked.end()  # of flows that other tests ran in this process
    yield Stage(tmp_path, ["wave"] if is_forked else None)
    assert bool(forked._processes) == is_forked
    assert all(process.poll() is None for process in forked._processes)  # else the stage was started anew
    forked.end()


@pytest.fixture
def new_stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# --- what reaches the caller


def test_job_in_result_out(stage: Stage) -> None:
    job = {"steps": 3, "layers": ["q_proj", "ü"], "rate": 0.5, "resume": None}
    result = stage.run("return {'got': job, 'cwd': os.getcwd(), 'set': os.environ['MARK']}", job=job, env={"MARK": "1"})
    assert result == {"got": job, "cwd": str(PROJECT), "set": "1"}


def test_lines_arrive_while_the_stage_runs(stage: Stage, tmp_path: Path) -> None:
    answer = tmp_path / "answer"

    def on_line(line: str) -> None:
        stage.lines.append(line)
        if line == "question":
            answer.touch()

    stage.run(
        f"print('question'); wait_for(Path({str(answer)!r})); print('thänks', file=sys.stderr); return {{}}",
        on_line=on_line,
    )
    assert stage.lines == ["question", "thänks"]
    assert (stage.folder / "log.txt").read_text(encoding="utf-8") == "question\nthänks\n"


def test_progress_becomes_events(stage: Stage) -> None:
    stage.run(r"""
        progress(step=1, loss=0.5)
        sys.stderr.write("\r 10%|#   |\r 20%|##  |")  # a bar without a line end
        progress(step=2)
        print("@progress not json")
        print("bar 1\rbar 2\r")
        os.write(1, b"no line end \xff")
        return {}
    """)
    assert stage.events == [{"step": 1, "loss": 0.5}, {"step": 2}]
    assert stage.lines == [" 20%|##  |", "@progress not json", "bar 2", "no line end \ufffd"]
    assert (stage.folder / "log.txt").read_text().splitlines() == stage.lines


def test_much_output_is_complete(stage: Stage) -> None:
    stage.run("print('x' * 200_000); [print(i) for i in range(50_000)]; return {}")
    assert "".join(stage.lines[:-50_000]) == "x" * 200_000
    assert stage.lines[-50_000:] == [str(i) for i in range(50_000)]


# --- endings


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ("raise PreemptedError('at step 7')", PreemptedError, "at step 7"),
        ("raise DivergedError('the loss is NaN at step 3')", DivergedError, "the loss is NaN at step 3"),
        ("raise OutOfMemoryError('full')", OutOfMemoryError, "full"),
        ("raise MemoryError('full')", OutOfMemoryError, "full"),
        ("raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA out of memory')", OutOfMemoryError, "CUDA"),
        ("raise RuntimeError('... DefaultCPUAllocator: can\\'t allocate memory: ...')", OutOfMemoryError, "Default"),
        ("raise KeyError('nope')", StageError, "exit code 1: KeyError: 'nope'"),
        ("sys.exit(9)", StageError, "exit code 9"),
        ("sys.exit(2)", RequestError, "refused its job"),
        ("sys.exit(0)", StageError, "left no JSON object"),
        ("return {'loss': float('nan')}", StageError, "not JSON compliant"),
        ("os.kill(os.getpid(), signal.SIGKILL)", KilledError, "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", PreemptedError, "SIGTERM"),
        ("signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15)", PreemptedError, "asked to stop"),
        ("os.kill(os.getpid(), signal.SIGABRT)", StageError, "exit code 134"),
    ],
)
def test_every_ending_has_its_error(stage: Stage, body: str, error: type[Exception], text: str) -> None:
    with pytest.raises(errors.TunefleetError, match=text) as caught:
        stage.run(body)
    assert type(caught.value) is error
    assert not (stage.folder / "result.json").exists()


def test_faults_come_back_whole(stage: Stage) -> None:
    with pytest.raises(RequestError) as caught:
        stage.run("raise RequestError([Fault('no such column', 'data.jsonl:3 text'), Fault('rank: got 0')])")
    assert caught.value.faults == (
        errors.Fault("no such column", "data.jsonl:3 text"),
        errors.Fault("rank: got 0", None),
    )
    assert "Traceback" not in "\n".join(stage.lines)


def test_a_stale_result_is_not_taken(stage: Stage) -> None:
    assert stage.run("return {'try': 1}") == {"try": 1}
    with pytest.raises(StageError, match="left no JSON object"):
        stage.run("sys.exit(0)")
    with pytest.raises(DivergedError):
        stage.run("raise DivergedError('NaN')")
    with pytest.raises(StageError) as caught:  # nor are faults and outcomes of earlier tries
        stage.run("sys.exit(1)")
    assert type(caught.value) is StageError


def test_only_the_first_process_writes_the_result(stage: Stage) -> None:
    assert stage.run("return {'rank': os.environ['RANK']}", env={"RANK": "0"}) == {"rank": "0"}
    with pytest.raises(StageError, match="left no JSON object"):
        stage.run("return {}", env={"RANK": "1"})


def test_a_failure_shows_the_log_and_how_to_rerun(stage: Stage) -> None:
    with pytest.raises(StageError) as caught:
        stage.run("[print('line', i) for i in range(100)]; sys.exit(5)", env={"HF_TOKEN": "hf_secret"})
    report = str(caught.value)
    assert "line 99" in report and "line 80" in report and "line 79" not in report
    assert "HF_TOKEN" in report and "hf_secret" not in report
    command = report.rpartition("by hand: ")[2].partition("   (with")[0]
    again = subprocess.run(command, shell=True, env={**os.environ, **stage.env}, capture_output=True, text=True)
    assert again.returncode == 5
    assert again.stdout.endswith("line 99\n")


def test_a_command_that_does_not_exist(new_stage: Stage) -> None:
    with pytest.raises(StageError, match="cannot start no-such-launcher: No such file"):
        new_stage.run("return {}", command=["no-such-launcher", "--flag"])


TORCHRUN_REPORT = """
Failures:
[1]:
  exitcode  : -15 (pid: 6934)  (SIGTERM)
Root Cause (first observed failure):
[0]:
  exitcode  : {} (pid: 6935)
"""


@pytest.mark.parametrize(
    ("noted", "report", "error"),
    [
        (76, TORCHRUN_REPORT.format(76), DivergedError),
        (77, "CalledProcessError: Command '...' returned non-zero exit status 77.", OutOfMemoryError),
        (75, TORCHRUN_REPORT.format(-9), KilledError),  # the sibling was preempted by torchrun
        (75, TORCHRUN_REPORT.format(-11), StageError),
        (75, "SignalException: Process 1 got signal: 15", PreemptedError),
        (None, "CalledProcessError: Command '...' died with <Signals.SIGKILL: 9>.", KilledError),
        (1, "CalledProcessError: Command 'git' died with <Signals.SIGKILL: 9>.", StageError),  # not the stage
        (None, "", StageError),
    ],
)
def test_causes_behind_a_launcher(tmp_path: Path, noted: int | None, report: str, error: type[Exception]) -> None:
    if noted is not None:
        (tmp_path / "outcome.json").write_text(json.dumps({"exit_code": noted, "error": "E: why"}))
    with pytest.raises(StageError) as caught:
        outcome(1, stage="toy", folder=tmp_path, log=report.splitlines(), rerun="toy")
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("sibling", "error"),
    [(None, DivergedError), (EXIT_PREEMPTED, DivergedError), (EXIT_OUT_OF_MEMORY, OutOfMemoryError)],
)
def test_a_launcher_hides_the_exit_code_but_not_the_cause(
    new_stage: Stage, sibling: int | None, error: type[Exception]
) -> None:
    launcher = ["sh", "-c", '"$@" || exit 1', "launcher", sys.executable]
    noted = f'(folder / \'outcome.json\').write_text(\'{{"exit_code": {sibling}, "error": ""}}\');' if sibling else ""
    with pytest.raises(error):
        new_stage.run(f"{noted} raise DivergedError('the loss is NaN')", command=launcher)


@pytest.mark.slow
def test_one_of_two_processes_under_accelerate_is_killed(new_stage: Stage) -> None:
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    with pytest.raises(OutOfMemoryError, match="SIGKILL"):
        new_stage.run(
            """
            with (folder / "pids").open("a") as pids:
                print(os.getpid(), file=pids)
            if os.environ["RANK"] == "1":
                while len((folder / "pids").read_text().split()) < 2:
                    time.sleep(0.02)
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
            """,
            command=accelerate,
            env={"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"},
        )
    # The survivor was preempted by the launcher, and that must not be taken for the cause.
    assert json.loads((new_stage.folder / "outcome.json").read_text())["exit_code"] == EXIT_PREEMPTED
    assert len(new_stage.pids()) == 2
    assert not any(map(is_alive, new_stage.pids()))


# --- nothing survives


def test_an_exception_here_lets_the_stage_save(stage: Stage) -> None:
    def cancel(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run(
            """
            print("ready")
            try:
                time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # launchers may send a second one
                print("x" * 500_000)  # more than a pipe holds
                (folder / "saved").touch()
            """,
            on_line=cancel,
        )
    assert (stage.folder / "saved").exists()


def test_an_exception_sent_into_a_silent_thread(stage: Stage) -> None:
    """As Prefect's timeouts do it."""
    raised = []

    def work() -> None:
        try:
            stage.run("(folder / 'pids').write_text(str(os.getpid())); time.sleep(60)")
        except TimeoutError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: (stage.folder / "pids").exists())
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimeoutError))
    thread.join(10)
    assert raised
    assert not is_alive(stage.pids()[0])


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_in_the_main_thread(stage: Stage, interruption: type[BaseException]) -> None:
    """As when a flow is cancelled: Prefect raises in the main thread, and waits for its workers."""
    pool = ThreadPoolExecutor()
    with pytest.raises(interruption), interruption_stops_stages():
        body = "(folder / 'pids').write_text(str(os.getpid())); time.sleep(60)"
        running = pool.submit(copy_context().run, stage.run, body)
        wait_until(lambda: (stage.folder / "pids").exists())
        waiting = pool.submit(copy_context().run, stage.run, body)  # for the folder
        raise interruption
    assert isinstance(running.exception(10), KeyboardInterrupt)
    assert isinstance(waiting.exception(10), KeyboardInterrupt)
    assert not is_alive(stage.pids()[0])
    assert stage.run("return {}") == {}  # the next flow of this process is not concerned


def test_a_failure_in_the_main_thread_lets_stages_finish(stage: Stage) -> None:
    with ThreadPoolExecutor() as pool:
        with pytest.raises(StageError), interruption_stops_stages():
            running = pool.submit(copy_context().run, stage.run, "time.sleep(0.5); return {'done': True}")
            raise StageError("another stage")
        assert running.result() == {"done": True}


def test_a_stage_that_ignores_sigterm_is_killed_after_the_grace(stage: Stage) -> None:
    def cancel(line: str) -> None:
        stage.lines.append(line)
        raise ValueError(time.monotonic())

    with pytest.raises(ValueError) as caught:
        stage.run(
            f"""
            {IGNORE_SIGTERM}
            pids = [os.getpid(), sleeper({IGNORE_SIGTERM!r}), sleeper({IGNORE_SIGTERM!r}, start_new_session=True)]
            (folder / "pids").write_text(" ".join(map(str, pids)))
            print("ready")
            time.sleep(60)
            """,
            on_line=cancel,
            grace_seconds=1.0,
        )
    assert 1.0 <= time.monotonic() - caught.value.args[0] < 4.0
    assert len(stage.pids()) == 3
    assert not any(map(is_alive, stage.pids()))


def test_a_grandchild_that_holds_the_output_is_not_waited_for(stage: Stage) -> None:
    start = time.monotonic()
    result = stage.run(f"return {{'pids': [sleeper(), sleeper({IGNORE_SIGTERM!r}, start_new_session=True)]}}")
    assert LINGER_SECONDS <= time.monotonic() - start < LINGER_SECONDS + 5
    assert not any(map(is_alive, result["pids"]))


def test_a_killed_supervisor_takes_the_stage_along(stage: Stage) -> None:
    def kill_supervisor(line: str) -> None:
        os.kill(int(line), signal.SIGKILL)
        # The stage does not depend on this thread for its end; what it started does.
        wait_until(lambda: not is_alive(stage.pids()[0]), seconds=2)

    with pytest.raises(OutOfMemoryError):
        stage.run(
            """
            (folder / "pids").write_text(f"{os.getpid()} {sleeper()}")
            print(os.getppid())
            time.sleep(60)
            """,
            on_line=kill_supervisor,
        )
    wait_until(lambda: not any(map(is_alive, stage.pids())), seconds=2)


CALLER = """
import sys, threading, time
from pathlib import Path
from infra.launch import run_stage
home = Path(sys.argv[1])
options = {"folder": home / "stage", "env": {"PYTHONPATH": str(home)}, "on_line": str}
options["preloaded"] = sys.argv[2:] or None
threading.Thread(target=run_stage, args=("toy", {}), kwargs=options).start()
time.sleep(60)
"""


def test_all_die_with_a_caller_that_is_killed(stage: Stage) -> None:
    stage.write(f"""
        if job.get("second"):
            return {{"alive": [pid for pid in job["pids"] if Path(f"/proc/{{pid}}").exists()]}}
        pids = [os.getpid(), sleeper(), sleeper(start_new_session=True), sleeper({IGNORE_SIGTERM!r})]
        (folder / ".pids").write_text(" ".join(map(str, [os.getppid(), *pids])))
        (folder / ".pids").rename(folder / "pids")
        try:
            time.sleep(60)
        finally:
            print("saving", flush=True)  # to nobody
            (folder / "saved").touch()
    """)
    preloaded = stage.preloaded or []
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(stage.home), *preloaded], cwd=PROJECT)
    wait_until(lambda: (stage.folder / "pids").exists())
    [supervisor, *pids] = stage.pids()
    assert ("infra.warm" in Path(f"/proc/{supervisor}/cmdline").read_text()) == bool(preloaded)
    caller.kill()
    caller.wait()
    assert any(map(is_alive, pids))
    # The next try in that folder begins when the last process of the killed one has ended.
    job: dict[str, Any] = {"second": True, "pids": pids}
    start = time.monotonic()
    again = stage.run_again(job=job)
    assert again == {"alive": []}
    assert ORPHAN_GRACE_SECONDS - 1 < time.monotonic() - start < ORPHAN_GRACE_SECONDS + 4  # one ignores SIGTERM
    assert stage.lines == [f"waiting for the stage that still runs in {stage.folder}"]
    assert (stage.folder / "saved").exists()


def test_a_stage_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        command = [sys.executable, "-m", "infra.supervise", str(os.getpid()), "5", "sleep", "60"]
        started.append(subprocess.Popen(command, cwd=PROJECT, start_new_session=True))
        time.sleep(0.5)  # the supervisor is up before the thread ends

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    [supervisor] = started
    time.sleep(1.0)
    assert supervisor.poll() is None
    supervisor.terminate()
    assert supervisor.wait(5) == 128 + signal.SIGTERM
