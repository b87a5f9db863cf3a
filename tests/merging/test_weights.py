"""Headers are believed only as far as they fit the file, and which files count is what transformers would load."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from infra.errors import IntegrityError, RequestError, StageError
from tasks.merging.deltas import Added
from tasks.merging.naming import stored_name
from tasks.merging.streaming import write_merged
from tasks.merging.weights import Weights
from tests.merging.adapters import save_llama

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "none": torch.empty(0, 4),
}


def save_sharded(folder: Path) -> Path:
    folder.mkdir()
    save_file({"a": TENSORS["a"]}, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    save_file({"b": TENSORS["b"]}, folder / "model-00002-of-00002.safetensors")
    placed = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def test_reads_what_was_saved(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    weights = Weights(tmp_path)
    assert set(weights.names) == set(TENSORS) and weights.shards == ["model.safetensors"]
    for name, tensor in TENSORS.items():
        found = weights.read(name)
        assert found.dtype == tensor.dtype and torch.equal(found, tensor)
    entry = weights.entry("a")
    raw = (tmp_path / "model.safetensors").read_bytes()[entry.start : entry.end]
    assert raw == TENSORS["a"].numpy().tobytes() and (entry.dtype, entry.shape) == ("F32", (2, 3))
    starts = [weights.entry(name).start for name in weights.names]
    assert starts == sorted(starts)


def test_a_copy_of_its_own(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    weights = Weights(tmp_path)
    weights.read("a").zero_()
    assert torch.equal(weights.read("a"), TENSORS["a"])


def test_a_stale_shard_is_no_part_of_the_model(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "base")
    save_file({"old": torch.ones(2)}, folder / "model-00001-of-00009.safetensors")
    weights = Weights(folder)
    assert weights.names == ["a", "b"] and torch.equal(weights.read("a"), TENSORS["a"])
    assert weights.index == folder / "model.safetensors.index.json"


def test_a_single_file_goes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "base", shard="9KB", seed=5)
    (save_llama(tmp_path / "other", seed=6) / "model.safetensors").rename(folder / "model.safetensors")
    weights = Weights(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert weights.shards == ["model.safetensors"] and weights.index is None
    assert all(torch.equal(weights.read(name), model[name]) for name in weights.names)
    said = write_merged(folder, {"model.norm.weight": Added(torch.ones(32))}, tmp_path / "output")
    assert set(said["files"]) == {"model.safetensors", "config.json", "generation_config.json"}


def test_another_stem(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"]}, tmp_path / "adapter_model.safetensors")
    assert Weights(tmp_path, "adapter_model").names == ["a"]


def test_several_files_without_an_index(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "base")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(
        RequestError, match=r"00001-of-00002.* needed is model\.safetensors, or model\.saf.*index\.json"
    ):
        Weights(folder)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds nothing; needed is"):
        Weights(tmp_path)
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).touch()
    with pytest.raises(RequestError, match=r"holds config\.json, pytorch_model\.bin; needed is model\.safetensors,"):
        Weights(tmp_path)


def test_an_unknown_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(StageError, match="holds no tensor c; it holds 4 others"):
        Weights(tmp_path).read("c")


@pytest.mark.parametrize("kept", [0, 4, 8, 20, -1, -40])
def test_a_file_cut_short(tmp_path: Path, kept: int) -> None:
    save_file(TENSORS, path := tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(IntegrityError, match="fetch it again"):
        Weights(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{not json",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',  # eight bytes in four
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',  # a hole before it
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], '
        b'"data_offsets": [0, 8]}}',  # two in one place
    ],
)
def test_a_header_that_does_not_fit(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        Weights(tmp_path)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (
            '{"weight_map": {"a": "model-00003-of-00002.safetensors"}}',
            "names model-00003-of-00002.safetensors, which is",
        ),
        ('{"weight_map": {"c": "model-00001-of-00002.safetensors"}}', "says that c is in model-00001-of-00002"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "allowed are files beside it"),
        ('{"weights": {}}', "has no weight_map"),
        ("{", "is no JSON"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, index: str, said: str) -> None:
    folder = save_sharded(tmp_path / "base")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(IntegrityError, match=said):
        Weights(folder)


def test_one_name_in_two_shards(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "base")
    save_file(TENSORS, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(IntegrityError, match="a is both in"):
        Weights(folder)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.0.q.weight", "model.layers.0.q.weight"),
        ("layers.1.q.weight", "model.layers.1.q.weight"),
        ("outer.model.layers.1.q.weight", "model.layers.1.q.weight"),
    ],
)
def test_a_prefix_is_bridged(name: str, found: str) -> None:
    assert stored_name(name, ["model.layers.0.q.weight", "model.layers.1.q.weight", "weight"]) == found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("q.weight", "could be model.layers.0.q.weight, model.layers.1.q.weight"),
        ("model.layers.2.q.weight", "nearest are model.layers.1.q.weight"),
        ("visual", "nothing like it"),
    ],
)
def test_no_other_difference_is(name: str, said: str) -> None:
    with pytest.raises(LookupError, match=said):
        stored_name(name, ["model.layers.0.q.weight", "model.layers.1.q.weight", "weight"])
