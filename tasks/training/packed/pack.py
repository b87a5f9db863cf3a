"""Several adapters trained on one frozen base, in one process: what the base computes for all is computed once.

    each member's rows of its next optimizer step     the seed's order, as TRL takes them (order.py)
    -> blocks: common prefixes once (layout.py)       within the member: adapters make other states of the same tokens
    -> passes: the n-th of every member together      one product with each weight of the base (linear.py)
    -> loss where labels are (head.py), backward      gradients of each member in memory of its own
    -> every member: clip, AdamW, schedule, guards    (member.py); who has ended leaves, and the others go on
    -> validation, checkpoints of all in one round    (states.py)

A round is one optimizer step of every member that is still in training. The result of a member does not depend on who
else is there, but for the last bits: a product over more rows may be summed in another order.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from infra import stage_process
from infra.errors import PreemptedError, RequestError, TunefleetError
from infra.hashing import SHORT, digest_json
from tasks.ingestion.dataset import read_jsonl
from tasks.training import checkpoints, curve
from tasks.training.checkpoints import SAVE_SECONDS
from tasks.training.features import Features, features
from tasks.training.methods import keep_unpacked
from tasks.training.models import load_base
from tasks.training.pace import peak_memory
from tasks.training.packed import states
from tasks.training.packed.layout import Block, blocks_of, passes_of
from tasks.training.packed.member import Member, validation_tokens
from tasks.training.packed.passing import Part
from tasks.training.packed.room import keeps_dequantised, recomputes
from tasks.training.packed.shared_base import SharedBase
from tasks.training.packed.weights import AdapterWeights

DRAWS = 4096  # numbers for the passes of one optimizer step, each of which drops out something else


def train(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train the members of `job` and leave each adapter in its `output`: {"members": {name: figures or error}}.

    A member that diverges, or whose rows cannot be rendered, ends alone, and has {"error": {"kind", "message"}} for
    figures: kind is diverged, failed or bad_input. PreemptedError, after
    checkpoints of all, at SIGTERM.
    """
    base = Path(job["base"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows: dict[str, tuple[list[Features], list[Features]]] = {}
    refused: dict[str, dict[str, Any]] = {}
    for one in job["members"]:
        try:
            rows[one["name"]] = _rows(tokenizer, one, "train"), _rows(tokenizer, one, "validation")
        except RequestError as error:
            refused[one["name"]] = {"error": {"kind": "bad_input", "message": str(error)}}
    job = {**job, "members": [one for one in job["members"] if one["name"] in rows]}
    if not rows:
        return {"members": refused}
    recomputing = recomputes(job, {name: some for name, (some, _) in rows.items()})
    model = load_base(base, job["quantization"], job["device"])
    keep_unpacked(model)
    vocabulary, dtype = model.config.get_text_config().vocab_size, _adapter_dtype(model)
    members = []
    for one in job["members"]:
        weights = AdapterWeights(model, one["lora"], base, one["training"]["seed"], dtype)
        members.append(Member(one, weights, *rows[one["name"]], vocabulary=vocabulary, device=job["device"]))
    layers = {one.name: one.weights.layers for one in members}
    keeps = job["quantization"] == "nf4" and keeps_dequantised(model, job["device"])
    shared = SharedBase(model, layers, keeps=keeps, recomputes=recomputing)
    with ExitStack() as held:
        for one in members:
            held.enter_context(checkpoints.only_writer(one.keep, is_first=True))
        Pack(shared, members).run()
        made = {one.name: _made(one, job["base_name"]) for one in members}
    about = {
        "device": job["device"],
        "world_size": 1,
        "gradient_checkpointing": recomputing,
        "peak_memory_bytes": peak_memory(job["device"]),
        "engine": "packed",
        "pack": [one.name for one in members],
    }
    return {"members": refused | {name: one if "error" in one else one | about for name, one in made.items()}}


def _rows(tokenizer: Any, member: Mapping[str, Any], split: str) -> list[Features]:
    rows = read_jsonl(Path(member["data"]) / f"{split}.jsonl")
    return features(tokenizer, rows) if rows else []


def _made(member: Member, base_name: str) -> dict[str, Any]:
    """The figures of a member that has ended, its adapter written; or the error that it ended with."""
    if member.ended == "done":
        try:
            return member.finish(base_name, Path(member.job["output"]))
        except PreemptedError:
            raise
        except TunefleetError as error:
            member.fail(error)
    return {"error": member.ended}


class Pack:
    """The members in training on their base."""

    def __init__(self, base: SharedBase, members: Sequence[Member]):
        self.base, self.members = base, members
        self.name = digest_json([list(one.keep.parts[-2:]) for one in members])[:SHORT]
        self.round = 0
        self._asked_to_stop = False

    @property
    def active(self) -> list[Member]:
        return [one for one in self.members if one.ended is None]

    def run(self) -> None:
        """Rounds until every member has ended. PreemptedError, after checkpoints of all, at SIGTERM."""
        self._resume()
        saved_at = time.monotonic()
        with stage_process.at_sigterm(self._ask_to_stop):
            while active := self.active:
                self.one_round(active)
                is_due = time.monotonic() - saved_at > SAVE_SECONDS and any(one.save_every is None for one in active)
                is_due |= any(one.save_every and one.step % one.save_every == 0 for one in active)
                if is_due or self._asked_to_stop or len(self.active) < len(active):
                    self._save(active)
                    saved_at = time.monotonic()
                if self._asked_to_stop and self.active:
                    steps = ", ".join(f"{one.name} at step {one.step}" for one in self.active)
                    raise PreemptedError(f"asked to stop (SIGTERM); checkpoints are saved, {steps}")

    def one_round(self, active: Sequence[Member]) -> None:
        """One optimizer step of each. Its time is everybody's, by the tokens that were computed for each."""
        self.round += 1
        started = time.monotonic()
        rows = {one.name: one.window() for one in active}
        parts: dict[str, list[Part]] = {}
        computed: dict[str, int] = {}
        for one in active:
            one.pace.begin()
            parts[one.name] = self._parts(one, rows[one.name])
            computed[one.name] = sum(len(block.ids) for part in parts[one.name] for block in part.blocks)
            one.computed_tokens += computed[one.name]
        losses = self._losses(parts)
        if len(active) > 1 and not all(one.is_finite(losses[one.name]) for one in active):
            # NaN of one member may be in another: bfloat16 kernels of oneDNN that read past the end of a row, times 0
            # (its issue 5717). So each is computed alone, and who is lost then is lost by itself.
            for one in active:
                one.weights.gradient.zero_()
            losses = {}
            for name in parts:
                losses |= self._losses({name: parts[name]})
        together = time.monotonic() - started
        for one in active:
            started = time.monotonic()
            try:
                one.end_step(losses[one.name], sum(len(row["input_ids"]) for row in rows[one.name]))
                self._after_step(one)
            except TunefleetError as error:
                one.fail(error)
            one.seconds += together * computed[one.name] / sum(computed.values()) + time.monotonic() - started
            if one.ended is not None:
                self.base.release(one.name)

    def _losses(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        """Each member's loss over its parts, whose gradients are added up; the n-th parts of all in one pass."""
        losses = dict.fromkeys(parts, 0.0)
        for together in zip_longest(*parts.values()):
            for name, loss in self.base.losses([one for one in together if one is not None], trains=True).items():
                losses[name] += loss
        return losses

    def _after_step(self, one: Member) -> None:
        if one.step % one.training["logging_steps"] == 0 or one.step == one.steps:
            stage_process.progress(**one.progress())
        if one.validates_now():
            one.take_validation(self.validation_loss(one))
            stage_process.progress(name=one.name, **curve.validation(one.log)[-1])

    def validation_loss(self, one: Member) -> float:
        """Mean loss of the trained tokens of the validation rows, in nats."""
        weight = 1 / validation_tokens(one.validation)
        blocks = blocks_of(one.validation, self.base.hidden, capacity=one.capacity)
        return sum(
            self.base.losses([Part(one.name, some, weight, draw=-1)], trains=False)[one.name]
            for some in passes_of(blocks, one.capacity)
        )

    def _parts(self, one: Member, rows: Sequence[Features]) -> list[Part]:
        """What `one` brings into this round's passes. With dropout every row draws for itself, so nothing is shared."""
        weight = 1 / max(validation_tokens(rows), 1)
        shares = not one.weights.has_dropout
        blocks: Sequence[Block] = blocks_of(rows, self.base.hidden, capacity=one.capacity, shares=shares)
        return [
            Part(one.name, some, weight, draw=one.step * DRAWS + number)
            for number, some in enumerate(passes_of(blocks, one.capacity))
        ]

    # --- checkpoints

    def _resume(self) -> None:
        """Go on from what is saved. Who ended with an error is tried again, unless others repeat their run."""
        chosen = states.to_go_on_from([one.keep for one in self.members], self.name)
        for one, saved in zip(self.members, chosen, strict=True):
            if saved:
                one.load(saved)
                self.round = max(self.round, saved.round)
                print(f"{one.name}: going on after step {one.step}, from {saved.folder}", flush=True)
                for point in curve.validation(one.log):  # whoever listens now has not heard them before a crash
                    stage_process.progress(name=one.name, **point)
        is_over = not self.active
        for one, saved in zip(self.members, chosen, strict=True):
            if one.ended not in (None, "done") and saved and (is_over or saved.log["pack"] != self.name):
                one.ended = None
            if one.ended is not None:
                self.base.release(one.name)

    def _save(self, those: Sequence[Member]) -> None:
        """Checkpoints of all that took part in this round, so that they can go on from it together."""
        for one in those:
            one.save(number=self.round, pack=self.name)

    def _ask_to_stop(self) -> None:
        self._asked_to_stop = True


def _adapter_dtype(model: Any) -> torch.dtype:
    """float32, or the base's float64."""
    return torch.promote_types(torch.float32, model.get_input_embeddings().weight.dtype)
