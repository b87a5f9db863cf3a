"""Merging by streaming gives what PEFT's merge_and_unload gives, and either a whole model or none."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file

from infra.errors import IntegrityError, StageError
from infra.hashing import digest_file
from tasks.merging import streaming
from tasks.merging.deltas import Added, read_deltas
from tasks.merging.streaming import write_merged
from tasks.merging.weights import Weights
from tests.merging.adapters import (
    DTYPES,
    IDS,
    by_peft,
    changed_tensors,
    loaded,
    save_adapter,
    save_gpt2,
    save_llama,
    save_mixtral,
    unmerged,
)

TARGETS = {
    "llama": (["q_proj"], ["q_proj", "v_proj", "down_proj"], ["k_proj", "o_proj"], "all-linear"),
    "gpt2": (["c_attn"], ["c_proj"], ["c_attn", "c_proj", "c_fc"], "all-linear"),
    "mixtral": (["q_proj", "v_proj"], ["k_proj", "o_proj"]),
}
PATTERNS = ("q_proj", "c_attn", "layers.1.self_attn.v_proj", r"h\.0\.mlp\.c_fc", "down_proj", "c_proj", "no_such")


@st.composite
def merges(draw: st.DrawFn) -> dict[str, Any]:
    family = draw(st.sampled_from(sorted(TARGETS)))
    patterns = st.sampled_from(PATTERNS)
    return {
        "family": family,
        "dtype": draw(st.sampled_from(sorted(DTYPES))),
        "tied": draw(st.booleans()),
        "shard": draw(st.sampled_from(["2KB", "9KB", "40KB", "1GB"])),
        "seed": draw(st.integers(0, 99)),
        "block": draw(st.sampled_from([64, 1000, 1 << 20])),  # bytes: a part of a row, some rows, whole tensors
        "lora": {
            "r": draw(st.integers(1, 9)),
            "lora_alpha": draw(st.sampled_from([1, 3, 16, 7.5])),
            "target_modules": draw(st.sampled_from(TARGETS[family])),
            "use_rslora": draw(st.booleans()),
            "use_dora": draw(st.booleans()),
            "fan_in_fan_out": draw(st.booleans()),  # PEFT puts it right by the layer's type
            "rank_pattern": draw(st.dictionaries(patterns, st.integers(1, 12), max_size=2)),
            "alpha_pattern": draw(st.dictionaries(patterns, st.sampled_from([2, 5.5, 30]), max_size=2)),
        },
    }


def save_base(folder: Path, case: dict[str, Any]) -> Path:
    options = {key: case[key] for key in ("dtype", "shard", "seed")}
    if case["family"] == "llama":
        return save_llama(folder, **options, tied=case["tied"], hidden=32 + 16 * (case["seed"] % 3))
    if case["family"] == "gpt2":
        return save_gpt2(folder, **options, headless=case["tied"])
    return save_mixtral(folder, **options)


def one_step(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal, or neighbours among the numbers of their dtype.

    Rows alone and all rows at once may be multiplied in another order of adding, which moves float32 sums by a step of
    their largest terms; where those cancel each other, that is more than a step of what is left.
    """
    found, expected, eps = found.float(), expected.float(), torch.finfo(expected.dtype).eps
    step = eps * torch.maximum(found.abs(), expected.abs()) + torch.finfo(torch.float32).eps * expected.abs().max()
    return bool(((found - expected).abs() <= step).all())


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(merges())
def test_it_is_what_peft_merges(case: dict[str, Any]) -> None:
    kept = streaming.BLOCK
    with tempfile.TemporaryDirectory() as place:
        base, adapter, output = (Path(place) / name for name in ("base", "adapter", "output"))
        save_base(base, case)
        save_adapter(base, adapter, LoraConfig(**case["lora"]), seed=case["seed"])
        streaming.BLOCK = case["block"]
        try:
            said = write_merged(base, deltas := read_deltas(adapter, Weights(base)), output)
        finally:
            streaming.BLOCK = kept
        merged, reference = loaded(output, case["dtype"]), by_peft(base, adapter, case["dtype"])
        state = merged.state_dict()
        assert state.keys() == reference.keys()
        assert not [name for name in state if not one_step(state[name], reference[name])]
        check_files(base, output, said, deltas)
        if case["dtype"] == "F32":
            with torch.inference_mode():
                assert torch.allclose(merged(IDS).logits, unmerged(base, adapter)(IDS).logits, atol=1e-4)


def check_files(base: Path, output: Path, said: dict[str, Any], targeted: Collection[str]) -> None:
    """Same shards of the same size, digests that are right, and no byte changed outside the `targeted` tensors."""
    old, new = Weights(base), Weights(output)
    assert old.shards == new.shards and old.names == new.names
    assert said["files"] == {path.name: digest_file(path) for path in output.iterdir()}
    changed = changed_tensors(base, output)
    assert changed <= set(targeted) and said["tensors_changed"] == len(changed)
    assert said["tensors_changed"] + said["tensors_copied"] == len(old.names)
    for name in old.names:
        assert old.entry(name) == new.entry(name)
    for shard in old.shards:
        first = min(old.entry(name).start for name in old.names if old.entry(name).shard == shard)
        assert (base / shard).read_bytes()[:first] == (output / shard).read_bytes()[:first]


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    """(a base in bfloat16 of several shards, an adapter)"""
    base = save_llama(tmp_path / "base", dtype="BF16", shard="9KB")
    return base, save_adapter(base, tmp_path / "adapter", LoraConfig(r=3, target_modules=["q_proj", "up_proj"]))


def test_bit_for_bit_in_each_format(tmp_path: Path) -> None:
    for dtype in DTYPES:
        base = save_llama(tmp_path / dtype, dtype=dtype)
        adapter = save_adapter(base, tmp_path / f"{dtype}-adapter", LoraConfig(r=3, target_modules="all-linear"))
        write_merged(base, read_deltas(adapter, Weights(base)), output := tmp_path / f"{dtype}-merged")
        found, expected = Weights(output), by_peft(base, adapter, dtype)
        assert all(torch.equal(found.read(name), expected[name]) for name in found.names)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_is_copied_and_what_is_not(parts: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = parts
    stale = ("model-00001-of-00002.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "model.onnx_data")
    about_the_base = ("manifest.json", "merge.json", "README.md")
    for name in (*stale, *about_the_base, "openvino_model.xml", "modeling.py", ".env"):
        (base / name).write_text("of another time")
    for folder in ("additional_chat_templates", "onnx"):
        (base / folder).mkdir()
        (base / folder / "rag.jinja").write_text("{{ messages }}")
    (base / "LICENSE").write_text("as you like")
    said = write_merged(base, read_deltas(adapter, Weights(base)), tmp_path / "output")
    found = {path.relative_to(tmp_path / "output").as_posix() for path in files_in(tmp_path / "output")}
    shards = set(Weights(base).shards)
    extra = {"model.safetensors.index.json", "config.json", "generation_config.json", "LICENSE"}
    extra |= {"additional_chat_templates/rag.jinja"}
    assert len(shards) > 2 and found == set(said["files"]) == shards | extra
    assert (tmp_path / "output" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert all(digest_file(tmp_path / "output" / name) == digest for name, digest in said["files"].items())


def test_an_update_that_rounding_swallows_counts_as_no_change(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", dtype="BF16")
    name = "model.norm.weight"  # ones: the next larger bfloat16 is 1.0078
    deltas = {name: Added(torch.full((32,), 1e-4)), "lm_head.weight": Added(torch.full((71, 32), 0.5))}
    said = write_merged(base, deltas, tmp_path / "output")
    assert changed_tensors(base, tmp_path / "output") == {"lm_head.weight"} and said["tensors_changed"] == 1
    assert said["tensors_copied"] == len(Weights(base).names) - 1


def test_rounded_tensors_go_through_the_rounding_first(parts: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = parts
    weights, deltas = Weights(base), read_deltas(adapter, Weights(base))
    rounded = [name for name in weights.names if "q_proj" in name or "k_proj" in name]

    def coarse(weight: torch.Tensor) -> torch.Tensor:
        assert weight.dtype == torch.float32 and weight.ndim == 2
        return (weight * 64).round() / 64

    said = write_merged(base, deltas, tmp_path / "output", rounded=rounded, through=coarse)
    merged = Weights(tmp_path / "output")
    for name in weights.names:
        expected = weights.read(name).float()
        expected = coarse(expected) if name in rounded else expected
        expected = deltas[name].apply(expected) if name in deltas else expected
        assert torch.equal(merged.read(name), expected.to(torch.bfloat16)), name
    assert changed_tensors(base, tmp_path / "output") == {*deltas, *rounded}
    assert said["tensors_changed"] == len({*deltas, *rounded})


def test_a_sum_that_is_not_finite_is_an_error_and_leaves_no_weights(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", dtype="F16", shard="9KB")
    with pytest.raises(StageError, match=r"model\.norm\.weight: the merged values are not finite"):
        write_merged(base, {"model.norm.weight": Added(torch.full((32,), 1e5))}, tmp_path / "output")
    assert not list((tmp_path / "output").glob("*.safetensors"))


def test_an_unknown_tensor_is_an_error(parts: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"holds no tensor model\.other"):
        write_merged(parts[0], {"model.other": Added(torch.ones(1))}, tmp_path / "output")


def test_the_base_is_never_written_to(parts: tuple[Path, Path]) -> None:
    base, adapter = parts
    with pytest.raises(StageError, match="is the base itself"):
        write_merged(base, read_deltas(adapter, Weights(base)), base)
    assert load_file(base / Weights(base).shards[0])


def test_a_shard_that_shrinks_while_it_is_read(parts: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = parts
    deltas, last = read_deltas(adapter, Weights(base)), Weights(base).shards[-1]
    os.truncate(base / last, (base / last).stat().st_size - 1)
    with pytest.raises(IntegrityError, match="cut short"):
        write_merged(base, deltas, tmp_path / "output")
    assert not (tmp_path / "output").exists()


FULL_DISK = """
import json, resource, sys
from pathlib import Path
import torch
from tasks.merging.deltas import Added
from tasks.merging.streaming import write_merged
base, output, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
write_merged(base, {"model.norm.weight": Added(torch.ones(32))}, output)
"""


@pytest.mark.slow
def test_a_full_disk_is_found_before_the_work(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    size = (base / "model.safetensors").stat().st_size
    run = [sys.executable, "-c", FULL_DISK, str(base), str(tmp_path / "output"), str(size // 2)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 1 and "StageError" in done.stderr and "no room for model.safetensors" in done.stderr
    assert not list((tmp_path / "output").iterdir())


@pytest.mark.slow
def test_memory_is_a_few_blocks_however_large_a_tensor_is(tmp_path: Path) -> None:
    """The peak is read in a child, because a peak never falls."""
    program = """
import json, resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tasks.merging.deltas import LowRank
from tasks.merging.streaming import write_merged
base = Path(sys.argv[1])
base.mkdir()
size = 48 << 20  # bytes of the file
with (base / "model.safetensors").open("wb") as file:  # sparse: never in memory
    header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2048, 1024], "data_offsets": [0, size]}}).encode()
    file.write(len(header).to_bytes(8, "little") + header)
    file.truncate(8 + len(header) + size)
delta = LowRank(torch.randn(size // 2048, 2), torch.randn(2, 1024), 1.0)
small = LowRank(torch.randn(8, 2), torch.randn(2, 1024), 1.0).apply(torch.zeros(8, 1024))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(write_merged(base, {"w": delta}, Path(sys.argv[2]))["tensors_changed"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = [sys.executable, "-c", program, str(tmp_path / "base"), str(tmp_path / "output")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    changed, kilobytes = done.stdout.split()
    assert changed == "1" and int(kilobytes) < 40_000  # of 48 MiB, twice that in float32


def test_the_index_is_as_it_was(parts: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = parts
    write_merged(base, read_deltas(adapter, Weights(base)), tmp_path / "output")
    index = json.loads((tmp_path / "output" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(Weights(tmp_path / "output").shards)
