"""What TRL makes of a job, the packed engine makes of it: curves, weights, files, where it stops and what it keeps.

In float32 the engines differ by the order of sums, 6e-8 of a number. Weights are within TOLERANCE of each other: AdamW
divides a gradient by its own size, so what is rounded in it counts in full, times learning rate and steps. In bfloat16
a product is rounded at 4e-3, so a weight whose gradient is about nothing may go either way: there all weights together
are held against each other, as the norm of their difference over their norm.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.training.packed import pack
from tasks.training.train import train as train_with_trl
from tests.tiny import tiny_tokenizer
from tests.training.jobs import training_job
from tests.training.packed.packs import compute_in, pack_job, some_data

pytestmark = pytest.mark.slow

TOLERANCE = 2e-6
IN_16_BITS = 0.06  # of the norm; another seed of the same adapter is 1.4 away
ALL = {"target_modules": "all-linear"}
MEMBERS: dict[str, dict[str, Any]] = {
    "accumulating": {"max_steps": 9, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "lora": ALL,
                     "warmup_steps": 3, "lr_scheduler_type": "cosine", "weight_decay": 0.1, "seed": 1, "eval_steps": 2},
    "fractions": {"max_steps": None, "num_train_epochs": 2.4, "warmup_steps": 0.3, "seed": 2, "eval_steps": 0.3},
    "by length": {"max_steps": 7, "per_device_train_batch_size": 3, "group_by_length": True, "seed": 3,
                  "lora": {"r": 8, "lora_alpha": 4, "use_rslora": True, "rank_pattern": {"q_proj": 2}}},
    "keeping the best": {"max_steps": 40, "per_device_train_batch_size": 10, "lr_scheduler_type": "constant", "seed": 2,
                         "early_stopping_patience": 1, "load_best_model_at_end": True, "eval_steps": 2,
                         "lora": {**ALL, "r": 2}},
}  # fmt: skip
# It steps over a ridge, where the gradient is ten times as large as before and behind: so are the differences.
ON_A_RIDGE = {"keeping the best": 10}
FIGURES = ("trainable_params", "total_params", "steps", "planned_steps", "stopped_early", "tokens", "best_step", "seed",
           "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "device")  # fmt: skip


@dataclass(frozen=True)
class Trained:
    facts: dict[str, Any]
    output: Path

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.output / "adapter_model.safetensors")

    @property
    def curve(self) -> list[dict[str, float]]:
        return self.facts["curve"]

    def away_from(self, other: "Trained") -> float:
        ours, its = (torch.cat([one.tensors[name].flatten() for name in sorted(one.tensors)]) for one in (self, other))
        return float((ours - its).norm() / its.norm())


Members = dict[str, dict[str, Any]]
Both = tuple[Trained, Trained]  # by TRL, by the packed engine


def jobs(base: Path, root: Path, members: Members) -> Members:
    data = root / "data" if (root / "data").exists() else some_data(root / "data")
    return {name: training_job(base, data, root / name, **one) for name, one in members.items()}


def by_pack(base: Path, root: Path, members: Members) -> dict[str, Trained]:
    """What one pack made of all."""
    own = jobs(base, root, members)
    figures = pack.train(pack_job(own))["members"]
    return {name: Trained(figures[name], Path(job["output"])) for name, job in own.items()}


def by_both(base: Path, root: Path, members: Members) -> dict[str, Both]:
    ours = by_pack(base, root / "packed", members)
    own = jobs(base, root / "trl", members)
    return {
        name: (Trained(train_with_trl(job, root / "work" / name), Path(job["output"])), ours[name])
        for name, job in own.items()
    }


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    with pytest.MonkeyPatch.context() as patch:
        compute_in(patch, torch.float32)
        return by_both(base, tmp_path_factory.mktemp("llama"), MEMBERS)


def assert_equal(trl: Trained, ours: Trained, tolerance: float) -> None:
    assert [sorted(point) for point in ours.curve] == [sorted(point) for point in trl.curve]
    for own, its in zip(ours.curve, trl.curve, strict=True):
        assert own == pytest.approx(its, rel=tolerance, abs=tolerance)
        assert {key: own.get(key) for key in ("step", "tokens")} == {key: its.get(key) for key in ("step", "tokens")}
    for name, tensor in trl.tensors.items():
        torch.testing.assert_close(ours.tensors[name], tensor, rtol=0, atol=tolerance)


def assert_same_files(trl: Trained, ours: Trained) -> None:
    names = [sorted(path.name for path in one.output.iterdir()) for one in (trl, ours)]
    assert names[0] == names[1] == ["adapter_config.json", "adapter_model.safetensors"]
    config, own_config = ((one.output / "adapter_config.json").read_bytes() for one in (trl, ours))
    assert own_config == config
    shapes, own_shapes = ({name: (one.shape, one.dtype) for name, one in some.tensors.items()} for some in (trl, ours))
    assert own_shapes == shapes


@pytest.mark.parametrize("name", MEMBERS)
def test_the_same_comes_out_in_float32(trained: dict[str, Both], name: str) -> None:
    trl, ours = trained[name]
    assert_equal(trl, ours, TOLERANCE * ON_A_RIDGE.get(name, 1))
    assert_same_files(trl, ours)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_same_figures_are_told(trained: dict[str, Both], name: str) -> None:
    trl, ours = trained[name]
    assert {key: ours.facts[key] for key in FIGURES} == {key: trl.facts[key] for key in FIGURES}
    assert ours.facts["loss"] == pytest.approx(trl.facts["loss"], rel=10 * TOLERANCE)
    assert ours.facts["validation_loss"] == pytest.approx(trl.facts["validation_loss"], rel=10 * TOLERANCE)
    assert ours.facts.keys() - trl.facts.keys() == {"computed_tokens", "pack"} and not trl.facts.keys() - ours.facts
    assert [sorted(point) for point in ours.facts["pace"]] == [sorted(point) for point in trl.facts["pace"]]
    assert ours.facts["computed_tokens"] < ours.facts["tokens"], "all rows begin alike"


def test_each_took_the_turn_that_it_was_made_for(trained: dict[str, Both]) -> None:
    facts = {name: ours.facts for name, (_, ours) in trained.items()}
    best = facts["keeping the best"]
    assert (best["stopped_early"], best["best_step"], best["steps"]) == (True, 8, 10)
    assert best["validation_loss"] == min(one["validation_loss"] for one in best["curve"] if "validation_loss" in one)
    assert facts["fractions"]["steps"] == 8, "2.4 epochs of 3 steps"
    assert facts["accumulating"]["steps"] == 9, "three epochs, whose last steps have two rows"


def test_gpt2_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_in(monkeypatch, torch.float32)
    torch.manual_seed(0)
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, **off)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    settings = {"max_steps": 6, "learning_rate": 2e-3}
    members = {"its own choice": {**settings, "lora": {"target_modules": None}}, "all": {**settings, "lora": ALL}}
    for trl, ours in by_both(tmp_path / "base", tmp_path, members).values():
        assert_equal(trl, ours, TOLERANCE)
        assert_same_files(trl, ours)


SHORT: dict[str, dict[str, Any]] = {
    "all": {"max_steps": 8, "lora": ALL, "eval_steps": 3},
    "some": {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "seed": 1},
}


def test_in_bfloat16_it_is_no_further_from_float32_than_trl(base: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        compute_in(patch, torch.float32)
        exact = by_pack(base, tmp_path / "exact", SHORT)
    rounded = by_both(base, tmp_path / "rounded", SHORT)
    away = [[one.away_from(exact[name]) for one in rounded[name]] for name in SHORT]
    trl, ours = map(sum, zip(*away, strict=True))
    assert 0 < ours < 1.5 * trl < IN_16_BITS * len(SHORT)


def test_on_four_bits_whether_or_not_what_they_stand_for_is_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {name: {**one, "job": {"method": "qlora"}} for name, one in SHORT.items()}
    monkeypatch.setattr(pack, "keeps_dequantised", lambda *_: True)
    kept = by_both(base, tmp_path / "kept", members)
    monkeypatch.setattr(pack, "keeps_dequantised", lambda *_: False)
    made_again = by_pack(base, tmp_path / "made again", members)
    for name, (trl, ours) in kept.items():
        assert ours.away_from(trl) < IN_16_BITS
        losses, own_losses = ([one["loss"] for one in some.curve if "loss" in one] for some in (trl, ours))
        assert own_losses == pytest.approx(losses, rel=5e-3)
        assert_same_files(trl, ours)
        weights, same_weights = (one.output / "adapter_model.safetensors" for one in (ours, made_again[name]))
        assert weights.read_bytes() == same_weights.read_bytes() and ours.curve == made_again[name].curve
