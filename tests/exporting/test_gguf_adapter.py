"""An adapter is written as it is, or refused with every reason."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from infra.errors import RequestError
from tasks.exporting.gguf_adapter import write_adapter
from tests.exporting.models import config, save_model, trained_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "base", config(LlamaConfig), trained_tokenizer())


def save_adapter(base: Path, folder: Path, **changes: Any) -> Path:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    torch.manual_seed(1)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**{**settings, **changes})).save_pretrained(
        folder
    )
    return folder


def test_the_file_holds_the_pairs(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", rank_pattern={"layers.1.self_attn.v_proj": 2})
    facts = write_adapter(adapter, base, tmp_path / "adapter.gguf")
    reader, source = gguf.GGUFReader(tmp_path / "adapter.gguf"), load_file(adapter / "adapter_model.safetensors")
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert said["general.type"] == "adapter" and said["adapter.type"] == "lora" and said["adapter.lora.alpha"] == 8
    assert said["general.architecture"] == "llama" and facts["tensors"] == len(reader.tensors) == len(source) == 8
    tensors = {one.name: one.data for one in reader.tensors}
    name = "base_model.model.model.layers.1.self_attn"
    b = source[f"{name}.v_proj.lora_B.weight"].numpy()  # scaled by 8 / 2 there and here
    assert b.shape == (32, 2)
    is_times_a_power_of_two(tensors["blk.1.attn_v.weight.lora_b"], b)
    rows = [half * 8 + pair + 16 * head for head in range(4) for pair in range(8) for half in range(2)]
    q = source[f"{name}.q_proj.lora_B.weight"].numpy()
    is_times_a_power_of_two(tensors["blk.1.attn_q.weight.lora_b"], q[rows])
    assert not np.array_equal(q, q[rows])


def is_times_a_power_of_two(stored: np.ndarray, values: np.ndarray) -> None:
    shift = round(float(np.log2(np.abs(stored).max() / np.abs(values).max())))
    assert stored.dtype == np.float16 and (stored == (values * 2.0**shift).astype(np.float16)).all()


@pytest.mark.parametrize("size", [2e-8, 1e-4, 1.0, 3e5])
def test_b_of_any_size_does_in_the_file_what_it_does_in_peft(base: Path, tmp_path: Path, size: float) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    source = load_file(adapter / "adapter_model.safetensors")
    source = {name: size * values if "lora_B" in name else values for name, values in source.items()}
    save_file(source, adapter / "adapter_model.safetensors")
    write_adapter(adapter, base, tmp_path / "adapter.gguf")
    tensors = {one.name: one.data.astype(np.float64) for one in gguf.GGUFReader(tmp_path / "adapter.gguf").tensors}
    name = "base_model.model.model.layers.0.self_attn.v_proj"
    wanted = (source[f"{name}.lora_B.weight"].double() @ source[f"{name}.lora_A.weight"].double()).numpy()
    made = tensors["blk.0.attn_v.weight.lora_b"] @ tensors["blk.0.attn_v.weight.lora_a"]
    assert np.linalg.norm(made - wanted) < 0.005 * np.linalg.norm(wanted)


@pytest.mark.parametrize("size", [1e-16, 1e15, float("nan")])
def test_what_f16_cannot_hold_however_it_is_balanced_is_refused(base: Path, tmp_path: Path, size: float) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    source = load_file(adapter / "adapter_model.safetensors")
    source = {name: size * values if "lora_B" in name else values for name, values in source.items()}
    save_file(source, adapter / "adapter_model.safetensors")
    with pytest.raises(RequestError, match=r"which f16 cannot hold.*merge the adapter") as refused:
        write_adapter(adapter, base, tmp_path / "adapter.gguf")
    assert "bf16" not in str(refused.value) and not (tmp_path / "adapter.gguf").exists()


def test_an_alpha_of_zero_is_not_read_as_unscaled(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", lora_alpha=0)
    write_adapter(adapter, base, tmp_path / "adapter.gguf")
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    assert reader.fields["adapter.lora.alpha"].contents() == 1
    assert all((one.data == 0).all() for one in reader.tensors if one.name.endswith("lora_b"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "layers.0.self_attn.q_proj.weight has a magnitude (use_dora)"),
        ({"modules_to_save": ["norm"]}, "model.norm.weight has its own values in the adapter"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens.weight is changed by the adapter"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_modules": ["lm_head"], "tied": True}, "head"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_a_gguf_adapter_cannot_say_is_refused(
    base: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    if changes.pop("tied", False):
        base = save_model(tmp_path / "base", config(LlamaConfig, tie_word_embeddings=True), trained_tokenizer())
    adapter = save_adapter(base, tmp_path / "adapter", **changes)
    with pytest.raises(RequestError) as refused:
        write_adapter(adapter, base, tmp_path / "adapter.gguf")
    assert any(said in str(fault) for fault in refused.value.faults), refused.value
    assert not (tmp_path / "adapter.gguf").exists()


def test_all_that_cannot_be_said_is_named(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", use_dora=True, modules_to_save=["norm"])
    with pytest.raises(RequestError) as refused:
        write_adapter(adapter, base, tmp_path / "adapter.gguf")
    assert len(refused.value.faults) == 4 + 5  # q_proj and v_proj of two layers; PEFT saves all norms under "norm"


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    other = save_model(tmp_path / "other", config(LlamaConfig, num_hidden_layers=1), trained_tokenizer())
    with pytest.raises(RequestError, match=r"has no model\.layers\.1\.self_attn\.q_proj\.weight"):
        write_adapter(adapter, other, tmp_path / "adapter.gguf")
