"""Prompt and answer as tokens: what is trained, what is not, and that evaluation asks what training taught."""

import pytest

from infra.errors import RequestError
from tasks.evaluation.documents import target_documents
from tasks.training.rendering import IGNORED, render, render_prompt
from tests.tiny import tiny_tokenizer

PROMPT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say hi"}]
ANSWER = [{"role": "assistant", "content": "hi"}]


def test_only_the_answer_and_the_end_token_are_trained() -> None:
    tokenizer = tiny_tokenizer()
    features = render(tokenizer, PROMPT, ANSWER).features()
    trained = [
        token for token, label in zip(features["input_ids"], features["labels"], strict=True) if label != IGNORED
    ]
    assert tokenizer.decode(trained) == "hi<|im_end|>"
    assert all(
        label in (IGNORED, token) for token, label in zip(features["input_ids"], features["labels"], strict=True)
    )
    assert trained[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id, "masking pad by id would unteach the stop"


def test_the_end_token_is_added_where_the_template_writes_none() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert render(tokenizer, PROMPT, ANSWER).answer_ids[-1] == tokenizer.eos_token_id


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages|length }} messages{% if add_generation_prompt %}?{% endif %}"
    with pytest.raises(RequestError, match="renders a prompt differently"):
        render(tokenizer, PROMPT, ANSWER)


def test_the_target_is_asked_exactly_as_the_rows_were_trained(tmp_path) -> None:
    import json

    tokenizer = tiny_tokenizer()
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"id": "1", "prompt": PROMPT, "completion": ANSWER}) + "\n")
    (document,) = target_documents(tokenizer, tmp_path, "held_out", None)
    trained = render(tokenizer, PROMPT, ANSWER)
    assert tokenizer(document["prompt"], add_special_tokens=False)["input_ids"] == trained.prompt_ids
    assert document == {"prompt": render_prompt(tokenizer, PROMPT), "answer": "hi"}
