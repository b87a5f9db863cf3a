"""Prompt and answer as tokens: what is trained, what is not, and that evaluation asks what training taught."""

import pytest

from infra.errors import RequestError
from tasks.evaluation.documents import target_task
from tasks.training.rendering import IGNORED, render, render_pair, render_prompt
from tests.tiny import tiny_tokenizer

PROMPT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say hi"}]
ANSWER = [{"role": "assistant", "content": "hi"}]
CHAT = {"prompt": PROMPT, "completion": ANSWER}


def test_only_the_answer_and_the_end_token_are_trained() -> None:
    tokenizer = tiny_tokenizer()
    features = render(tokenizer, CHAT).features()
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
    assert render(tokenizer, CHAT).answer_ids[-1] == tokenizer.eos_token_id


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages|length }} messages{% if add_generation_prompt %}?{% endif %}"
    with pytest.raises(RequestError, match="renders a prompt differently"):
        render(tokenizer, CHAT)


def test_the_target_is_asked_exactly_as_the_rows_were_trained() -> None:
    tokenizer = tiny_tokenizer()
    task = target_task("t", tokenizer, [CHAT], max_new_tokens=4)
    (document,) = task["custom_dataset"]()["test"]
    assert task["doc_to_text"](document) == document["prompt"]
    trained = render(tokenizer, CHAT)
    assert tokenizer(document["prompt"], add_special_tokens=False)["input_ids"] == trained.prompt_ids
    assert document == {"prompt": render_prompt(tokenizer, PROMPT), "answer": "hi"}


def trained_text(tokenizer, row) -> str:
    rendered = render(tokenizer, row)
    assert len(rendered.labels) == len(rendered.input_ids)
    return tokenizer.decode([label for label in rendered.labels if label != IGNORED])


def test_earlier_answers_of_a_chat_are_trained_with_their_end_token() -> None:
    tokenizer = tiny_tokenizer()
    chat = {"prompt": [*PROMPT, *ANSWER, {"role": "user", "content": "Again"}], "completion": ANSWER}
    assert trained_text(tokenizer, chat) == "hi<|im_end|>hi<|im_end|>"


def test_plain_text_has_no_template_and_ends() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    row = {"prompt": "Q: Say hi\nA:", "completion": " hi"}
    assert tokenizer.decode(render(tokenizer, row).input_ids) == "Q: Say hi\nA: hi<|im_end|>"
    assert trained_text(tokenizer, row) == " hi<|im_end|>"
    assert trained_text(tokenizer, {"text": "all of it"}) == "all of it<|im_end|>"


def test_plain_text_begins_as_the_tokenizer_begins_a_text() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    row = {"prompt": "Q", "completion": " A"}
    assert tokenizer.decode(render(tokenizer, row).input_ids) == "<|im_start|>Q A<|im_end|>"


@pytest.mark.parametrize(
    "row",
    [
        {"text": "one<|im_end|>two"},
        {"prompt": "Q", "completion": "one<|im_end|>two"},
        {"prompt": PROMPT, "completion": [{"role": "assistant", "content": "one<|im_end|>two"}]},
        {"prompt": [*PROMPT, {"role": "assistant", "content": "one<|im_end|>two"}, *PROMPT[1:]], "completion": ANSWER},
    ],
    ids=["text", "plain", "chat", "earlier answer"],
)
def test_text_behind_an_end_token_is_never_dropped_in_silence(row) -> None:
    with pytest.raises(RequestError, match=r"the end token <\|im_end\|> stands within what is trained, after 'one'"):
        render(tiny_tokenizer(), row)


def test_an_end_token_that_ends_the_text_already_is_not_doubled() -> None:
    tokenizer = tiny_tokenizer()
    assert trained_text(tokenizer, {"text": "all<|im_end|>"}) == "all<|im_end|>"


def test_a_pair_shares_its_prompt() -> None:
    tokenizer = tiny_tokenizer()
    other = [{"role": "assistant", "content": "no"}]
    chosen, rejected = render_pair(tokenizer, {"prompt": PROMPT, "chosen": ANSWER, "rejected": other})
    assert chosen.prompt_ids == rejected.prompt_ids and (chosen.answer, rejected.answer) == ("hi", "no")


def test_chats_need_a_chat_template_and_answers_an_end() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(RequestError, match="has no chat template, and the rows are chats"):
        render(tokenizer, CHAT)
    tokenizer.eos_token = None
    with pytest.raises(RequestError, match="names no end token"):
        render(tokenizer, CHAT)
