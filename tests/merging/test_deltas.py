"""Every kind of tensor in an adapter's file is merged as PEFT merges it, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from infra.errors import RequestError
from tasks.merging.deltas import LowRank, read_deltas
from tasks.merging.streaming import write_merged
from tasks.merging.weights import Weights
from tests.merging.adapters import (
    IDS,
    by_peft,
    changed_tensors,
    loaded,
    save_adapter,
    save_gpt2,
    save_llama,
    save_mixtral,
    unmerged,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "base")


def rewrite(adapter: Path, **changes: Any) -> None:
    """Change what adapter_config.json says."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change(adapter: Path, **tensors: torch.Tensor | None) -> None:
    """Put tensors into adapter_model.safetensors, or take them out, by the first key that ends so."""
    path = adapter / "adapter_model.safetensors"
    stored = load_file(path)
    for end, tensor in tensors.items():
        key = next((key for key in stored if key.endswith(end)), end)
        if tensor is None:
            del stored[key]
        else:
            stored[key] = tensor
    save_file(stored, path)


def merged_as_peft_does(base: Path, adapter: Path, output: Path) -> set[str]:
    """Merge, hold every tensor and the logits against PEFT's; returns the names that were changed."""
    write_merged(base, read_deltas(adapter, Weights(base)), output)
    model, expected = loaded(output, "F32"), by_peft(base, adapter, "F32")
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, expected[name], rtol=1e-6, atol=1e-7), name
    with torch.inference_mode():
        assert torch.allclose(model(IDS).logits, unmerged(base, adapter)(IDS).logits, atol=1e-4)
    return changed_tensors(base, output)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("target", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head", "q_proj"]])
def test_embedding_and_head_of_an_untied_base(base: Path, tmp_path: Path, target: list[str], dora: bool) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", LoraConfig(r=3, target_modules=target, use_dora=dora))
    changed = merged_as_peft_does(base, adapter, tmp_path / "output")
    assert {name.split(".")[-2] for name in changed} == set(target)


@pytest.mark.parametrize("dora", [False, True])
def test_position_embedding_and_conv1d(tmp_path: Path, dora: bool) -> None:
    base = save_gpt2(tmp_path / "base", tied=True)
    lora = LoraConfig(r=3, target_modules=["wpe", "c_attn", "c_proj"], use_dora=dora)
    changed = merged_as_peft_does(base, save_adapter(base, tmp_path / "adapter", lora), tmp_path / "output")
    assert len(changed) == 1 + 2 * 3


@pytest.mark.parametrize("said", [False, True])
def test_which_way_a_square_weight_lies_is_asked_of_the_layer(tmp_path: Path, said: bool) -> None:
    """PEFT overrules the adapter's fan_in_fan_out by the layer's type; q_proj and c_proj are square."""
    for base, target in ((save_llama(tmp_path / "llama"), "q_proj"), (save_gpt2(tmp_path / "gpt2"), "c_proj")):
        adapter = save_adapter(base, tmp_path / f"{target}-adapter", LoraConfig(r=3, target_modules=[target]))
        rewrite(adapter, fan_in_fan_out=said)
        merged_as_peft_does(base, adapter, tmp_path / f"{target}-output")


def test_files_without_the_models_prefix(tmp_path: Path) -> None:
    base = save_gpt2(tmp_path / "base", headless=True)
    adapter = save_adapter(base, tmp_path / "adapter", LoraConfig(r=3, target_modules=["c_attn"]))
    assert merged_as_peft_does(base, adapter, tmp_path / "output") == {f"h.{n}.attn.c_attn.weight" for n in (0, 1)}


def test_modules_to_save(base: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])
    changed = merged_as_peft_does(base, save_adapter(base, tmp_path / "adapter", lora), tmp_path / "output")
    assert {"lm_head.weight", "model.norm.weight"} < changed
    assert len(changed) == 2 + 1 + 5  # PEFT asks what a name ends with, so "norm" is each layer's two norms, too


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases(tmp_path: Path, bias: str) -> None:
    base = save_gpt2(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", LoraConfig(r=3, target_modules=["c_attn"], bias=bias))
    changed = merged_as_peft_does(base, adapter, tmp_path / "output")
    biases = [key for key in load_file(adapter / "adapter_model.safetensors") if key.endswith("bias")]
    assert len(changed) == 2 + len(biases) and (biases or bias == "lora_only")


def test_the_bias_of_lora_b(tmp_path: Path) -> None:
    base = save_gpt2(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", LoraConfig(r=3, target_modules=["c_attn"], lora_bias=True))
    change(adapter, **{"h.0.attn.c_attn.lora_B.bias": torch.linspace(0, 1, 96)})
    assert "transformer.h.0.attn.c_attn.bias" in merged_as_peft_does(base, adapter, tmp_path / "output")


def test_the_attention_of_a_mixture_of_experts(tmp_path: Path) -> None:
    base = save_mixtral(tmp_path / "base", shard="20KB")
    lora = LoraConfig(r=3, target_modules=["q_proj", "o_proj"], use_rslora=True)
    assert len(merged_as_peft_does(base, save_adapter(base, tmp_path / "a", lora), tmp_path / "output")) == 4


def test_ranks_and_alphas_by_pattern(base: Path, tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 7, "v_proj": 2}, "alpha_pattern": {"q_proj": 21}}
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True, **patterns)
    adapter = save_adapter(base, tmp_path / "adapter", lora)
    found = read_deltas(adapter, Weights(base))
    scales = {
        name.removeprefix("model.layers."): (delta.right.shape[0], delta.scale)
        for name, delta in found.items()
        if isinstance(delta, LowRank)
    }
    assert scales == {
        "0.self_attn.q_proj.weight": (4, 21 / 2),
        "1.self_attn.q_proj.weight": (7, 21 / 7**0.5),
        "0.self_attn.v_proj.weight": (2, 8 / 2**0.5),
        "1.self_attn.v_proj.weight": (2, 8 / 2**0.5),
    }
    merged_as_peft_does(base, adapter, tmp_path / "output")


def test_rows_are_the_same_change(base: Path, tmp_path: Path) -> None:
    for dora in (False, True):
        lora = LoraConfig(r=3, target_modules=["up_proj"], use_dora=dora)
        adapter = save_adapter(base, tmp_path / f"adapter-{dora}", lora)
        for name, delta in read_deltas(adapter, Weights(base)).items():
            weight = Weights(base).read(name)
            part = delta.rows(5, 9)
            assert part is not None and torch.allclose(part.apply(weight[5:9]), delta.apply(weight)[5:9])
            assert torch.allclose(delta.difference(weight), delta.apply(weight) - weight, atol=1e-6)


# --- what is refused


def refused(adapter: Path, base: Path) -> str:
    with pytest.raises(RequestError) as caught:
        read_deltas(adapter, Weights(base))
    return str(caught.value)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(base, tmp_path / "adapter", LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))


@pytest.mark.parametrize("lora", [{"target_modules": ["embed_tokens"]}, {"target_modules": ["lm_head"]}])
def test_either_end_of_a_tied_base(tmp_path: Path, lora: dict[str, Any]) -> None:
    base = save_llama(tmp_path / "base", tied=True)
    said = refused(save_adapter(base, tmp_path / "adapter", LoraConfig(r=3, **lora)), base)
    assert "head and embedding are one tensor" in said and "tie_word_embeddings: false" in said


def test_a_whole_head_of_a_tied_base(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", tied=True)
    lora = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert "head and embedding are one tensor" in refused(save_adapter(base, tmp_path / "adapter", lora), base)


def test_a_tied_base_whose_ends_are_left_alone(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", tied=True)
    adapter = save_adapter(base, tmp_path / "adapter", LoraConfig(r=3, target_modules="all-linear"))
    assert len(merged_as_peft_does(base, adapter, tmp_path / "output")) == 14
    assert loaded(tmp_path / "output", "F32").config.tie_word_embeddings


def test_another_base(adapter: Path, tmp_path: Path) -> None:
    said = refused(adapter, save_llama(tmp_path / "wide", hidden=48))
    assert said.count("made for another base") == 4 and "model.layers.1.self_attn.q_proj.weight" in said


def test_another_family(adapter: Path, tmp_path: Path) -> None:
    said = refused(adapter, save_gpt2(tmp_path / "gpt2"))
    assert said.count("has no model.layers.") == 4 and "nearest" in said


def test_keys_that_are_not_understood(adapter: Path, base: Path) -> None:
    change(adapter, **{"base_model.model.x.lora_C.weight": torch.ones(2), "y": torch.ones(1)})
    said = refused(adapter, base)
    assert "base_model.model.x.lora_C.weight, y" in said and "lora_magnitude_vector" in said


def test_half_a_pair(adapter: Path, base: Path) -> None:
    change(adapter, **{"layers.0.self_attn.q_proj.lora_B.weight": None})
    assert "model.layers.0.self_attn.q_proj: of lora_A.weight and lora_B.weight one is missing" in refused(
        adapter, base
    )


def test_shapes_that_the_configuration_denies(adapter: Path, base: Path) -> None:
    rewrite(adapter, r=4)
    assert refused(adapter, base).count("adapter_config.json says rank 4") == 4


def test_a_convolution(adapter: Path, base: Path) -> None:
    change(adapter, **{"layers.0.self_attn.q_proj.lora_A.weight": torch.ones(3, 32, 1, 1)})
    assert "convolutions cannot be merged" in refused(adapter, base)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is LOHA; only LORA"),
        ({"use_dora": True}, "use_dora is True, but lora_magnitude_vector"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters is ['experts.down_proj'], which cannot"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is"),
        ({"of_a_later_peft": 7}, "of_a_later_peft is 7"),
    ],
)
def test_what_the_configuration_asks_for(adapter: Path, base: Path, changes: dict[str, Any], said: str) -> None:
    rewrite(adapter, **changes)
    assert said in refused(adapter, base)


def test_all_that_the_configuration_asks_for_at_once(adapter: Path, base: Path) -> None:
    rewrite(adapter, init_lora_weights="olora", layer_replication=[[0, 2]], of_a_later_peft=7)
    assert len(refused(adapter, base).splitlines()) == 3


def test_a_whole_tensor_that_nobody_announced(adapter: Path, base: Path) -> None:
    change(adapter, **{"base_model.model.model.embed_tokens.weight": torch.ones(71, 32)})
    assert "embed_tokens.weight stands in the adapter as a whole" in refused(adapter, base)
    change(adapter, **{"base_model.model.model.embed_tokens.weight": Weights(base).read("model.embed_tokens.weight")})
    assert len(read_deltas(adapter, Weights(base))) == 4  # the base's own, which PEFT saves beside some adapters


def test_a_quantised_base(adapter: Path, base: Path) -> None:
    stored = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({**stored, name: stored[name].to(torch.int8)}, base / "model.safetensors")
    assert f"{name} is I8 in the base" in refused(adapter, base)


def test_no_lora_at_all(base: Path, tmp_path: Path) -> None:
    prompt = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), prompt).save_pretrained(tmp_path / "adapter")
    assert "peft_type is PROMPT_TUNING" in refused(tmp_path / "adapter", base)
    assert "adapter_config.json" in refused(tmp_path / "nowhere", base)
