"""`tunefleet merge`: adapters that somebody combines by hand, from the command's words to the files it leaves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cyclopts
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from flows.commands.merging import merge
from infra.errors import RequestError, StageError
from tasks.merging import by_hand
from tasks.merging.by_hand import merge_by_hand
from tasks.merging.deltas import Delta, read_deltas
from tasks.merging.weights import Weights
from tests.merging.adapters import save_adapter as save_random_adapter
from tests.merging.adapters import save_llama
from tests.merging.parts import save_adapter
from tests.tiny import save_tiny_base

VALUE = "model.layers.1.self_attn.v_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two adapters of it, `one` and `two`."""
    folder = tmp_path_factory.mktemp("by-hand")
    base = save_tiny_base(folder / "base")
    save_adapter(base, folder / "one", seed=1)
    save_adapter(base, folder / "two", seed=2, r=8, target_modules=("v_proj",))
    return folder


def tunefleet_merge(*words: str | Path) -> int:
    app = cyclopts.App()
    app.command(merge)
    code: int = app(["merge", *map(str, words)], result_action="return_value", exit_on_error=False)
    return code


def update_of(adapter: Path, scale: float) -> torch.Tensor:
    lora = load_file(adapter / "adapter_model.safetensors")
    b, a = (lora[f"base_model.model.{VALUE}.lora_{part}.weight"] for part in "BA")
    return scale * b @ a


@pytest.mark.slow
def test_two_adapters_are_combined_by_ties(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each update the larger half, of these those of the sign that prevails, and their mean (arXiv 2306.01708)."""
    output = tmp_path / "deeper" / "both"
    assert tunefleet_merge(folder / "one", folder / "two", "--by", "ties", "--density", "0.5", "--output", output) == 0
    updates = [update_of(folder / "one", 16 / 4), update_of(folder / "two", 16 / 8)]
    kept = [update * (update.abs() >= update.abs().median()) for update in updates]
    sign = torch.stack(kept).sum(0).sign()
    agree = [(one.sign() == sign) & (one != 0) for one in kept]
    mean = sum(one * on for one, on in zip(kept, agree, strict=True)) / sum(on.int() for on in agree).clamp(min=1)
    before, after = load_file(folder / "base" / "model.safetensors"), load_file(output / "model.safetensors")
    wanted = (before[f"{VALUE}.weight"].float() + mean).to(torch.bfloat16)
    assert (wanted != after[f"{VALUE}.weight"]).float().mean() < 0.01  # which of two middle values is kept may differ
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"} and len(changed) == 4
    note = json.loads((output / "merge.json").read_text())
    assert note["by"] == "ties" and note["verdict"] is None and note["tensors_changed"] == 4
    assert [one["folder"] for one in note["adapters"]] == [str(folder / "one"), str(folder / "two")]
    assert (output / "tokenizer.json").exists() and [path.name for path in output.parent.iterdir()] == ["both"]
    said = capsys.readouterr().out
    assert "2 adapters, combined by ties" in said and "no verdict" in said


@pytest.mark.slow
def test_one_adapter_with_a_weight_and_as_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--weights", "0.5", "--base", folder / "base", "--output", tmp_path / "half", "--json")
    assert tunefleet_merge(folder / "two", *words) == 0
    before = load_file(folder / "base" / "model.safetensors")[f"{VALUE}.weight"].float()
    after = load_file(tmp_path / "half" / "model.safetensors")[f"{VALUE}.weight"]
    assert torch.equal(after, (before + 0.5 * update_of(folder / "two", 16 / 8)).to(torch.bfloat16))
    assert json.loads(capsys.readouterr().out)["adapters"][0]["weight"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("by", "count"), [("linear", 1), ("linear", 2), ("ties", 2), ("dare", 2)])
def test_a_merge_by_hand_is_held_against_what_peft_makes_of_the_adapters(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: Any, count: int
) -> None:
    adapters = [folder / "one", folder / "two"][:count]
    options: Any = {"by": by, "weights": [0.9] * count, "density": 0.5, "seed": 3}
    merge_by_hand(folder / "base", adapters, tmp_path / "right", **options)
    monkeypatch.setattr(by_hand, "read_deltas", read_half)
    with pytest.raises(StageError, match="is not what PEFT's own merge of these adapters gives"):
        merge_by_hand(folder / "base", adapters, tmp_path / "wrong", **options)


@pytest.mark.slow
def test_dora_embeddings_and_whole_modules_are_held_against_peft(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", dtype="BF16")
    lora: Any = {"r": 3, "target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["norm"], "use_dora": True}
    for seed, name in enumerate(("one", "two")):
        save_random_adapter(base, tmp_path / name, LoraConfig(**lora), seed=seed)
    for by, names in (("linear", ["one"]), ("ties", ["one", "two"])):
        adapters = [tmp_path / name for name in names]
        options: Any = {"by": by, "weights": [1.0] * len(names), "density": 0.5, "seed": 0}
        merge_by_hand(base, adapters, tmp_path / by, **options)


@pytest.mark.slow
def test_one_whole_adapter_is_asked_the_same_as_its_merge(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no tensor was computed again, the answers still tell."""
    monkeypatch.setattr(by_hand, "check_against_peft", lambda *given: None)
    monkeypatch.setattr(by_hand, "read_deltas", read_half)
    options: Any = {"by": "linear", "weights": [1], "density": 0.5, "seed": 0}
    with pytest.raises(StageError, match=r"part of the adapter was lost|does not answer like base"):
        merge_by_hand(folder / "base", [folder / "one"], tmp_path / "half", **options)


def read_half(adapter: Path, weights: Weights) -> dict[str, Delta]:
    return {name: replace(one, scale=one.scale / 2) for name, one in read_deltas(adapter, weights).items()}  # type: ignore


@pytest.mark.slow
def test_weights_may_stand_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    words = ("--weights", "0.7", "-0.3", "--by", "dare", "--output", tmp_path / "both")
    assert tunefleet_merge(folder / "one", folder / "two", *words) == 0
    note = json.loads((tmp_path / "both" / "merge.json").read_text())
    assert [one["weight"] for one in note["adapters"]] == [0.7, -0.3] and note["seed"] == 0


def test_a_seed_without_chance_is_refused(folder: Path, tmp_path: Path) -> None:
    for by in ("linear", "ties"):
        with pytest.raises(RequestError, match=f"--seed: given with {by}"):
            tunefleet_merge(folder / "one", folder / "two", "--by", by, "--seed", "0", "--output", tmp_path / "new")


def test_everything_wrong_with_the_words_is_said_at_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").mkdir()
    with pytest.raises(RequestError) as caught:
        tunefleet_merge(
            *(folder / "one", tmp_path / "empty", "--base", tmp_path / "empty", "--output", tmp_path / "there"),
            *("--weights", "1", "--weights", "0", "--weights", "2", "--density", "1.5", "--seed=-1"),
        )
    said = "\n".join(map(str, caught.value.faults))
    for part in (
        "no adapter_config.json and no adapter_model.safetensors",
        "--base:",
        "there exists already",
        "--weights: got 3 for 2 adapters",
        "other than 0",
        "--density: given with linear",
        "--density: got 1.5",
        "--seed: given with linear",
        "--seed: got -1",
    ):
        assert part in said, said
    with pytest.raises(RequestError, match="--by: got dare for one adapter"):
        tunefleet_merge(folder / "one", "--by", "dare", "--output", tmp_path / "new")


def test_adapters_of_two_bases_need_a_word_about_it(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((folder / "one" / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))
    (other / "adapter_model.safetensors").write_bytes((folder / "one" / "adapter_model.safetensors").read_bytes())
    with pytest.raises(RequestError, match=r"--base: the adapters name .*'org/other', which is not one local folder"):
        tunefleet_merge(folder / "one", other, "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_adapters_of_two_bases_are_told_and_noted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_adapter(folder / "base", tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))
    words = ("--base", folder / "base", "--output", tmp_path / "both", "--json")
    assert tunefleet_merge(folder / "one", other, *words) == 0
    captured = capsys.readouterr()
    assert f"name different bases: {folder / 'base'}, org/other; merged into {folder / 'base'}" in captured.err
    assert [one["trained_on"] for one in json.loads(captured.out)["adapters"]] == [str(folder / "base"), "org/other"]


@pytest.mark.slow
def test_a_merge_that_fails_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    save_adapter(folder / "base", tmp_path / "idle", std=0)
    with pytest.raises(StageError, match="changes nothing in 4 of the 4 tensors"):
        tunefleet_merge(tmp_path / "idle", "--output", tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["idle"]
    larger = save_adapter(folder / "base", tmp_path / "larger")
    lora = json.loads((larger / "adapter_config.json").read_text())
    (larger / "adapter_config.json").write_text(json.dumps({**lora, "r": 5}))
    with pytest.raises(RequestError, match=r"adapter_config\.json says rank 5"):
        tunefleet_merge(larger, "--output", tmp_path / "made")
    assert not (tmp_path / "made").exists()
