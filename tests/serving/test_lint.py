"""Adapters as PEFT saves them, of every kind that vLLM 0.33 rejects or misreads, and those that it takes."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from infra.errors import IntegrityError
from tasks.serving.lint import MAX_LORA_RANKS, highest_rank, lint, max_lora_rank, read_shapes, remarks
from tests.serving.fleet import Fleet, save_adapter

VOCABULARY = 259
LLAMA = "LlamaForCausalLM"


def read(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, read_shapes(folder)


def linted(folder: Path, architecture: str = LLAMA) -> list[str]:
    return lint(*read(folder), architecture, VOCABULARY)


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True, "init_lora_weights": "gaussian"},
        {"rank_pattern": {"v_proj": 8}, "alpha_pattern": {"v_proj": 4}},
        {"target_modules": "all-linear"},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    ],
    ids=str,
)
def test_what_vllm_serves(lora: dict[str, Any], fleet: Fleet, tmp_path: Path) -> None:
    found = linted(save_adapter(fleet.base_folder, tmp_path, **lora))
    brings_ends = "embed_tokens" in lora.get("target_modules", ())
    assert [one for one in found if not (brings_ends and "weights of its own" in one)] == []


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"use_dora": True}, "vLLM has no DoRA"),
        ({"modules_to_save": ["lm_head"]}, "(modules_to_save)"),
        ({"bias": "lora_only"}, "it trained biases (bias: lora_only)"),
        ({"lora_bias": True}, "bias on B (lora_bias)"),
        ({"r": 600}, "its highest rank is 600, and vLLM goes up to 512"),
        ({"rank_pattern": {"v_proj": 513}}, "its highest rank is 513"),
        ({"init_lora_weights": "olora"}, "it says init_lora_weights: olora"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "(layer_replication)"),
        ({"trainable_token_indices": [3, 4]}, "(trainable_token_indices)"),
    ],
    ids=lambda one: str(one) if isinstance(one, dict) else "",
)
def test_what_vllm_rejects_is_said_once(lora: dict[str, Any], said: str, fleet: Fleet, tmp_path: Path) -> None:
    (found,) = linted(save_adapter(fleet.base_folder, tmp_path, **lora))
    assert said in found and "serve the merged model" in found


def test_all_faults_at_once(fleet: Fleet, tmp_path: Path) -> None:
    folder = save_adapter(fleet.base_folder, tmp_path, use_dora=True, r=600, modules_to_save=["lm_head"])
    assert len(linted(folder, "GPT2LMHeadModel")) == 4


def test_an_adapter_that_is_no_lora(fleet: Fleet, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(fleet.base_folder, dtype=torch.float32)
    peft.get_peft_model(model, peft.LoHaConfig(r=4, target_modules=["q_proj"])).save_pretrained(str(tmp_path))
    (found,) = linted(tmp_path)
    assert found.startswith("it is a LOHA adapter, and vLLM serves LoRA only")


def test_new_tokens_are_left_out_by_vllm_without_a_word(fleet: Fleet, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(fleet.base_folder, dtype=torch.float32)
    model.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]))
    adapted.save_pretrained(str(tmp_path), save_embedding_layers=True)
    found = linted(tmp_path)
    assert any("knows 264 tokens and the base 259" in one for one in found)
    assert any("weights of its own for embed_tokens, which vLLM leaves out without a word" in one for one in found)


def test_modules_that_the_architecture_has_no_lora_for(fleet: Fleet, tmp_path: Path) -> None:
    folder = save_adapter(fleet.base_folder, tmp_path, target_modules=["lm_head", "q_proj"])
    assert not any("takes no LoRA" in one for one in linted(folder))
    assert any(
        "stands on lm_head, where vLLM takes no LoRA in Qwen2" in one for one in linted(folder, "Qwen2ForCausalLM")
    )
    assert any("vLLM takes no LoRA on GPT2LMHeadModel" in one for one in linted(folder, "GPT2LMHeadModel"))
    assert not any("takes no LoRA" in one for one in linted(folder, "SomethingNewForCausalLM"))


def test_tensors_that_no_setting_explains() -> None:
    (found,) = lint({"peft_type": "LORA", "r": 4}, {"base_model.model.model.layers.0.mlp.gate.weight": [1, 2]}, LLAMA)
    assert "tensors that vLLM cannot read (gate.weight)" in found


def test_remarks_are_no_rejections() -> None:
    config = {"peft_type": "LORA", "r": 4, "rank_pattern": {"v_proj": 8}}
    assert lint(config, {}, "NewForCausalLM") == []
    said = remarks(config, "NewForCausalLM")
    assert "older ones scale all modules alike" in said[0] and "not checked for NewForCausalLM" in said[1]
    assert remarks({"peft_type": "LORA", "r": 4}, LLAMA) == []


@pytest.mark.parametrize(
    ("ranks", "room"), [([1], 1), ([2], 8), ([8, 4], 8), ([9], 16), ([257], 320), ([320, 1], 320), ([512], 512)]
)
def test_the_smallest_room_for_all_ranks(ranks: list[int], room: int) -> None:
    assert max_lora_rank(ranks) == room and room in MAX_LORA_RANKS


def test_the_highest_rank_is_over_all_modules() -> None:
    assert highest_rank({"r": 4, "rank_pattern": {"v_proj": 32}}) == 32
    assert highest_rank({"r": 64, "rank_pattern": {"v_proj": 32}}) == 64


def test_the_header_names_every_tensor(fleet: Fleet) -> None:
    header = read_shapes(fleet.adapters["shouts"])
    assert len(header) == 2 * 2 * 2  # layers, modules, A and B
    assert header["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] == (4, 64)


def test_a_cut_file_says_so(fleet: Fleet, tmp_path: Path) -> None:
    whole = (fleet.adapters["shouts"] / "adapter_model.safetensors").read_bytes()
    for length in (4, 100, len(whole) - 1):
        (tmp_path / "adapter_model.safetensors").write_bytes(whole[:length])
        with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors.* cut short"):
            read_shapes(tmp_path)
