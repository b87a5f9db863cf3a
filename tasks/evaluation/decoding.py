"""Greedy answers, with drafts that one pass verifies (speculative decoding: https://arxiv.org/abs/2211.17192).

A draft stands in the forest as a branch behind its prompt. What the model says after the prompt is its first token; as
long as the branch goes on with what the model says, the next token is known without another pass. An answer that
leaves the branch, or has none, goes on from the keys and values of its own path, one token a step, with the others
that are not finished. Every token of an answer is the likeliest one after the tokens before it, whatever the draft is:
a draft saves time and changes nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from transformers import DynamicCache

from tasks.evaluation.branches import Branch, Rows, branch_of, logits_after
from tasks.evaluation.forest import Pass

# Settings of a generation config that leave greedy decoding as it is; any other one does something of its own. HFLM
# asks with a max_length of its own, over which a max_new_tokens of the config would win.
HARMLESS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("max_length", "use_cache", "num_return_sequences", "transformers_version"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
}
ASKED = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p"}  # of a request, the same


def why_not_greedy(config: Any, asked: dict[str, Any]) -> str | None:
    """Why a request with these settings is not plain greedy decoding, if so."""
    settings = {key: value for key, value in config.to_diff_dict().items() if value is not None}
    neutral = type(config)().to_dict()
    odd = {key for key, value in settings.items() if not key.startswith("_") and value != neutral.get(key)} - HARMLESS
    if odd:
        return f"the model's generation config sets {', '.join(sorted(odd))}"
    if asked.get("do_sample"):
        return "a request samples"
    if unknown := sorted(set(asked) - ASKED):
        return f"a request sets {', '.join(unknown)}"
    return None


class Stop:
    """When an answer ends: at an end token, at a text to stop at, at its greatest length."""

    def __init__(self, tokenizer: Any, ends: Iterable[int], until: Sequence[str], longest: int):
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        # As HFLM looks for them: in the last few tokens, two more than the text has by itself, decoded together.
        self._texts = [(text, len(tokenizer.encode(text, add_special_tokens=False)) + 2) for text in until]
        self.longest = longest

    def ends(self, tokens: list[int]) -> bool:
        """Whether the last of these tokens is the answer's last."""
        if len(tokens) >= self.longest or tokens[-1] in self._ends:
            return True
        return any(text in self._tokenizer.decode(tokens[-count:]) for text, count in self._texts)


@dataclass
class Answer:
    """A prompt and what the model answers to it."""

    prompt: list[int]
    drafts: list[list[int]]  # what it might answer
    stop: Stop
    tokens: list[int] = field(default_factory=list)
    branch: Branch | None = None  # keys and values of the prompt and all tokens but the last, where it must go on

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """The branches to verify; what follows their last tokens is known, too."""
        return [tuple(self.prompt + draft[: self.stop.longest - 1]) for draft in self.drafts or [[]]]


def verified(model: Any, one: Pass, answers: Sequence[tuple[Answer, list[int]]]) -> tuple[list[int], torch.Tensor]:
    """One pass over prompts and drafts (of each answer the places where its sequences end).

    Every answer gets the tokens that the pass shows, and a branch if it is not finished. Returns the places behind
    which was looked, and the logits (places, vocabulary) there.
    """
    paths = [(answer, [one.path(end) for end in ends]) for answer, ends in answers]
    places = sorted({place for answer, all_ in paths for path in all_ for place in path[len(answer.prompt) - 1 :]})
    cache = DynamicCache()
    logits = logits_after(model, one, places, cache)
    likeliest = dict(zip(places, logits.argmax(-1).tolist(), strict=True))
    for answer, (path, *_) in paths:
        place: int | None = path[len(answer.prompt) - 1]
        while place in likeliest:
            at = place
            answer.tokens.append(likeliest[at])
            if answer.stop.ends(answer.tokens):
                break
            place = one.children.get((at, answer.tokens[-1]))
        else:
            answer.branch = branch_of(cache, one.path(at))
    return places, logits


def finish(model: Any, unfinished: Iterator[Answer], rows: int) -> Iterator[Answer]:
    """Decode what is unfinished, `rows` side by side: as soon as one is finished, the next one takes its place."""
    active: list[Answer] = []
    batch: Rows | None = None
    while True:
        if len(active) < rows and (new := list(islice(unfinished, rows - len(active)))):
            before = batch.branches() if batch and active else []
            batch = Rows(model, before + [answer.branch for answer in new if answer.branch])
            for answer in new:
                answer.branch = None  # it lives in the batch now
            active += new
        if not active or not batch:
            return
        likeliest = batch.step([answer.tokens[-1] for answer in active]).argmax(-1).tolist()
        for answer, token in zip(active, likeliest, strict=True):
            answer.tokens.append(token)
        ended = [answer.stop.ends(answer.tokens) for answer in active]
        if any(ended):
            yield from (answer for answer, over in zip(active, ended, strict=True) if over)
            going = [row for row, over in enumerate(ended) if not over]
            active = [active[row] for row in going]
            if active:
                batch.keep(going)
