"""`python -m tasks.merging job.json`: merge in a process of its own, one judged adapter or several by hand."""

from pathlib import Path
from typing import Any

from infra import stage_process
from tasks.merging.by_hand import merge_by_hand
from tasks.merging.merge import merge


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    base, output = Path(job["base"]), Path(job["output"])
    if "adapters" in job:
        options = {key: job[key] for key in ("by", "weights", "density", "seed")}
        return merge_by_hand(base, [Path(adapter) for adapter in job["adapters"]], output, **options)
    options = {key: job[key] for key in ("quantization", "into", "device")}
    return merge(base, Path(job["adapter"]), Path(job["data"]), output, **options)


if __name__ == "__main__":
    stage_process.main(run)
