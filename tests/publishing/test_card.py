"""The model card: what the Hub indexes of it, and that data stay text in it."""

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from tasks.publishing.card import render_card
from tests.publishing.hub_server import card_errors

TASK: dict[str, Any] = {
    "task": "capitals",
    "role": "target",
    "metric": "exact_match",
    "n": 200,
    "base": 0.125,
    "adapter": 0.875,
    "delta": 0.75,
    "ci_low": 0.6875,
    "ci_high": 0.8125,
    "margin": 0.02,
    "verdict": "PASS",
}
FACTS: dict[str, Any] = {
    "name": "capitals",
    "what": "adapter",
    "base_model": "acme/tiny-llama",
    "base_revision": "main",
    "base_digest": "b" * 64,
    "base_license": "apache-2.0",
    "method": "lora",
    "data_digest": "d" * 64,
    "recipe": "capitals.yaml",
    "training": {"steps": 40, "loss": 0.123456},
    "tasks": [TASK],
    "verdict": "PASS",
    "reasons": ["learned its task"],
}


def render(**changes: Any) -> str:
    return render_card(**{**FACTS, **changes})


def front_matter(card: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return data


def snippet(card: str) -> str:
    found = re.search(r"\n```python\n(.*?)\n```\n", card, re.DOTALL)
    assert found is not None
    return found.group(1)


def cells(line: str) -> list[str]:
    """The cells of a table's row, as a markdown reader splits it."""
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


def test_the_hub_can_index_an_adapter():
    data = front_matter(render())
    assert data["base_model"] == "acme/tiny-llama"
    assert data["base_model_relation"] == "adapter"
    assert data["library_name"] == "peft"
    assert data["license"] == "apache-2.0"
    assert "tunefleet" in data["tags"]
    assert card_errors(render()) == []


def test_the_hub_can_index_a_merged_model():
    data = front_matter(render(what="merged"))
    assert (data["library_name"], data["base_model_relation"]) == ("transformers", "finetune")


def test_a_fully_fine_tuned_model_is_not_called_an_adapter():
    card = render(what="merged", method="full")
    data = front_matter(card)
    assert (data["library_name"], data["base_model_relation"]) == ("transformers", "finetune")
    assert "full" in data["tags"] and "lora" not in data["tags"]
    assert "A fully fine-tuned model (all weights trained) made from acme/tiny-llama" in card
    assert "LoRA" not in card and "peft" not in card.lower()
    assert card_errors(card) == []


def test_results_come_back_as_they_went_in():
    other = TASK | {"task": "arithmetic", "role": "general", "adapter": 0.5}
    data: Any = ModelCard(render(tasks=[TASK, other])).data
    first, second = data.eval_results
    assert (first.dataset_name, first.metric_type, first.metric_value) == ("capitals", "exact_match", 0.875)
    assert (second.dataset_name, second.metric_value) == ("arithmetic", 0.5)


def test_the_table_shows_every_figure():
    line = next(line for line in render().splitlines() if line.startswith("| capitals"))
    assert cells(line) == [
        *("capitals", "target", "exact\\_match", "200", "0.125", "0.875", "0.75", "0.6875 to 0.8125", "0.02", "PASS")
    ]


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
def test_what_was_not_measured_is_no_result(score: float | None):
    empty = dict.fromkeys(TASK) | {"task": "capitals", "metric": "exact_match", "adapter": score}
    card = render(tasks=[empty])
    assert "model-index" not in front_matter(card)
    assert "not measured" in card
    assert card_errors(card) == []


@pytest.mark.parametrize("base", ["package://llm/model.gguf", "/models/base", "s3://bucket/base", "./base"])
def test_a_base_that_is_not_on_the_hub_stands_in_the_text_only(base: str):
    card = render(base_model=base)
    assert "base_model" not in front_matter(card)
    assert "base_model_relation" not in front_matter(card)
    assert base in card
    assert f'"{base}"' not in snippet(card)  # transformers could not load it from there
    assert card_errors(card) == []


def test_what_is_not_known_is_left_out():
    card = render(base_license=None, base_revision=None, base_digest=None, tasks=[], training={}, reasons=[])
    assert "license" not in front_matter(card)
    assert "None" not in card
    assert card_errors(card) == []


@pytest.mark.parametrize(
    ("what", "loads"), [("adapter", "PeftModel.from_pretrained"), ("merged", "AutoModelForCausalLM")]
)
def test_the_snippet_loads_from_where_it_is_told(what: str, loads: str):
    code = snippet(render(what=what, load_from="acme/capitals"))
    compile(code, "card", "exec")
    assert loads in code
    assert '"acme/capitals"' in code


def test_markup_in_data_stays_text():
    card = render(
        reasons=["<img src=x> & **bold** [link](http://x) `code`\n# heading"],
        tasks=[TASK | {"task": "a|b"}],
        name="x_y_",
    )
    assert "- &lt;img src=x&gt; &amp; \\*\\*bold\\*\\* \\[link\\](http://x) \\`code\\` # heading\n" in card
    assert "| a\\|b | target |" in card
    assert "\n# x\\_y\\_\n" in card


MARKUP = st.text(st.sampled_from("a1 .-+#>|\\`*_[]()<&~$\"'\n\r\t:{}é\u2028"), min_size=1, max_size=12)


@given(text=MARKUP | st.text(st.characters(codec="utf-8"), min_size=1), what=st.sampled_from(["adapter", "merged"]))
def test_no_text_breaks_out_of_its_place(text: str, what: str):
    card = render(
        name=text,
        what=what,
        base_model=text,
        base_revision=text,
        method=text,
        recipe=text,
        training={text: text},
        tasks=[TASK | {"task": text, "metric": text, "verdict": text}],
        verdict=text,
        reasons=[text, text],
        load_from=text,
    )
    assert card_errors(card) == []
    compile(snippet(card), "card", "exec")
    body = card.split("\n---\n", 1)[1].split("\n")
    titles = [line for line in body if line.startswith("## ")]
    assert titles[0].startswith("## Verdict: ")
    assert titles[1:] == ["## Evaluation", "## How to load it", "## Lineage", "## Training"]
    assert sum(line.startswith("- ") for line in body) == 2  # the reasons
    rows = [len(cells(line)) for line in body if line.startswith("|")]
    assert (rows.count(10), rows.count(2), len(rows)) == (3, 12, 15)  # evaluation; lineage and training
