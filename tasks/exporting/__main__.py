"""`python -m tasks.exporting job.json`: write a model, its adapter, or both as GGUF, in a process of its own."""

from pathlib import Path
from typing import Any

from infra import stage_process
from infra.errors import RequestError
from tasks.exporting.gguf_adapter import write_adapter
from tasks.exporting.gguf_model import write_model


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """job: `output` a folder; `model` with `type`; `adapter` with `base`. One of both alone must succeed."""
    output, facts = Path(job["output"]), {}
    if job.get("model"):
        facts = write_model(Path(job["model"]), output / f"model-{job['type']}.gguf", job["type"])
    if job.get("adapter"):
        file = output / "adapter-f16.gguf"
        try:
            written = write_adapter(Path(job["adapter"]), Path(job["base"]), file)
            facts = {**facts, "adapter": True} if facts else written
        except RequestError as error:
            if not facts:
                raise
            file.unlink(missing_ok=True)
            facts["adapter"] = str(error)  # the merged model says what it does; the adapter is an extra
    return facts


if __name__ == "__main__":
    stage_process.main(run)
