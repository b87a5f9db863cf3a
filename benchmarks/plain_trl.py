"""The rival: the adapter of a training job, as a user of TRL alone writes it.

    python benchmarks/plain_trl.py tuned|defaults job.json

It takes the rows, the hyperparameters and the seed from Tunefleet's job, trains with SFTTrainer and LoraConfig, and
saves the adapter where the job says. Nothing of Tunefleet is imported.

    both       rows are prompt-completion text that ends with the end token. Chats are rendered by the chat template up
               to there: TRL's own rendering would train the line break behind it as well, one token a row more than
               Tunefleet trains, and another loss. TRL tokenises, masks the prompt and sets everything up by itself.
    tuned      what a careful user sets on a CPU, which is what Tunefleet sets: base in bfloat16, no autocast, no
               gradient checkpointing, no truncation, a log at every step, no bars. It saves no checkpoints; Tunefleet
               does.
    defaults   whatever SFTConfig (TRL 1.16) says where the task says nothing: base in float32 under bfloat16 autocast,
               gradient checkpointing, rows cut at 1024 tokens (none is as long), a log every 10 steps, a bar, a
               checkpoint every 500 steps and at the end.
"""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

HYPERPARAMETERS = (
    *("learning_rate", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed"),
)
TUNED: dict[str, Any] = {
    "model_init_kwargs": {"dtype": "bfloat16"},
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": None,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
}
SETTINGS = {"tuned": TUNED, "defaults": {}}


class StepLines(TrainerCallback):
    """One line a step, for whoever takes the time."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        print(f'@progress {{"step": {state.global_step}}}', flush=True)


def as_text(tokenizer: Any, row: dict[str, Any]) -> dict[str, str]:
    """Prompt and completion of a row, which is a chat or plain text already."""
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(prompt, str):
        prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        completion = completion[0]["content"]
    return {"prompt": prompt, "completion": completion + tokenizer.eos_token}


def main(setting: str, job_file: Path) -> None:
    job = json.loads(job_file.read_text())
    training, lora = job["training"], job["lora"]
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    rows = [json.loads(line) for line in (Path(job["data"]) / "train.jsonl").read_text().splitlines()]
    trainer = SFTTrainer(
        model=job["base"],
        args=SFTConfig(
            output_dir=str(job_file.parent / "trainer"),
            use_cpu=True,
            report_to="none",
            **{name: training[name] for name in HYPERPARAMETERS},
            **SETTINGS[setting],
        ),
        train_dataset=Dataset.from_list([as_text(tokenizer, row) for row in rows]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=lora["r"],
            lora_alpha=lora["lora_alpha"],
            lora_dropout=lora["lora_dropout"],
            target_modules=lora["target_modules"],
            task_type="CAUSAL_LM",
        ),
        callbacks=[StepLines()],
    )
    trainer.train()
    trainer.save_model(job["output"])
    log = trainer.state.log_history
    result = {
        "tokens": int([entry["num_tokens"] for entry in log if "num_tokens" in entry][-1]),
        "curve": [{"step": entry["step"], "loss": entry["loss"]} for entry in log if "loss" in entry],
    }
    (job_file.parent / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
