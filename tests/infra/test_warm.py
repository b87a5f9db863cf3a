"""What a stage gets from the process that forked it: the imports, and nothing else; and when it is started anew."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra import forked
from infra.settings import PROJECT
from tasks import runs
from tests.infra.toy_stage import Stage, is_alive, wait_until

WHERE = "return {'warm': warm_process()}"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    yield Stage(tmp_path, ["wave"])
    forked.end()


def module(stage: Stage, name: str, source: str) -> None:
    """A module that a warm process can import."""
    (stage.home / f"{name}.py").write_text(source)
    stage.preloaded = [*(stage.preloaded or ()), name]


def test_stages_share_one_warm_process_and_its_imports(stage: Stage) -> None:
    module(
        stage, "slow_library", f"print('chatter', flush=True); open({str(stage.home / 'imports')!r}, 'a').write('.')"
    )
    stage.write(f"import slow_library; {WHERE}")
    with ThreadPoolExecutor(5) as pool:  # whose threads end: nothing may hang on the one that came first
        several = [pool.submit(stage.run_again, folder=stage.home / str(number)) for number in range(5)]
    processes = {result.result()["warm"] for result in several} | {stage.run_again()["warm"]}
    assert len(processes) == 1
    assert processes != {None}
    assert (stage.home / "imports").read_text() == "."
    assert stage.lines == []


def test_nothing_tells_a_forked_stage_from_a_new_one(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.write("""
        import gc, threading
        spec = sys.modules["__main__"].__spec__
        numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        return {
            "called": [sys.argv, sys.path, spec.name, spec.origin, __name__, __file__, os.getcwd()],
            "env": {name: ascii(value) for name, value in os.environ.items()},
            "env of C": sorted(map(ascii, subprocess.check_output("env").splitlines())),
            "files": {n: os.readlink(f)[:5] for n in range(50) if os.path.exists(f := f"/proc/self/fd/{n}")},
            "streams": [[s.encoding, s.isatty(), s.line_buffering, s.write_through] for s in (sys.stdout, sys.stderr)],
            "signals": {int(n): str(signal.getsignal(n)).split(" at ")[0] for n in numbers},
            "masked": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "group": [os.getpgid(0) == os.getppid(), os.getsid(0) == os.getppid()],
            "threads": [threading.active_count(), threading.current_thread() is threading.main_thread()],
            "collector": [gc.isenabled(), gc.get_threshold()],
        }
    """)
    first = stage.run_again()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret \udcff")
    env = {"TENSORBOARD_LOGGING_DIR": "/some/where"}
    in_forked = stage.run_again(env=env)
    assert len(forked._processes) == 1
    assert "secret" not in Path(f"/proc/{forked._processes[0].pid}/environ").read_text()
    assert in_forked["env"]["HF_TOKEN"] == "'hf_secret'"
    assert "HF_TOKEN" not in first["env"]
    assert in_forked == stage.run_again(env=env, preloaded=None)


def test_an_environment_that_imports_read_has_a_process_of_its_own(stage: Stage) -> None:
    stage.write(WHERE)
    one, two, one_again, three = (stage.run_again(env={"OMP_NUM_THREADS": n})["warm"] for n in "1213")
    assert one == one_again
    assert two not in (one, None)
    assert three is None  # enough memory is taken


@pytest.mark.parametrize(
    ("gpus", "job", "options", "is_forked"),
    [
        (0, {}, {}, True),
        (0, {"device": "cpu"}, {}, True),
        (0, {"device": "cpu"}, {"preloaded": None}, False),
        (0, {"device": "cpu"}, {"command": ["env", sys.executable]}, False),
        (1, {"device": "cuda:0"}, {}, False),
        (1, {"device": "cpu"}, {}, False),  # an import might touch the GPU all the same
        (1, {}, {}, False),
    ],
)
def test_stages_are_forked_where_no_gpu_is_seen(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, gpus: int, job: dict[str, str], options: Any, is_forked: bool
) -> None:
    driver = stage.home / "nvidia-smi"
    driver.write_text("#!/bin/sh\n" + "echo GPU-aaaa1111-0000\n" * gpus)
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stage.home}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runs, "IMPORTS", ("wave",))
    stage.write(WHERE)
    found = runs.child("toy", job, stage.folder, on_line=print, env=stage.env, **options)["warm"]
    assert (found is not None) == is_forked


def test_random_numbers_are_not_the_same_in_every_stage(stage: Stage) -> None:
    stage.preloaded = ["random", "numpy.random"]
    stage.write("import random, numpy; return {'drawn': [random.random(), float(numpy.random.random())]}")
    first, second = (stage.run_again()["drawn"] for _ in range(2))
    assert not set(first) & set(second)


def test_a_module_that_is_not_installed_is_passed_over(stage: Stage) -> None:
    stage.preloaded = ["no_such_module", "wave"]
    assert stage.run(WHERE)["warm"]


@pytest.mark.parametrize(
    "source",
    [
        "import threading, time; threading.Thread(target=time.sleep, args=[60], daemon=True).start()",
        "raise RuntimeError",
        "import os; os._exit(3)",
    ],
)
def test_what_cannot_be_forked_is_started_anew(stage: Stage, source: str, caplog: pytest.LogCaptureFixture) -> None:
    module(stage, "unfit", source)
    assert stage.run(WHERE) == stage.run(WHERE) == {"warm": None}
    assert "toy starts in a new one" in caplog.text


def test_a_killed_warm_process_takes_nobody_along(stage: Stage) -> None:
    def kill(line: str) -> None:
        forked._processes[0].kill()
        forked._processes[0].wait()

    assert stage.run("print('ready'); time.sleep(0.5); return {'done': True}", on_line=kill) == {"done": True}
    assert stage.run(WHERE) == {"warm": None}


def test_an_interruption_while_the_imports_last(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    module(
        stage,
        "slow_library",
        f"import pathlib, time\nwhile not pathlib.Path({str(stage.home / 'go')!r}).exists(): time.sleep(0.02)",
    )
    stage.write("(folder / 'begun').touch(); return {}")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("infra.launch.raise_if_interrupted", interrupt)
        stage.run_again()
    (stage.home / "go").touch()
    assert stage.run_again(folder=stage.home / "other") == {}  # the warm process has seen the first request by now
    assert not (stage.folder / "begun").exists()


def test_a_caller_that_hangs_up_in_the_last_moment(stage: Stage) -> None:
    """Between the fork and the answer: the stage has begun, and nobody is there for it."""
    body = "(folder / '.pids').write_text(str(os.getpid())); (folder / '.pids').rename(folder / 'pids'); time.sleep(60)"
    stage.write(body)
    stage.folder.mkdir()
    (stage.folder / "job.json").write_text("{}")

    class HungUp(BaseException):
        pass

    def never_ready(file: int, milliseconds: float | None) -> bool:
        wait_until(lambda: (stage.folder / "pids").exists())
        raise HungUp

    with pytest.MonkeyPatch.context() as patched, (stage.home / "out").open("w") as out, pytest.raises(HungUp):
        patched.setattr(forked, "_is_ready", never_ready)
        forked.fork(
            ["toy", str(stage.folder / "job.json")],
            preloaded=[],
            env={**os.environ, **stage.env},
            grace_seconds=30,
            held=[out.fileno(), out.fileno(), out.fileno()],
            while_waiting=lambda: None,
        )
    wait_until(lambda: not is_alive(stage.pids()[0]))


CALLER = """
import os, sys, threading, time
from pathlib import Path
from infra import forked, launch
home = Path(sys.argv[1])
options = {"folder": home / "stage", "env": {"PYTHONPATH": str(home)}, "on_line": str, "preloaded": sys.argv[2:]}
thread = threading.Thread(target=launch.run_stage, args=("toy", {}), kwargs=options, daemon=True)
thread.start()
while not forked._processes:
    time.sleep(0.01)
"""
UNTIL_KILLED = """
while not (home / "stage" / "pid").exists():
    time.sleep(0.01)
holder = os.fork()  # a child of the caller that lives on, with all of its open files, must not matter
if holder:
    print(forked._processes[0].pid, holder, flush=True)
time.sleep(60)
"""


def test_all_ends_with_a_caller_that_is_killed(stage: Stage) -> None:
    stage.write("""
        (folder / ".pid").write_text(str(os.getpid()))
        (folder / ".pid").rename(folder / "pid")
        time.sleep(60)
    """)
    command = [sys.executable, "-c", CALLER + UNTIL_KILLED, str(stage.home)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE) as caller:
        assert caller.stdout
        warm, holder = map(int, caller.stdout.readline().split())
        its_stage = int((stage.folder / "pid").read_text())
        try:
            assert is_alive(warm) and is_alive(its_stage)
            caller.kill()
            wait_until(lambda: not is_alive(warm) and not is_alive(its_stage))
            assert is_alive(holder)
        finally:
            os.kill(holder, signal.SIGKILL)


def test_a_caller_that_is_killed_while_the_imports_last(stage: Stage) -> None:
    importing = stage.home / "importing"
    module(stage, "slow_library", f"import pathlib, time; pathlib.Path({str(importing)!r}).touch(); time.sleep(1)")
    module(stage, "next_library", f"import pathlib; pathlib.Path({str(stage.home / 'next')!r}).touch()")
    stage.write("return {}")
    command = [sys.executable, "-c", CALLER + "thread.join()", str(stage.home), *(stage.preloaded or ())]
    with subprocess.Popen(command, cwd=PROJECT) as caller:
        wait_until(importing.exists)
        caller.kill()
    stage.preloaded = None
    stage.run_again()  # begins when the warm process has ended: it has the request, and with it the folder's lock
    assert [line.split(" ")[0] for line in stage.lines] == ["waiting"]
    assert not (stage.home / "next").exists()


def test_a_caller_that_ends_by_itself_leaves_no_warm_process(stage: Stage) -> None:
    module(stage, "slow_library", "import time; time.sleep(60)")
    stage.write("return {}")
    command = [sys.executable, "-c", CALLER + "print(forked._processes[0].pid)", str(stage.home), "slow_library"]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=30)
    assert not is_alive(int(said.stdout))


@pytest.mark.slow
def test_a_training_and_its_scores_are_the_same_to_the_byte(tmp_path: Path) -> None:
    """With dropout, which draws random numbers, and in 4 bits, whose kernels share their work among threads."""
    from tasks.ingestion.dataset import build_dataset
    from tasks.recipe.schema import Data
    from tests.tiny import save_tiny_base
    from tests.training.jobs import training_job

    base = save_tiny_base(tmp_path / "base")
    (data := tmp_path / "data").mkdir()
    rows = tuple({"n": str(n), "answer": "ok " * (1 + n % 5)} for n in range(12))
    messages = {"user": "Question {{ n }}", "assistant": "{{ answer }}"}
    build_dataset(Data(rows=rows, held_out=0, messages=messages), data, needs_held_out=False)

    def files(name: str, **options: Any) -> dict[str, bytes]:
        """What training an adapter and scoring it beside its base leave."""
        home, options = tmp_path / name, {"env": {"OMP_NUM_THREADS": "2"}, **options}
        job = training_job(base, data, home / "adapter", method="qlora", lora={"lora_dropout": 0.2})
        runs.child("tasks.training", job, home / "training", on_line=print, **options)
        cell = {
            "kind": "general",
            "name": "capitals_choice",
            "limit": 6,
            "num_fewshot": None,
            "apply_chat_template": None,
        }
        sides: list[dict[str, Any]] = []
        for side, on in (("base", {}), ("tiny", {"adapter": str(home / "adapter")})):
            sides.append({"name": side, **on, "cells": [{**cell, "key": side, "output": str(home / side)}]})
        job = {"base": str(base), "quantization": "nf4", "device": "cpu", "batch_size": 4, "sides": sides}
        runs.child("tasks.evaluation", job, home / "evaluation", on_line=print, **options)
        left = [home / "adapter" / "adapter_model.safetensors", *home.glob("*/records.parquet")]
        return {str(file.relative_to(home)): file.read_bytes() for file in left}

    new, is_forked = files("new", preloaded=None), files("forked")
    assert len(new) == 3
    assert new == is_forked
    assert len(forked._processes) == 1
    assert forked._processes[0].poll() is None
    forked.end()
