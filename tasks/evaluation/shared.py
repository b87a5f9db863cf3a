"""lm-eval's HFLM, computing once what requests share; per document it agrees with HFLM itself.

Requests are put into a forest (tasks/evaluation/forest.py) and the head runs where something is scored. What a model
does not suit (tasks/evaluation/suited.py) is answered by HFLM as it comes, and the cell's facts say so.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from infra.errors import StageError
from tasks.evaluation.branches import logits_after
from tasks.evaluation.decoding import Answer, Stop, finish, verified, why_not_greedy
from tasks.evaluation.divergence import CHUNK, BaseStates, divergence
from tasks.evaluation.forest import Pass, Plans
from tasks.evaluation.suited import why_too_long

ROOM = 32  # tokens of a pass, beside its longest sequence, for each document of a batch
HELD = 256  # tokens of keys and values for each document of a batch: more, shorter answers grow side by side
COMPARED = 16  # documents of a cell whose distributions are compared with the base's
Drafts = Mapping[tuple[str, int], str]  # {(task, document): text}
Request = tuple[Any, list[int], list[int]]  # what was asked, context, continuation


@dataclass(frozen=True)
class Footing:
    """What a side stands on: plans that all sides share, why its model does not suit them, and the base under it."""

    plans: Plans
    unsuited: str | None = None
    as_base: Callable[[], AbstractContextManager[None]] | None = None  # the base itself, where an adapter is on it
    states: BaseStates = field(default_factory=BaseStates)  # of that base


@dataclass
class Cell:
    """What is told of the cell that is being scored."""

    drafts: Drafts = field(default_factory=dict)
    with_kl: bool = True
    why_stock: str | None = None
    kl: float = 0.0  # summed over tokens, in nats
    kl_tokens: int = 0


class SharedLM(HFLM):
    """HFLM on a footing. `begin_cell` before each cell, `cell_facts` after it."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, footing: Footing, **options: Any):
        # Log-probabilities in float32: a softmax in bfloat16 rounds a document's sum to the nearest half.
        softmax: dict[str, Any] = {"softmax_dtype": "float32"}
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, **softmax, **options)
        self.footing = footing
        self.cell = Cell()

    def begin_cell(self, drafts: Drafts, *, with_kl: bool = True) -> None:
        """Forget the cell before; `drafts` are what documents might be answered with."""
        self.cell = Cell(drafts, with_kl)

    def cell_facts(self) -> dict[str, Any]:
        """path, why: `shared`, or `stock` and the reason. kl: mean over kl_tokens of KL(base || adapter), in nats.

        kl is None, too, where it is no finite number.
        """
        cell = self.cell
        kl = cell.kl / cell.kl_tokens if cell.kl_tokens else math.nan
        return {
            "path": "stock" if cell.why_stock else "shared",
            "why": cell.why_stock,
            "kl": kl if math.isfinite(kl) else None,
            "kl_tokens": cell.kl_tokens,
        }

    @property
    def _compares(self) -> bool:
        return self.cell.with_kl and self.footing.as_base is not None

    # Log-likelihoods

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """HFLM's windows, all at once: it hands on as many as a batch has."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        windows = [
            [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    token_list=text, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
                )
            ]
            for text in texts
        ]
        if self._stock([len(one) + len(two) for windows_ in windows for _, one, two in windows_]):
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        scored = iter(self._loglikelihood_tokens([window for windows_ in windows for window in windows_]))
        sums = [sum(next(scored)[0] for _ in windows_) for windows_ in windows]
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        for asked, _, continuation in requests:
            if not continuation:  # its likelihood would be 1
                raise StageError(
                    f"the continuation {asked[1]!r} behind '...{asked[0][-80:]}' has no tokens, so it has no "
                    "likelihood; look at the task's choices."
                )
        if self._stock([len(context) + len(continuation) for _, context, continuation in requests]):
            return super()._loglikelihood_tokens(list(requests), disable_tqdm=disable_tqdm, override_bs=override_bs)
        first = _first_documents(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            return [
                *self._scored(requests[:first], bar, compare=self._compares),
                *self._scored(requests[first:], bar, compare=False),
            ]

    @torch.inference_mode()
    def _scored(self, requests: Sequence[Request], bar: Any, *, compare: bool) -> list[tuple[float, bool]]:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise StageError(f"a continuation has {longest} tokens, and the model reads {self.max_length}.")
        # As HFLM cuts what is too long; the last token is only predicted.
        inputs = [tuple((one + two)[-(self.max_length + 1) :][:-1]) for _, one, two in requests]
        answers: dict[int, tuple[float, bool]] = {}
        for one in self.footing.plans.of(inputs, ROOM * self.batch_size):
            paths = {number: one.path(last, len(requests[number][2])) for number, last in one.last.items()}
            places = sorted(set().union(*paths.values()))
            logits = logits_after(self.model, one, places)
            row = {place: at for at, place in enumerate(places)}
            rows = torch.tensor([row[place] for path in paths.values() for place in path], device=logits.device)
            wanted = torch.tensor([token for number in paths for token in requests[number][2]], device=logits.device)
            lengths = [len(path) for path in paths.values()]
            likelihoods = _log_probs(logits, rows, wanted).split(lengths)
            greedy = (logits.argmax(-1)[rows] == wanted).split(lengths)
            for number, likelihood, hits in zip(paths, likelihoods, greedy, strict=True):
                answers[number] = float(likelihood.sum()), bool(hits.all())
                if requests[number][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
            if compare:
                self._compare(one, places, logits)
            bar.update(len(paths))
        return [answers[number] for number in range(len(requests))]

    def _compare(self, one: Pass, places: list[int], logits: torch.Tensor) -> None:
        """Add how far this adapter's distributions at these places are from the base's."""
        assert self.footing.as_base
        with self.footing.as_base():
            base = self.footing.states.logits(self.model, one, places)
        self.cell.kl += divergence(logits, base)
        self.cell.kl_tokens += len(places)

    # Greedy answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What HFLM answers to prompts that are alone in their batches; else it goes on until all are finished."""
        asked = [dict(normalize_gen_kwargs(request.args[1], self.max_gen_toks)) for request in requests]
        longest = [one["max_gen_toks"] for one in asked]
        config = self.model.generation_config
        not_greedy = next(filter(None, (why_not_greedy(config, one) for one in asked)), None)
        room = max(longest, default=0)
        if room >= self.max_length:  # HFLM has an error for this
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        prompts = [self._prompt(request.args[0], most) for request, most in zip(requests, longest, strict=True)]
        for request, prompt in zip(requests, prompts, strict=True):
            if not prompt:
                raise StageError(
                    f"{request.task_name}, document {request.doc_id}: the prompt has no tokens, so there is nothing to "
                    "answer; look at the task's doc_to_text."
                )
        if self._stock([len(one) + most for one, most in zip(prompts, longest, strict=True)], not_greedy):
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        last = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        untils = [tuple(handle_stop_sequences(one["until"], eos=last)) for one in asked]
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        stops = {key: Stop(self.tokenizer, ends, *key) for key in set(zip(untils, longest, strict=True))}
        answers = [
            Answer(prompt, self._drafts(request, prompt), stops[until, most])
            for request, prompt, until, most in zip(requests, prompts, untils, longest, strict=True)
        ]
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            self._answer(answers, bar)
        texts = [
            postprocess_generated_text(self.tok_decode(answer.tokens), list(until), None)
            for answer, until in zip(answers, untils, strict=True)
        ]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    @torch.inference_mode()
    def _answer(self, answers: Sequence[Answer], bar: Any) -> None:
        def unfinished() -> Iterator[Answer]:
            for part, compared in ((answers[:COMPARED], self._compares), (answers[COMPARED:], False)):
                branches = [(answer, sequence) for answer in part for sequence in answer.sequences]
                for one in self.footing.plans.of([sequence for _, sequence in branches], ROOM * self.batch_size):
                    ends: dict[int, list[int]] = {}  # by the answer's identity
                    for number, end in one.last.items():
                        ends.setdefault(id(branches[number][0]), []).append(end)
                    # An answer whose drafts did not fit into one pass was begun by the first of them.
                    here = [(answer, ends[id(answer)]) for answer in part if id(answer) in ends and not answer.tokens]
                    if not here:
                        continue
                    places, logits = verified(self.model, one, here)
                    if compared and any(answer.drafts for answer, _ in here):
                        self._compare(one, places, logits)
                    bar.update(sum(answer.branch is None for answer, _ in here))
                    yield from (answer for answer, _ in here if answer.branch)

        longest = max((len(answer.prompt) + answer.stop.longest for answer in answers), default=1)
        for _ in finish(self.model, unfinished(), max(self.batch_size, HELD * self.batch_size // longest)):
            bar.update(1)

    def _prompt(self, text: str, longest: int) -> list[int]:
        """As HFLM encodes a prompt that is alone in its batch."""
        ids, _ = self.tok_batch_encode([text], left_truncate_len=self.max_length - longest, truncation=self.truncation)
        return ids[0].tolist()

    def _drafts(self, request: Any, prompt: list[int]) -> list[list[int]]:
        """What this document might be answered with; behind a prompt that ends in a word, also after a space."""
        context, text = request.args[0], self.cell.drafts.get((request.task_name, request.doc_id), "")
        if not text:
            return []
        drafts = []
        for draft in [text] if context[-1:].isspace() or text[0].isspace() else [text, " " + text]:
            whole = self.tok_encode(context + draft)  # tokens as the model would write them, if that can be told
            own = whole[: len(prompt)] == prompt
            drafts.append(whole[len(prompt) :] if own else self.tok_encode(draft, add_special_tokens=False))
        return drafts

    def _stock(self, lengths: Sequence[int], why: str | None = None) -> bool:
        """Whether requests with sequences of these many tokens must go HFLM's own way; from then on the cell does."""
        longest = min(max(lengths, default=0), self.max_length)
        why = why or self.footing.unsuited or why_too_long(self.model.config, longest)
        self.cell.why_stock = self.cell.why_stock or why
        return self.cell.why_stock is not None


class AsTrained(SharedLM):
    """Prompts and answers are tokenised apart and nothing is put before them, as in training.

    HFLM by itself tokenises the sum of both, moves a prompt's last spaces into the answer, and lets the tokenizer put
    its begin token before whatever has none.
    """

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.tok_encode(context), self.tok_encode(continuation)


def as_trained(lm: SharedLM) -> SharedLM:
    """The same model, asked as it was trained: for an adapter's own tasks, not for those of lm-eval."""
    trained = AsTrained(lm.model, lm.tokenizer, lm.batch_size, lm.footing, add_bos_token=False)
    trained.cell = lm.cell
    return trained


def _log_probs(logits: torch.Tensor, rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (n,), float32, of the tokens `wanted` (n,) in the `rows` (n,) of `logits`."""
    found = torch.empty(len(rows), device=logits.device)
    for number, part in enumerate(logits.split(CHUNK)):
        here = rows // CHUNK == number
        found[here] = part.float().log_softmax(-1)[rows[here] % CHUNK, wanted[here]]
    return found


def _first_documents(requests: Sequence[Request]) -> int:
    """How many requests belong to the first COMPARED documents; what has no context of its own is one by itself."""
    seen: set[tuple[int, ...]] = set()
    for number, (_, context, continuation) in enumerate(requests):
        seen.add(tuple(context if len(context) > 1 else context + continuation))
        if len(seen) > COMPARED:
            return number
    return len(requests)
