"""A local model as judge: it replies with the likeliest of the letters A, B and C, so that every reply can be read.

Nothing is generated. After the question, in the model's own chat template if it has one, the log-likelihoods of the
three letters are compared; each is one token, so none is the less likely for being longer. Questions are read one at a
time: a verdict never depends on which others are asked beside it.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from infra import stage_process
from infra.errors import RequestError, StageError
from tasks.judging.question import LETTERS
from tasks.training.models import load_base
from tasks.training.rendering import render_prompt

HERE = "the-text-stands-here"  # what the chat template is rendered around
EVERY = 20  # questions between two lines of progress


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """{"replies": one letter for each of the job's "questions"}."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = load_base(Path(job["model"]), "none", job["device"]).eval()
    room = getattr(model.config, "max_position_embeddings", None)
    replies: list[str] = []
    for text in job["questions"]:
        ids, letters = asked(tokenizer, text)
        if room and len(ids) > room:
            raise StageError(
                f"a question to the judge has {len(ids)} tokens, and {job['model']} reads {room}; take a judge that "
                "reads more, or lower target.max_new_tokens."
            )
        likelihoods = log_likelihoods(model, ids)[letters]
        replies.append(LETTERS[int(likelihoods.argmax())])
        if len(replies) % EVERY == 0 or len(replies) == len(job["questions"]):
            stage_process.progress(done=len(replies), of=len(job["questions"]))
    return {"replies": replies}


@torch.inference_mode()
def log_likelihoods(model: Any, ids: list[int]) -> torch.Tensor:
    """Of every token as the next one, natural logarithm, float32 (vocabulary,)."""
    logits = model(torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1]
    return torch.log_softmax(logits.float(), -1)


def asked(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """(tokens up to the reply, the three letters' tokens).

    Within `text`, control tokens are spelled out as plain characters: no answer can end its own turn.
    RequestError if the tokenizer has no token for each letter, or its chat template does not show the text once.
    """
    if tokenizer.chat_template:
        message = [{"role": "user", "content": HERE}]
        # Models that can think are asked not to: the letter has to come first. Other templates ignore the word.
        frame = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        if frame.count(HERE) != 1:  # left out, or said again: the judge would not read the question, or read it torn
            raise RequestError(
                f"the chat template of the judge shows a user's message {frame.count(HERE)} times, not once; take "
                "another judge."
            )
        before, after = frame.split(HERE)
        space = ""
    else:
        before, after, space = render_prompt(tokenizer, ""), "\n\nLetter:", " "
    letters = [_ids(tokenizer, space + letter) for letter in LETTERS]
    shared = letters[0][:-1]  # some tokenizers put the space into a token of its own
    if any(one[:-1] != shared for one in letters):
        raise RequestError(f"the judge's tokenizer splits the letters {', '.join(LETTERS)}; take another judge.")
    inside = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = [*_ids(tokenizer, before), *inside, *_ids(tokenizer, after), *shared]
    return ids, [one[-1] for one in letters]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
