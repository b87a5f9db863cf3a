"""The distance between two models' answers, against numbers worked out by hand; and what a 4-bit base rounds."""

import json
import math
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.merging.measuring import POSITIONS, answers, closeness, read_texts, unmerged, unmerged_in_float32
from tasks.merging.rounding import NO_ROUNDING, rounding_of
from tasks.merging.streaming import write_merged
from tasks.merging.weights import Weights
from tasks.training.models import load_base
from tests.merging.parts import save_adapter
from tests.tiny import save_tiny_base, tiny_config, tiny_tokenizer


def logits(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_kl_and_agreement_are_over_all_positions_of_all_rows() -> None:
    p = [logits((0.5, 0.5), (0.9, 0.1)), logits((0.25, 0.75))]
    q = [logits((0.5, 0.5), (0.1, 0.9)), logits((0.5, 0.5))]
    found = closeness(p, q)
    first = 0.9 * math.log(0.9 / 0.1) + 0.1 * math.log(0.1 / 0.9)
    second = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert found.mean_kl_nats == pytest.approx((0 + first + second) / 3, rel=1e-5)
    assert found.positions == 3 and found.top1_agreement == pytest.approx(1 / 3)
    assert closeness(p, p).mean_kl_nats == 0 and closeness(p, p).top1_agreement == 1


def test_answers_that_are_no_numbers_have_no_distance() -> None:
    assert math.isnan(closeness([logits((0.5, 0.5))], [torch.tensor([[math.nan, 0.0]])]).mean_kl_nats)


def test_held_out_rows_of_every_kind_are_read_and_training_rows_only_without_any(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "chosen": " yes", "rejected": " no"}, {"text": "plain"}, {"prompt": "Q", "completion": "A"}]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "trained"}) + "\n")
    tokenizer = tiny_tokenizer()
    texts = [tokenizer.decode(ids[0]) for ids in read_texts(tokenizer, tmp_path)]
    assert texts == ["Q yes<|im_end|>", "plain<|im_end|>", "QA<|im_end|>"]
    (tmp_path / "held_out.jsonl").write_text("")
    assert tokenizer.decode(read_texts(tokenizer, tmp_path)[0][0]) == "trained<|im_end|>"


def test_the_end_of_a_long_row_is_read(tmp_path: Path) -> None:
    model = load_base(save_tiny_base(tmp_path), "none", "cpu")
    ids = torch.arange(POSITIONS + 9)[None] % 259
    (found,) = answers(model, [ids])
    assert found.shape == (POSITIONS, 259)
    with torch.inference_mode():
        assert torch.equal(found, model(ids).logits[0, 9:])


def test_the_head_computes_only_the_positions_that_are_read(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    model = load_base(base, "none", "cpu")
    computed: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _head, _given, out: computed.append(out.shape[1]))
    adapted = PeftModel.from_pretrained(model, save_adapter(base, tmp_path / "adapter"))
    for one in (model, adapted):
        answers(one, [torch.arange(POSITIONS + 9)[None] % 259])
    assert computed == [POSITIONS, POSITIONS]


def test_in_float32_the_rounded_weights_are_those_of_the_4_bit_base(tmp_path: Path) -> None:
    """Against weights that were rounded beforehand, and saved."""
    base = save_tiny_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    rounding = rounding_of(base, Weights(base), "cpu")
    write_merged(base, {}, tmp_path / "rounded", rounded=rounding.names, through=rounding.through)
    ids = torch.arange(3, 90)[None]
    found = unmerged_in_float32(base, adapter, [ids], rounding, "cpu")
    expected = unmerged_in_float32(tmp_path / "rounded", adapter, [ids], NO_ROUNDING, "cpu")
    assert found.logits[0].dtype == torch.float32 and torch.equal(found.logits[0], expected.logits[0])
    assert closeness(unmerged(base, adapter, [ids], "nf4", "cpu").logits, found.logits).mean_kl_nats < 0.0005
    exact = unmerged_in_float32(base, adapter, [ids], NO_ROUNDING, "cpu")
    assert closeness(exact.logits, found.logits).mean_kl_nats > 0.002


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_unmerged_adapter_is_asked_on_the_base_that_it_was_judged_on(quantization: str, tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    ids = torch.arange(3, 90)[None]
    found = unmerged(base, adapter, [ids], quantization, "cpu")
    model = PeftModel.from_pretrained(load_base(base, quantization, "cpu"), adapter).eval()
    with torch.inference_mode():
        worn = model(ids).logits[0]
        with model.disable_adapter():
            bare = model(ids).logits[0]
    assert torch.equal(found.logits[0], worn) and found.effect == closeness([worn], [bare])
    assert found.effect.mean_kl_nats > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "untied", "float32", "gpt2"])
def test_rounded_weights_are_exactly_those_of_the_loaded_4_bit_base(kind: str, tmp_path: Path) -> None:
    """Compared before any forward: bitsandbytes repacks 4-bit weights at the first one."""
    save_base_of(kind, tmp_path)
    weights = Weights(tmp_path)
    rounding = rounding_of(tmp_path, weights, "cpu")
    found: set[str] = set()
    for name, layer in load_base(tmp_path, "nf4", "cpu").named_modules():
        if type(layer).__name__ != "Linear4bit":
            continue
        (stored,) = (one for one in weights.names if one in (f"{name}.weight", f"{name}.weight".partition(".")[2]))
        multiplied = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        expected = multiplied.T if kind == "gpt2" else multiplied
        before = weights.read(stored)
        assert rounding.through
        after = rounding.through(before)
        assert after.dtype == before.dtype and torch.equal(after, expected.to(before.dtype))
        assert not torch.equal(after, before)
        found.add(stored)
    assert found == rounding.names and found
    if kind != "gpt2":
        assert not {"lm_head.weight", "model.embed_tokens.weight"} & found


def save_base_of(kind: str, folder: Path) -> None:
    if kind == "gpt2":
        torch.manual_seed(0)
        config = GPT2Config(n_layer=1, n_embd=64, n_head=4, vocab_size=259, n_positions=64)
        GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(folder)
        return
    save_tiny_base(folder)
    if kind == "untied":
        from transformers import LlamaForCausalLM

        LlamaForCausalLM(tiny_config(tie_word_embeddings=False)).to(torch.bfloat16).save_pretrained(folder)
    if kind == "float32":  # not bfloat16's numbers: the loader rounds from bfloat16 all the same
        from transformers import LlamaForCausalLM

        LlamaForCausalLM(tiny_config(dtype="float32")).float().save_pretrained(folder)
        assert load_file(folder / "model.safetensors")["model.norm.weight"].dtype == torch.float32
