"""How the processes of one training job are started, and what each may use.

One process is plain Python: accelerate's launcher would import torch a second time, for seconds, and sets nothing
that the trainer's own arguments do not say. Several processes come from accelerate's launcher and one of the files in
infra/accelerate. What a process may use is said by its environment alone, so a job can be run again by hand.
"""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from infra.errors import RequestError, StageError
from infra.gpus import CPU
from infra.settings import PROJECT

Config = Literal["ddp", "fsdp", "deepspeed"]


def launch_command(devices: Sequence[str], config: Config, num_processes: int) -> list[str]:
    """What stands before `-m tasks.training job.json`; RequestError for what these devices cannot do."""
    on_cpu = list(devices) == [CPU]
    if not on_cpu and len(devices) != num_processes:
        raise RequestError(
            f"accelerate.num_processes: got {num_processes} for {len(devices)} devices ({', '.join(devices)}); each "
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
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(file), "--num_machines", "1", "--num_processes", str(num_processes)),
        *("--main_process_port", "0"),  # a free one, chosen at the start: jobs on one machine would collide
    ]


def launch_environment(devices: Sequence[str], per_device: int, num_processes: int) -> dict[str, str]:
    """The GPUs `devices` and no other, or each process's share of the cores that `per_device` jobs have together."""
    if list(devices) != [CPU]:
        numbers = [int(device.removeprefix("cuda:")) for device in devices]  # they count within what is visible here
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [name.strip() for name in visible.split(",")] if visible else None
        return {"CUDA_VISIBLE_DEVICES": ",".join(names[number] if names else str(number) for number in numbers)}
    threads = max((os.cpu_count() or 1) // (per_device * num_processes), 1)
    environment = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        # Waiting threads spin for a moment, then sleep. GCC's OpenMP spins a hundred times longer by itself, which
        # makes two processes on shared cores many times slower; not spinning at all makes one alone half as slow again.
        "GOMP_SPINCOUNT": "20000",
        # In place of the launcher's --cpu, with which it starts one process however many it is asked for.
        "ACCELERATE_USE_CPU": "true",
    }
    if num_processes > 1:
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
