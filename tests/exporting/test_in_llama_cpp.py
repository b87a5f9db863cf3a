"""What is exported answers in llama.cpp as it does in transformers: tokens, probabilities, stops, template, adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tasks.exporting.gguf_adapter import write_adapter
from tasks.exporting.gguf_model import write_model
from tests.exporting.llama import Llama, llama
from tests.exporting.models import SPLITTERS, config, save_model, trained_tokenizer

pytestmark = pytest.mark.slow

PROMPT = [5 + (7 * n * n) % 350 for n in range(120)]  # long enough for every angle of the rotary embedding
STEPS = 20
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}
MODELS = {
    "llama": config(LlamaConfig),
    "llama, tied": config(LlamaConfig, tie_word_embeddings=True),
    "llama, wide heads": config(LlamaConfig, head_dim=32, rms_norm_eps=1e-2),
    "llama, biases": config(LlamaConfig, attention_bias=True, mlp_bias=True),
    "llama 3.1": config(LlamaConfig, rope_parameters=LLAMA3),
    "llama, linear": config(LlamaConfig, rope_parameters=LINEAR),
    "mistral": config(MistralConfig, sliding_window=None),
    "qwen2": config(Qwen2Config),
    "qwen3": config(Qwen3Config, head_dim=32),
}
ODD = [
    *("Hello world", " leading", "trailing ", "a\nb\n\nc\n \n  d", "tab\tand\u00a0nbsp", "  two  spaces   three"),
    *("12345 1,234.50 0x1F ½ ²", "I'll don't WE'RE they'd 's", "naïve café Ünïcödé", "日本語のテキスト 中文 한국어"),
    *("🙂👩‍👩‍👧‍👦🇩🇪", "العربية עברית", "<|im_start|>user\nhi<|im_end|>", "x<tool>y <tool> z", "a<|endoftext|>b"),
    *("def f(x):\r\n\treturn x**2  # ok", "...!!!???", "", "\u200b\ufeff", "_under_score__", "MixedCASE123abc"),
]


def distributions(model: Any, ids: list[int]) -> tuple[list[int], torch.Tensor]:
    """The greedy continuation of `ids` and the log-probabilities (STEPS, vocabulary) it was drawn from."""
    rows: list[torch.Tensor] = []
    for _ in range(STEPS):
        with torch.inference_mode():
            rows.append(torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), dim=-1))
        ids = [*ids, int(rows[-1].argmax())]
    return ids[-STEPS:], torch.stack(rows)


def largest_difference(server: Llama, model: Any, ids: list[int]) -> float:
    """Of any token's log-probability, at each step of the model's greedy continuation."""
    tokens, wanted = distributions(model, ids)
    said = [server.log_probabilities(ids + tokens[:step], wanted.shape[1]) for step in range(STEPS)]
    return float((torch.tensor(said) - wanted).abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_every_token_is_as_likely_as_in_transformers(name: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", MODELS[name], trained_tokenizer())
    write_model(folder, tmp_path / "model.gguf", "f32")
    with llama(tmp_path / "model.gguf") as server:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert largest_difference(server, model, PROMPT) < 1e-4
        said, wanted = server.complete(PROMPT, STEPS)["tokens"], distributions(model, PROMPT)[0]
        assert said == wanted[: len(said)] and (len(said) == STEPS or said[-1] in (0, 2))  # it stops where it must


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0", "q4_0"])
def test_fewer_bits_answer_alike(type: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", config(LlamaConfig, initializer_range=0.1), trained_tokenizer())
    write_model(folder, tmp_path / "model.gguf", type)
    with llama(tmp_path / "model.gguf") as server:
        _, wanted = distributions(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), PROMPT)
        said = torch.tensor(server.log_probabilities(PROMPT, wanted.shape[1]))
    divergence = float((wanted[0].exp() * (wanted[0] - said)).sum())
    assert 0 <= divergence < {"f16": 1e-4, "bf16": 2e-3, "q8_0": 2e-2, "q4_0": 1.0}[type]


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_text_becomes_the_same_tokens(splitter: str, tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(splitter, add_bos=splitter == "llama-bpe")
    folder = save_model(tmp_path / "model", config(LlamaConfig), tokenizer)
    assert write_model(folder, tmp_path / "model.gguf", "f16")["tokenizer_pre"] == splitter
    as_loaded = AutoTokenizer.from_pretrained(folder)
    with llama(tmp_path / "model.gguf") as server:
        for text in ODD:
            for special in (True, False):
                wanted = as_loaded.encode(text, add_special_tokens=special)
                assert server.tokens(text, add_special=special) == wanted, text


def test_the_chat_template_is_the_same(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", config(LlamaConfig), trained_tokenizer())
    write_model(folder, tmp_path / "model.gguf", "f16")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Grüß Gott!\n\nWho?"},
        {"role": "assistant", "content": "I."},
        {"role": "user", "content": "Ok."},
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with llama(tmp_path / "model.gguf") as server:
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert server.prompt(messages) == wanted
        assert server.tokens(wanted) == tokenizer.encode(wanted)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_stop_token_stops(place: int, tmp_path: Path) -> None:
    """The token that comes fifth is made one of three stop tokens, in each place that a GGUF has for them."""
    folder = save_model(tmp_path / "model", config(LlamaConfig), trained_tokenizer())
    tokens, _ = distributions(AutoModelForCausalLM.from_pretrained(folder), PROMPT)
    stop = next(token for token in tokens[4:] if token > 2 and token not in tokens[:4])
    stops = [stop if n == place else n for n in range(3)]
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": stops}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stops[0])
    tokenizer.save_pretrained(folder)
    write_model(folder, tmp_path / "model.gguf", "f32")
    with llama(tmp_path / "model.gguf") as server:
        answer = server.complete(PROMPT, STEPS)
    assert answer["stop_type"] == "eos" and answer["tokens"] == tokens[: tokens.index(stop) + 1]


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"k_proj": 3, "mlp.down_proj": 40}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_the_adapter_over_the_base_is_the_adapter_in_peft(kind: type, changes: dict[str, Any], tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", config(kind), trained_tokenizer())
    lora = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, **changes)
    torch.manual_seed(8)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(tmp_path / "adapter")
    write_model(base, tmp_path / "base.gguf", "f32")
    write_adapter(tmp_path / "adapter", base, tmp_path / "adapter.gguf")
    plain = AutoModelForCausalLM.from_pretrained(base)
    without, _ = distributions(plain, PROMPT)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert distributions(adapted, PROMPT)[0] != without
    with llama(tmp_path / "base.gguf", tmp_path / "adapter.gguf") as server:
        assert largest_difference(server, adapted, PROMPT) < 0.05  # its numbers are f16
