"""The devices of this machine and what is free on them now, asked of the system and never of PyTorch."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from infra.gpus import CPU, NVIDIA_SMI_SECONDS, ids_by_name

MARGIN = 0.1  # of what is free, left free: estimates have been that much too low
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Device:
    name: str  # cpu, cuda:0
    kind: str  # the model of the GPU, or cpu
    free_bytes: int | None  # None: it does not say

    @property
    def type(self) -> str:
        return "cpu" if self.name == CPU else "cuda"


def local_devices() -> list[Device]:
    """The GPUs that this process may use, or the CPU if there is none."""
    ids = ids_by_name()
    if CPU in ids:
        return [Device(CPU, CPU, free_memory())]
    facts = _gpu_facts()
    return [Device(name, *facts.get(gpu, ("GPU", None))) for name, gpu in ids.items()]


def _gpu_facts() -> dict[str, tuple[str, int | None]]:
    """{uuid: (model, free bytes)}"""
    query = ["nvidia-smi", "--query-gpu=uuid,name,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=NVIDIA_SMI_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return gpu_facts_in(answer)


def gpu_facts_in(answer: str) -> dict[str, tuple[str, int | None]]:
    """nvidia-smi's lines "uuid, name, free MiB"; it writes [N/A] for what it does not know."""
    lines = re.findall(r"^(GPU-\S+), (.+), ([^,]+)$", answer, re.MULTILINE)
    return {uuid: (name, int(free) * 2**20 if free.isdecimal() else None) for uuid, name, free in lines}


def free_memory(meminfo: Path = Path("/proc/meminfo"), cgroups: Path = CGROUPS) -> int:
    """Bytes of main memory that a new process could have: the machine's, or what a container's limit leaves."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(), re.MULTILINE) if meminfo.is_file() else None
    free = int(found[1]) * 1024 if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([free, *_left_by_cgroups(cgroups)])


def _left_by_cgroups(root: Path) -> list[int]:
    """What the limits of version 2 and 1 leave; the page cache that the kernel can drop counts as free."""
    left = []
    for folder, limit, usage, cache in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (folder / limit).read_text().strip()
            used = int((folder / usage).read_text())
            droppable = re.search(rf"^{cache} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        except OSError:
            continue
        if most.isdecimal():
            left.append(max(int(most) - used + (int(droppable[1]) if droppable else 0), 0))
    return left
