"""What a member is made of: a start, ranks and scales as PEFT has them, an adapter to load, a gradient that is lost."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.errors import DivergedError
from tasks.ingestion.dataset import read_jsonl
from tasks.recipe.schema import Training
from tasks.training.features import features
from tasks.training.packed import pack
from tasks.training.packed.member import Member
from tests.training.jobs import training_job
from tests.training.packed.exact import VOCABULARY, llama, lora, matrices, mean_loss, new_weights, plain
from tests.training.packed.packs import compute_in, pack_job, some_data

MEMBERS: dict[str, dict[str, Any]] = {
    "plain": {"lora": {"r": 4, "target_modules": "all-linear"}},
    "dropping": {"lora": {"r": 4, "lora_dropout": 0.3}, "seed": 1},
    "patterns": {
        "lora": {
            "r": 4,
            "use_rslora": True,
            "target_modules": ("q_proj", "v_proj", "down_proj"),
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6},
            "alpha_pattern": {"v_proj": 64.0},
        }
    },
    "the best": {
        "learning_rate": 5e-2,
        "lr_scheduler_type": "constant",
        "load_best_model_at_end": True,
        "eval_steps": 1,
    },
}
# It hardly moves, and sees all rows in every step: what differs between its steps is what was dropped.
STILL = {
    "lora": {"lora_dropout": 0.3, "init_lora_weights": False},
    "learning_rate": 1e-7,
    "per_device_train_batch_size": 10,
    "eval_steps": 1,
}


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folder with the data and each member's adapter, and what was said of them; in float32."""
    root = tmp_path_factory.mktemp("made")
    data = some_data(root / "data")
    members = {**MEMBERS, "still": STILL}
    jobs = {name: training_job(base, data, root / name, max_steps=8, **one) for name, one in members.items()}
    with pytest.MonkeyPatch.context() as patch:
        compute_in(patch, torch.float32)
        return root, pack.train(pack_job(jobs))["members"]


@pytest.mark.parametrize("name", MEMBERS)
def test_the_saved_adapter_has_in_peft_the_loss_that_it_had_here(
    made: tuple[Path, dict[str, dict[str, Any]]], base: Path, name: str
) -> None:
    root, facts = made
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), root / name)
    rows = features(AutoTokenizer.from_pretrained(base), read_jsonl(root / "data" / "validation.jsonl"))
    with torch.inference_mode():
        loss = mean_loss(model.eval(), rows).item()
        with model.disable_adapter():
            before = mean_loss(model, rows).item()
    assert facts[name]["validation_loss"] == pytest.approx(loss, rel=1e-6)
    assert loss < before - 0.5, "it learned something"


def test_the_best_was_not_the_last(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    facts = made[1]["the best"]
    losses = {one["step"]: one["validation_loss"] for one in facts["curve"] if "validation_loss" in one}
    assert facts["validation_loss"] == losses[facts["best_step"]] == min(losses.values()) < losses[8]


def test_with_dropout_every_token_is_computed(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    facts = made[1]
    assert facts["dropping"]["computed_tokens"] == facts["dropping"]["tokens"]
    assert facts["plain"]["computed_tokens"] < facts["plain"]["tokens"]


def test_every_step_drops_something_else_and_validation_nothing(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    points = made[1]["still"]["curve"]
    losses, looks = ([one[key] for one in points if key in one] for key in ("loss", "validation_loss"))
    assert min(abs(a - b) for at, a in enumerate(losses) for b in losses[:at]) > 1e-4
    assert max(looks) - min(looks) < 1e-4


def test_ranks_by_pattern(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    tensors = load_file(made[0] / "patterns" / "adapter_model.safetensors")
    ranks = {name: len(tensor) for name, tensor in tensors.items() if "lora_A" in name}
    for name, rank in ranks.items():
        assert rank == (2 if "q_proj" in name else 6 if "layers.1.mlp.down_proj" in name else 4), name
    assert len(ranks) == 6


def test_scales_are_those_of_peft() -> None:
    settings = lora(**MEMBERS["patterns"]["lora"])
    model = llama()
    weights = new_weights(model, settings, 0)
    layers = dict(plain(model, settings, weights).get_base_model().named_modules())
    assert {name: one.scaling for name, one in weights.layers.items()} == {
        name: layers[name].scaling["default"] for name in matrices(plain(model, settings, weights))
    }
    assert len({one.scaling for one in weights.layers.values()}) == 4


def test_new_weights_start_as_peft_starts_them() -> None:
    """Another seed is another start, and one that was made before changes nothing."""
    starts = [new_weights(llama(), lora(), seed).flat.data for seed in (0, 1, 0)]
    assert starts[0].equal(starts[2]) and not starts[0].equal(starts[1])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_moves_no_weight(tmp_path: Path, value: float) -> None:
    rows = [{"input_ids": [3, 1, 4], "labels": [-100, 1, 4]}, {"input_ids": [3, 2], "labels": [-100, 2]}]
    training = Training(learning_rate=1e-3).model_dump(mode="json")
    weights = new_weights(llama(), lora(), 0)
    job = {"name": "one", "checkpoints": tmp_path, "training": training}
    member = Member(job, weights, rows, [], vocabulary=VOCABULARY, device="cpu")
    before = weights.flat.data.clone()
    member.window()
    weights.gradient[7] = value
    said = f"the gradient norm is {value} at step 1, learning rate 0.001, rows train.jsonl:1, train.jsonl:2. "
    with pytest.raises(DivergedError, match=re.escape(said)):
        member.end_step(1.5, 15)
    assert weights.flat.data.equal(before)
