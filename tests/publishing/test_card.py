"""The model card: what the Hub indexes of it, and that data stay text in it."""

import re
import shlex
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from tasks.publishing.card import render_card
from tasks.publishing.how_to_load import is_hub_id
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
    "flips": {"lost": 4, "gained": 154},
    "kind": "right/wrong",
    "tier": "critical",
    "over": "the base",
    "note": "",
}
FACTS: dict[str, Any] = {
    "name": "capitals",
    "number": 3,
    "what": "adapter",
    "base_model": "acme/tiny-llama",
    "base_revision": "main",
    "base_digest": "b" * 64,
    "base_license": "apache-2.0",
    "method": "lora",
    "quantization": "none",
    "data_digest": "d" * 64,
    "recipe": "capitals.yaml",
    "training": {"steps": 40, "loss": 0.123456},
    "tasks": [TASK],
    "verdict": "PASS",
    "reasons": ["learned its task"],
    "rule": {"alpha": 0.05, "adjust": "holm", "pool_margin": 0.02},
}
OVERRIDE = {"reason": "the customer knows", "by": "ada@lab", "at": "2026-11-22T10:00:00+00:00"}


def render(**changes: Any) -> str:
    return render_card(**{**FACTS, **changes})


def front_matter(card: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return data


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"\n```{language}\n(.*?)\n```\n", card, re.DOTALL)


def snippet(card: str) -> str:
    (found,) = blocks(card, "python")
    return str(found)


def commands(card: str) -> list[list[str]]:
    """The lines of all shell blocks, in words as a shell splits them."""
    return [shlex.split(line) for block in blocks(card, "bash") for line in block.splitlines()]


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
    assert ModelCard(render()).data.to_dict() == data  # huggingface_hub reads back what it wrote


def test_the_hub_can_index_a_merged_model():
    data = front_matter(render(what="merged"))
    assert (data["library_name"], data["base_model_relation"]) == ("transformers", "finetune")


def test_a_gguf_is_made_from_the_base_and_a_report_is_not():
    gguf, report = front_matter(render(what="gguf")), front_matter(render(what="report"))
    assert (gguf["base_model"], gguf["base_model_relation"]) == ("acme/tiny-llama", "finetune")
    assert "gguf" in gguf["tags"] and "library_name" not in gguf
    assert "base_model" not in report and "pipeline_tag" not in report
    assert report["model-index"] == gguf["model-index"]


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


def test_the_index_says_how_sure_a_result_is():
    (metric,) = front_matter(render(quantization="nf4"))["model-index"][0]["results"][0]["metrics"]
    assert metric["args"] == {
        **{"n": 200, "base": 0.125, "delta": 0.75, "ci_low": 0.6875, "ci_high": 0.8125, "verdict": "PASS"},
        **{"confidence": 0.9, "precision": "nf4"},
    }
    assert "verified" not in metric


def test_the_table_shows_every_figure():
    line = next(line for line in render().splitlines() if line.startswith("| capitals"))
    assert cells(line) == [
        *("capitals", "target", "exact\\_match", "200", "0.125", "0.875", "0.75", "0.6875 to 0.8125", "0.02"),
        *("4 / 154", "PASS"),
    ]


@pytest.mark.parametrize(
    ("changes", "column", "shown"),
    [
        ({"role": "general", "tier": "supporting"}, 1, "general, supporting"),
        ({"over": "eight-shots"}, 1, "target; base is eight-shots"),
        ({"kind": "graded", "flips": {"lost": 0, "gained": 0}}, 9, "graded"),
        ({"flips": None}, 9, "not measured"),
    ],
)
def test_the_table_says_what_a_figure_is_of(changes: dict[str, Any], column: int, shown: str):
    line = next(line for line in render(tasks=[TASK | changes]).splitlines() if line.startswith("| capitals"))
    assert cells(line)[column] == shown


def test_the_card_names_its_version():
    assert "\n# capitals v3\n" in render()
    assert "| version | v3 |" in render()


def test_who_let_it_out_without_a_pass_stands_first():
    card = render(verdict="FAIL", override=OVERRIDE)
    assert card.index("> **Warning: released without a PASS.** The verdict is FAIL. ada@lab") < card.index("## Verdict")
    assert "2026-11-22T10:00:00+00:00, for this reason: the customer knows" in card
    assert "Warning" not in render()
    marked = render(verdict="FAIL", override=OVERRIDE | {"reason": "<b>\n# *so*"})
    assert "for this reason: &lt;b&gt; # \\*so\\*\n" in marked


def test_what_a_pass_is_worth_is_said():
    assert "tested at an error rate of 0.05, after Holm's correction" in render()
    assert "without a correction" in render(rule={"alpha": 0.01, "adjust": "none"})
    assert "On capitals a PASS is no evidence: all at the \\*floor\\*" in render(
        tasks=[TASK | {"note": "all at the *floor*"}]
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "Scored was the adapter on the base in 16 bits; in another"),
        ({"quantization": "nf4"}, "Scored was the adapter on the base in 4 bits (NF4); in another"),
        ({"what": "merged", "quantization": "nf4"}, "the base in 4 bits (NF4), not these files"),
        ({"what": "merged", "method": "full"}, "Scored was the model; in another"),
        ({"what": "gguf", "method": "full"}, "Scored was the model, not these files"),
        ({"what": "report"}, "Scored was the adapter on the base in 16 bits; in another"),
    ],
)
def test_what_was_scored_is_said(changes: dict[str, Any], says: str):
    assert says in render(**changes)


def test_the_figures_of_a_merge_are_shown():
    card = render(what="merged", merge={"into": "16-bit", "measured": {"16-bit": {"mean_kl_nats": 0.0012}}})
    assert "| into | 16-bit |" in card
    assert "| measured: 16-bit: mean\\_kl\\_nats | 0.0012 |" in card
    assert "## Merging" not in render()


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
    assert "| licence of the base | not known |" in card
    assert card_errors(card) == []


@pytest.mark.parametrize(
    ("what", "loads"), [("adapter", "PeftModel.from_pretrained"), ("merged", "AutoModelForCausalLM")]
)
def test_the_snippet_loads_from_where_it_is_told(what: str, loads: str):
    code = snippet(render(what=what, load_from="acme/capitals"))
    compile(code, "card", "exec")
    assert loads in code
    assert '"acme/capitals"' in code


def test_an_adapter_is_loaded_on_the_base_that_it_was_judged_on():
    assert "BitsAndBytesConfig" not in snippet(render())
    code = snippet(render(quantization="nf4"))
    compile(code, "card", "exec")
    assert "quantization_config=four_bits" in code


def test_vllm_and_llama_cpp_are_told_what_to_load():
    serve, convert, ask = commands(render(load_from="acme/capitals"))
    assert serve == ["vllm", "serve", "acme/tiny-llama", "--enable-lora", "--lora-modules", "capitals=acme/capitals"]
    assert convert[:2] == ["python", "convert_lora_to_gguf.py"]
    assert ask[-2:] == ["--lora", "adapter.gguf"]
    assert commands(render(what="merged", load_from="acme/capitals"))[0] == ["vllm", "serve", "acme/capitals"]
    assert commands(render(what="report")) == []


def test_where_gguf_files_lie_is_told_as_code():
    assert "with the files of `a b <c`:\n" in render(what="gguf", load_from="a`\nb <c")


@pytest.mark.parametrize(
    ("files", "model", "adapter"),
    [
        ((), "model-f16.gguf", "adapter-f16.gguf"),
        (("manifest.json", "model-q8_0.gguf", "adapter-f16.gguf"), "model-q8_0.gguf", "adapter-f16.gguf"),
    ],
)
def test_the_gguf_files_are_named(files: tuple[str, ...], model: str, adapter: str):
    whole, beside = commands(render(what="gguf", files=files))
    assert whole == ["llama-cli", "-m", model]
    assert beside[-2:] == ["--lora", adapter]


def test_markup_in_data_stays_text():
    card = render(
        reasons=["<img src=x> & **bold** [link](http://x) `code`\n# heading"],
        tasks=[TASK | {"task": "a|b"}],
        name="x_y_",
    )
    assert "- &lt;img src=x&gt; &amp; \\*\\*bold\\*\\* \\[link\\](http://x) \\`code\\` # heading\n" in card
    assert "| a\\|b | target |" in card
    assert "\n# x\\_y\\_ v3\n" in card


MARKUP = st.text(st.sampled_from("a1 .-+#>|\\`*_[]()<&~$\"'\n\r\t:{}é\u2028"), min_size=1, max_size=12)


TITLES = ("Evaluation", "Limits", "How to load it", "Lineage", "Training", "Merging")
LANGUAGES = {
    "adapter": ("python", "bash", "bash"),
    "merged": ("python", "bash", "bash"),
    "gguf": ("bash",),
    "report": (),
}


@given(
    text=MARKUP | st.text(st.characters(codec="utf-8"), min_size=1),
    what=st.sampled_from(["adapter", "merged", "gguf", "report"]),
    quantization=st.sampled_from(["none", "nf4"]),
)
def test_no_text_breaks_out_of_its_place(text: str, what: str, quantization: str):
    card = render(
        name=text,
        what=what,
        quantization=quantization,
        base_model=text,
        base_revision=text,
        method=text,
        recipe=text,
        training={text: text},
        tasks=[TASK | {"task": text, "metric": text, "verdict": text, "note": text, "over": text, "tier": text}],
        verdict=text,
        reasons=[text, text],
        override={"reason": text, "by": text, "at": text},
        merge={text: {text: text}},
        load_from=text,
        files=[f"{text}.gguf"],
    )
    assert card_errors(card) == []
    body = card.split("\n---\n", 1)[1].split("\n")
    titles = [line for line in body if line.startswith("## ")]
    assert titles[0].startswith("## Verdict: ")
    assert titles[1:] == [f"## {title}" for title in TITLES]
    assert sum(line.startswith("# ") for line in body) == 1 + (what == "adapter" and not is_hub_id(text))  # a comment
    assert sum(line.startswith("> ") for line in body) == 1
    assert sum(line.startswith("- ") for line in body) == 8  # two reasons, six limits
    rows = [len(cells(line)) for line in body if line.startswith("|")]
    assert (rows.count(11), rows.count(2), len(rows)) == (3, 16, 19)  # evaluation; lineage, training and merging
    fences = [line for line in body if line.startswith("```")]
    assert fences[::2] == [f"```{language}" for language in LANGUAGES[what]]
    assert fences[1::2] == ["```"] * len(LANGUAGES[what])
    for code in blocks(card, "python"):
        compile(code, "card", "exec")
    assert all(line[0] in ("vllm", "python", "llama-cli") for line in commands(card))
    assert len(commands(card)) == {"adapter": 3, "merged": 3, "gguf": 1, "report": 0}[what]
