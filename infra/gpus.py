"""Which GPUs this process may use, and slots that keep several runs of one machine from sharing one too often.

PyTorch is not asked: a probe would open a CUDA context, which holds memory on the GPU until the process ends.
A slot is a lock on an open file, so the kernel frees it when its holder dies, however it dies.
"""

import fcntl
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from infra.errors import RequestError
from infra.launch import raise_if_interrupted

POLL_SECONDS = 0.2
NVIDIA_SMI_SECONDS = 30  # it takes seconds where the driver is not kept loaded
CPU = "cpu"

log = logging.getLogger(__name__)


def devices() -> list[str]:
    """The devices as PyTorch names them in this environment: ["cuda:0", ...], or ["cpu"] if there is no GPU.

    Numbers count within CUDA_VISIBLE_DEVICES, if that is set.
    """
    return list(ids_by_name())


@contextmanager
def device_slot(
    limit_per_device: int, folder: Path | None = None, *, on_wait: Callable[[str], None] | None = None
) -> Iterator[str]:
    """Hold one of `limit_per_device` places on the device with most free places, and yield its name."""
    with device_slots(1, limit_per_device, folder, on_wait=on_wait) as (device,):
        yield device


@contextmanager
def device_slots(
    count: int, limit_per_device: int, folder: Path | None = None, *, on_wait: Callable[[str], None] | None = None
) -> Iterator[list[str]]:
    """Hold one place on each of `count` different devices, those with most free places, and yield their names.

    Without a GPU it is one place on the CPU, however many processes share that. Either all places are taken at once
    or none, so two who wait never hold what the other needs; who wants many may wait until the others are done.

    While too few are free, waits, after one call of `on_wait` with a sentence that says for what. Everybody who
    gives the same `folder` shares the places, on this machine only; it defaults to one folder per user.
    RequestError if there are not that many devices.
    """
    if limit_per_device < 1:
        raise RequestError(f"limit_per_device: got {limit_per_device}, allowed are 1 and more jobs per device.")
    ids = ids_by_name()
    there = len(set(ids.values()))
    if count < 1 or (count > there and CPU not in ids):
        raise RequestError(
            f"asked for {count} devices, this machine has {there}: {', '.join(ids)}. Allowed are 1 to {there}; lower "
            "accelerate.num_processes, or look whether CUDA_VISIBLE_DEVICES hides the others."
        )
    wanted = 1 if CPU in ids else count
    folder = folder or Path(tempfile.gettempdir()) / f"tunefleet-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = False
    while (places := _take_places(ids, wanted, limit_per_device, folder)) is None:
        if on_wait and not told:
            what = "a free place on" if wanted == 1 else f"free places on {wanted} of"
            shortage = "all" if wanted == 1 else "too many"
            on_wait(f"waiting for {what} {', '.join(ids)}: {shortage} taken ({limit_per_device} per device, {folder})")
        told = True
        time.sleep(POLL_SECONDS)
        raise_if_interrupted()
    with ExitStack() as held:
        for lock in places.values():
            held.enter_context(lock)
        yield list(places)


def _take_places(ids: dict[str, str], count: int, limit: int, folder: Path) -> dict[str, IO[str]] | None:
    """{device: a locked file of it} of the `count` devices with most free places; None if fewer have any."""
    with ExitStack() as probed:
        # One at a time may look: a look takes the locks for an instant, and would make others see them as taken.
        while (choosing := _lock(folder / "choosing.lock")) is None:
            time.sleep(POLL_SECONDS / 20)
        probed.enter_context(choosing)
        found: list[tuple[int, str, IO[str]]] = []
        for name, device_id in ids.items():
            # Files beyond the limit are those of runs that allow more: whoever holds one uses the device too.
            files = {folder / f"{device_id}.{place}.lock" for place in range(limit)}
            files.update(folder.glob(f"{device_id}.*.lock"))
            locks = [lock for file in sorted(files) if (lock := _lock(file))]
            for lock in locks:
                probed.enter_context(lock)
            free = limit - (len(files) - len(locks))
            if free > 0:
                found.append((free, name, locks[0]))
        if len(found) < count:
            return None
        chosen = {name: lock for _, name, lock in sorted(found, key=lambda place: -place[0])[:count]}
        # The stack closes every lock but these, which a second handle on the same open file keeps. In the devices'
        # own order: neighbours are often joined by the faster link.
        return {name: os.fdopen(os.dup(chosen[name].fileno()), "w") for name in ids if name in chosen}


def _lock(file: Path) -> IO[str] | None:
    """The locked open file, or None if somebody else holds it. Closing it frees the lock."""
    stream = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


# --- which devices there are


def ids_by_name() -> dict[str, str]:
    """{name in this process: id of the hardware}. Two processes may call different GPUs cuda:0."""
    present = _gpu_uuids()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = present if wanted is None else _visible(wanted, present)
    if not visible:
        return {CPU: CPU}
    return {f"cuda:{index}": gpu for index, gpu in enumerate(visible)}


def _visible(wanted: str, present: list[str]) -> list[str]:
    """CUDA's reading of CUDA_VISIBLE_DEVICES: numbers, UUIDs or their beginnings; the first wrong one ends the list.

    Numbers are in nvidia-smi's order, which is CUDA's own if all GPUs are alike or CUDA_DEVICE_ORDER=PCI_BUS_ID.
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables
    """
    visible: list[str] = []
    for entry in (part.strip() for part in wanted.split(",")):
        if entry.isdecimal() and int(entry) < len(present):
            found = present[int(entry)]
        elif entry.startswith("MIG-") and present:  # a slice of a GPU; nvidia-smi's query does not list these
            found = entry
        else:
            matches = [gpu for gpu in present if entry.startswith("GPU-") and gpu.startswith(entry)]
            if len(matches) != 1:
                break
            found = matches[0]
        visible.append(found)
    return visible


def _gpu_uuids() -> list[str]:
    """UUIDs of all NVIDIA GPUs of this machine or container: from nvidia-smi, else from the driver's files."""
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=NVIDIA_SMI_SECONDS)
    except FileNotFoundError:
        return _uuids_from_driver(Path("/proc/driver/nvidia"))
    except subprocess.SubprocessError as error:
        log.warning("nvidia-smi is there but fails, so its GPUs may not be usable: %s", error)
        return _uuids_from_driver(Path("/proc/driver/nvidia"))
    return re.findall(r"^GPU-\S+", answer.stdout, re.MULTILINE)


def _uuids_from_driver(driver: Path) -> list[str]:
    """In the order of their PCI addresses, as nvidia-smi numbers them."""
    texts = [file.read_text() for file in sorted(driver.glob("gpus/*/information"))]
    return [match[1] for text in texts if (match := re.search(r"^GPU UUID:\s*(\S+)", text, re.MULTILINE))]
