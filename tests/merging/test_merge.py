"""A merge is checked each time: against base + adapter, and byte for byte where nothing may change."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tasks.merging.merge as merging
from infra.errors import StageError
from tasks.recipe.schema import Lora
from tasks.training.models import add_adapter, load_base
from tests.tiny import save_tiny_base

pytestmark = pytest.mark.slow


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(base, an adapter with random weights, a folder with three held-out rows)."""
    base = save_tiny_base(tmp_path / "base")
    torch.manual_seed(5)
    model = add_adapter(load_base(base, "none", "cpu"), Lora(r=4, target_modules=("q_proj", "v_proj")).model_dump())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(tmp_path / "adapter")
    rows = [
        {
            "id": str(n),
            "prompt": [{"role": "user", "content": f"Q{n}"}],
            "completion": [{"role": "assistant", "content": "ok"}],
        }
        for n in range(3)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "data" / "train.jsonl").write_text("")
    return base, tmp_path / "adapter", tmp_path / "data"


def test_the_merged_model_is_base_plus_adapter(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, adapter, data = parts
    facts = merging.merge(base, adapter, data, tmp_path / "merged")
    assert facts["tensors_changed"] == 4 and facts["merged_into"] == "bfloat16" and facts["mean_kl_nats"] < 0.02
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"} and len(changed) == 4
    lora = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.v_proj"
    update = 4.0 * lora[f"base_model.model.{name}.lora_B.weight"] @ lora[f"base_model.model.{name}.lora_A.weight"]
    wanted = (before[f"{name}.weight"].float() + update).to(torch.bfloat16)  # lora_alpha / r = 16 / 4
    assert torch.equal(after[f"{name}.weight"], wanted)


def test_the_check_reads_rows_of_every_kind(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, adapter, data = parts
    rows = [
        {"prompt": "Q", "chosen": " yes", "rejected": " no"},
        {"text": "plain"},
        {"prompt": "Q", "completion": " A"},
    ]
    (data / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert merging.merge(base, adapter, data, tmp_path / "merged")["checked_rows"] == 3


def test_it_agrees_with_the_unmerged_adapter(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, adapter, data = parts
    merging.merge(base, adapter, data, tmp_path / "merged")
    ids = torch.tensor([[1, 40, 60, 80, 2]])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    with torch.inference_mode():
        assert torch.allclose(merged(ids).logits, unmerged(ids).logits, atol=0.3)


def test_a_merge_that_answers_differently_is_an_error(
    parts: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, data = parts
    monkeypatch.setattr(merging, "KL_LIMIT", 1e-9)
    with pytest.raises(StageError, match="does not answer like base"):
        merging.merge(base, adapter, data, tmp_path / "merged")


def test_a_tensor_that_changed_without_being_targeted_is_found(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, adapter, data = parts
    merging.merge(base, adapter, data, tmp_path / "merged")
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 7] += 1
    save_file(weights, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    assert "model.embed_tokens.weight" in merging._changed_tensors(base, tmp_path / "merged")
