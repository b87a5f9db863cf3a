"""One adapter of a pack: its own weights, optimizer, schedule, order of rows, guards, log and checkpoints.

Nothing here knows of the others. What it computes is what TRL's trainer computes for it: AdamW on the mean loss of the
optimizer step's trained tokens, clipped, at the rate of the schedule.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler

from infra.errors import DivergedError, StageError, TunefleetError
from tasks.training import curve, runaway
from tasks.training.features import Features, length
from tasks.training.pace import Note, Pace, pace
from tasks.training.packed import states
from tasks.training.packed.layout import trained_tokens
from tasks.training.packed.order import RowOrder
from tasks.training.packed.weights import AdapterWeights
from tasks.training.schedule import in_steps, steps_of, steps_per_epoch

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what AdamW keeps, by its own names


class Member:
    """An adapter in training. `job` is its part of the pack's job; `rows` and `validation` are finished tokens."""

    def __init__(
        self,
        job: Mapping[str, Any],
        weights: AdapterWeights,
        rows: Sequence[Features],
        validation: Sequence[Features],
        *,
        vocabulary: int,
        device: str,
    ):
        self.name, self.job, self.weights = str(job["name"]), job, weights
        self.rows, self.validation = rows, validation
        self.training = training = job["training"]
        self.keep = Path(job["checkpoints"])
        self.vocabulary = vocabulary
        self.steps = steps_of(len(rows), training)
        every = training["eval_steps"]
        self.eval_every = in_steps(every, self.steps) if every else steps_per_epoch(len(rows), training)
        self.save_every = in_steps(training["save_steps"], self.steps) if training["save_steps"] else None
        self.save_best = bool(training["load_best_model_at_end"] and validation)
        # Tokens in a pass: no more than a batch of the longest rows would have, which is what memory was planned for.
        self.capacity = training["per_device_train_batch_size"] * max(map(length, rows))
        self.order = RowOrder(rows, training)
        self.optimizer = torch.optim.AdamW(
            [weights.flat], lr=training["learning_rate"], weight_decay=training["weight_decay"], fused=True
        )
        self._rate = _schedule(training, self.steps)
        self._start = _sums(weights.flat)
        self.step = 0
        self.log: list[dict[str, Any]] = []
        self.best: tuple[int, float] | None = None  # step and validation loss
        self.ended: str | dict[str, str] | None = None  # "done", or the error that it ended with
        self.computed_tokens = 0
        self.pace = Pace(device)
        self.seconds = 0.0  # of training: its share of the pack's
        self.started = time.monotonic()
        self.tokens_at_start, self.step_at_start = 0, 0

    # --- an optimizer step

    def window(self) -> list[Features]:
        """The rows of the next optimizer step."""
        self._window = self.order.window(self.step)
        return [self.rows[number] for number in self._window]

    def is_finite(self, loss: float) -> bool:
        """Whether `loss` and the gradients that lie ready are."""
        return math.isfinite(loss) and math.isfinite(self._gradient_norm())

    def end_step(self, loss: float, tokens: int) -> None:
        """Take the optimizer step from the gradients that lie ready; DivergedError if the training is lost.

        `loss` is the mean over the step's trained tokens, `tokens` are all that its rows have.
        """
        rate = self.training["learning_rate"] * self._rate(self.step)
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} {self._where(rate)}")
        gradient, most = self.weights.gradient, self.training["max_grad_norm"]
        norm = self._gradient_norm()
        if not math.isfinite(norm):
            raise DivergedError(f"the gradient norm is {norm} {self._where(rate)}")
        gradient.mul_(min(most / (norm + 1e-6), 1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        gradient.zero_()
        self.step += 1
        total = curve.tokens(self.log) + tokens
        entry = {"step": self.step, "loss": loss, "learning_rate": rate, "grad_norm": norm, "num_tokens": total}
        self.log.append(entry)
        self.pace.note(self.step)
        runaway.check(self.log, self.vocabulary, lambda: self._where(rate, self.step))
        if self.step >= self.steps:
            self.ended = "done"

    def _gradient_norm(self) -> float:
        return float(torch.linalg.vector_norm(self.weights.gradient))

    def validates_now(self) -> bool:
        return bool(self.validation) and (self.step % self.eval_every == 0 or self.step == self.steps)

    def take_validation(self, loss: float) -> None:
        """DivergedError if the loss is lost: no result could be written with it, not even the others'."""
        if not math.isfinite(loss):
            rate = self.log[-1]["learning_rate"]
            raise DivergedError(f"the validation loss is {loss} {self._where(rate, self.step)}")
        self.log.append({"step": self.step, "eval_loss": loss})
        if self.best is None or loss < self.best[1]:
            self.best = (self.step, loss)
            if self.save_best:
                states.save_best(self.keep, self.step, self.weights.flat.data)
        if self.stopped_early:
            self.ended = "done"

    @property
    def stopped_early(self) -> bool:
        patience = self.training["early_stopping_patience"]
        return bool(patience) and curve.without_new_best(self.log) >= patience

    def fail(self, error: TunefleetError) -> None:
        """It ends here, alone."""
        self.ended = {"kind": "diverged" if isinstance(error, DivergedError) else "failed", "message": str(error)}

    def _where(self, rate: float, step: int | None = None) -> str:
        lines = [f"train.jsonl:{number + 1}" for number in self._window]
        return runaway.where(step or self.step + 1, rate, lines)

    # --- telling

    def progress(self) -> dict[str, Any]:
        elapsed, done = time.monotonic() - self.started, self.step - self.step_at_start
        return {
            "name": self.name,
            "step": self.step,
            "steps": self.steps,
            "loss": round(curve.first_and_last_losses(self.log, 1)[1][0], 4),
            "tokens_per_second": round((curve.tokens(self.log) - self.tokens_at_start) / elapsed, 1),
            "seconds_left": round(elapsed / done * (self.steps - self.step), 1),
        }

    # --- checkpoints

    def save(self, *, number: int, pack: str) -> None:
        """A checkpoint in round `number` of the pack of that name."""
        moments = self.optimizer.state.get(self.weights.flat, {})
        tensors = {"weights": self.weights.flat.data, **{key: moments[key] for key in MOMENTS if key in moments}}
        log = {
            "global_step": self.step,
            "best_global_step": self.best[0] if self.best and self.save_best else None,
            "best": self.best,
            "log_history": self.log,
            "ended": self.ended,
            "computed_tokens": self.computed_tokens,
            "round": number,
            "pack": pack,
        }
        states.save(self.keep, tensors, log, {"seconds": self.seconds, "pace": self.pace.notes})

    def load(self, saved: states.Saved) -> None:
        tensors, log, clock = saved.tensors(), saved.log, saved.clock()
        self.weights.flat.data.copy_(tensors.pop("weights"))
        if tensors:  # copies on the weights' device: AdamW writes to what it is given
            device = self.weights.flat.device
            moments = {key: one.clone().to("cpu" if key == "step" and device.type == "cpu" else device)
                       for key, one in tensors.items()}  # fmt: skip
            self.optimizer.state[self.weights.flat] = moments
        self.step, self.log, self.ended = saved.step, list(log["log_history"]), log["ended"]
        self.best = tuple(log["best"]) if log["best"] else None
        self.computed_tokens = log["computed_tokens"]
        self.seconds = clock["seconds"]
        notes: list[Note] = clock["pace"]
        self.pace.notes = notes
        self.tokens_at_start, self.step_at_start = curve.tokens(self.log), self.step

    # --- the end

    def finish(self, base_name: str, output: Path) -> dict[str, Any]:
        """Write the adapter to `output`; the figures of its training, as tasks/training/train.py gives them."""
        best = self.best[0] if self.best and self.save_best else None
        if best not in (None, self.step):
            self.weights.flat.data.copy_(states.load_best(self.keep, best))
        sums = _sums(self.weights.flat)
        if not all(map(math.isfinite, sums)):
            raise DivergedError("after training, the adapter is not finite.")
        if sums == self._start:
            raise StageError("training moved no weight; is learning_rate too small?")
        self.weights.save(output, base_name)
        losses = curve.validation(self.log)
        return {
            "trainable_params": self.weights.trainable,
            "total_params": self.weights.total,
            "steps": self.step,
            "planned_steps": self.steps,
            "stopped_early": self.stopped_early,
            "seconds": round(self.seconds, 3),
            "tokens": curve.tokens(self.log),
            "computed_tokens": self.computed_tokens,
            "loss": curve.first_and_last_losses(self.log, 1)[1][0],
            "validation_loss": (self.best[1] if self.best and self.save_best else losses[-1]["validation_loss"])
            if losses
            else None,
            "best_step": best,
            "curve": curve.curve(self.log),
            "pace": pace(self.log, self.pace.notes),
            "seed": self.training["seed"],
            "per_device_train_batch_size": self.training["per_device_train_batch_size"],
            "gradient_accumulation_steps": self.training["gradient_accumulation_steps"],
        }


def validation_tokens(rows: Sequence[Features]) -> int:
    return sum(map(trained_tokens, rows))


def _schedule(training: Mapping[str, Any], steps: int) -> Any:
    """The factor on the learning rate at a step, from 0, as transformers' trainer sets it."""
    warmup = training["warmup_steps"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(
        training["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=int(warmup) if warmup >= 1 else math.ceil(warmup * steps),
        num_training_steps=steps,
    )
    return scheduler.lr_lambdas[0]


def _sums(flat: torch.Tensor) -> tuple[float, float]:
    """Two sums: enough to see whether anything moved, without a copy."""
    exact = flat.detach().double()
    return float(exact.sum()), float(exact.abs().sum())
