"""The file holds what the folder did, or there is no file and the reason is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, pre_tokenizers
from transformers import GPT2Config, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from infra.errors import RequestError, StageError, TunefleetError
from tasks.exporting.gguf_model import check_tensors, write_model, write_tensors
from tests.exporting.models import config, save_model, trained_tokenizer
from tests.tiny import CHAT_TEMPLATE, save_tiny_base, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "model", config(LlamaConfig), trained_tokenizer())


@pytest.mark.parametrize(("type", "bits"), [("f32", 32), ("f16", 16), ("bf16", 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_the_file_holds_every_tensor(folder: Path, tmp_path: Path, type: str, bits: float) -> None:
    facts = write_model(folder, tmp_path / "model.gguf", type)
    source, reader = load_file(folder / "model.safetensors"), gguf.GGUFReader(tmp_path / "model.gguf")
    assert facts["tensors"] == len(reader.tensors) == len(source) and facts["bytes"] > 1000
    tensors = {one.name: one for one in reader.tensors}
    down = tensors["blk.1.ffn_down.weight"]  # 64 x 96
    assert down.data.nbytes == 64 * 96 * bits / 8
    values = gguf.dequantize(down.data, down.tensor_type)
    wanted = source["model.layers.1.mlp.down_proj.weight"].numpy()
    assert np.abs(values - wanted).max() <= np.abs(wanted).max() * {32: 0, 16: 2**-8, 8.5: 1 / 200, 4.5: 1 / 7}[bits]
    assert (tensors["output_norm.weight"].data == source["model.norm.weight"].numpy()).all()
    head = {"q4_0": "Q8_0"}.get(type, type.upper())
    assert tensors["output.weight"].tensor_type.name == tensors["token_embd.weight"].tensor_type.name == head
    assert facts["kept_wider"] == (["output.weight", "token_embd.weight"] if type == "q4_0" else [])


def test_rows_that_do_not_divide_into_blocks_are_f16(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", config(LlamaConfig, intermediate_size=72), trained_tokenizer())
    facts = write_model(folder, tmp_path / "model.gguf", "q8_0")
    assert facts["kept_wider"] == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]


def test_it_says_how_text_becomes_tokens(folder: Path, tmp_path: Path) -> None:
    write_model(folder, tmp_path / "model.gguf", "f16")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    said = {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.")}
    assert said["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert said["tokenizer.ggml.eos_token_id"] == 2 and said["tokenizer.ggml.bos_token_id"] == 1
    assert said["tokenizer.ggml.padding_token_id"] == 0 and said["tokenizer.ggml.add_bos_token"] is False
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 400
    assert types[:4] == [3, 3, 3, 1] and types[tokens.index("<tool>")] == 4 and types[-1] == 5  # control, user, unused


def test_a_tokenizer_without_merges_can_be_said(tmp_path: Path) -> None:
    save_tiny_base(tmp_path / "tiny")
    facts = write_model(tmp_path / "tiny", tmp_path / "model.gguf", "bf16")
    assert facts["tokenizer_pre"] == "gpt-2" and facts["notes"] == []


def test_shards_are_read_by_their_index(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_model(folder, whole, "f16")
    shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    names = {"model-1.safetensors": list(tensors)[:9], "model-2.safetensors": list(tensors)[9:]}
    for file, held in names.items():
        save_file({name: tensors[name] for name in held}, tmp_path / "model" / file)
    save_file({"left.behind": torch.ones(2, 2)}, tmp_path / "model" / "model-3.safetensors")
    index = {"weight_map": {name: file for file, held in names.items() for name in held}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    write_model(tmp_path / "model", tmp_path / "sharded.gguf", "f16")
    assert (tmp_path / "sharded.gguf").stat().st_size == whole.stat().st_size
    by_name = {one.name: one.data for one in gguf.GGUFReader(whole).tensors}
    sharded = gguf.GGUFReader(tmp_path / "sharded.gguf").tensors
    assert len(sharded) == len(by_name) and all((by_name[one.name] == one.data).all() for one in sharded)
    (tmp_path / "model" / "model-2.safetensors").unlink()
    with pytest.raises(TunefleetError, match=r"names model-2\.safetensors, which is not there"):
        write_model(tmp_path / "model", tmp_path / "again.gguf", "f16")


def test_a_sliding_window_bounds_the_context(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", config(MistralConfig, sliding_window=128), trained_tokenizer("qwen2"))
    facts = write_model(folder, tmp_path / "model.gguf", "f16")
    field = gguf.GGUFReader(tmp_path / "model.gguf").get_field("llama.context_length")
    assert field and field.contents() == 128
    assert len(facts["notes"]) == 2 and "sliding window, 128" in facts["notes"][0] and "NFC" in facts["notes"][1]


def test_numbers_that_were_altered_are_noticed(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    tensors = [("token_embd.weight", (2, 32), gguf.GGMLQuantizationType.Q8_0)]
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    write_tensors(writer, iter(tensors), iter([values]))
    check_tensors(gguf.GGUFReader(tmp_path / "a.gguf"), tensors, iter([values]))
    with pytest.raises(StageError, match="reads back as other numbers"):
        check_tensors(gguf.GGUFReader(tmp_path / "a.gguf"), tensors, iter([values * 1.02]))
    with pytest.raises(StageError, match="other tensors"):
        check_tensors(gguf.GGUFReader(tmp_path / "a.gguf"), tensors * 2, iter([values] * 2))


@pytest.mark.parametrize(
    ("number", "type", "said"),
    [
        (float("nan"), "f16", "blk.0.ffn_up.weight holds NaN"),
        (1e5, "f16", "holds 100000, f16 ends at 65504; export it as bf16 or f32"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path, number: float, type: str, said: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = number
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(RequestError, match=said):
        write_model(tmp_path / "model", tmp_path / "model.gguf", type)
    if np.isfinite(number):  # then there is a type that holds it
        assert write_model(tmp_path / "model", tmp_path / "model.gguf", "bf16")["tensors"] == len(tensors)


def test_rounded_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(96, 64, dtype=torch.int8)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(RequestError, match=r"up_proj\.weight is I8; allowed are F32, F16, BF16"):
        write_model(tmp_path / "model", tmp_path / "model.gguf", "f16")


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 256}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=400), "'gpt2' model cannot be exported.*llama, mistral"),
        (config(LlamaConfig, rope_parameters=YARN), "rope_type is 'yarn'; allowed are default, linear, llama3"),
        (config(Qwen2Config, rope_parameters=LLAMA3), "rope_type is 'llama3'; allowed are default, linear"),
        (config(Qwen3Config, attention_bias=True), "attention_bias is true, which llama.cpp's qwen3 has not"),
        (config(LlamaConfig, hidden_act="gelu"), "hidden_act is 'gelu', llama.cpp computes 'silu'"),
        (config(LlamaConfig, vocab_size=300), "ids up to 380, the embeddings 300 rows; resize"),
    ],
)
def test_models_that_llama_cpp_would_compute_otherwise_are_refused(
    settings: PretrainedConfig, said: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "model", settings, trained_tokenizer())
    with pytest.raises(RequestError, match=said):
        write_model(folder, tmp_path / "model.gguf", "f16")
    assert not (tmp_path / "model.gguf").exists()


def test_tensors_that_are_missing_or_unknown_are_all_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file({**tensors, "value_head.weight": torch.ones(1, 64)}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(RequestError) as refused:
        write_model(tmp_path / "model", tmp_path / "model.gguf", "f16")
    assert [str(fault) for fault in refused.value.faults] == [
        "value_head.weight has no name in llama.cpp's llama.",
        "blk.1.attn_k.weight is missing from the weights.",
    ]


def _split_by_spaces(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()


def _token_that_strips(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, special=True)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_split_by_spaces, "splits text by .*Whitespace.*known are gpt-2, llama-bpe, qwen2, smaug-bpe, smollm"),
        (_token_that_strips, "take spaces beside them cannot be said: <mask>"),
    ],
)
def test_tokenizers_that_llama_cpp_has_no_name_for_are_refused(
    folder: Path, tmp_path: Path, change: Any, said: str
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    tokenizer = tiny_tokenizer()
    change(tokenizer)
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(RequestError, match=said):
        write_model(tmp_path / "model", tmp_path / "model.gguf", "f16")


def test_too_many_stop_tokens_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5, 6, 7]}))
    with pytest.raises(RequestError, match=r"ends its answers with 4 tokens \(\[2, 5, 6, 7\]\); allowed are 1 to 3"):
        write_model(tmp_path / "model", tmp_path / "model.gguf", "f16")
