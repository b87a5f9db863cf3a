"""Merging from files to files: what is added to what, which candidate is kept, and that a failure leaves nothing."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tasks.merging.checking as checking
import tasks.merging.merge as merging
from infra.errors import RequestError, StageError
from infra.hashing import digest_file
from tasks.caching import Work
from tasks.merging.deltas import Delta, read_deltas
from tasks.merging.merge import merge
from tasks.merging.rounding import through_nf4
from tasks.merging.weights import Weights
from tasks.runs import child, new_run
from tests.merging.parts import save_adapter, save_rows
from tests.tiny import save_tiny_base

pytestmark = pytest.mark.slow
VALUE = "model.layers.1.self_attn.v_proj"
Parts = tuple[Path, Path, Path]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """(base, an adapter with random weights, a folder with three held-out rows)."""
    base = save_tiny_base(tmp_path / "base")
    return base, save_adapter(base, tmp_path / "adapter"), save_rows(tmp_path / "data")


def merged(parts: Parts, output: Path, quantization: Any = "none", into: Any = "closest") -> dict[str, Any]:
    return merge(*parts, output, quantization=quantization, into=into, device="cpu")


def update_of(adapter: Path, module: str) -> torch.Tensor:
    lora = load_file(adapter / "adapter_model.safetensors")
    b, a = (lora[f"base_model.model.{module}.lora_{part}.weight"] for part in "BA")
    return 4.0 * b @ a  # lora_alpha / r = 16 / 4


def test_the_merged_model_is_base_plus_adapter(parts: Parts, tmp_path: Path) -> None:
    base, adapter, _ = parts
    facts = merged(parts, tmp_path / "merged")
    assert facts["into"] == "16-bit" and list(facts["measured"]) == ["16-bit"] and facts["dtype"] == "BF16"
    assert facts["tensors_changed"] == 4 and facts["tensors_copied"] == 16 and facts["checked_rows"] == 3
    assert facts["mean_kl_nats"] < 0.001 < facts["adapter_kl_nats"] and facts["top1_agreement"] > 0.95
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"} and len(changed) == 4
    wanted = (before[f"{VALUE}.weight"].float() + update_of(adapter, VALUE)).to(torch.bfloat16)
    assert torch.equal(after[f"{VALUE}.weight"], wanted)


def test_it_answers_as_the_unmerged_adapter_with_the_same_tokenizer(parts: Parts, tmp_path: Path) -> None:
    base, adapter, _ = parts
    merged(parts, tmp_path / "merged")
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path / "merged")]
    chat = [{"role": "user", "content": "hello"}]
    one, other = (tokenizer.apply_chat_template(chat, return_tensors="pt").input_ids for tokenizer in tokenizers)
    assert torch.equal(one, other)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    with torch.inference_mode():
        assert torch.allclose(model(one).logits, unmerged(one).logits, atol=0.3)


def test_of_a_4_bit_base_the_closest_candidate_is_kept_and_both_are_told(parts: Parts, tmp_path: Path) -> None:
    base, adapter, _ = parts
    facts = merged(parts, tmp_path / "merged", "nf4")
    exact, rounded = facts["measured"]["16-bit"], facts["measured"]["4-bit"]
    assert facts["into"] == "4-bit" and rounded["mean_kl_nats"] < exact["mean_kl_nats"] / 10
    assert facts["mean_kl_nats"] == rounded["mean_kl_nats"] and rounded["positions"] == exact["positions"] > 30
    assert exact["kl_to_own_sum_nats"] < 0.001  # the far candidate is a right sum all the same
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    weight = through_nf4(before[f"{VALUE}.weight"]).float() + update_of(adapter, VALUE)
    assert torch.equal(after[f"{VALUE}.weight"], weight.to(torch.bfloat16))
    assert facts["tensors_targeted"] == 4 and facts["tensors_changed"] == 14  # all that are rounded
    untargeted = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after[untargeted], through_nf4(before[untargeted]))
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_the_candidate_that_was_measured_first_is_written_again_if_it_is_closer(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the candidates the other way round, the closer one gives way to the second and comes back."""
    merged(parts, tmp_path / "one", "nf4")
    monkeypatch.setitem(merging.CANDIDATES, "nf4", ("4-bit", "16-bit"))
    assert merged(parts, tmp_path / "other", "nf4")["into"] == "4-bit"
    digests = [digest_file(tmp_path / name / "model.safetensors") for name in ("one", "other")]
    assert digests[0] == digests[1]


def test_a_recipe_may_say_which_candidate(parts: Parts, tmp_path: Path) -> None:
    facts = merged(parts, tmp_path / "merged", "nf4", "16-bit")
    assert facts["into"] == "16-bit" and list(facts["measured"]) == ["16-bit"] and facts["mean_kl_nats"] > 0.005
    merged(parts, tmp_path / "plain")
    digests = [digest_file(tmp_path / name / "model.safetensors") for name in ("merged", "plain")]
    assert digests[0] == digests[1]
    facts = merged(parts, tmp_path / "rounded", "nf4", "4-bit")
    assert facts["into"] == "4-bit" and list(facts["measured"]) == ["4-bit"]
    with pytest.raises(RequestError, match=r"was not rounded to 4 bits.*allowed are 16-bit and closest"):
        merged(parts, tmp_path / "none", "none", "4-bit")


def test_a_merge_that_answers_differently_is_an_error_and_leaves_nothing(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "KL_LIMIT", 1e-9)
    with pytest.raises(StageError, match="does not answer like base"):
        merged(parts, tmp_path / "merged")
    assert list((tmp_path / "merged").iterdir()) == []


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("std", [0.003, 0.008, 0.03])
def test_a_merge_that_lost_a_part_of_the_adapter_is_refused_however_light_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, std: float, quantization: Any
) -> None:
    """From an effect far below bfloat16's own noise to one far above; the honest merge of the same adapter passes."""
    base = save_tiny_base(tmp_path / "base")
    parts = base, save_adapter(base, tmp_path / "adapter", std=std), save_rows(tmp_path / "data")
    found = merged(parts, tmp_path / "merged", quantization)["measured"]
    assert all(one["kl_to_own_sum_nats"] <= one["kl_allowed_nats"] for one in found.values())
    for lost in (0.5, 0.02):
        monkeypatch.setattr(merging, "read_deltas", partial(read_at_another_scale, lost))
        with pytest.raises(StageError, match=r"part of the adapter was lost|does not answer like base"):
            merged(parts, tmp_path / "merged", quantization)


def read_at_another_scale(factor: float, adapter: Path, weights: Weights) -> dict[str, Delta]:
    deltas = read_deltas(adapter, weights)
    return {name: replace(delta, scale=delta.scale * factor) for name, delta in deltas.items()}  # type: ignore


@pytest.mark.parametrize("std", [0, 1e-12])
def test_an_adapter_that_leaves_a_targeted_tensor_as_it_is_cannot_be_merged(std: float, tmp_path: Path) -> None:
    """Its update is zero, or vanishes beside the base's numbers."""
    base = save_tiny_base(tmp_path / "base")
    parts = base, save_adapter(base, tmp_path / "adapter", std=std), save_rows(tmp_path / "data")
    with pytest.raises(StageError, match=r"changes nothing in 4 of the 4 tensors.*Release the adapter itself"):
        merged(parts, tmp_path / "merged")
    assert list((tmp_path / "merged").iterdir()) == []


def test_a_disturbed_merge_leaves_nothing_in_the_store(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(str(tmp_path / "store"))
    monkeypatch.setattr(checking, "KL_LIMIT", 1e-9)
    work = Work("merge", 2, "merged", "x", {}, {})
    with pytest.raises(StageError):
        run.once(work, lambda _work, output: merged(parts, output))
    assert run.store.list_names("merged") == [] and run.store.lookup("merge", work.key) is None
    monkeypatch.undo()
    done = run.once(work, lambda _work, output: merged(parts, output))
    manifest = run.store.manifest(done.ref)
    assert json.dumps(manifest["facts"]) == json.dumps(done.facts) and done.facts["into"] == "16-bit"


def test_it_runs_as_a_process_of_its_own(parts: Parts, tmp_path: Path) -> None:
    """And leaves nothing but the job's folder when it is refused."""
    inputs = dict(zip(("base", "adapter", "data"), map(str, parts), strict=True))
    job = {**inputs, "output": str(tmp_path / "merged"), "quantization": "none", "into": "closest", "device": "cpu"}
    facts = child("tasks.merging", job, tmp_path / "work", on_line=print)
    assert facts["into"] == "16-bit" and (tmp_path / "merged" / "model.safetensors").exists()
    with pytest.raises(RequestError, match="was not rounded to 4 bits"):
        child(
            "tasks.merging", {**job, "into": "4-bit", "output": str(tmp_path / "x")}, tmp_path / "work", on_line=print
        )
    assert not (tmp_path / "x").exists()
