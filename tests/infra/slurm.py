"""A real Slurm of one machine for tests, from Debian's package: munged, slurmctld and slurmd on free ports."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.operations.conftest import free_port

PATH = f"{os.environ['PATH']}:/usr/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "squeue")
MISSING = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
PARTITION = "all"
GPUS = ("/dev/null", "/dev/zero")  # Slurm wants device files; nothing looks into them

_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=10
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """`env` is what a process needs beside its own environment to use this Slurm."""

    def __init__(self, folder: Path):
        self.env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def __call__(self, *command: str | Path) -> str:
        done = subprocess.run(command, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def jobs(self) -> list[str]:
        """The ids of all jobs that wait, run, or are about to end."""
        return self("squeue", "--noheader", "--format=%i").split()


@contextmanager
def running_slurm() -> Iterator[Slurm]:
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name,
        ExitStack() as stack,
    ):  # a short path: a socket
        folder = Path(name)
        for inner in ("state", "spool"):
            (folder / inner).mkdir()
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        text = _CONF.format(
            host=host,
            controller=free_port(),
            daemon=free_port(),
            user=getpass.getuser(),
            folder=folder,
            cpus=os.cpu_count(),
            gpus=len(GPUS),
            partition=PARTITION,
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in GPUS))
        slurm = Slurm(folder)
        options = {option: f"{folder}/munge.{option}" for option in ("socket", "pid-file", "log-file", "seed-file")}
        munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
        _start(stack, slurm, *munged, *(f"--{option}={path}" for option, path in options.items()))
        _until(lambda: (folder / "munge.socket").exists())
        _start(stack, slurm, "slurmctld", "-D")
        _start(stack, slurm, "slurmd", "-D", "-N", host)
        _until(lambda: "idle" in slurm("sinfo", "--noheader", "--format=%t"))
        yield slurm


def _start(stack: ExitStack, slurm: Slurm, *command: str) -> None:
    environment = {**os.environ, **slurm.env}
    found = shutil.which(command[0], path=PATH)
    assert found
    nothing = subprocess.DEVNULL
    process = subprocess.Popen([found, *command[1:]], env=environment, stdout=nothing, stderr=nothing)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)


def _until(true: object, seconds: float = 60) -> None:
    assert callable(true)
    until = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except AssertionError:  # the command could not reach its daemon yet
            pass
        assert time.monotonic() < until, "Slurm did not start"
        time.sleep(0.2)
