"""One data set, every method: trained adapters and models beside the base that is only prompted."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.errors import RequestError
from tasks.reporting.summary import exit_code
from tasks.reporting.table import print_summary
from tests.flows.conftest import FinishedRun
from tests.flows.recipes import write_methods_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mixed(prefect_api: None, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    from flows.train_adapters import train_adapters

    folder = tmp_path_factory.mktemp("methods")
    recipe = write_methods_recipe(folder, tiny_base)
    summary = train_adapters(str(recipe), store=str(folder / "store"))
    return FinishedRun(folder, recipe, folder / "store", summary)


def member(run: FinishedRun, name: str) -> dict[str, Any]:
    return next(one for one in run.summary["adapters"] if one["name"] == name)


def records(run: FinishedRun, cell: str) -> list[dict[str, Any]]:
    (path,) = (run.store / "scores").glob(f"{cell}-*")
    return pq.read_table(path / "records.parquet").to_pylist()


def test_trained_members_pass_a_gate_and_prompts_have_none(mixed: FinishedRun) -> None:
    for name in ("tuned", "whole"):
        assert (member(mixed, name)["status"], member(mixed, name)["verdict"]) == ("published", "PASS"), name
    for name in ("bare", "shown"):
        prompt = member(mixed, name)
        assert (prompt["status"], prompt["verdict"], prompt["published"]) == ("compared", None, [])
        assert prompt["trainable_params"] is None and prompt["error"] is None
    assert exit_code(mixed.summary) == 0


def test_a_prompt_is_compared_with_the_base_on_its_own_rows_alone(mixed: FinishedRun) -> None:
    assert [task["task"] for task in member(mixed, "bare")["tasks"]] == ["bare.held_out"]
    assert [task["task"] for task in member(mixed, "shown")["tasks"]] == ["shown.held_out", "shown.train"]
    assert not any(task["decides"] for name in ("bare", "shown") for task in member(mixed, name)["tasks"])
    (bare,) = member(mixed, "bare")["tasks"]
    assert (bare["n"], bare["delta"], bare["flips"]) == (12, 0, {"lost": 0, "gained": 0}), "it is the base itself"
    assert not list((mixed.store / "scores").glob("bare-*")), "and nothing was scored for it"


def test_the_base_is_scored_once_for_all_methods(mixed: FinishedRun) -> None:
    sides = [path.name.split("-")[:2] for path in (mixed.store / "scores").glob("base-*")]
    assert sorted(cell for _, cell in sides) == [
        "capitals_choice",
        "own_texts",
        "probes",
        "shown.train",
        "tuned.held_out",
    ]
    assert mixed.summary["base"]["quantization"] == "none"
    (probe,) = mixed.summary["probes"]
    assert probe["answers"].keys() == {"base", "tuned", "whole"}


def test_examples_stand_before_the_question_and_never_answer_it(mixed: FinishedRun) -> None:
    (stored,) = (mixed.store / "prompts").glob("shown-*")
    content = json.loads((stored / "prompt.json").read_text())
    assert content["num_fewshot"] == 2 and len(content["shots"]) == 3
    for split in ("held_out", "train"):
        for record in records(mixed, f"shown-shown.{split}"):
            *shots, asked = record["prompt"].split("<|im_start|>user\n")[1:]
            assert len(shots) == 2 and all(shot.endswith("assistant\nok<|im_end|>\n") for shot in shots)
            question = asked.split("<|im_end|>")[0]
            assert question not in [shot.split("<|im_end|>")[0] for shot in shots]
            assert asked.endswith("<|im_start|>assistant\n")


def test_the_report_says_whether_training_was_worth_it(mixed: FinishedRun) -> None:
    found = {(one["adapter"], one["over"]): one for one in mixed.summary["comparisons"]}
    assert found.keys() == {(trained, prompt) for trained in ("tuned", "whole") for prompt in ("bare", "shown")}
    for (trained, prompt), one in found.items():
        scores = {
            name: sum(record["score"] for record in records(mixed, f"{side}.held_out")) / 12
            for name, side in (("tuned", "tuned-tuned"), ("whole", "whole-whole"), ("shown", "shown-shown"))
        } | {"bare": member(mixed, "bare")["tasks"][0]["base"]}
        assert (one["adapter_score"], one["over_score"]) == (scores[trained], scores[prompt])
        assert (one["n"], one["answer"]) == (12, "yes")
    printed = Console(file=io.StringIO(), width=160)
    print_summary(mixed.summary, printed)
    text = printed.file.getvalue()  # type: ignore[attr-defined]
    assert "Was training worth it over prompting?" in text and text.count(" yes ") == 4
    assert "shown  COMPARED  prompt, nothing trained, 2 examples" in text and "not published" not in text


def test_a_fully_fine_tuned_model_is_published_as_it_is(mixed: FinishedRun) -> None:
    whole = member(mixed, "whole")
    (place,) = whole["published"]
    assert place["what"] == "merged" and whole["merged_uri"] is None
    folder = Path(place["uri"])
    assert {"config.json", "model.safetensors", "README.md", "tunefleet.json"} <= {p.name for p in folder.iterdir()}
    assert (folder / "model.safetensors").read_bytes() == (
        Path(whole["adapter_uri"]) / "model.safetensors"
    ).read_bytes()
    card = (folder / "README.md").read_text()
    assert "fully fine-tuned model" in card and "LoRA" not in card and "peft" not in card
    assert json.loads((folder / "tunefleet.json").read_text())["made_by"] is None
    tokenizer, model = (kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoModelForCausalLM))
    ids = tokenizer("<|im_start|>user\nQuestion 99?<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt").input_ids
    answer = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer) == "ok<|im_end|>"


def test_a_second_run_makes_nothing_again(mixed: FinishedRun) -> None:
    from flows.train_adapters import train_adapters

    again = train_adapters(str(mixed.recipe), store=str(mixed.store))
    assert {kind: count["misses"] for kind, count in again["cache"].items()} == dict.fromkeys(again["cache"], 0)
    assert again["comparisons"] == mixed.summary["comparisons"]


def test_more_examples_than_rows_are_refused_before_any_training(mixed: FinishedRun, tmp_path: Path) -> None:
    from flows.train_adapters import train_adapters
    from tasks.recipe.loading import load_recipe

    recipe = load_recipe(mixed.recipe, ["adapters.shown.num_fewshot=16"])
    with pytest.raises(RequestError, match=r"17 training rows with different prompts are needed .* there are 16"):
        train_adapters(recipe, store=str(tmp_path / "store"))
    assert not (tmp_path / "store" / "adapters").exists()
