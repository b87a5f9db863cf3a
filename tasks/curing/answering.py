"""The base's own answers to general prompts, as rows to train on: what replay replays.

Greedy, so that a row says what the base finds likeliest, and in the precision that the adapter trains on. Every row is
rendered with an end token behind it, which an answer that the limit cut off does not have: training on it would teach
to stop in the middle of a sentence. Such an answer is kept up to its last whole sentence, where ending is natural.
Without one it is left out, as are empty answers and broken characters. Leaving out all that were cut would keep the
short answers alone, and replay would shorten the others all the more.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from infra import stage_process
from infra.errors import Fault, RequestError, StageError
from infra.hashing import digest_json
from tasks.curing.replay import REPLAY
from tasks.training.models import load_base
from tasks.training.rendering import render, render_prompt

BATCH = 16  # prompts per forward pass: rounding depends on it, so it is fixed

CLOSERS = r"[\"'”’)\]*_`]*"
# A full stop behind a digit may be a decimal point that the limit cut: it ends a sentence only before white space.
SENTENCE_END = re.compile(rf"(?:(?<!\d)[.!?…]|[.!?…](?=\s)){CLOSERS}(?=\s|$)|[。！？][」』”’）]*")
LIST_NUMBER = re.compile(r"\W*\w{1,2}\.")  # "2." or "b." at the start of a line
CODE = "```"
BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes decode to that are no text


@dataclass(frozen=True)
class Answer:
    """What was generated, without the end token, and whether there was one."""

    text: str
    ended: bool


def answer(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Let the base of `job` answer its prompts; leave replay.jsonl in its `output` and return how many were usable."""
    base, prompts = Path(job["base"]), job["prompts"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_base(base, job["quantization"], job["device"]).eval()

    def tell(done: int) -> None:
        stage_process.progress(done=done, of=len(prompts))

    answers = greedy_answers(model, tokenizer, prompts, max_new_tokens=job["max_new_tokens"], on_batch=tell)
    rows = list(usable_rows(prompts, answers))
    if not rows:
        raise StageError(
            f"the base answers none of {len(prompts)} prompts with a whole sentence; raise cure.replay.max_new_tokens."
        )
    longest = max(len(render(tokenizer, row).input_ids) for row in rows)
    with (Path(job["output"]) / REPLAY).open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    by_themselves = {prompt for prompt, one in zip(prompts, answers, strict=True) if one.ended}
    ended = sum(row["prompt"][0]["content"] in by_themselves for row in rows)
    return {
        "prompts": len(prompts),
        "rows": len(rows),
        "ended": ended,  # by themselves
        "cut": len(rows) - ended,  # back to their last whole sentence
        "left_out": len(prompts) - len(rows),
        "longest": longest,  # row, tokens of prompt and answer
    }


def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """One answer per prompt, in their order. Prompts of similar length share a batch, padded on the left.

    RequestError names every prompt that does not fit the base's context together with its answer, and a base that has
    no chat template or end token.
    """
    if tokenizer.eos_token_id is None:
        raise RequestError("the base's tokenizer names no end token, so no answer could end; set eos_token in it.")
    texts = [render_prompt(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    ids: list[list[int]] = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    _refuse_too_long(model, prompts, ids, max_new_tokens)
    end = tokenizer.eos_token_id
    # In place of the base's own, which may sample, or penalise repetition.
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=end
    )
    answers: dict[int, Answer] = {}
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        width = max(len(ids[number]) for number in numbers)
        rows = [[end] * (width - len(ids[number])) + ids[number] for number in numbers]
        attended = [[0] * (width - len(ids[number])) + [1] * len(ids[number]) for number in numbers]
        with torch.inference_mode():
            generated = model.generate(  # (batch, width + answer) token ids
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(attended, device=model.device),
            )
        for number, tokens in zip(numbers, generated[:, width:].tolist(), strict=True):
            said = tokens[: tokens.index(end)] if end in tokens else tokens
            answers[number] = Answer(tokenizer.decode(said, skip_special_tokens=True), ended=end in tokens)
        on_batch(len(answers))
    return [answers[number] for number in range(len(prompts))]


def usable_rows(prompts: Sequence[str], answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    """Rows of kind chat, as ingestion writes them, of the answers of which something is left."""
    for prompt, said in zip(prompts, answers, strict=True):
        text = said.text if said.ended else up_to_last_sentence(said.text)
        if text.strip() and BROKEN not in text:
            turns = {"prompt": [{"role": "user", "content": prompt}]}
            row = {**turns, "completion": [{"role": "assistant", "content": text}]}
            yield {"id": digest_json(row)[:16], **row}


def up_to_last_sentence(text: str) -> str:
    """`text` up to the end of its last whole sentence outside an unfinished block of code; "" if there is none."""
    if text.count(CODE) % 2:
        text = text[: text.rindex(CODE)]
    ends = [
        match.end()
        for match in SENTENCE_END.finditer(text)
        if not LIST_NUMBER.fullmatch(text[text.rfind("\n", 0, match.start()) + 1 : match.end()])
    ]
    return text[: ends[-1]] if ends else ""


def _refuse_too_long(model: Any, prompts: Sequence[str], ids: Sequence[list[int]], max_new_tokens: int) -> None:
    room = getattr(model.config, "max_position_embeddings", None)
    faults = [
        Fault(
            f"{prompt[:40]!r}... has {len(one)} tokens; with {max_new_tokens} of an answer they exceed the base's "
            f"context of {room}. Shorten it, or lower max_new_tokens.",
            "cure.replay.prompts",
        )
        for prompt, one in zip(prompts, ids, strict=True)
        if room and len(one) + max_new_tokens > room
    ]
    if faults:
        raise RequestError(faults)
