"""How a row becomes tokens: the one rendering that training, its checks and the target's evaluation share.

    prompt  = chat template of the messages before the answer, or plain text      labels -100
    answer  = what follows it, up to and with the end token                       labels = ids

Prompt and answer are tokenised apart, because generation starts from the prompt's own tokens. In a chat of several
turns the model's earlier answers are trained too. Four kinds of row, as ingestion writes them:

    chat        {"prompt": [messages], "completion": [message]}
    plain       {"prompt": text, "completion": text}
    text        {"text": text}                                       no prompt: every token is trained
    preference  {"prompt", "chosen", "rejected"}                     two answers, each a chat's or plain
"""

from dataclasses import dataclass
from typing import Any

from infra.errors import RequestError

IGNORED = -100  # the label that the loss skips
Row = dict[str, Any]
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Rendered:
    """One row: `prompt_ids` then `answer_ids`, the latter ending in the end token; both as text; and the labels."""

    prompt: str
    answer: str  # without what the template adds
    prompt_ids: list[int]
    answer_ids: list[int]
    labels: list[int]  # one per token of prompt and answer: its id where it is trained, else IGNORED

    @property
    def input_ids(self) -> list[int]:
        return self.prompt_ids + self.answer_ids

    def features(self) -> dict[str, list[int]]:
        """What the trainer takes: {"input_ids", "labels"}, equally long."""
        return {"input_ids": self.input_ids, "labels": self.labels}


def render(tokenizer: Any, row: Row) -> Rendered:
    """Tokens of a row with one answer; RequestError if the tokenizer or its template cannot tell answer from prompt."""
    end = tokenizer.eos_token_id
    if end is None:
        raise RequestError("the base's tokenizer names no end token, so no answer could ever end; set eos_token in it.")
    if "text" in row or isinstance(row["prompt"], str):
        prompt, answer = render_prompt(tokenizer, row.get("prompt", "")), row["text" if "text" in row else "completion"]
        text = answer.removesuffix(tokenizer.eos_token)
        _refuse_end_within(tokenizer, text)
    else:
        prompt, text = _split(tokenizer, [*row["prompt"], *row["completion"]])
        answer = row["completion"][0]["content"]
        for message in [*row["prompt"], *row["completion"]]:
            if message["role"] == "assistant":
                _refuse_end_within(tokenizer, message["content"])
    prompt_ids, answer_ids = _ids(tokenizer, prompt), _ids(tokenizer, text)
    # What the template writes behind the end token (a line break, as a rule) is never generated: not trained either.
    answer_ids = [*(answer_ids[: answer_ids.index(end)] if end in answer_ids else answer_ids), end]
    labels = [IGNORED] * len(prompt_ids)
    if not isinstance(row.get("prompt", ""), str):
        labels = _labels_of_earlier_answers(tokenizer, row["prompt"], prompt, prompt_ids)
    return Rendered(prompt, answer, prompt_ids, answer_ids, labels + answer_ids)


def render_pair(tokenizer: Any, row: Row) -> tuple[Rendered, Rendered]:
    """(chosen, rejected) of a preference row; both have the same prompt."""
    chosen, rejected = (
        render(tokenizer, {"prompt": row["prompt"], "completion": row[side]}) for side in ("chosen", "rejected")
    )
    return chosen, rejected


def render_prompt(tokenizer: Any, prompt: Messages | str) -> str:
    """The text that a model continues with its answer. Plain text begins as the tokenizer begins any text."""
    if isinstance(prompt, str):
        starts = tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        return (tokenizer.bos_token if starts else "") + prompt
    if not tokenizer.chat_template:
        raise RequestError(
            "the base's tokenizer has no chat template, and the rows are chats. Give base.chat_template (a Jinja "
            "file), or plain text: data.prompt and data.completion."
        )
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


def _refuse_end_within(tokenizer: Any, text: str) -> None:
    if tokenizer.eos_token in text:
        before = text[: text.index(tokenizer.eos_token)][-40:]
        raise RequestError(
            f"the end token {tokenizer.eos_token} stands within what is trained, after {before!r}: nothing behind it "
            "would be learned. Split the row there, or take the token out."
        )


def _split(tokenizer: Any, messages: Messages) -> tuple[str, str]:
    """(prompt, what the template writes from the last message on)."""
    before = render_prompt(tokenizer, messages[:-1])
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(before):
        raise RequestError(
            "the chat template renders a prompt differently once an answer follows it, so the answer cannot be told "
            f"from the prompt. Prompt: {before[-80:]!r}; whole chat: {whole[:160]!r}."
        )
    return before, whole[len(before) :]


def _labels_of_earlier_answers(tokenizer: Any, messages: Messages, prompt: str, ids: list[int]) -> list[int]:
    """Labels of the prompt: the ids of what the model said in it, each answer with its end token; the rest ignored."""
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before, text = _split(tokenizer, messages[: index + 1])
            if not prompt.startswith(before + text):
                raise RequestError(
                    "the chat template renders an earlier answer differently once more turns follow it, so it cannot "
                    f"be trained. Alone: {(before + text)[-80:]!r}; within the chat: {prompt[:160]!r}."
                )
            end = text.find(tokenizer.eos_token)
            spans.append((len(before), len(before) + (end + len(tokenizer.eos_token) if end >= 0 else len(text))))
    if not spans:
        return [IGNORED] * len(ids)
    places = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        token if any(start <= first and last <= stop and first < last for start, stop in spans) else IGNORED
        for token, (first, last) in zip(ids, places, strict=True)
    ]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
