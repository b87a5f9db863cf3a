"""What a trainer of TRL lacks for unattended work, as one mixin for SFTTrainer and DPOTrainer.

It stops at a loss that is not finite or runs away, and names the rows; it keeps checkpoints that can be believed (see
checkpoints.py); it ends with a checkpoint when asked to stop; and looking at the validation loss changes nothing.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from trl import DPOTrainer, SFTTrainer

from infra.errors import DivergedError, PreemptedError
from infra.stage_process import at_sigterm
from tasks.training import checkpoints, curve, features, runaway, travelling
from tasks.training.checkpoints import SAVE_SECONDS
from tasks.training.pace import Pace
from tasks.training.rendering import IGNORED
from tasks.training.sampling import SeededLengthSampler
from tasks.training.watch import Watch

CLOCK = "clock.json"  # in a checkpoint: seconds of training before it, and how long each step took


class Reliable:
    """Mixin before a TRL trainer.

    `keep` is the folder of this job's checkpoints; `rows` say where each training row stands; `patience` is the number
    of validation losses without a new best that end training; progress is told every `progress_steps`; `saves_by_time`
    is whether checkpoints come by the clock.
    """

    def __init__(
        self,
        *,
        keep: Path,
        rows: list[str],
        save_best: bool,
        patience: int | None,
        progress_steps: int,
        saves_by_time: bool,
        **options: Any,
    ):
        self._keep = keep
        self._rows = rows
        self._save_best = save_best
        self._saves_by_time = saves_by_time
        self._patience = patience
        self.progress_steps = progress_steps
        self._batches: list[torch.Tensor] = []  # token ids of the running optimizer step
        self.seconds_before = 0.0
        self.pace = Pace(str(options["args"].device))
        self._asked_to_stop = False
        adapter = {name: one.data for name, one in options["model"].named_parameters() if one.requires_grad}
        super().__init__(**options)
        for name, one in options["model"].named_parameters():
            if name in adapter:  # TRL makes a 4-bit base's adapter bfloat16, where small updates round to nothing
                one.data = adapter[name]
        self.add_callback(Watch(self))  # type: ignore[attr-defined]

    # --- running

    def train_to_the_end(self: Any) -> None:
        """Train from the newest whole checkpoint, or from the start. PreemptedError, after a checkpoint, at SIGTERM."""
        with checkpoints.only_writer(self._keep, is_first=self.args.should_save):
            self.accelerator.wait_for_everyone()
            self._train_to_the_end()

    def _train_to_the_end(self: Any) -> None:
        resume = travelling.newest_whole(self._keep)
        if resume:
            clock = json.loads((resume / CLOCK).read_text())
            self.seconds_before, self.pace.notes = clock["seconds"], clock.get("pace", [])  # older ones have none
            print(f"going on after step {checkpoints.step_of(resume)}, from {resume}", flush=True)
        self.started = self._saved_at = time.monotonic()
        with at_sigterm(self._ask_to_stop):
            self.train(resume_from_checkpoint=str(resume) if resume else None)
        if self._asked_to_stop and not self.is_done:
            raise PreemptedError(f"asked to stop (SIGTERM); a checkpoint of step {self.state.global_step} is saved")
        if self._save_best and self.state.best_global_step not in (None, self.state.global_step):
            best = self._keep / f"best-{self.state.best_global_step}"
            travelling.to_all(best)
            self._load_from_checkpoint(str(best))

    @property
    def is_done(self: Any) -> bool:
        return self.state.global_step >= self.state.max_steps or self.stopped_early

    @property
    def stopped_early(self: Any) -> bool:
        return bool(self._patience) and curve.without_new_best(self.state.log_history) >= self._patience

    @property
    def seconds(self: Any) -> float:
        """Seconds of training up to now, those before a crash included."""
        return self.seconds_before + time.monotonic() - self.started

    def _ask_to_stop(self: Any) -> None:
        self._asked_to_stop = True

    def stop_or_save(self: Any) -> tuple[bool, bool]:
        """Whether to stop after this step, and whether a checkpoint is due; the same in all processes of this job."""
        is_due = self._saves_by_time and time.monotonic() - self._saved_at > SAVE_SECONDS
        if self.args.world_size > 1:
            asked = torch.tensor([float(self._asked_to_stop), float(is_due)], device=self.args.device)
            self._asked_to_stop, is_due = map(bool, self.accelerator.reduce(asked, "sum").tolist())
        return self._asked_to_stop, is_due

    # --- a loss that means something

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        training = model.training
        if training:
            self._batches.append(inputs["input_ids"])
        result = super().compute_loss(model, inputs, *args, **options)  # type: ignore[misc]
        loss = result[0] if isinstance(result, tuple) else result
        if training and not torch.isfinite(loss).all():
            raise DivergedError(f"the loss is {loss.item()} {self._where(self.state.global_step + 1)}")
        return result

    def check_step(self: Any, logs: dict[str, Any]) -> None:
        """DivergedError if the step that was just logged shows that training is lost."""
        if not math.isfinite(float(logs.get("grad_norm", 0.0))):
            raise DivergedError(f"the gradient norm is {logs['grad_norm']} {self._where(self.state.global_step)}")
        vocabulary = self.model.config.get_text_config().vocab_size
        runaway.check(self.state.log_history, vocabulary, lambda: self._where(self.state.global_step))

    def _where(self: Any, step: int) -> str:
        rows = [self._row_of(ids) for batch in self._batches for ids in batch.tolist()]
        return runaway.where(step, self._get_learning_rate(), rows)

    def _row_of(self: Any, ids: list[int]) -> str:
        """Where the row stands that a padded line of a batch was made from."""
        for where, row in zip(self._rows, self.train_dataset, strict=True):
            for own in features.sequences(row):
                if ids[: len(own)] == own and set(ids[len(own) :]) <= {self._tokenizer.pad_token_id}:
                    return where
        return "unknown"

    # --- validation

    def evaluate(self: Any, *args: Any, **options: Any) -> dict[str, float]:
        """The metrics; the random state stays as it was, or dropout would depend on how often somebody looks."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            return super().evaluate(*args, **options)  # type: ignore[misc]

    def evaluation_loop(self: Any, *args: Any, **options: Any) -> Any:
        """The validation loss is the mean over trained tokens, not over batches: batch size does not change it."""
        self._weighed: list[tuple[torch.Tensor, int]] = []
        output = super().evaluation_loop(*args, **options)  # type: ignore[misc]
        sums = torch.tensor(
            [[float(loss) * count, count] for loss, count in self._weighed],
            device=self.args.device,
            dtype=torch.float64,
        ).sum(0)
        total = self.accelerator.reduce(sums, "sum")
        output.metrics["eval_loss"] = float(total[0] / total[1])
        return output

    def prediction_step(self: Any, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        result = super().prediction_step(model, inputs, *args, **options)  # type: ignore[misc]
        labels = inputs.get("labels")
        count = len(inputs["input_ids"]) if labels is None else int((labels[:, 1:] != IGNORED).sum())
        self._weighed.append((result[0].detach(), count))
        return result

    # --- checkpoints

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """transformers' own checkpoint, without the tokenizer, written beside and renamed; in `keep`."""
        name = f"checkpoint-{self.state.global_step}"
        output_dir, tokenizer = self.args.output_dir, self.processing_class
        beside = self._together(checkpoints.start, name)
        self.args.output_dir, self.processing_class = str(beside), None
        try:
            Trainer._save_checkpoint(self, model, trial)
            travelling.to_first(beside)
            if self.args.should_save:
                (beside / CLOCK).write_text(json.dumps({"seconds": self.seconds, "pace": self.pace.notes}))
        finally:
            self.args.output_dir, self.processing_class = output_dir, tokenizer
        self._together(_lift_and_finish, name)
        self._saved_at = time.monotonic()
        if self.args.should_save:
            checkpoints.drop_old(self._keep, best_now=self.state.best_global_step)

    def _determine_best_metric(self: Any, metrics: Any, trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics=metrics, trial=trial)  # type: ignore[misc]
        if is_best and self._save_best:
            name = f"best-{self.state.global_step}"
            tokenizer, self.processing_class = self.processing_class, None
            try:
                self.save_model(str(self._together(checkpoints.start, name)), _internal_call=True)
            finally:
                self.processing_class = tokenizer
            self._together(checkpoints.finish, name)
        return is_best

    def _together(self: Any, make: Any, name: str) -> Path:
        """Have the first process do it while the others wait; all know the folder."""
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            make(self._keep, name)
        self.accelerator.wait_for_everyone()
        return self._keep / f".writing-{name}"

    def _get_train_sampler(self: Any, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        lengths = [features.length(row) for row in self.train_dataset]
        return SeededLengthSampler(
            self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps,
            lengths=lengths,
            seed=self.args.seed,
        )


def _lift_and_finish(folder: Path, name: str) -> None:
    """transformers writes into a checkpoint-N of its own below the folder that it was given."""
    beside = folder / f".writing-{name}"
    for path in (beside / name).iterdir():
        path.rename(beside / path.name)
    (beside / name).rmdir()
    checkpoints.finish(folder, name)


class ReliableSFT(Reliable, SFTTrainer):  # type: ignore[misc]
    """Supervised fine-tuning on finished tokens."""


class ReliableDPO(Reliable, DPOTrainer):  # type: ignore[misc]
    """Direct preference optimisation (arXiv 2305.18290) on finished tokens."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **options: Any) -> Any:
        return dataset
