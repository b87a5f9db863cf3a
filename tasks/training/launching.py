"""How the processes of one training job are started, and what each may use.

One process is plain Python: accelerate's launcher would import torch a second time, for seconds, and sets nothing
that the trainer's own arguments do not say. Several processes come from accelerate's launcher and one of the files in
infra/accelerate. What a process may use is said by its environment alone, so a job can be run again by hand.

A job's processes may be spread over several machines, as many on each (`spread`): machine 0's launcher then stands
below infra/conducting.py, which starts those of the others, through tasks/training/node.py.
"""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from infra.errors import Fault, RequestError, StageError
from infra.gpus import CPU
from infra.rendezvous import ALONE, Nodes, nodes
from infra.settings import PROJECT

Config = Literal["ddp", "fsdp", "deepspeed"]


def spread(config: Config, num_processes: int) -> Nodes:
    """The machines that the processes of one training are on: all of this job's, or this one alone for one process.

    RequestError where that cannot be.
    """
    there = nodes()
    if num_processes == 1 or there == ALONE:
        return ALONE
    faults: list[Fault] = []
    if num_processes % there.count:
        faults.append(
            Fault(
                f"got {num_processes} for the {there.count} machines of this job; allowed are 1, which is on machine 0 "
                f"alone, and multiples of {there.count}.",
                "accelerate.num_processes",
            )
        )
    if config != "ddp":
        faults.append(
            Fault(
                f"got {config} for {there.count} machines, which need not share a disk: every process would keep its "
                "part of a checkpoint on its own machine; allowed is ddp, or one machine.",
                "accelerate.config",
            )
        )
    if there.rank:
        faults.append(
            Fault(
                f"got {there.rank}: a flow runs on machine 0, and the others follow it (tasks.training.node).",
                "NODE_RANK",
            )
        )
    if faults:
        raise RequestError(faults)
    return there


def launch_command(devices: Sequence[str], config: Config, num_processes: int, machines: Nodes = ALONE) -> list[str]:
    """What stands before `-m tasks.training job.json`; RequestError for what these devices cannot do.

    `devices` are this machine's; `num_processes` counts those on all `machines`.
    """
    on_cpu = list(devices) == [CPU]
    here = num_processes // machines.count
    if not on_cpu and len(devices) != here:
        raise RequestError(
            f"accelerate.num_processes: got {here} for {len(devices)} devices ({', '.join(devices)}); each "
            "process has a device of its own."
        )
    if num_processes == 1:
        return [sys.executable]
    if on_cpu and config != "ddp":
        raise RequestError(
            f"accelerate.config: got {config} for {num_processes} processes on a CPU, where accelerate would run ddp "
            "without a word; allowed is ddp."
        )
    if config == "deepspeed" and find_spec("deepspeed") is None:
        raise RequestError("accelerate.config: deepspeed is not installed; `pip install deepspeed`, or take fsdp.")
    file = PROJECT / "infra" / "accelerate" / f"{config}.yaml"
    launcher = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(file), "--num_machines", str(machines.count), "--num_processes", str(num_processes)),
    ]
    if machines == ALONE:
        return [*launcher, "--main_process_port", "0"]  # a free one, chosen at the start: jobs here would collide
    launcher += ["--machine_rank", str(machines.rank), "--main_process_ip", machines.address]
    launcher += ["--main_process_port", str(machines.training_port)]
    return launcher if machines.rank else [sys.executable, "-m", "infra.conducting", *launcher]


def launch_environment(
    devices: Sequence[str], per_device: int, num_processes: int, machines: Nodes = ALONE
) -> dict[str, str]:
    """The GPUs `devices` and no other, or each process's share of the cores that `per_device` jobs have together.

    `devices` are this machine's; `num_processes` counts those on all `machines`.
    """
    if list(devices) != [CPU]:
        numbers = [int(device.removeprefix("cuda:")) for device in devices]  # they count within what is visible here
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [name.strip() for name in visible.split(",")] if visible else None
        return {"CUDA_VISIBLE_DEVICES": ",".join(names[number] if names else str(number) for number in numbers)}
    here = num_processes // machines.count
    threads = max((os.cpu_count() or 1) // (per_device * here), 1)
    environment = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        # Waiting threads spin for a moment, then sleep. GCC's OpenMP spins a hundred times longer by itself, which
        # makes two processes on shared cores many times slower; not spinning at all makes one alone half as slow again.
        "GOMP_SPINCOUNT": "20000",
        # In place of the launcher's --cpu, with which it starts one process however many it is asked for.
        "ACCELERATE_USE_CPU": "true",
    }
    if num_processes > 1 and machines.on_this_host:
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo asks the host's name, which may lead nowhere
    return environment


def device_environment(device: str, per_device: int) -> dict[str, str]:
    """The same for a job of one process."""
    return launch_environment([device], per_device, 1)


def own_device(device: str) -> str:
    """Inside the job: the device of this process, where `device` is what the job says of them all."""
    return device if device == CPU else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def assert_world_size(expected: int) -> None:
    """Inside the job: StageError unless `expected` processes have joined; true once the trainer's arguments exist.

    A launcher that starts fewer processes says nothing, and the batch is then smaller than the recipe's.
    """
    import torch.distributed

    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    got = torch.distributed.get_world_size() if joined else 1
    if got != expected:
        raise StageError(
            f"asked for {expected} processes, got {got} (WORLD_SIZE is {os.environ.get('WORLD_SIZE', 'not set')}). "
            "Run the job through launch_command, or with accelerate.num_processes as many as there are."
        )
