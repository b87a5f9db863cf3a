"""Stages on several machines, each of them a process tree on this one: what they get, and that they end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.conducting import Ending, settle
from infra.errors import KilledError, OutOfMemoryError, PreemptedError, RequestError, StageError
from infra.launch import interruption_stops_stages, run_stage
from infra.rendezvous import Nodes
from infra.settings import PROJECT

STAGE = """
    import json, os, signal, sys, time
    from pathlib import Path
    from infra import stage_process
    from infra.errors import Fault, PreemptedError, RequestError

    def run(job, folder):
        rank = int(os.environ["NODE_RANK"])
        (Path(job["home"]) / f"started-{rank}").write_text(str(os.getpid()))
        while not all((Path(job["home"]) / f"started-{one}").exists() for one in range(int(os.environ["NNODES"]))):
            time.sleep(0.01)
        does = job["does"][rank]
        if does == "memory":
            raise MemoryError("8 GiB wanted")
        if does == "refuse":
            raise RequestError([Fault("got 1", "first"), Fault("got 2", "second")])
        if does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if does == "stop":
            raise PreemptedError("stopped")
        if does == "break":
            raise ValueError(f"broken on machine {rank}")
        if does == "hang":
            time.sleep(100)
        return {"machine": rank, "of": job["name"]}

    if __name__ == "__main__":
        stage_process.main(run)
"""
FOLLOWER = """
    import os, sys
    from pathlib import Path
    from infra.following import follow
    from infra.launch import run_stage
    from infra.rendezvous import nodes

    home, crew = Path(sys.argv[1]), nodes()

    def work(job, ready):
        ready()
        run_stage("toy", job, folder=home / f"machine-{crew.rank}", on_line=print)

    sys.exit(follow(crew, work))
"""
# Machine 0's conductor, with less patience: the stages are small.
HURRIED = (
    "import sys; from infra import conducting as c; c.OTHERS_SECONDS = 3.0; "
    "sys.exit(c.conduct(c.nodes(), sys.argv[1:]))"
)
LEADER = (
    "import sys; from infra import following, rendezvous; sys.exit(following.lead(rendezvous.nodes(), sys.argv[1:]))"
)


def two_free_ports() -> int:
    """The lower one of two neighbours."""
    while True:
        with socket.create_server(("", 0)) as lower:
            port = lower.getsockname()[1]
            try:
                socket.create_server(("", port + 1)).close()
                return int(port)
            except (OSError, OverflowError):
                continue


class Machines:
    def __init__(self, home: Path, count: int):
        self.home, self.crew = home, Nodes(0, count, "127.0.0.1", two_free_ports())
        (home / "toy.py").write_text(textwrap.dedent(STAGE))
        (home / "follower.py").write_text(textwrap.dedent(FOLLOWER))
        self.followers = [self.follower(rank) for rank in range(1, count)]

    def environment(self, rank: int, count: int | None = None) -> dict[str, str]:
        return {
            **{"NNODES": str(count or self.crew.count), "NODE_RANK": str(rank)},
            **{"MASTER_ADDR": self.crew.address, "MASTER_PORT": str(self.crew.port)},
            "PYTHONPATH": f"{self.home}:{PROJECT}",
        }

    def follower(self, rank: int, count: int | None = None) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "follower.py", str(self.home)],
            cwd=self.home,
            env={**os.environ, **self.environment(rank, count)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *does: str, name: str = "toy") -> dict[str, Any]:
        return run_stage(
            "toy",
            {"does": list(does), "home": str(self.home), "name": name},
            folder=self.home / f"machine-0-{name}",
            on_line=print,
            env=self.environment(0),
            command=[sys.executable, "-c", HURRIED, sys.executable],
        )

    def lead(self, command: str) -> int:
        return subprocess.run(
            [sys.executable, "-c", LEADER, sys.executable, "-c", command],
            env={**os.environ, **self.environment(0)},
            check=False,
        ).returncode

    def close(self) -> None:
        for follower in self.followers:
            follower.kill()
            follower.communicate()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path, 2)
    yield made
    made.close()


def test_all_machines_do_the_job_and_the_result_is_machine_0s(machines: Machines) -> None:
    assert machines.run("work", "work") == {"machine": 0, "of": "toy"}
    assert (machines.home / "machine-1" / "result.json").exists()
    assert machines.run("work", "work", name="next") == {"machine": 0, "of": "next"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "kind", "words"),
    [
        (("break", "memory"), OutOfMemoryError, "machine 1: OutOfMemoryError.*8 GiB wanted"),
        (("memory", "break"), OutOfMemoryError, "8 GiB wanted"),
        (("break", "die"), KilledError, "machine 1"),
        (("die", "break"), KilledError, "was killed"),
        (("break", "break"), StageError, "broken on machine 0; machine 1: .*broken on machine 1"),
        (("break", "stop"), StageError, "broken on machine 0"),
        (("stop", "stop"), PreemptedError, "stopped"),
        (("hang", "stop"), PreemptedError, "asked to stop"),
        (("hang", "memory"), OutOfMemoryError, "8 GiB wanted"),
        (("memory", "hang"), OutOfMemoryError, "8 GiB wanted"),
    ],
)
def test_they_fail_together_for_the_reason_of_the_one_that_had_one(
    machines: Machines, does: tuple[str, str], kind: type[StageError], words: str
) -> None:
    with pytest.raises(StageError, match=f"(?s){words}") as failed:
        machines.run(*does)
    assert type(failed.value) is kind
    for rank in (0, 1):  # nobody is left
        pid = int((machines.home / f"started-{rank}").read_text())
        gone(pid)
        (machines.home / f"started-{rank}").unlink()
    assert machines.run("work", "work", name="again")["machine"] == 0  # and the next one finds them all


LOST = Ending(75, "machine 1 was lost", is_lost=True)
MEMORY = Ending(77, "OutOfMemoryError: 8 GiB")
ECHO = Ending(1, "StageError: connection closed by peer")


@pytest.mark.parametrize(
    ("code", "noted", "endings", "expected", "words"),
    [
        (0, None, [LOST], 0, None),  # the result was there
        (1, None, [ECHO], 1, None),  # a killed process notes nothing, and torchrun's report says which it was
        (1, (1, "ValueError: x"), [], 1, "ValueError: x"),
        (1, (1, "ValueError: x"), [ECHO], 1, "ValueError: x; machine 1: StageError: connection closed by peer"),
        (1, (1, "closed"), [LOST], 75, "PreemptedError: machine 1 was lost"),
        (1, (1, "closed"), [ECHO, MEMORY], 77, "machine 2: OutOfMemoryError: 8 GiB"),
        (1, (75, "stopped"), [MEMORY], 77, "machine 1: OutOfMemoryError: 8 GiB"),
        (1, (75, "stopped"), [ECHO], 1, "stopped; machine 1: StageError: connection closed by peer"),
        (1, (76, "diverged"), [MEMORY], 1, "diverged"),
        (137, None, [MEMORY], 137, None),
        (None, None, [LOST], 75, "PreemptedError: machine 1 was lost"),
        (None, None, [ECHO], 1, "machine 1: StageError: connection closed by peer"),
    ],
)
def test_the_machine_that_had_a_reason_says_it(
    tmp_path: Path,
    code: int | None,
    noted: tuple[int, str] | None,
    endings: list[Ending],
    expected: int,
    words: str | None,
) -> None:
    """Exit code 1 is torchrun's, whatever its processes ended with: theirs is in what they noted."""
    file = tmp_path / "outcome.json"
    if noted:
        file.write_text(json.dumps({"exit_code": noted[0], "error": noted[1]}))
    assert settle(code, dict(enumerate(endings, 1)), tmp_path) == expected
    assert (json.loads(file.read_text())["error"] if file.exists() else None) == words


def gone(pid: int) -> None:
    """Wait until the process has ended; the test's own time limit ends what never does."""
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.02)


def test_all_that_is_wrong_on_another_machine_arrives(machines: Machines) -> None:
    with pytest.raises(RequestError) as refused:
        machines.run("hang", "refuse")
    assert [(fault.where, fault.message) for fault in refused.value.faults] == [("first", "got 1"), ("second", "got 2")]


@pytest.mark.slow
def test_a_lost_machine_is_worth_another_try_and_may_come_back(machines: Machines) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(machines.run, "hang", "hang")
        while not (machines.home / "started-1").exists():
            time.sleep(0.02)
        machines.followers[0].kill()
        with pytest.raises(PreemptedError, match="machine 1 of 2 was lost"):
            running.result()
    for rank in (0, 1):
        gone(int((machines.home / f"started-{rank}").read_text()))
    machines.followers.append(machines.follower(1))
    assert machines.run("work", "work", name="again")["machine"] == 0


@pytest.mark.slow
def test_a_stage_that_is_stopped_on_machine_0_ends_everywhere(machines: Machines) -> None:
    def stop_when_started(_line: str) -> None:
        while not (machines.home / "started-1").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(
            "toy",
            {"does": ["hang", "hang"], "home": str(machines.home), "name": "stopped"},
            folder=machines.home / "stopped",
            on_line=stop_when_started,
            env=machines.environment(0),
            command=[sys.executable, "-m", "infra.conducting", sys.executable],
        )
    gone(int((machines.home / "started-1").read_text()))
    assert machines.run("work", "work", name="again")["machine"] == 0


def test_of_two_stages_at_once_each_has_all_machines(machines: Machines) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(machines.run, "work", "work", name=name) for name in ("one", "other")]
        assert [each.result()["of"] for each in both] == ["one", "other"]


def test_a_flow_that_is_interrupted_while_it_waits_is_asked_to_stop(tmp_path: Path) -> None:
    alone = Machines(tmp_path, 1)
    alone.crew = Nodes(0, 2, "127.0.0.1", alone.crew.port)

    def interrupt(line: str) -> None:
        if "waiting for 1 more machines" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), interruption_stops_stages():
        run_stage(
            "toy",
            {},
            folder=tmp_path / "waiting",
            on_line=interrupt,
            env=alone.environment(0),
            command=[sys.executable, "-m", "infra.conducting", sys.executable],
        )
    assert '"exit_code": 75' in (tmp_path / "waiting" / "outcome.json").read_text()


def test_the_flows_end_is_everybodys_with_its_exit_code(tmp_path: Path) -> None:
    machines = Machines(tmp_path, 3)
    assert machines.lead("raise SystemExit(3)") == 3
    assert [follower.wait() for follower in machines.followers] == [3, 3]
    machines.close()


@pytest.mark.slow
def test_a_machine_of_another_job_is_refused(machines: Machines) -> None:
    stranger = machines.follower(1, count=5)
    assert machines.run("work", "work")["machine"] == 0
    machines.followers[0].kill()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(machines.run, "work", "work", name="next")
        output, _ = stranger.communicate()
        assert "this is machine 1 of 5, but machine 0 is one of 2" in output and stranger.returncode
        machines.followers.append(machines.follower(1))
        assert running.result()["machine"] == 0


@pytest.mark.slow
def test_a_follower_that_is_asked_to_stop_stops_its_stage(machines: Machines) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(machines.run, "hang", "hang")
        while not (machines.home / "started-1").exists():
            time.sleep(0.02)
        machines.followers[0].send_signal(signal.SIGTERM)
        with pytest.raises(PreemptedError):
            running.result()
    gone(int((machines.home / "started-1").read_text()))
