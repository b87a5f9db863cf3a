"""The memory estimate: counted on the model, and equal to what a real forward pass keeps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from tasks.recipe.schema import Lora
from tasks.training.memory import (
    GIB,
    NF4_BYTES,
    OVERHEAD,
    TILE_BUFFERS,
    Memory,
    choose_checkpointing,
    estimate,
    fits,
)
from tasks.training.methods import count
from tasks.training.models import add_adapter, load_base, meta_base
from tests.tiny import tiny_config

GPT2 = Path(__file__).parents[1] / "architectures" / "gpt2"
LINEAR = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)  # weights of the tiny model's linear layers
OTHERS = 259 * 64 + 5 * 64  # its embeddings, which are its head too, and its norms


def adapted(folder: Path, **lora: Any) -> Any:
    return add_adapter(meta_base(folder), Lora(**lora).model_dump())


def memory(model: Any, method: str = "lora", batch: int = 4, tokens: int = 32, **options: Any) -> Memory:
    training = {"per_device_train_batch_size": batch}
    options = {"gradient_checkpointing": False, **options}
    return estimate(model, method=method, training=training, longest_row=tokens, **options)


def test_rank_8_and_rank_4096_are_not_the_same(base: Path) -> None:
    small, large = adapted(base, r=8), adapted(base, r=4096)
    few, many = count(small)[0], count(large)[0]
    assert many == 512 * few
    less, more = memory(small), memory(large)
    assert more.total - less.total >= (4 + 4 + 8) * (many - few)  # weights, gradients, AdamW; and the products of A
    assert (less.gradients, less.optimizer) == (4 * few, 8 * few)


def test_weights_are_counted_by_what_they_are_kept_in(base: Path) -> None:
    model = adapted(base, r=8)
    trains = count(model)[0]
    assert memory(model).weights == 2 * (LINEAR + OTHERS) + 4 * trains
    assert memory(model, "qlora").weights == round(NF4_BYTES * LINEAR + 2 * OTHERS) + 4 * trains
    assert memory(model, "qlora").workspace == 2 * 64 * 128
    full = memory(meta_base(base), "full")
    assert full.weights == full.gradients == 4 * (LINEAR + OTHERS) and full.optimizer == 2 * full.weights


@pytest.mark.parametrize(("targets", "dropout"), [(("q_proj", "v_proj"), 0.0), ("all-linear", 0.1)])
def test_activations_are_those_that_a_real_forward_pass_keeps(base: Path, targets: Any, dropout: float) -> None:
    lora = Lora(r=8, target_modules=targets, lora_dropout=dropout).model_dump()
    model = add_adapter(load_base(base, "none", "cpu"), lora).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(4, 32, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # rows differ in length; of equal ones transformers keeps less, for it needs no mask
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_base_model().base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert memory(add_adapter(meta_base(base), lora)).activations == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_what_adapters_in_one_process_share(base: Path, method: str) -> None:
    small, large = (memory(adapted(base, r=r), method) for r in (8, 64))
    frozen = round(NF4_BYTES * LINEAR + 2 * OTHERS) if method == "qlora" else 2 * (LINEAR + OTHERS)
    assert small.shared == large.shared == frozen + small.head + small.workspace + OVERHEAD["cpu"]
    assert small.total - small.shared == 16 * count(adapted(base, r=8))[0] + small.activations


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(base: Path) -> None:
    model = adapted(base)
    once, twice = memory(model, batch=4), memory(model, batch=8)
    assert twice.activations == pytest.approx(2 * once.activations, rel=0.01)
    assert memory(model, pairs=True).activations == twice.activations
    recomputed = memory(model, gradient_checkpointing=True)
    hidden = 2 * 4 * 32 * 64
    assert 2 * hidden < recomputed.activations < 0.65 * once.activations  # of two layers one is whole


def test_the_estimate_leaves_the_model_as_it_was(base: Path) -> None:
    model = adapted(base).eval()
    memory(model)
    assert not model.training and all(parameter.is_meta for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_head_is_a_tile_of_logits(tmp_path: Path) -> None:
    tiny_config(vocab_size=100_000).save_pretrained(tmp_path)
    model = adapted(tmp_path)
    assert memory(model, batch=8, tokens=1024).head == 4096 * 32768 * (2 + TILE_BUFFERS) + 4 * 8192 * 64
    assert memory(model, batch=8, tokens=1024, device="cuda").head == 4096 * 32768 * 2 + 4 * 8192 * 64


def test_layers_that_are_conv1d_count_too() -> None:
    model = add_adapter(meta_base(GPT2), Lora(target_modules=("c_attn",), fan_in_fan_out=True).model_dump())
    four_bit, sixteen = memory(model, "qlora"), memory(model)
    assert sixteen.weights - four_bit.weights == pytest.approx((2 - NF4_BYTES) * 12 * 12 * 768**2)
    assert sixteen.activations > 12 * 4 * 32 * 768 * 2


def test_what_several_processes_share(base: Path) -> None:
    model = meta_base(base)
    one = memory(model, "full")
    ddp, deepspeed, fsdp = (
        memory(model, "full", num_processes=2, config=config) for config in ("ddp", "deepspeed", "fsdp")
    )
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == (one.weights, 2 * one.gradients, one.optimizer)
    assert (deepspeed.weights, deepspeed.optimizer) == (one.weights, one.optimizer // 2)
    assert (fsdp.weights, fsdp.gradients) == (one.weights // 2, one.gradients // 2)


def of_size(activations: int) -> Memory:
    return Memory(weights=GIB, gradients=0, optimizer=0, activations=activations, head=0, workspace=0, overhead=0)


@pytest.mark.parametrize(
    ("activations", "recomputed", "free", "chosen"),
    [
        (3 * GIB, GIB, 8 * GIB, False),  # plenty: recomputing would only cost time
        (7 * GIB, GIB, 8 * GIB, True),
        (7 * GIB, 7 * GIB, 8 * GIB, False),  # nothing to be saved by it
        (6.5 * GIB, GIB, 8 * GIB, True),  # it would just fit, but for the margin
    ],
)
def test_checkpointing_is_chosen_by_memory(activations: int, recomputed: int, free: int, chosen: bool) -> None:
    assert choose_checkpointing(of_size(activations), of_size(recomputed), free) is chosen
    assert fits(of_size(activations), free) or activations > 6 * GIB


def test_a_process_costs_something_before_it_does_anything(base: Path) -> None:
    assert memory(adapted(base)).overhead == OVERHEAD["cpu"] != memory(adapted(base), device="cuda").overhead


def test_layers_that_return_a_tuple_keep_as_much_as_each_other() -> None:
    """Bloom's do, as Falcon's and MPT's; only the first two are looked at."""

    def activations(layers: int) -> int:
        with torch.device("meta"):
            model = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=layers, n_head=4))
        return memory(add_adapter(model, Lora().model_dump())).activations

    two, three, nine = map(activations, (2, 3, 9))
    assert nine - three == 6 * (three - two) > 0
