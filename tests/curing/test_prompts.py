"""The general prompts that ship: many, all different, and none that the evaluation asks."""

import re
from pathlib import Path

import pytest

from infra.errors import RequestError
from tasks.curing.replay import read_prompts
from tasks.evaluation.suites.capitals import countries, open_documents, words
from tasks.evaluation.suites.minimal_pairs import documents


def test_there_are_many_short_ones() -> None:
    prompts = read_prompts(None)
    assert len(prompts) >= 240
    assert max(map(len, prompts)) <= 120
    assert len({" ".join(words(prompt)) for prompt in prompts}) == len(prompts)


def test_none_asks_for_a_capital_or_names_one() -> None:
    text = [f" {' '.join(words(prompt))} " for prompt in read_prompts(None)]
    asked = [f"What is the capital of {doc['name']}?" for doc in open_documents()]
    assert not {" ".join(words(question)) for question in asked} & {prompt.strip() for prompt in text}
    capitals = [f" {' '.join(words(row['capital']))} " for row in countries()]
    assert not [prompt for prompt in text if " capital" in prompt or any(capital in prompt for capital in capitals)]


def test_none_holds_a_sentence_of_the_grammar_task() -> None:
    sentences = {sentence for doc in documents() for sentence in doc["sentences"]}
    assert not [prompt for prompt in read_prompts(None) if any(sentence in prompt for sentence in sentences)]


def test_a_file_of_ones_own_is_read_by_lines(tmp_path: Path) -> None:
    file = tmp_path / "asked.txt"
    file.write_text("\ufeffWho?\n\n  What? \nWho?\r\nÜber was?\n", encoding="utf-8")
    assert read_prompts(str(file)) == ["Who?", "What?", "Über was?"]


@pytest.mark.parametrize("content", [None, b"\n \n", b"\xff\xfe\xff"])
def test_a_file_without_prompts_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "asked.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=re.escape(f"cure.replay.prompts {str(file)!r}")):
        read_prompts(str(file))
