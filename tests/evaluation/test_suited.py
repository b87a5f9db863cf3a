"""Which models suit the shared path: each either agrees with HFLM there, or is left to HFLM for a reason of its own."""

from typing import Any

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance

from tasks.evaluation.suited import why_unsuited
from tests.evaluation.test_shared import SMALL, assert_same, both, choices, llama, wandering
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.slow
SIZES = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096},
    **SMALL,
}
FALCON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True, **SMALL}
NEO = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], **SMALL}
LLAMA4 = {**SIZES, "num_local_experts": 2, "intermediate_size_mlp": 64}
LONGROPE = {
    "rope_parameters": {
        **{"rope_type": "longrope", "rope_theta": 1e4, "factor": 32.0, "original_max_position_embeddings": 128},
        **{"short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
    },
    "original_max_position_embeddings": 128,
}


def made(name: str, config: str, **settings: Any) -> Any:
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, config)(**settings))
    return wandering(model.float())


def long(words: int) -> Instance:
    return Instance("loglikelihood", {}, ("a b " * words, " c"), 0, ("task", 99, 1))


@pytest.mark.parametrize(
    ("name", "config", "settings", "why"),
    [
        ("Falcon", "FalconConfig", FALCON, "(ALiBi)"),
        ("Lfm2", "Lfm2Config", {**SIZES, "layer_types": ["conv", "full_attention"]}, "it has conv layers"),
        ("GPTNeo", "GPTNeoConfig", {**NEO, "window_size": 64}, "window_size, as in GPT-Neo"),
        (
            "Llama4",
            "Llama4TextConfig",
            {**LLAMA4, "floor_scale": 64, "attn_scale": 0.5},
            "attn_temperature_tuning, as in Llama 4",
        ),
    ],
)
def test_a_model_that_does_not_suit_is_left_to_hflm(name: str, config: str, settings: Any, why: str) -> None:
    shared, stock = both(made(name, config, **settings), batch_size=8)
    asked = choices(3)
    assert_same(shared.loglikelihood(asked), stock.loglikelihood(asked))
    facts = shared.cell_facts()
    assert facts["path"] == "stock" and why in facts["why"]


def test_an_attention_that_takes_no_mask_is_told() -> None:
    model = llama()
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2, takes no mask of branches" in str(why_unsuited(model, tiny_tokenizer()))


def test_eager_attention_gets_a_mask_that_it_can_add() -> None:
    """With a cap on the logits of attention and head, and a window that is longer than all that is asked."""
    model = made("Gemma2", "Gemma2Config", **SIZES)
    model.set_attn_implementation("eager")
    shared, stock = both(model)
    asked = choices(6)
    assert_same(shared.loglikelihood(asked), stock.loglikelihood(asked))
    assert shared.cell_facts()["path"] == "shared"


@pytest.mark.parametrize(
    ("name", "config", "settings", "why"),
    [
        ("Phi3", "Phi3Config", {**SIZES, **LONGROPE}, "above its original_max_position_embeddings, 128"),
        (
            *("Llama4", "Llama4TextConfig"),
            {**LLAMA4, "attention_chunk_size": 128, "attn_temperature_tuning": False},
            "above its attention_chunk_size, 128",
        ),
    ],
)
def test_what_begins_at_a_length_counts_once_a_sequence_has_it(name: str, config: str, settings: Any, why: str) -> None:
    shared, stock = both(made(name, config, **settings))
    short = [one for one in choices(4) if sum(map(len, one.args)) < 120]
    assert_same(shared.loglikelihood(short), stock.loglikelihood(short))
    assert shared.cell_facts()["path"] == "shared"
    asked = [*short, long(40)]
    assert_same(shared.loglikelihood(asked), stock.loglikelihood(asked))
    assert why in shared.cell_facts()["why"]


def test_what_counts_places_shows_in_passes_that_have_so_many() -> None:
    model = llama()
    layer = model.model.layers[0]
    plain = layer.forward
    # From the 300th place of the row on something else happens, whatever the token's position.
    layer.forward = lambda hidden, *args, **kwargs: plain(
        hidden + (torch.arange(hidden.shape[1]) >= 300)[:, None], *args, **kwargs
    )
    assert why_unsuited(model, tiny_tokenizer(), 64) is None
    assert "on a small forest are off by" in str(why_unsuited(model, tiny_tokenizer(), 512))


def test_a_model_that_gives_the_logits_of_all_places_is_found_out() -> None:
    model = llama()

    class Deaf(type(model)):  # type: ignore[misc]
        def forward(
            self,
            input_ids: Any = None,
            attention_mask: Any = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            logits_to_keep: Any = 0,
            **others: Any,
        ) -> Any:
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **others,
            )

    model.__class__ = Deaf
    assert "it gives those of" in str(why_unsuited(model, tiny_tokenizer()))
