"""A scaled adapter is the same weights with a smaller factor, as PEFT itself computes it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from infra.errors import StageError
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.curing.scaling import CONFIG, scaled_config, write_scaled
from tasks.curing.task import scale_adapter
from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Data
from tasks.runs import new_run
from tasks.training.models import load_base
from tasks.training.train import train as run_job
from tests.training.jobs import training_job

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = tuple({"n": number} for number in range(8))
    build_dataset(
        Data(rows=rows, held_out=0, messages={"user": "{{ n }}?", "assistant": "ok"}), folder, needs_held_out=False
    )
    return folder


def trained(base: Path, data: Path, folder: Path, **lora: Any) -> Path:
    """An adapter as this project's training leaves it, with a manifest as the store has one."""
    run_job(training_job(base, data, folder / "adapter", lora=lora, max_steps=3), folder / "work")
    (folder / "adapter" / "manifest.json").write_text("{}")
    return folder / "adapter"


def scaled(adapter: Path, scale: float) -> Path:
    output = adapter.parent / f"times-{scale}"
    output.mkdir()
    write_scaled(adapter, scale, output)
    return output


def on_base(base: Path, adapter: Path | None) -> Any:
    model = load_base(base, "none", "cpu", dtype=torch.float32).eval()
    return PeftModel.from_pretrained(model, adapter).eval() if adapter else model


def deltas(model: Any) -> dict[str, torch.Tensor]:
    """{layer: what PEFT adds to its weight (out, in)}"""
    return {
        name: module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    """(1, tokens, vocabulary)"""
    return model(torch.arange(3, 43)[None]).logits


@pytest.mark.slow
@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 5.0}},
        {"init_lora_weights": "pissa"},
    ],
    ids=str,
)
def test_every_layer_adds_scale_times_what_it_added(
    base: Path, data: Path, tmp_path: Path, lora: dict[str, Any]
) -> None:
    adapter = trained(base, data, tmp_path, **lora)
    half, whole, none = scaled(adapter, 0.3), scaled(adapter, 1.0), scaled(adapter, 1e-9)
    before, after = deltas(on_base(base, adapter)), deltas(on_base(base, half))
    assert before.keys() == after.keys() and len(before) == 4  # q_proj and v_proj of two layers
    for layer, delta in before.items():
        assert delta.abs().max() > 1e-4
        torch.testing.assert_close(after[layer], 0.3 * delta, rtol=1e-5, atol=1e-9)
    assert {file.name for file in half.iterdir()} == {CONFIG, WEIGHTS}
    assert (half / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    assert torch.equal(logits(on_base(base, whole)), logits(on_base(base, adapter)))
    torch.testing.assert_close(logits(on_base(base, none)), logits(on_base(base, None)))  # the line ends in the base


@pytest.mark.slow
def test_dora_has_no_scale(base: Path, data: Path, tmp_path: Path) -> None:
    """Its magnitudes pull even where B A is next to nothing: such an adapter would not go back to the base."""
    adapter = trained(base, data, tmp_path, use_dora=True)
    with pytest.raises(StageError, match="DoRA"):
        write_scaled(adapter, 0.5, tmp_path / "output")
    assert not (tmp_path / "output").exists()
    magnitudes = [name for name in load_file(adapter / WEIGHTS) if "magnitude" in name]
    assert magnitudes  # what the refusal speaks of is there


def test_alphas_are_read_back_as_they_were_written() -> None:
    config = {"r": 8, "lora_alpha": 16, "alpha_pattern": {"a": 3, "b": 0.1}, "rank_pattern": {"a": 2}, "x": [1]}
    for scale in (0.1, 0.333, 0.688, 1 / 3):
        found = json.loads(json.dumps(scaled_config(config, scale)))
        assert found == {**config, "lora_alpha": 16 * scale, "alpha_pattern": {"a": 3 * scale, "b": 0.1 * scale}}
    assert config["alpha_pattern"] == {"a": 3, "b": 0.1}
    assert scaled_config({"lora_alpha": 16, "alpha_pattern": None}, 0.5) == {"lora_alpha": 8.0, "alpha_pattern": {}}


def test_as_a_task_it_is_made_once_and_keeps_the_figures_of_training(tmp_path: Path) -> None:
    run = new_run(str(tmp_path / "store"))

    def make(_work: Path, output: Path) -> dict[str, Any]:
        (output / CONFIG).write_text(json.dumps({"lora_alpha": 16, "r": 8}))
        (output / WEIGHTS).write_bytes(b"weights")
        return {"steps": 7, "loss": 0.5}

    original = run.once(Work("train", 2, "adapters", "one", {}, {}), make)
    first = scale_adapter.fn(run, "one", original, 0.5)
    again = scale_adapter.fn(run, "one", original, 0.5)
    other = scale_adapter.fn(run, "one", original, 0.25)
    assert first.facts == {"steps": 7, "loss": 0.5, "scale": 0.5} and first.ref.kind == "adapters"
    assert (first.cached, again.cached, other.cached) == (False, True, False)
    assert first.ref == again.ref and len({original.ref.digest, first.ref.digest, other.ref.digest}) == 3
    assert json.loads((run.store.fetch(first.ref) / CONFIG).read_text())["lora_alpha"] == 8.0


def test_a_whole_model_has_no_scale(tmp_path: Path) -> None:
    run = new_run(str(tmp_path / "store"))

    def make(_work: Path, output: Path) -> dict[str, Any]:
        (output / "config.json").write_text("{}")
        return {}

    model: StageResult = run.once(Work("train", 2, "models", "one", {}, {}), make)
    with pytest.raises(StageError, match="whole model"):
        scale_adapter.fn(run, "one", model, 0.5)
