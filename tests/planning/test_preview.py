"""A preview shows what is trained, reads without colour, and lets nothing in the data act on the terminal."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.errors import RequestError
from tasks.planning.preview import make_preview, parts, spread
from tasks.planning.preview_table import print_preview
from tasks.recipe.schema import Recipe
from tasks.training.rendering import render
from tests.planning.test_plan import DATA, recipe
from tests.tiny import save_tiny_base, tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def printed(planned: Recipe, count: int = 1) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    print_preview(make_preview(planned, count), console)
    return console.export_text()


def test_trained_tokens_are_marked_and_counted(base: Path, tmp_path: Path) -> None:
    planned = recipe(tmp_path, base)
    one = make_preview(planned, 2)["adapters"][0]
    assert len(one["rows"]) == 2 and one["counts"] == {"train": 15, "validation": 0, "held_out": 5}
    prompt, answer = one["rows"][0]["sides"][0]["parts"]
    assert not prompt["trained"] and answer["trained"]
    assert prompt["text"].endswith("<|im_start|>assistant\n") and answer["text"].endswith("ok<|im_end|>")
    assert one["rows"][0]["sides"][0]["trained_tokens"] == len(answer["text"].removesuffix("<|im_end|>")) + 1
    text = printed(planned)
    assert f"<|im_start|>assistant\n«{answer['text']}»" in text and "15 to train on, 0 validation, 5 held out" in text


def test_all_turns_of_a_chat_show_which_are_trained() -> None:
    turns = [("user", "hi"), ("assistant", "yes"), ("user", "so?")]
    prompt = [{"role": role, "content": content} for role, content in turns]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "no"}]}
    shown = parts(render(tiny_tokenizer(), row), tiny_tokenizer())
    assert [one["text"] for one in shown if one["trained"]] == ["yes<|im_end|>", "no<|im_end|>"]
    assert "".join(one["text"] for one in shown).count("<|im_end|>") == 4


def test_lengths(base: Path, tmp_path: Path) -> None:
    assert spread(range(1, 101)) == {"min": 1, "median": 50, "p95": 95, "max": 100}
    assert spread([7]) == {"min": 7, "median": 7, "p95": 7, "max": 7}
    one = make_preview(recipe(tmp_path, base), 0)["adapters"][0]
    assert one["rows"] == [] and one["lengths"]["answer"] == {"min": 3, "median": 5, "p95": 7, "max": 7}
    totals = {name: one["lengths"][name]["max"] for name in ("prompt", "answer", "row")}
    assert totals["row"] <= totals["prompt"] + totals["answer"] and 0 < one["trained_share"] < 0.2


def test_rows_that_are_too_long_are_counted_and_never_cut(base: Path, tmp_path: Path) -> None:
    data = {
        "rows": [{"q": "a" * 4, "a": "b" * 3}, {"q": "c" * 4, "a": "d" * 30}, {"q": "e" * 30, "a": "f"}],
        "held_out": 0,
        "prompt": "{{ q }}",
        "completion": "{{ a }}",
    }
    target = {"splits": ["train"], "decides": "train"}
    planned = recipe(tmp_path, base, {"data": data, "target": target, "training": {"max_length": 20}})
    one = make_preview(planned, 3)["adapters"][0]
    assert (one["longer"], one["answer_lost"]) == (2, 1)
    text = printed(planned, 3)
    assert "d" * 30 in text and "2 rows are longer than max_length=20; cut to it, 1 would lose the whole" in text


def test_pairs_show_both_answers(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}?", "chosen": "good", "rejected": "bad"} for number in range(4)]
    text = printed(recipe(tmp_path, base, {"data": {"rows": rows, "held_out": 1}}))
    assert "row 1, chosen: 7 tokens, 5 trained" in text and "row 1, rejected: 6 tokens, 4 trained" in text
    assert "«good<|im_end|>»" in text and "«bad<|im_end|>»" in text


def test_data_is_neither_markup_nor_a_command_to_the_terminal(base: Path, tmp_path: Path) -> None:
    rows = [{"text": "[red]x[/red] [/] \x1b[2J end"}]
    data = {"rows": rows, "held_out": 0}
    planned = recipe(tmp_path, base, {"data": data, "target": {"splits": ["train"], "decides": "train"}})
    text = printed(planned)
    assert "«[red]x[/red] [/] \\x1b[2J end<|im_end|>»" in text and "\x1b" not in text


def test_a_prompt_shows_its_examples_and_trains_nothing(base: Path, tmp_path: Path) -> None:
    planned = recipe(tmp_path, base, {"method": "prompt", "num_fewshot": 2})
    one = make_preview(planned, 1)["adapters"][0]
    (part,) = one["rows"][0]["sides"][0]["parts"]
    assert part["trained"] is False and part["text"].count("<|im_start|>assistant") == 3
    assert one["trained_share"] == 0 and "nothing is trained" in printed(planned)


def test_a_given_chat_template_is_the_one_that_is_shown(base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    shown = make_preview(recipe(tmp_path, base, base={"model": str(base), "chat_template": "mine.jinja"}), 1)
    first = shown["adapters"][0]["rows"][0]["sides"][0]["parts"]
    assert first[0]["text"].startswith("[user]What is") and first[0]["text"].endswith("[assistant]")


def test_a_base_without_a_tokenizer_has_nothing_to_show(base: Path, tmp_path: Path) -> None:
    folder: Any = tmp_path / "config-only"
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    planned = recipe(tmp_path, folder, {"data": {**DATA, "rows": []}})
    with pytest.raises(RequestError, match="has no tokenizer, so no row can be shown") as error:
        make_preview(planned, 1)
    assert "has no rows" in str(error.value)
