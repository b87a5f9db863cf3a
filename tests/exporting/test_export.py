"""The way through a process of its own: as a stage of a run, and as the verb `tunefleet export`."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import LoraConfig, get_peft_model
from prefect.logging import disable_run_logger
from transformers import AutoModelForCausalLM

from flows.commands.exporting import export
from infra.errors import RequestError, StageError
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.exporting.task import export_gguf
from tasks.runs import Run, new_run
from tests.tiny import save_tiny_base

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def outside_prefect() -> Iterator[None]:
    with disable_run_logger():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("models") / "model")


def save_adapter(model: Path, folder: Path, **changes: Any) -> None:
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **changes)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora).save_pretrained(folder)


def stored(run: Run, kind: str, name: str, fill: Any) -> StageResult:
    def make(_work: Path, output: Path) -> dict[str, Any]:
        fill(output)
        return {}

    return run.once(Work(kind, 1, kind, name, name, {}), make)


def test_a_run_keeps_the_model_and_its_adapter(model: Path, tmp_path: Path) -> None:
    run = new_run(str(tmp_path / "store"))
    base = stored(run, "bases", "base", save_tiny_base)
    merged = stored(run, "merged", "one", lambda output: save_tiny_base(output, seed=1))
    trained = stored(run, "adapters", "one", lambda output: save_adapter(model, output))
    result = export_gguf.fn(run, "one", merged=merged, trained=trained, base=base, type="q8_0")
    assert result.ref.kind == "ggufs" and not result.cached
    folder = run.store.fetch(result.ref)
    files = {file.name: file.stat().st_size for file in folder.glob("*.gguf")}
    assert files.keys() == {"model-q8_0.gguf", "adapter-f16.gguf"}
    said = {"type": "q8_0", "adapter": True, "bytes": files["model-q8_0.gguf"], "tensors": 20, "architecture": "llama"}
    assert said.items() <= result.facts.items()
    manifest = run.store.manifest(result.ref)
    assert manifest["upstream"] == {"merged": merged.ref.digest, "adapter": trained.ref.digest}
    assert export_gguf.fn(run, "one", merged=merged, trained=trained, base=base, type="q8_0").cached
    assert not export_gguf.fn(run, "one", merged=merged, trained=trained, base=base, type="f16").cached


def test_an_adapter_that_cannot_be_said_is_left_out_and_a_fact_says_why(model: Path, tmp_path: Path) -> None:
    run = new_run(str(tmp_path / "store"))
    base = stored(run, "bases", "base", save_tiny_base)
    merged = stored(run, "merged", "one", lambda output: save_tiny_base(output, seed=1))
    trained = stored(run, "adapters", "one", lambda output: save_adapter(model, output, use_dora=True))
    result = export_gguf.fn(run, "one", merged=merged, trained=trained, base=base, type="f16")
    assert "has a magnitude (use_dora)" in result.facts["adapter"]
    assert [file.name for file in run.store.fetch(result.ref).glob("*.gguf")] == ["model-f16.gguf"]


def test_a_whole_model_has_no_adapter(tmp_path: Path) -> None:
    run = new_run(str(tmp_path / "store"))
    base = stored(run, "bases", "base", save_tiny_base)
    trained = stored(run, "models", "one", lambda output: save_tiny_base(output, seed=1))
    result = export_gguf.fn(run, "one", merged=trained, trained=trained, base=base, type="bf16")
    assert result.facts["adapter"] == "all weights were trained: there is no adapter" and result.facts["tensors"] == 20


def test_the_verb_writes_one_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(model, to=tmp_path / "m.gguf", type="q4_0") == 0
    assert f"{tmp_path}/m.gguf: 20 tensors, 0.1 MB" in capsys.readouterr().out
    save_adapter(model, tmp_path / "adapter")
    assert export(tmp_path / "adapter", to=tmp_path / "a.gguf", base=model) == 0
    assert len(gguf.GGUFReader(tmp_path / "a.gguf").tensors) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "adapter", "m.gguf"]


def test_the_verb_says_all_that_is_wrong(model: Path, tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_bytes(b"mine")
    with pytest.raises(RequestError) as refused:
        export(tmp_path, to=tmp_path / "there.gguf")
    said = [str(fault) for fault in refused.value.faults]
    assert len(said) == 2, said
    assert "no folder with a config.json" in said[0] and "exists already" in said[1]
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(RequestError, match="is an adapter: --base must be the folder of its model"):
        export(tmp_path / "adapter", to=tmp_path / "new.gguf")
    with pytest.raises(RequestError, match="adapters are f16 here; leave out --type q8_0"):
        export(tmp_path / "adapter", to=tmp_path / "new.gguf", base=model, type="q8_0")
    with pytest.raises(RequestError, match="--base is for those"):
        export(model, to=tmp_path / "new.gguf", base=model)
    save_adapter(model, tmp_path / "dora", use_dora=True)
    with pytest.raises(RequestError, match="use_dora"):
        export(tmp_path / "dora", to=tmp_path / "new.gguf", base=model)
    assert (tmp_path / "there.gguf").read_bytes() == b"mine" and not (tmp_path / "new.gguf").exists()


def test_the_verb_says_that_there_are_no_safetensors(model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes((model / "config.json").read_bytes())
    (empty / "pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(RequestError, match=r"empty holds no \*\.safetensors"):
        export(empty, to=tmp_path / "new.gguf")
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(RequestError, match=r"empty holds no \*\.safetensors"):
        export(tmp_path / "adapter", to=tmp_path / "new.gguf", base=empty)


def test_the_verb_names_no_folder_that_is_gone(model: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(model, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(StageError, match="cut short") as failed:
        export(cut, to=tmp_path / "new.gguf")
    assert "by hand" not in str(failed.value) and "job.json" not in str(failed.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]
