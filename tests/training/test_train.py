"""Real training of the tiny model: what moves, what does not, what is refused, and that it repeats exactly."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra.errors import DivergedError, RequestError, StageError
from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Data, Lora, Training
from tasks.training.models import add_adapter, load_base, meta_base
from tasks.training.schedule import steps_of
from tasks.training.train import train as run_job
from tests.tiny import save_tiny_base
from tests.training.jobs import training_job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = tuple({"n": number} for number in range(10))
    spec = Data(rows=rows, held_out=0, messages={"user": "Question {{ n }}", "assistant": "ok"})
    build_dataset(spec, folder, needs_held_out=False)
    return folder


def train(base: Path, data: Path, output: Path, method: str = "lora", **changes: Any) -> dict[str, Any]:
    work = output.parent / f"{output.name}-work"
    return run_job(training_job(base, data, output, method=method, **changes), work)


def test_every_adapter_weight_moves_and_the_checkpoint_is_plain_peft(base: Path, data: Path, tmp_path: Path) -> None:
    facts = train(base, data, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 2 * 2 * 2  # layers, modules, A and B
    assert all(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)
    assert facts["trainable_params"] == sum(weight.numel() for weight in weights.values())
    assert facts["steps"] == 4 and [point["step"] for point in facts["curve"]] == [1, 2, 3, 4]
    assert facts["curve"][-1]["loss"] < facts["curve"][0]["loss"]
    assert [point["step"] for point in facts["pace"]] == [1, 2, 3, 4]
    assert all(0 < point["memory_bytes"] <= facts["peak_memory_bytes"] for point in facts["pace"])
    stepping = facts["curve"][0]["tokens"] / facts["pace"][0]["tokens_per_second"]
    assert 0 < stepping < facts["seconds"]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny" and config["target_modules"] == ["q_proj", "v_proj"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(base: Path, data: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        train(base, data, tmp_path / name, seed=seed)
    one, again, other = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "again", "other")
    )
    assert one == again != other


def test_looking_more_often_does_not_change_the_weights(base: Path, data: Path, tmp_path: Path) -> None:
    train(base, data, tmp_path / "often", logging_steps=1)
    train(base, data, tmp_path / "seldom", logging_steps=4)
    often, seldom = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("often", "seldom"))
    assert often == seldom


def test_four_bits_are_four_bits_on_a_cpu(base: Path, data: Path, tmp_path: Path) -> None:
    model = load_base(base, "nf4", "cpu")
    quantised = [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]
    assert len(quantised) == 2 * 7 and model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    train(base, data, tmp_path / "nf4", method="qlora")
    train(base, data, tmp_path / "plain")
    nf4, plain = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("nf4", "plain"))
    assert any(not torch.equal(nf4[name], plain[name]) for name in nf4)


def test_a_loss_that_is_not_finite_ends_the_job(base: Path, data: Path, tmp_path: Path) -> None:
    broken = save_tiny_base(tmp_path / "broken", seed=1)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    from safetensors.torch import save_file

    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        DivergedError,
        match=r"the loss is nan at step 1, learning rate 0\.01, rows train\.jsonl:\d+(, train\.jsonl:\d+){3}\.",
    ):
        train(broken, data, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_training_that_moves_nothing_is_an_error(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="moved no weight"):
        train(base, data, tmp_path / "adapter", learning_rate=1e-45)


def test_target_modules_that_match_nothing_list_what_would(base: Path) -> None:
    with pytest.raises(RequestError, match=r"q_prj match nothing.*allowed are down_proj, gate_proj, k_proj, o_proj"):
        add_adapter(meta_base(base), Lora(target_modules=("q_prj", "v_proj")).model_dump())


def test_all_linear_leaves_the_head_alone(base: Path) -> None:
    model = add_adapter(meta_base(base), Lora().model_dump())
    assert {name.rpartition(".")[2] for name in model.targeted_module_names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


@pytest.mark.parametrize(
    ("rows", "changes", "steps"),
    [
        (10, {}, 2),
        (16, {"num_train_epochs": 3}, 6),
        (17, {"gradient_accumulation_steps": 2}, 2),
        (1, {"gradient_accumulation_steps": 4}, 1),
        (10, {"max_steps": 7}, 7),
        (300, {"num_train_epochs": 0.5}, 19),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(rows: int, changes: dict[str, Any], steps: int) -> None:
    assert steps_of(rows, Training(**changes).model_dump()) == steps


@pytest.mark.parametrize(("free_gib", "recomputed"), [(64, False), (1, True)])
def test_activations_are_recomputed_only_if_memory_calls_for_it(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: int, recomputed: bool
) -> None:
    monkeypatch.setattr("tasks.training.recomputation.free_memory", lambda: int(free_gib * 2**30 * 0.8))
    training = training_job(base, data, tmp_path / "a")["training"]
    facts = train(base, data, tmp_path / "a", job={"training": {**training, "gradient_checkpointing": "auto"}})
    assert facts["gradient_checkpointing"] is recomputed
    train(base, data, tmp_path / "b")
    ours, plain = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert all(torch.allclose(ours[name], plain[name], atol=1e-6) for name in plain)


def test_checkpoints_come_by_the_clock_if_no_steps_are_named(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.training.trainer.SAVE_SECONDS", -1)
    train(base, data, tmp_path / "often")
    saved = tmp_path / "often-checkpoints"
    assert {path.name for path in saved.glob("*-*")} == {"checkpoint-2", "checkpoint-3"}, "the last two before the end"
    monkeypatch.setattr("tasks.training.trainer.SAVE_SECONDS", 3600)
    train(base, data, tmp_path / "never")
    assert not list((tmp_path / "never-checkpoints").glob("*-*"))
