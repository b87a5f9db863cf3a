"""Every check of a merged model finds the damage that it is there for; the damage is done to real files."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.errors import StageError
from infra.hashing import digest_file
from tasks.merging.checking import KL_LIMIT, KL_NOISE, check_files, check_sum, check_tensors, reloaded
from tasks.merging.deltas import Added, read_deltas
from tasks.merging.measuring import Closeness
from tasks.merging.rounding import rounding_of
from tasks.merging.streaming import write_merged
from tasks.merging.weights import Weights
from tests.merging.parts import save_adapter
from tests.tiny import save_tiny_base

QUERY = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_base(tmp_path / "base")


@pytest.fixture
def targeted(base: Path, tmp_path: Path) -> set[str]:
    """The tensors of an adapter that was merged into `merged`."""
    deltas = read_deltas(save_adapter(base, tmp_path / "adapter"), Weights(base))
    write_merged(base, deltas, tmp_path / "merged")
    return set(deltas)


def alter(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_merge_as_it_was_written_passes(base: Path, targeted: set[str], tmp_path: Path) -> None:
    check_tensors(Weights(base), Weights(tmp_path / "merged"), targeted)
    assert len(targeted) == 4


def test_a_tensor_that_changed_without_being_targeted_is_found(base: Path, targeted: set[str], tmp_path: Path) -> None:
    alter(tmp_path / "merged", lambda tensors: tensors[NORM][7].neg_())
    with pytest.raises(StageError, match=f"altered 1 tensors that the adapter does not target: {re.escape(NORM)}"):
        check_tensors(Weights(base), Weights(tmp_path / "merged"), targeted)


def test_bytes_are_compared_and_not_numbers(base: Path, targeted: set[str], tmp_path: Path) -> None:
    """0 equals -0 and NaN differs from itself; neither is what "byte for byte" means."""
    for folder, zero in ((base, 0.0), (tmp_path / "merged", -0.0)):
        alter(folder, lambda tensors, zero=zero: tensors[NORM].__setitem__(0, zero))
    with pytest.raises(StageError, match=re.escape(NORM)):
        check_tensors(Weights(base), Weights(tmp_path / "merged"), targeted)
    for folder in (base, tmp_path / "merged"):
        alter(folder, lambda tensors: tensors[NORM].__setitem__(0, torch.nan))
    check_tensors(Weights(base), Weights(tmp_path / "merged"), targeted)


def test_a_targeted_tensor_that_did_not_change_is_found(base: Path, targeted: set[str], tmp_path: Path) -> None:
    alter(tmp_path / "merged", lambda tensors: tensors.update({QUERY: load_file(base / "model.safetensors")[QUERY]}))
    with pytest.raises(StageError, match=f"nothing in 1 of the 4 tensors that it targets: {re.escape(QUERY)}.*exclude"):
        check_tensors(Weights(base), Weights(tmp_path / "merged"), targeted)


def test_rounded_tensors_are_compared_as_they_are_rounded(base: Path, targeted: set[str], tmp_path: Path) -> None:
    """A tensor that a 4-bit base rounds, and that still has the base's own bytes, was not rounded."""
    rounding = rounding_of(base, Weights(base), "cpu")
    deltas = read_deltas(tmp_path / "adapter", Weights(base))
    write_merged(base, deltas, tmp_path / "rounded", rounded=rounding.names, through=rounding.through)
    check_tensors(Weights(base), Weights(tmp_path / "rounded"), targeted, rounding)
    with pytest.raises(StageError, match="altered 10 tensors"):  # 14 are rounded, 4 of them targeted
        check_tensors(Weights(base), Weights(tmp_path / "rounded"), targeted)
    down = "model.layers.1.mlp.down_proj.weight"
    alter(tmp_path / "rounded", lambda tensors: tensors.update({down: load_file(base / "model.safetensors")[down]}))
    with pytest.raises(StageError, match=f"altered 1 tensors.*{re.escape(down)}"):
        check_tensors(Weights(base), Weights(tmp_path / "rounded"), targeted, rounding)


def test_lost_renamed_and_cast_tensors_are_found(base: Path, targeted: set[str], tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    alter(merged, lambda tensors: tensors.update({QUERY: tensors[QUERY].float()}))
    with pytest.raises(StageError, match="made F32"):
        check_tensors(Weights(base), Weights(merged), targeted)
    alter(merged, lambda tensors: tensors.pop(QUERY))
    with pytest.raises(StageError, match=f"lost or added tensors: {re.escape(QUERY)}"):
        check_tensors(Weights(base), Weights(merged), targeted)


def test_files_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"as written")
    digests = {"one": digest_file(tmp_path / "one")}
    check_files(tmp_path, digests)
    (tmp_path / "two").touch()
    with pytest.raises(StageError, match="appeared or vanished since they were written: two"):
        check_files(tmp_path, digests)
    (tmp_path / "two").unlink()
    (tmp_path / "one").write_bytes(b"as writteN")
    with pytest.raises(StageError, match="reads back with digest"):
        check_files(tmp_path, digests)


@pytest.mark.slow
def test_a_model_that_loads_with_tensors_missing_or_left_over_is_refused(
    base: Path, targeted: set[str], tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    assert reloaded(merged, base, "cpu").dtype == torch.bfloat16
    alter(merged, lambda tensors: tensors.update({"model.layers.7.extra": torch.ones(2)}))
    with pytest.raises(StageError, match=r"does not load as the base does: unexpected model\.layers\.7\.extra"):
        reloaded(merged, base, "cpu")
    alter(base, lambda tensors: tensors.update({"model.layers.7.extra": torch.ones(2)}))
    reloaded(merged, base, "cpu")  # the base has it, too
    alter(merged, lambda tensors: tensors.pop(NORM))
    with pytest.raises(StageError, match=rf"missing {re.escape(NORM)}"):
        reloaded(merged, base, "cpu")


@pytest.mark.slow
def test_a_config_of_another_shape_is_refused(base: Path, targeted: set[str], tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    config = json.loads((merged / "config.json").read_text())
    (merged / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(StageError, match=r"unexpected model\.layers\.1"):
        reloaded(merged, base, "cpu")


def of_kl(nats: float) -> Closeness:
    return Closeness(nats, 1.0, 100)


def in_float32(found: float, effect: float) -> Callable[[], tuple[Closeness, Closeness]]:
    return lambda: (of_kl(found), of_kl(effect))


def not_asked() -> tuple[Closeness, Closeness]:
    raise AssertionError("bfloat16 was enough")


def test_a_sum_must_answer_like_base_plus_adapter() -> None:
    said = check_sum("16-bit", of_kl(KL_LIMIT), of_kl(1.0), not_asked)
    assert said == {"compared_in": "bfloat16", "kl_to_own_sum_nats": KL_LIMIT, "kl_allowed_nats": KL_LIMIT}
    with pytest.raises(StageError, match=r"does not answer like base \+ adapter: mean KL 0.0201"):
        check_sum("16-bit", of_kl(KL_LIMIT + 1e-4), of_kl(1.0), not_asked)
    with pytest.raises(StageError, match="mean KL nan"):
        check_sum("16-bit", of_kl(float("nan")), of_kl(1.0), not_asked)


def test_what_bfloat16_cannot_tell_float32_decides() -> None:
    """An adapter of 0.006 nats: half its scale is 0.0015 off, bfloat16 alone 0.002."""
    check_sum("16-bit", of_kl(0.0006), of_kl(0.006), not_asked)
    said = check_sum("16-bit", of_kl(0.002), of_kl(0.006), in_float32(0.0004, 0.005))
    assert said == {"compared_in": "float32", "kl_to_own_sum_nats": 0.0004, "kl_allowed_nats": 0.0005}
    for found in (0.0015, 0.0051, float("nan")):
        with pytest.raises(StageError, match="part of the adapter was lost: in float32"):
            check_sum("16-bit", of_kl(0.002), of_kl(0.006), in_float32(found, 0.006))


def test_a_light_adapter_must_not_be_lost_within_the_tolerance() -> None:
    """However little it does: what float32 and rounding make of the sum is allowed, but not half of the adapter."""
    check_sum("16-bit", of_kl(0.002), of_kl(0.002), in_float32(KL_NOISE, 2 * KL_NOISE))
    check_sum("16-bit", of_kl(0.002), of_kl(0.002), in_float32(0.00004, 0.0001))
    for found, effect in ((0.00006, 0.0001), (0.0001, 0.0001), (KL_NOISE * 1.1, 2 * KL_NOISE)):
        with pytest.raises(StageError, match="part of the adapter was lost"):
            check_sum("16-bit", of_kl(0.002), of_kl(0.002), in_float32(found, effect))


def test_numbers_of_no_known_kind_are_compared_as_bytes(tmp_path: Path) -> None:
    """torch may have no such dtype, but what is only copied is only bytes."""
    said = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "s": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [8, 12]},
    }
    header = json.dumps(said).encode()
    (tmp_path / "base").mkdir()
    file = tmp_path / "base" / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    write_merged(tmp_path / "base", {"a": Added(torch.ones(2))}, tmp_path / "merged")
    check_tensors(Weights(tmp_path / "base"), Weights(tmp_path / "merged"), {"a"})
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(StageError, match="altered 1 tensors that the adapter does not target: s"):
        check_tensors(Weights(tmp_path / "base"), Weights(tmp_path / "merged"), {"a"})
