"""Every architecture that is packed computes packed what it computes row by row; and which bases are packed at all."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tasks.recipe.schema import Accelerate, Adapter, Data, Lora, Training
from tasks.training.features import length
from tasks.training.packed.suited import ARCHITECTURES, reason_for_trl, reason_of_base
from tasks.training.rendering import IGNORED
from tests.training.packed.exact import VOCABULARY
from tests.training.packed.side_by_side import side_by_side

# The models are in float64, but most of them take norms in float32 even there: 6e-7 is what was seen of that.
TOLERANCE = 3e-6
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# What is special about each: where it can be switched on, it is.
SPECIAL: dict[str, list[dict[str, Any]]] = {
    "gemma": [{"head_dim": 16, "num_key_value_heads": 1}],
    "gpt2": [
        NO_DROPOUT,
        {**NO_DROPOUT, "scale_attn_by_inverse_layer_idx": True},
        {**NO_DROPOUT, "scale_attn_weights": False},
    ],
    "gpt_neox": [{"rotary_pct": 0.5}, {"use_parallel_residual": False, "attention_bias": False}],
    "granite": [
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 4.0}
    ],
    "llama": [
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"rope_parameters": LLAMA3},
        {"rope_parameters": YARN},
    ],
    "mistral": [{"sliding_window": None}, {"sliding_window": 64}],
    "olmo2": [{}],
    "phi3": [{"sliding_window": None, "partial_rotary_factor": 0.5}],
    "qwen2": [{}],
    "qwen3": [{"head_dim": 16}],
    "smollm3": [{"no_rope_layers": [1, 0]}],
}
VARIANTS = [(kind, changes) for kind in ARCHITECTURES for changes in SPECIAL[kind]]


def tiny(kind: str, changes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**COMMON, **changes})
    assert reason_of_base(config.to_dict(), 64) is None
    model = AutoModelForCausalLM.from_config(config).double().eval()
    for parameter in model.parameters():  # so large that every token looks at the others
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes"), VARIANTS, ids=[f"{kind} {changes}" for kind, changes in VARIANTS])
def test_it_computes_packed_what_it_computes_row_by_row(kind: str, changes: dict[str, Any]) -> None:
    engines = side_by_side(tiny(kind, changes), {"one": {"r": 2}, "other": {"r": 3}})
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (3, 24), generator=draw).tolist()
    made = [ids[0], ids[0][:12] + ids[1][:6], ids[0][:12] + ids[1][:4] + ids[2][:8], ids[2]]
    rows = [{"input_ids": one, "labels": [IGNORED] * 8 + one[8:]} for one in made]
    assert engines.shared.hidden == COMMON["hidden_size"]
    engines.assert_equal({"one": rows, "other": rows[1:]}, capacity=64, tolerance=TOLERANCE)
    for own in range(len(rows)):  # each row's own loss, among the others
        among = [row if at == own else {**row, "labels": [IGNORED] * length(row)} for at, row in enumerate(rows)]
        engines.assert_equal({"one": among}, capacity=96, tolerance=TOLERANCE)


PLAIN = {"model_type": "llama"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"method": "qlora"}, None),
        ({"method": "full"}, "method: full"),
        ({"accelerate": {"num_processes": 2}}, "accelerate.num_processes is 2"),
        ({"training": {"report_to": ("wandb", "mlflow")}}, "training.report_to names wandb, mlflow"),
        ({"lora": {"use_dora": True}}, "lora.use_dora"),
        *(({"lora": {"init_lora_weights": start}}, None) for start in (True, False, "gaussian", "orthogonal")),
        *(
            ({"lora": {"init_lora_weights": start}}, f"lora.init_lora_weights: {start}")
            for start in ("olora", "pissa", "pissa_niter_4", "loftq")
        ),
        ({"lora": {"lora_dropout": 0.1, "use_rslora": True, "rank_pattern": {"q_proj": 2}}}, None),
        ({"training": {"max_length": 65}}, "the base attends to a window of 64 tokens, and rows may have 65"),
    ],
    ids=str,
)
def test_why_an_adapter_is_not_packed(changes: dict[str, Any], reason: str | None) -> None:
    adapter = Adapter(
        name="one",
        method=changes.get("method", "lora"),
        data=Data(rows=({"a": 1},), text="{{ a }}", held_out=0),
        lora=Lora(**changes.get("lora", {})),
        training=Training(**{"max_length": 64, **changes.get("training", {})}),
        accelerate=Accelerate(**changes.get("accelerate", {})),
    )
    config = {"model_type": "mistral", "sliding_window": 64}
    said = reason_for_trl(adapter, config, is_preference=False)
    assert said == reason if reason is None or said is None else said.startswith(reason)
    assert reason_for_trl(adapter, config, is_preference=True) == "preference pairs (DPO)"


ROPE = "the base's rotary embeddings ({}) depend on the longest row of a batch"
DROPS = "the base itself has dropout ({})"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        *(({"model_type": kind}, None) for kind in ARCHITECTURES if kind != "gpt2"),
        ({}, f"the base is of type None; packed are {', '.join(ARCHITECTURES)}"),
        ({"model_type": "mixtral"}, f"the base is of type mixtral; packed are {', '.join(ARCHITECTURES)}"),
        ({"model_type": "gpt2"}, DROPS.format("attn_pdrop: 0.1, resid_pdrop: 0.1, embd_pdrop: 0.1")),
        ({"model_type": "gpt2", **NO_DROPOUT, "embd_pdrop": 0.2}, DROPS.format("embd_pdrop: 0.2")),
        ({"model_type": "gpt2", **NO_DROPOUT}, None),
        ({**PLAIN, "attention_dropout": 0.1}, DROPS.format("attention_dropout: 0.1")),
        ({**PLAIN, "quantization_config": {"bits": 4}}, "the base is stored quantised"),
        ({"model_type": "mistral", "sliding_window": 99}, "the base attends to a window of 99 tokens, and rows may "
                                                          "have 100 (training.max_length)"),
        ({"model_type": "mistral", "sliding_window": 100}, None),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False}, None),
        ({**PLAIN, "layer_types": ["full_attention", "linear_attention"]}, "the base has layers of linear_attention"),
        ({**PLAIN, "layer_types": ["full_attention", "sliding_attention"]}, None),
        ({**PLAIN, "rope_parameters": YARN}, None),
        ({**PLAIN, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ROPE.format("dynamic")),
        ({**PLAIN, "rope_scaling": {"type": "longrope"}}, ROPE.format("longrope")),
    ],
    ids=str,
)  # fmt: skip
def test_why_a_base_is_not_shared(config: dict[str, Any], reason: str | None) -> None:
    assert reason_of_base(config, 100) == reason


@pytest.mark.parametrize("said", [{}, {"use_sliding_window": True}, {"sliding_window": 16}], ids=str)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_a_config_does_not_say_is_taken_as_transformers_takes_it(kind: str, said: dict[str, Any]) -> None:
    whole = CONFIG_MAPPING[kind](**said).to_dict()
    for longest_row in (8, 100_000):
        assert reason_of_base({"model_type": kind, **said}, longest_row) == reason_of_base(whole, longest_row)
