"""Looking at validation rows: what is kept, when training ends, and that looking changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.errors import DivergedError
from tasks.ingestion.dataset import build_dataset, read_jsonl
from tasks.recipe.schema import Data
from tasks.training.rendering import IGNORED, render
from tasks.training.train import train as run_job
from tests.training.jobs import training_job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers that cannot be guessed: whoever learns them by heart gets worse on the others."""
    folder = tmp_path_factory.mktemp("data")
    rows = tuple({"n": number, "a": f"{number * 7919 % 997:03d}" * (1 + number % 3)} for number in range(24))
    spec = Data(rows=rows, held_out=0, validation=8, messages={"user": "{{ n }}?", "assistant": "{{ a }}"})
    build_dataset(spec, folder, needs_held_out=False)
    return folder


def train(base: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    settings = {"max_steps": 12, "lora": {"lora_dropout": 0.2}, **changes}
    return run_job(training_job(base, data, output, **settings), output.parent / f"{output.name}-work")


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def seen(facts: dict[str, Any]) -> list[tuple[int, float]]:
    return [(point["step"], point["validation_loss"]) for point in facts["curve"] if "validation_loss" in point]


def test_looking_changes_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    train(base, data, tmp_path / "often", eval_steps=1)
    train(base, data, tmp_path / "seldom", eval_steps=12)
    assert weights(tmp_path / "often") == weights(tmp_path / "seldom")


def test_it_looks_after_every_epoch_if_nothing_is_said_and_at_the_end(base: Path, data: Path, tmp_path: Path) -> None:
    facts = train(base, data, tmp_path / "a", max_steps=10)
    assert [step for step, _ in seen(facts)] == [4, 8, 10]
    assert facts["validation_loss"] == seen(facts)[-1][1]


def test_the_validation_loss_is_the_mean_over_trained_tokens(base: Path, data: Path, tmp_path: Path) -> None:
    facts = train(base, data, tmp_path / "a", per_device_train_batch_size=3)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), tmp_path / "a")
    total, count = 0.0, 0
    for row in read_jsonl(data / "validation.jsonl"):
        rendered = render(tokenizer, row)
        with torch.inference_mode():
            logits = model(torch.tensor([rendered.input_ids])).logits[0].float()
        labels = torch.tensor(rendered.labels[1:])
        losses = torch.nn.functional.cross_entropy(logits[:-1], labels, ignore_index=IGNORED, reduction="sum")
        total, count = total + float(losses), count + int((labels != IGNORED).sum())
    assert facts["validation_loss"] == pytest.approx(total / count, rel=2e-3)


def test_the_best_weights_are_kept(base: Path, data: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 40, "learning_rate": 3e-2, "eval_steps": 4, "per_device_train_batch_size": 8}
    settings |= {"lr_scheduler_type": "constant"}
    last = train(base, data, tmp_path / "last", **settings)
    best = train(base, data, tmp_path / "best", **settings, load_best_model_at_end=True)
    at, least = min(seen(last), key=lambda point: point[1])
    assert at < 40, "the data were made so that validation gets worse in the end"
    assert (best["best_step"], best["validation_loss"]) == (at, least)
    short = train(base, data, tmp_path / "short", **{**settings, "max_steps": at})
    assert short["steps"] == at and weights(tmp_path / "best") == weights(tmp_path / "short") != weights(
        tmp_path / "last"
    )


def test_early_stopping_ends_the_training_and_says_so(base: Path, data: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 200, "learning_rate": 3e-2, "eval_steps": 4, "lr_scheduler_type": "constant"}
    facts = train(base, data, tmp_path / "a", **settings, early_stopping_patience=2, load_best_model_at_end=True)
    assert facts["stopped_early"] and facts["steps"] < 200 == facts["planned_steps"]
    least = min(loss for _, loss in seen(facts))
    assert [loss for _, loss in seen(facts)].index(least) == len(seen(facts)) - 3
    assert facts["best_step"] == facts["steps"] - 8


def test_a_loss_that_runs_away_ends_the_job(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"the loss ran away: .* learning rate 50, rows train\.jsonl:\d+, "):
        settings = {"lr_scheduler_type": "constant", "max_grad_norm": 1e9, "job": {"method": "full"}}
        train(base, data, tmp_path / "a", learning_rate=50, max_steps=40, **settings)


def test_an_adapter_on_four_bits_is_trained_in_float32(base: Path, data: Path, tmp_path: Path) -> None:
    train(base, data, tmp_path / "a", job={"method": "qlora"}, eval_steps=2)
    assert {tensor.dtype for tensor in load_file(tmp_path / "a" / "adapter_model.safetensors").values()} == {
        torch.float32
    }
