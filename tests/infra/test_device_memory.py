"""What is free: as the kernel, a container's limit and nvidia-smi write it."""

from pathlib import Path

from infra.device_memory import free_memory, gpu_facts_in, local_devices

MEMINFO = "MemTotal:       16000 kB\nMemFree:  1 kB\nMemAvailable:    8000 kB\n"


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_the_machines_memory_or_what_a_limit_leaves(tmp_path: Path) -> None:
    write(tmp_path, {"meminfo": MEMINFO})
    machine = 8000 * 1024
    assert free_memory(tmp_path / "meminfo", tmp_path) == machine
    v1 = tmp_path / "memory"
    write(v1, {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "5000", "memory.stat": ""})
    assert free_memory(tmp_path / "meminfo", tmp_path) == machine  # no limit at all
    write(v1, {"memory.limit_in_bytes": "20000", "memory.stat": "cache 1\ntotal_inactive_file 3000\n"})
    assert free_memory(tmp_path / "meminfo", tmp_path) == 18000
    v2 = {"memory.max": "max\n", "memory.current": "9000\n", "memory.stat": "anon 1\ninactive_file 500\n"}
    write(tmp_path, v2)
    assert free_memory(tmp_path / "meminfo", tmp_path) == 18000
    write(tmp_path, {"memory.max": "10000\n"})
    assert free_memory(tmp_path / "meminfo", tmp_path) == 1500


def test_gpus_are_read_from_nvidia_smis_words() -> None:
    answer = "GPU-aa, NVIDIA H100 80GB HBM3, 81079\nGPU-bb, NVIDIA A10, [N/A]\nsomething else\n"
    assert gpu_facts_in(answer) == {"GPU-aa": ("NVIDIA H100 80GB HBM3", 81079 * 2**20), "GPU-bb": ("NVIDIA A10", None)}


def test_there_is_always_a_device() -> None:
    devices = local_devices()
    assert devices and all(one.free_bytes is None or one.free_bytes > 0 for one in devices)
