"""What only a GPU can show: 4-bit training, scores that agree with the CPU's, slots, several GPUs in one job."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from infra.gpus import device_slot, device_slots, devices, ids_by_name
from infra.launch import run_stage
from infra.settings import PROJECT
from tasks.evaluation.bench import Bench
from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Data, Lora
from tasks.training.launching import launch_command, launch_environment
from tasks.training.models import add_adapter, load_base
from tests.tiny import save_tiny_base
from tests.training.jobs import training_job

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="PyTorch sees no NVIDIA GPU here")]
OFF = 0.5  # of a log-probability; the CPU's own bfloat16 is 0.25 off, and the tiny model's reach from 0 to -20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = add_adapter(load_base(base, "none", "cpu"), Lora(r=4).model_dump())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def train(base: Path, folder: Path, on: list[str], config: Any, method: str) -> dict[str, Any]:
    """The figures of a job of 4 rows a step on the devices `on`; its adapter, or model, is in `folder`/result."""
    rows = tuple({"n": str(n), "answer": "ok " * (1 + n % 5)} for n in range(16))
    (folder / "data").mkdir()
    build_dataset(
        Data(rows=rows, held_out=0, messages={"user": "Question {{ n }}", "assistant": "{{ answer }}"}),
        folder / "data",
        needs_held_out=False,
    )
    job = training_job(
        *(base, folder / "data", folder / "result"),
        method=method,
        learning_rate=1e-3,
        per_device_train_batch_size=4 // len(on),
        accelerate={"num_processes": len(on), "config": config},
        job={"device": "cuda:0"},
    )
    return run_stage(
        "tasks.training",
        job,
        folder=folder / "work",
        on_line=print,
        env=launch_environment(on, 1, len(on)),
        command=launch_command(on, config, len(on)),
    )


def test_qlora_leaves_a_finite_adapter(base: Path, tmp_path: Path) -> None:
    with device_slot(1, tmp_path) as device:
        facts = train(base, tmp_path, [device], "ddp", "qlora")
    assert facts["world_size"] == 1 and facts["steps"] == 4 and math.isfinite(facts["loss"])
    assert 0 < facts["peak_memory_bytes"] < 2**30
    weights = load_file(tmp_path / "result" / "adapter_model.safetensors")
    assert all(bool(weight.isfinite().all()) and bool(weight.any()) for weight in weights.values())


def test_scores_agree_with_float32_on_the_cpu(base: Path, adapter: Path) -> None:
    ids = torch.tensor([[1, *range(40, 72), 2]])
    exact = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    with Bench(base, "none", "cuda:0", batch_size=4).answering_as(adapter) as lm, torch.inference_mode():
        here, there = lm.model(ids.cuda()).logits.float().log_softmax(-1).cpu(), exact(ids).logits.log_softmax(-1)
    assert (here - there).abs().max() < OFF
    assert (there - there.roll(1, dims=1)).abs().max() > 10 * OFF  # another position's would not agree


WHICH = "import torch; print(torch.cuda.device_count(), torch.cuda.get_device_properties(0).uuid)"


def test_a_slot_is_the_gpu_that_its_job_sees(tmp_path: Path) -> None:
    assert len(devices()) == GPUS
    ids = ids_by_name()
    with device_slots(GPUS, 1, tmp_path) as all_of_them:
        assert all_of_them == devices()
        for device in all_of_them:
            environment = launch_environment([device], 1, 1)
            job = subprocess.run(
                ["env", *(f"{key}={value}" for key, value in environment.items()), sys.executable, "-c", WHICH],
                cwd=PROJECT,
                capture_output=True,
                text=True,
                check=True,
            )
            count, uuid = job.stdout.split()
            assert count == "1" and ids[device].removeprefix("GPU-") == uuid


@pytest.mark.skipif(GPUS < 2, reason=f"needs 2 GPUs, there are {GPUS}")
@pytest.mark.parametrize(
    ("config", "method"), [("ddp", "qlora"), ("fsdp", "qlora"), ("fsdp", "lora"), ("deepspeed", "full")]
)
def test_two_gpus_train_what_one_does(base: Path, tmp_path: Path, config: Any, method: str) -> None:
    if config == "deepspeed":
        pytest.importorskip("deepspeed")
    losses = []
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        with device_slots(count, 1, tmp_path) as on:
            facts = train(base, tmp_path / str(count), on, config, method)
        assert facts["world_size"] == count
        losses.append([point["loss"] for point in facts["curve"]])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
