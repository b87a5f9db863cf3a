"""Device names from a driver that is made up, and slots in real processes."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from pathlib import Path

import pytest

from infra.errors import RequestError
from infra.gpus import device_slot, device_slots, devices
from infra.launch import interruption_stops_stages
from infra.settings import PROJECT

UUIDS = ["GPU-aaaa1111-0000", "GPU-aaaa2222-0000", "GPU-bbbb3333-0000"]


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, folder: Path, uuids: list[str], code: int = 0) -> None:
    """Put an nvidia-smi first in PATH that lists `uuids` and ends with `code`."""
    folder.mkdir(exist_ok=True)
    script = folder / "nvidia-smi"
    script.write_text("#!/bin/sh\n" + "".join(f"echo {uuid}\n" for uuid in uuids) + f"exit {code}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_gpus(monkeypatch, tmp_path / "bin", UUIDS)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 3),
        ("0,1,2", 3),
        ("2", 1),
        (" 1, 0 ", 2),
        ("", 0),
        ("-1", 0),
        ("0,-1,1", 1),  # the first wrong one ends the list
        ("0,7,1", 1),
        ("GPU-bbbb", 1),
        ("GPU-aaaa", 0),  # two begin so
        ("MIG-1234", 1),
        ("NoDevFiles", 0),
    ],
)
def test_devices_follow_cuda_visible_devices(monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices() == ([f"cuda:{index}" for index in range(count)] or ["cpu"])


def test_no_driver_means_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pretend_gpus(monkeypatch, tmp_path, ["No devices were found"])
    assert devices() == ["cpu"]


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a real driver")
def test_a_failing_driver_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pretend_gpus(monkeypatch, tmp_path, ["NVIDIA-SMI has failed"], code=9)
    assert devices() == ["cpu"]
    assert "nvidia-smi" in caplog.text


@pytest.mark.usefixtures("three_gpus")
def test_the_emptiest_device_is_preferred(tmp_path: Path) -> None:
    with device_slot(2, tmp_path) as first, device_slot(2, tmp_path) as second, device_slot(2, tmp_path) as third:
        assert {first, second, third} == {"cuda:0", "cuda:1", "cuda:2"}
        with device_slot(2, tmp_path) as fourth:
            pass
        with device_slot(2, tmp_path) as fifth:
            assert fourth == fifth  # freed again


@pytest.mark.usefixtures("three_gpus")
def test_a_slot_belongs_to_the_hardware_not_to_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with device_slot(1, tmp_path) as taken:
        assert taken == "cuda:0"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
        with device_slot(1, tmp_path) as other:
            assert other == "cuda:1"


def test_a_smaller_limit_counts_the_places_of_a_larger_one(tmp_path: Path) -> None:
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(device_slot(2, tmp_path))
        second.enter_context(device_slot(2, tmp_path))
        first.close()
        # The first place is free, but one job is on the device all the same.
        assert waits(1, tmp_path)
        assert not waits(2, tmp_path)
    assert not waits(1, tmp_path)


@pytest.mark.usefixtures("three_gpus")
def test_several_places_are_on_different_devices_and_the_emptiest(tmp_path: Path) -> None:
    with device_slot(2, tmp_path) as first:
        assert first == "cuda:0"
        with device_slots(2, 2, tmp_path) as pair:
            assert pair == ["cuda:1", "cuda:2"]
            with device_slots(3, 2, tmp_path, on_wait=pytest.fail) as all_of_them:
                assert all_of_them == ["cuda:0", "cuda:1", "cuda:2"]
            assert waits(2, tmp_path, count=3) is False  # freed again
            with device_slot(2, tmp_path) as last:
                assert waits(2, tmp_path, count=3)  # cuda:0 is full, so all three are not to be had
                assert last == "cuda:0"


@pytest.mark.usefixtures("three_gpus")
def test_who_waits_for_several_holds_none(tmp_path: Path) -> None:
    said: list[str] = []
    waits_now = threading.Event()

    def on_wait(sentence: str) -> None:
        said.append(sentence)
        waits_now.set()

    def all_three() -> list[str]:
        with device_slots(3, 1, tmp_path, on_wait=on_wait) as names:
            return names

    with ThreadPoolExecutor() as pool:
        with device_slot(1, tmp_path):
            waiting = pool.submit(all_three)
            assert waits_now.wait(30)
            assert not waits(1, tmp_path, count=2)  # all that the waiting one could hold
            assert not waiting.done()
        assert waiting.result(30) == ["cuda:0", "cuda:1", "cuda:2"]
    assert len(said) == 1 and "waiting for free places on 3 of cuda:0, cuda:1, cuda:2" in said[0]


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize("count", [0, 4])
def test_more_devices_than_there_are_is_refused(tmp_path: Path, count: int) -> None:
    message = f"asked for {count} devices, this machine has 3: cuda:0, cuda:1, cuda:2"
    with pytest.raises(RequestError, match=message), device_slots(count, 1, tmp_path):
        pass


@pytest.mark.usefixtures("three_gpus")
def test_one_gpu_named_twice_is_one_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,1")
    with pytest.raises(RequestError, match="asked for 2 devices, this machine has 1"), device_slots(2, 2, tmp_path):
        pass


def test_the_cpu_is_one_place_whatever_the_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with device_slots(4, 1, tmp_path) as names:
        assert names == ["cpu"]
        assert waits(1, tmp_path)
        assert not waits(2, tmp_path, count=4)


def test_a_limit_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="limit_per_device: got 0"), device_slot(0, tmp_path):
        pass


def test_waiting_is_said_once_and_ends(tmp_path: Path) -> None:
    said: list[str] = []
    got = threading.Event()

    def second() -> None:
        with device_slot(1, tmp_path, on_wait=said.append):
            got.set()

    thread = threading.Thread(target=second)
    with device_slot(1, tmp_path):
        thread.start()
        assert not got.wait(1.0)
        assert len(said) == 1 and "waiting for a free place on cpu" in said[0]
    thread.join(5)
    assert got.is_set()
    assert len(said) == 1


def test_waiting_ends_when_the_flow_is_interrupted(tmp_path: Path) -> None:
    def second() -> None:
        with device_slot(1, tmp_path):
            pass

    with ThreadPoolExecutor() as pool, device_slot(1, tmp_path):
        with pytest.raises(KeyboardInterrupt), interruption_stops_stages():
            waiting = pool.submit(copy_context().run, second)
            raise KeyboardInterrupt
        assert isinstance(waiting.exception(10), KeyboardInterrupt)


class Stop(Exception):
    pass


def waits(limit: int, folder: Path, count: int = 1) -> bool:
    def stop(sentence: str) -> None:
        raise Stop

    try:
        with device_slots(count, limit, folder, on_wait=stop):
            return False
    except Stop:
        return True


HOLDER = """
import sys, time
from pathlib import Path
from infra.gpus import device_slot
with device_slot(1, Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_frees_its_slot(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "has it\n"
        assert waits(1, tmp_path)
        holder.kill()
        holder.wait()
        assert not waits(1, tmp_path)


PAIRS = """
import sys
from pathlib import Path
from infra.gpus import device_slots
folder = Path(sys.argv[1])
for _ in range(5):
    with device_slots(2, 1, folder / "slots") as names:
        mine = [folder / f"inside-{name}" for name in names]
        for file in mine:
            file.touch(exist_ok=False)  # fails if somebody else is on the device
        for file in mine:
            file.unlink()
"""


@pytest.mark.usefixtures("three_gpus")
def test_pairs_from_three_devices_neither_collide_nor_deadlock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PAIRS, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=PROJECT) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4


COUNTER = """
import os, sys, time
from pathlib import Path
from infra.gpus import device_slot
folder = Path(sys.argv[1])
for _ in range(4):
    with device_slot(2, folder / "slots"):
        mine = folder / f"inside-{os.getpid()}"
        mine.touch()
        time.sleep(0.05)
        print(len(list(folder.glob("inside-*"))))
        mine.unlink()
"""


def test_the_limit_holds_across_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COUNTER, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    counts = [int(line) for process in processes for line in process.communicate(timeout=60)[0].split()]
    assert len(counts) == 20
    assert max(counts) == 2


TAKER = """
import sys
from pathlib import Path
from infra.gpus import device_slot
for _ in range(100):
    with device_slot(4, Path(sys.argv[1]), on_wait=print):
        pass
"""


def test_nobody_waits_while_there_are_places_for_all(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKER, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in processes] == [""] * 4


def test_a_slot_is_not_inherited_by_what_its_holder_starts(tmp_path: Path) -> None:
    with device_slot(1, tmp_path):
        child = subprocess.Popen(["sleep", "30"])
    try:
        assert not waits(1, tmp_path)
    finally:
        child.kill()
        child.wait()
