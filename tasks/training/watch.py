"""What happens after each step of a training: telling the parent, saving, stopping."""

import time
from typing import Any

from transformers import TrainerCallback

from infra import stage_process
from tasks.training import curve


class Watch(TrainerCallback):
    """Tells the parent how far training is, and decides about saving and stopping after each step."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._total_train_tokens = curve.tokens(state.log_history)  # TRL starts it at 0 after a resume
        self.tokens_before = self.trainer._total_train_tokens
        for point in curve.validation(state.log_history):  # whoever listens now has not heard them before a crash
            stage_process.progress(**point)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._batches.clear()
        self.trainer.pace.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_save = False  # the result follows at once; resuming at the last step would train one more
            return
        stops, is_due = self.trainer.stop_or_save()
        control.should_training_stop |= stops
        control.should_save |= stops or is_due

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        stage_process.progress(**curve.validation(state.log_history)[-1])
        if self.trainer.stopped_early:
            control.should_training_stop = True
            control.should_save = False  # as at the last step

    def on_log(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        logs = event["logs"]
        if "loss" not in logs:
            return
        self.trainer.pace.note(state.global_step)
        self.trainer.check_step(logs)
        if state.global_step % self.trainer.progress_steps and state.global_step != state.max_steps:
            return
        elapsed = time.monotonic() - self.trainer.started
        done = state.global_step - self.trainer._initial_global_step
        stage_process.progress(
            step=state.global_step,
            steps=state.max_steps,
            loss=round(logs["loss"], 4),
            tokens_per_second=round((curve.tokens(state.log_history) - self.tokens_before) / elapsed, 1),
            seconds_left=round(elapsed / done * (state.max_steps - state.global_step), 1),
        )
