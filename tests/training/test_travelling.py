"""Checkpoints between machines without a common disk: three processes, of which the first is a machine of its own."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from infra.settings import PROJECT
from tasks.training import checkpoints
from tests.infra.test_conducting import two_free_ports

pytestmark = pytest.mark.slow

PROCESS = """
    import os, sys
    from pathlib import Path
    import torch
    from tasks.training import travelling

    travelling.PART = 1000
    torch.distributed.init_process_group("gloo")
    keep = Path(sys.argv[1])
    print(travelling.newest_whole(keep))
    written = keep / ".writing-checkpoint-9"
    (written / "checkpoint-9").mkdir(parents=True, exist_ok=True)
    rank = os.environ["RANK"]
    (written / "checkpoint-9" / f"rng_state_{rank}.pth").write_text(rank)
    travelling.to_first(written)
    torch.distributed.destroy_process_group()
"""
PLACES = (("0", "0", "0"), ("1", "1", "0"), ("2", "1", "1"))  # rank, machine, rank on that machine


def on_machines(homes: list[Path], tmp_path: Path) -> list[str]:
    """What each of the processes says."""
    (tmp_path / "process.py").write_text(textwrap.dedent(PROCESS))
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(two_free_ports()), "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, "process.py", str(homes[int(machine)])],
            cwd=tmp_path,
            env={
                **{**os.environ, **meeting, "PYTHONPATH": str(PROJECT), "WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "2"},
                **{"RANK": rank, "GROUP_RANK": machine, "LOCAL_RANK": local},
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, machine, local in PLACES
    ]
    said = [process.communicate()[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    return said


def save(keep: Path, step: int, best: int) -> None:
    for name in (f"best-{best}", f"checkpoint-{step}"):
        beside = checkpoints.start(keep, name)
        (beside / "below").mkdir()
        (beside / "below" / "weights").write_bytes(os.urandom(2500))  # in three parts
        (beside / "empty").touch()
        (beside / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
        checkpoints.finish(keep, name)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_resume_from_machine_0s_newest_and_what_they_write_comes_to_it(tmp_path: Path) -> None:
    first, second = homes = [tmp_path / name for name in ("first", "second")]
    save(first, 5, best=3)
    save(first, 8, best=6)
    save(second, 9, best=9)  # of an earlier try, in which machine 0 got no further than 8
    (second / "checkpoint-8").mkdir()
    (second / "checkpoint-8" / "stale").touch()
    said = on_machines(homes, tmp_path)
    assert said == [str(home / "checkpoint-8") for home in (first, second, second)]
    for name in ("checkpoint-8", "best-6"):
        assert content(first / name) == content(second / name) and checkpoints.is_whole(second / name)
    written = content(first / ".writing-checkpoint-9")
    assert written == {f"checkpoint-9/rng_state_{rank}.pth": str(rank).encode() for rank in (0, 1, 2)}
    assert not (second / ".writing-checkpoint-9").exists()


def test_without_a_checkpoint_all_start_anew(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("first", "second")]
    save(homes[1], 9, best=9)
    assert on_machines(homes, tmp_path) == ["None"] * 3
