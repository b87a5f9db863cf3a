"""Which machine of a job this is, and where the others meet: read from the environment when asked.

Torchrun's four names say it:

    NNODES, NODE_RANK           how many machines the job has, and which of them this is (0 runs the flow)
    MASTER_ADDR, MASTER_PORT    a name or address of machine 0 that all can reach, and the lower of two free ports

Without NNODES there is one machine. `translated` finds what is not set in the names of the scheduler that started the
job: Slurm sets them all; an indexed job of Kubernetes knows its index alone, so that its template has to name NNODES
(its `completions`) and MASTER_ADDR (pod 0 of the headless service). It is not done unasked: in an allocation of two
machines there need not be anybody on the second one who would join (tasks/training/node.py is who does).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from infra.errors import Fault, RequestError

PORT = 29500  # torchrun's own
SLURM_PORTS = range(20000, 30000, 2)  # below those that Linux gives to outgoing connections


@dataclass(frozen=True)
class Nodes:
    """The machines of one job, seen from one of them."""

    rank: int = 0
    count: int = 1
    address: str = "127.0.0.1"  # of machine 0
    port: int = PORT  # where machine 0 hands out work; torch's processes meet at the next one

    @property
    def training_port(self) -> int:
        return self.port + 1

    @property
    def on_this_host(self) -> bool:
        return self.address == "localhost" or self.address.startswith("127.")


ALONE = Nodes()


def nodes(environment: Mapping[str, str] | None = None) -> Nodes:
    """What torchrun's names say; RequestError with everything that is wrong with them."""
    given = os.environ if environment is None else environment
    if given.get("NNODES", "1") == "1":
        return ALONE
    faults: list[Fault] = []

    def number(name: str, allowed: range, default: int | None = None) -> int:
        text = given.get(name)
        if text is None and default is not None:
            return default
        if text is not None and text.isdecimal() and int(text) in allowed:
            return int(text)
        got = "nothing" if text is None else repr(text)
        faults.append(Fault(f"got {got}; allowed are {allowed.start} to {allowed.stop - 1}.", name))
        return allowed.start

    count = number("NNODES", range(1, 100_000))
    rank = number("NODE_RANK", range(count) if not faults else range(100_000))
    port = number("MASTER_PORT", range(1, 65535), PORT)
    if not (address := given.get("MASTER_ADDR", "")):
        faults.append(Fault("got nothing; give a name or address of machine 0 that all can reach.", "MASTER_ADDR"))
    if faults:
        raise RequestError(faults)
    return Nodes(rank, count, address, port)


def translated(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Torchrun's names for what the scheduler says; those that are set already stay as they are.

    RequestError where Kubernetes and Slurm both speak and differ, and where Slurm started two tasks on one machine.
    """
    given = os.environ if environment is None else environment
    faults: list[Fault] = []
    found = _of_slurm(given, faults)
    index = given.get("JOB_COMPLETION_INDEX")
    if index is not None:
        rank = found.setdefault("NODE_RANK", index)
        if rank != index and "NODE_RANK" not in given:
            both = f"JOB_COMPLETION_INDEX={index}, SLURM_NODEID={rank}"
            faults.append(Fault(f"got {both}; set NODE_RANK to the one that counts.", "NODE_RANK"))
    if faults:
        raise RequestError(faults)
    return {name: given.get(name, value) for name, value in found.items()}


def _of_slurm(given: Mapping[str, str], faults: list[Fault]) -> dict[str, str]:
    """A step (srun) may have fewer machines than its job, and its node ids count within it."""
    count = given.get("SLURM_STEP_NUM_NODES") or given.get("SLURM_NNODES") or given.get("SLURM_JOB_NUM_NODES")
    hosts = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST") or given.get("SLURM_NODELIST")
    if count is None or hosts is None or "SLURM_NODEID" not in given:
        return {}
    if given.get("SLURM_LOCALID", "0") != "0":
        faults.append(
            Fault("srun started several tasks on this machine; give it --ntasks-per-node=1.", "SLURM_LOCALID")
        )
    found = {"NNODES": count, "NODE_RANK": given["SLURM_NODEID"], "MASTER_ADDR": first_host(hosts)}
    job = given.get("SLURM_JOB_ID", "")
    if job.isdecimal():  # machine 0 of another job may be the same host
        found["MASTER_PORT"] = str(SLURM_PORTS[int(job) % len(SLURM_PORTS)])
    return found


def first_host(hosts: str) -> str:
    """The first of Slurm's list, which `scontrol show hostnames` would print: "gpu[03-05,9],login" is gpu03 first."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts.strip())
    assert first  # the empty text matches, too
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])
