"""How a chat becomes tokens: the one rendering that training, its checks and the target's evaluation share.

    prompt  = chat template of the prompt messages with the generation prompt      labels -100
    answer  = what the template adds for the answer, up to and with the end token  labels = ids

Prompt and answer are tokenised apart, because generation starts from the prompt's own tokens.
"""

from dataclasses import dataclass
from typing import Any

from infra.errors import RequestError

IGNORED = -100  # the label that the loss skips


@dataclass(frozen=True)
class Rendered:
    """One row: `prompt_ids` then `answer_ids`, the latter ending in the end-of-turn token; and both as text."""

    prompt: str
    answer: str
    prompt_ids: list[int]
    answer_ids: list[int]

    def features(self) -> dict[str, list[int]]:
        """What the trainer takes: {"input_ids", "labels"}, equally long."""
        return {
            "input_ids": self.prompt_ids + self.answer_ids,
            "labels": [IGNORED] * len(self.prompt_ids) + self.answer_ids,
        }


def render_prompt(tokenizer: Any, prompt: list[dict[str, str]]) -> str:
    """The text that a model continues with its answer."""
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


def render(tokenizer: Any, prompt: list[dict[str, str]], completion: list[dict[str, str]]) -> Rendered:
    """Tokens of one chat; RequestError if the template renders the prompt otherwise once an answer follows."""
    before = render_prompt(tokenizer, prompt)
    whole = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
    if not whole.startswith(before):
        raise RequestError(
            "the chat template renders a prompt differently once an answer follows it, so the answer cannot be told "
            f"from the prompt. Prompt: {before[-80:]!r}; whole chat: {whole[:160]!r}."
        )
    answer_ids = _ids(tokenizer, whole[len(before) :])
    end = tokenizer.eos_token_id
    # What the template writes behind the end token (a line break, as a rule) is never generated: not trained either.
    answer_ids = answer_ids[: answer_ids.index(end)] if end in answer_ids else answer_ids
    return Rendered(
        prompt=before,
        answer=completion[0]["content"],
        prompt_ids=_ids(tokenizer, before),
        answer_ids=[*answer_ids, end],
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
