"""One adapter, trained with TRL's SFTTrainer over PEFT, over the base in 16 or 4 bits.

    train.jsonl -> rendering -> input_ids, labels (completion only) -> SFTTrainer -> adapter_model.safetensors

Rows arrive at the trainer as finished tokens, so that no library's idea of templates, padding or truncation stands
between what was checked and what is trained. Everything random is seeded by `training.seed`.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from infra import stage_process
from infra.errors import DivergedError, StageError
from tasks.ingestion.dataset import read_jsonl
from tasks.training.models import Quantization, add_adapter, load_base
from tasks.training.rendering import render
from tasks.training.schedule import steps_of


def train_adapter(
    *,
    base: Path,
    base_name: str,
    quantization: Quantization,
    data: Path,
    lora: dict[str, Any],
    training: dict[str, Any],
    device: str,
    work: Path,
    output: Path,
) -> dict[str, Any]:
    """Train on `data`/train.jsonl and leave a PEFT checkpoint in `output`; return the training figures.

    DivergedError at the first step whose loss is not finite.
    """
    set_seed(training["seed"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [render(tokenizer, row).features() for row in read_jsonl(data / "train.jsonl")]
    model = add_adapter(load_base(base, quantization, device), lora)
    model.config.use_cache = False
    curve = LossCurve()
    trainer = StrictTrainer(
        model=model,
        args=_arguments(training, device, work),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[curve],
    )
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    expected = steps_of(len(rows), training)
    if trainer.state.global_step != expected:
        raise StageError(f"training ended after {trainer.state.global_step} of {expected} steps.")
    _refuse_untrained(model)
    if trainer.is_world_process_zero():
        _save(model, output, base_name)
    trainable, total = model.get_nb_trainable_parameters()
    return {
        "trainable_params": trainable,
        "total_params": total,
        "steps": expected,
        "seconds": round(seconds, 3),
        "tokens": curve.tokens,
        "loss": curve.points[-1]["loss"],
        "curve": curve.points,
        "seed": training["seed"],
        "device": device,
        "world_size": trainer.args.world_size,
    }


class StrictTrainer(SFTTrainer):
    """SFTTrainer that stops at a loss that is not finite; the stock one logs it as 0 and trains on."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        result = super().compute_loss(model, inputs, *args, **options)
        loss = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss).all():
            raise DivergedError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, learning rate "
                f"{self._get_learning_rate():.3g}. Lower learning_rate or max_grad_norm, or look at the rows."
            )
        return result


class LossCurve(TrainerCallback):
    """Keeps the loss curve as data and tells the parent how far training is."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self.tokens = 0
        self._started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        logs = event["logs"]
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        self.tokens = int(float(logs.get("num_tokens", self.tokens)))
        point = {"step": state.global_step, "loss": loss, "learning_rate": float(logs["learning_rate"]),
                 "grad_norm": float(logs["grad_norm"]), "tokens": self.tokens}  # fmt: skip
        self.points.append(point)
        elapsed = time.monotonic() - self._started
        left = elapsed / state.global_step * (state.max_steps - state.global_step)
        stage_process.progress(
            step=state.global_step,
            steps=state.max_steps,
            loss=round(loss, 4),
            tokens_per_second=round(self.tokens / elapsed, 1),
            seconds_left=round(left, 1),
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_log = True


def _arguments(training: dict[str, Any], device: str, work: Path) -> SFTConfig:
    on_cpu = device == "cpu"
    return SFTConfig(
        output_dir=str(work / "trainer"),
        **{key: value for key, value in training.items() if key not in ("max_length", "max_steps")},
        max_steps=training["max_steps"] or -1,
        max_length=None,  # rows are finished tokens, and their lengths were checked
        dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=on_cpu,
        bf16=not on_cpu,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
    )


def _refuse_untrained(model: Any) -> None:
    """StageError for an adapter that is not finite or whose B matrices never left zero: it would change nothing."""
    moved = False
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if not torch.isfinite(parameter).all():
            raise DivergedError(f"after training, {name} is not finite.")
        moved |= "lora_B" in name and bool(parameter.abs().max() > 0)
    if not moved:
        raise StageError("training moved no weight of the adapter; is learning_rate too small?")


def _save(model: Any, output: Path, base_name: str) -> None:
    """An ordinary PEFT checkpoint whose bytes depend on the weights and the settings alone."""
    model.save_pretrained(output)
    (output / "README.md").unlink(missing_ok=True)  # a card is written at publishing, when there is something to say
    path = output / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_name
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
