"""One adapter, or one whole model, trained with TRL over PEFT, on the base in 16 or 4 bits.

    train.jsonl -> rendering -> finished tokens -> SFTTrainer | DPOTrainer -> adapter_model.safetensors | a model
                                                        ^ checkpoints of this job, if it was interrupted

Rows arrive at the trainer as finished tokens, so that no library's idea of templates, padding or truncation stands
between what was checked and what is trained. Everything random is seeded by `training.seed`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, set_seed
from trl import DPOConfig, SFTConfig
from trl.trainer import utils as trl_utils

from infra.errors import StageError
from infra.gpus import CPU
from tasks.ingestion.dataset import read_jsonl
from tasks.training import curve, methods
from tasks.training.features import features
from tasks.training.launching import assert_world_size, own_device
from tasks.training.pace import pace, peak_memory
from tasks.training.recomputation import recomputes
from tasks.training.schedule import in_steps, steps_of, steps_per_epoch
from tasks.training.trainer import ReliableDPO, ReliableSFT


def train(job: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Train what `job` says (see tasks/training/task.py) and leave the result in its `output`; return its figures.

    DivergedError with step, rows and learning rate if the loss is lost; PreemptedError, after a checkpoint, at SIGTERM.
    """
    training, processes, device = job["training"], job["accelerate"]["num_processes"], own_device(job["device"])
    base, data = Path(job["base"]), Path(job["data"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token is None:  # labels say what is trained, so that padding with the end token unteaches nothing
        tokenizer.pad_token = tokenizer.eos_token
    rows, validation = read_jsonl(data / "train.jsonl"), read_jsonl(data / "validation.jsonl")
    is_preference = "chosen" in rows[0]
    total_steps = steps_of(len(rows), training, processes)
    train_rows = features(tokenizer, rows)
    arguments = _arguments(
        {**job, "training": {**training, "gradient_checkpointing": recomputes(job, train_rows)}},
        work,
        len(rows),
        validates=bool(validation),
        is_preference=is_preference,
    )
    assert_world_size(processes)
    set_seed(training["seed"])  # only now: what was looked at before has drawn from the random state
    model = methods.trainable(job["method"], base, job["lora"], device, work)
    started_from = methods.fingerprint(model)
    trainable, total = methods.count(model)
    kind: Any = ReliableDPO if is_preference else ReliableSFT
    trainer: Any = kind(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(train_rows),
        eval_dataset=Dataset.from_list(features(tokenizer, validation)) if validation else None,
        processing_class=tokenizer,
        keep=Path(job["checkpoints"]),
        rows=[f"train.jsonl:{line}" for line in range(1, len(rows) + 1)],
        save_best=training["load_best_model_at_end"],
        patience=training["early_stopping_patience"],
        progress_steps=training["logging_steps"],
        saves_by_time=training["save_steps"] is None,
    )
    if device == CPU:
        _score_trained_positions_only()
    trainer.train_to_the_end()
    log, steps = trainer.state.log_history, trainer.state.global_step
    if steps != total_steps and not trainer.stopped_early:
        raise StageError(f"training ended after {steps} of {total_steps} steps.")
    methods.refuse_untrained(trainer.model, started_from)
    methods.save(trainer, job["method"], job["lora"], Path(job["output"]), base, job["base_name"], work)
    losses = curve.validation(log)
    return {
        "engine": "trl",
        "trainable_params": trainable,
        "total_params": total,
        "steps": steps,
        "planned_steps": total_steps,
        "stopped_early": trainer.stopped_early,
        "seconds": round(trainer.seconds, 3),
        "tokens": curve.tokens(log),
        "loss": curve.first_and_last_losses(log, 1)[1][0],
        "validation_loss": (trainer.state.best_metric if training["load_best_model_at_end"]
                            else losses[-1]["validation_loss"]) if losses else None,
        "best_step": trainer.state.best_global_step if training["load_best_model_at_end"] else None,
        "curve": curve.curve(log),
        "pace": pace(log, trainer.pace.notes),
        "seed": training["seed"],
        "device": job["device"],
        "world_size": trainer.args.world_size,
        "gradient_checkpointing": bool(trainer.args.gradient_checkpointing),
        "per_device_train_batch_size": training["per_device_train_batch_size"],
        "gradient_accumulation_steps": training["gradient_accumulation_steps"],
        "peak_memory_bytes": peak_memory(job["device"]),
    }  # fmt: skip


def _arguments(job: Mapping[str, Any], work: Path, rows: int, *, validates: bool, is_preference: bool) -> Any:
    training = job["training"]
    on_cpu = job["device"] == "cpu"
    processes = job["accelerate"]["num_processes"]
    total = steps_of(rows, training, processes)
    as_they_are = (
        *("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed"),
    )
    options: dict[str, Any] = {key: training[key] for key in as_they_are}
    if validates:
        every = training["eval_steps"]
        options |= {
            "eval_strategy": "steps",
            "eval_steps": in_steps(every, total) if every else steps_per_epoch(rows, training, processes),
            "per_device_eval_batch_size": training["per_device_train_batch_size"],
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            "prediction_loss_only": True,
        }
    if training["group_by_length"]:
        options["train_sampling_strategy"] = "group_by_length"
    if is_preference:
        options["beta"] = training["beta"]
    else:
        options["dataset_kwargs"] = {"skip_prepare_dataset": True}
    return (DPOConfig if is_preference else SFTConfig)(
        output_dir=str(work / "trainer"),
        **options,
        max_steps=training["max_steps"] or -1,
        max_length=None,  # rows are finished tokens, and their lengths were checked
        gradient_checkpointing=training["gradient_checkpointing"],
        use_cpu=on_cpu,
        bf16=not on_cpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=in_steps(training["save_steps"], total) if training["save_steps"] else total + 1,
        report_to=list(training["report_to"]),
        run_name=job.get("name"),
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
    )


def _score_trained_positions_only() -> None:
    """Leave the head out where no label is, on a CPU as TRL does it on a GPU.

    TRL 1.16 scores every position wherever it has no Triton kernel, for the sake of devices that compile each shape
    anew. A CPU does not, and a prompt of fifty tokens costs as much there as the rest of a small model.
    """
    assert hasattr(trl_utils, "_use_triton"), "TRL decides this elsewhere now: look at add_fused_lm_head"
    trl_utils._use_triton = lambda device: True  # as this module sees it; the kernel's own choice stays
