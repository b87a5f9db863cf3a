"""An adapter's own tasks: what the model reads, what is wanted, for each kind of row."""

from typing import Any

import pytest

from infra.errors import StageError
from tasks.evaluation.documents import target_task
from tests.tiny import tiny_tokenizer

USER, ASSISTANT = ({"role": role} for role in ("user", "assistant"))


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": [{**USER, "content": question}], "completion": [{**ASSISTANT, "content": answer}]}


def asked(task: dict[str, Any]) -> list[str]:
    return [task["doc_to_text"](document) for document in task["custom_dataset"]()["test"]]


def shots(*rows: dict[str, Any], num_fewshot: int) -> dict[str, Any]:
    return {"num_fewshot": num_fewshot, "shots": list(rows)}


def test_examples_are_read_as_earlier_turns_and_the_document_stays_the_same() -> None:
    rows, tokenizer = [chat("c", " 3 ")], tiny_tokenizer()
    bare = target_task("t", tokenizer, rows, max_new_tokens=4)
    shown = target_task("t", tokenizer, rows, max_new_tokens=4, prompting=shots(chat("a", "1"), num_fewshot=1))
    question = "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    example = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
    assert (asked(bare), asked(shown)) == ([question], [example + question])
    assert list(bare["custom_dataset"]()["test"]) == list(shown["custom_dataset"]()["test"])
    assert list(bare["custom_dataset"]()["test"]) == [{"prompt": question, "answer": "3"}]


def test_no_document_is_among_its_own_examples() -> None:
    rows = [chat(letter, f"answer {letter}") for letter in "abcd"]
    prompting = shots(*rows[:3], num_fewshot=2)  # one more than is shown
    task = target_task("train", tiny_tokenizer(), rows, max_new_tokens=4, prompting=prompting)
    for letter, text in zip("abcd", asked(task), strict=True):
        assert f"answer {letter}" not in text
        assert text.count("assistant\nanswer") == 2


def test_plain_answers_behind_examples_end_at_a_blank_line() -> None:
    row = {"prompt": "Q: c\nA:", "completion": " 3"}
    bare = target_task("t", tiny_tokenizer(), [row], max_new_tokens=4)
    shown = target_task("t", tiny_tokenizer(), [row], max_new_tokens=4, prompting=shots(row, row, num_fewshot=1))
    assert (asked(bare), bare["generation_kwargs"]["until"]) == (["Q: c\nA:"], ["<|im_end|>"])
    assert shown["generation_kwargs"]["until"] == ["<|im_end|>", "\n\n"]


def test_of_a_pair_both_answers_are_choices_as_they_are_trained() -> None:
    row = {
        "prompt": [{**USER, "content": "a"}],
        "chosen": [{**ASSISTANT, "content": "good"}],
        "rejected": [{**ASSISTANT, "content": "bad"}],
    }
    task = target_task("t", tiny_tokenizer(), [row], max_new_tokens=4)
    (document,) = task["custom_dataset"]()["test"]
    choices = task["doc_to_choice"](document)
    assert choices[task["doc_to_target"](document)] == "good<|im_end|>"
    assert choices == ["bad<|im_end|>", "good<|im_end|>"] and task["target_delimiter"] == ""


def test_examples_that_do_not_fit_are_refused_not_cut() -> None:
    rows, prompting = [chat("c", "3")], shots(chat("a", "1" * 100), num_fewshot=1)
    fits = 2 * len("<|im_start|>user\na<|im_end|>\n") + 500
    assert target_task("t", tiny_tokenizer(), rows, max_new_tokens=4, prompting=prompting, room=fits)
    with pytest.raises(StageError, match=r"with 1 examples .* and the model reads 64; lower num_fewshot"):
        target_task("t", tiny_tokenizer(), rows, max_new_tokens=4, prompting=prompting, room=64)
