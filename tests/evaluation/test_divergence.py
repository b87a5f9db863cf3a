"""The base's states are held once for all adapters, where that changes no figure; else the base computes anew."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig

from tasks.evaluation.branches import logits_after
from tasks.evaluation.divergence import BaseStates, divergence
from tasks.evaluation.forest import plan

PASS = plan([(3, 4, 5, 6), (3, 4, 7), (8, 9)], room=64)[0]
SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def model_of(config: LlamaConfig | GraniteConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def passes_through(model: torch.nn.Module, states: BaseStates) -> tuple[int, torch.Tensor]:
    """How often the model's body ran for one question to the states, and what they answered."""
    ran: list[int] = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        logits = states.logits(model, PASS, [2, 3, 5])
        return len(ran), logits
    finally:
        hook.remove()


def test_the_base_runs_once_and_answers_the_same_again() -> None:
    model, states = model_of(LlamaConfig(**SIZES)), BaseStates()
    with torch.inference_mode():
        plain = logits_after(model, PASS, [2, 3, 5])
    (first, one), (again, other) = passes_through(model, states), passes_through(model, states)
    assert (first, again) == (1, 0)
    assert torch.equal(one, plain) and torch.equal(other, plain)
    assert not torch.equal(states.logits(model, PASS, [2, 3, 4]), plain), "other places are another question"


def test_a_model_that_changes_its_logits_behind_the_head_computes_anew() -> None:
    config = GraniteConfig(**SIZES, num_key_value_heads=2, logits_scaling=4.0)
    model, states = model_of(config), BaseStates()
    with torch.inference_mode():
        plain = logits_after(model, PASS, [2, 3, 5])
    for _ in range(2):
        ran, logits = passes_through(model, states)
        assert ran == 1 and torch.equal(logits, plain)


def test_what_does_not_fit_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.evaluation.divergence.MOST", 100)  # bytes; three states of 16 floats are 192
    model, states = model_of(LlamaConfig(**SIZES)), BaseStates()
    assert [passes_through(model, states)[0] for _ in range(2)] == [1, 1]


def test_the_divergence_is_torchs_own_in_any_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ours, base = torch.randn(7, 5), torch.randn(7, 5)
    p, q = base.softmax(-1), ours.softmax(-1)
    expected = float((p * (p / q).log()).sum())
    assert divergence(ours, base) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("tasks.evaluation.divergence.CHUNK", 3)
    assert divergence(ours, base) == pytest.approx(expected, rel=1e-5) and divergence(base, base) == 0
