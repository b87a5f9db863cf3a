"""Each way to spoil a training that can be seen before it starts: what is said about it."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RequestError
from tasks.preflight.__main__ import count_parameters
from tasks.preflight.guards import measure_rows, row_faults
from tasks.recipe.schema import Accelerate, Lora, Training
from tasks.training.rendering import IGNORED, Rendered
from tests.tiny import tiny_config, tiny_tokenizer

EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapter(lora: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    parts = {"training": Training(), "lora": Lora(**(lora or {})), "accelerate": Accelerate()}
    dumped = {key: part.model_dump(mode="json") for key, part in parts.items()}
    return {"name": "one", "method": "lora", "near_copies": 0, **dumped, **changes}


def data(folder: Path, *answers: str, validation: tuple[str, ...] = ()) -> Path:
    for split, texts in (("train", answers), ("validation", validation)):
        rows = [{"id": str(number), "prompt": "Q", "completion": text} for number, text in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_what_is_measured(tmp_path: Path) -> None:
    facts = measure_rows(tiny_tokenizer(), data(tmp_path, *["ab"] * 20), adapter())
    counted = {"steps": 3, "tokens_per_epoch": 80, "tokens": 80, "longest_row": 4, "trained_tokens": 60}
    assert facts == {**counted, "pairs": False, "warnings": []}


def test_tokens_of_a_training_that_is_counted_in_steps(tmp_path: Path) -> None:
    training = Training(max_steps=10, per_device_train_batch_size=4, gradient_accumulation_steps=2).model_dump()
    facts = measure_rows(tiny_tokenizer(), data(tmp_path, *["ab"] * 20), adapter(training=training))
    assert facts["tokens"] == 10 * 8 * 4  # steps, rows a step, tokens a row


def test_rows_over_max_length_in_either_split_and_what_a_cut_would_cost(tmp_path: Path) -> None:
    rows = data(tmp_path, *["ab"] * 9, "x" * 20, validation=("y" * 30, "ok"))
    training = Training(max_length=8).model_dump()
    with pytest.raises(RequestError) as raised:
        measure_rows(tiny_tokenizer(), rows, adapter(training=training))
    train, validation = raised.value.faults
    assert train.message.startswith(
        "1 of 10 train rows are longer than max_length=8 tokens (the longest has 22); cut, they would lose their end "
        "token, and 0 of them the whole answer."
    )
    assert validation.message.startswith("1 of 2 validation rows are longer")


def test_a_long_prompt_would_lose_the_whole_answer() -> None:
    tokenizer = tiny_tokenizer()
    row = Rendered("p", "a", [5] * 9, [7, 2], [IGNORED] * 9 + [7, 2])
    (fault,) = row_faults([row], "train", 8, tokenizer)
    assert "and 1 of them the whole answer" in fault.message


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([IGNORED] * 3, "train.jsonl:1: no token of 1 rows would be trained"),
        ([IGNORED, 7, IGNORED], "train.jsonl:1: 1 rows do not train the end token"),
    ],
)
def test_rows_that_train_nothing_or_never_an_end(labels: list[int], message: str) -> None:
    faults = row_faults([Rendered("p", "a", [5], [7, 2], labels)], "train", 100, tiny_tokenizer())
    assert message in [fault.message for fault in faults]


def test_a_base_without_a_pad_token_is_padded_with_the_end_and_says_so(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    (warning,) = measure_rows(tokenizer, data(tmp_path, *["ab"] * 20), adapter())["warnings"]
    assert warning.startswith("the tokenizer has no pad token; <|im_end|> pads, and is still trained")


def test_a_row_that_cannot_be_rendered_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"train\.jsonl:2: the end token"):
        measure_rows(tiny_tokenizer(), data(tmp_path, "ok", "o<|im_end|>k"), adapter())


def test_pairs_need_the_base_as_it_was(tmp_path: Path) -> None:
    pair = {"id": "1", "prompt": "Q", "chosen": "yes", "rejected": "no"}
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(pair) + "\n")
    with pytest.raises(RequestError, match="init_lora_weights pissa moves part of the base's weights"):
        measure_rows(tiny_tokenizer(), tmp_path, adapter({"init_lora_weights": "pissa"}))
    assert measure_rows(tiny_tokenizer(), tmp_path, adapter({"r": 1}))["steps"] == 1


def test_a_rank_above_the_number_of_rows_is_warned_of(tmp_path: Path) -> None:
    few = data(tmp_path, *["ab"] * 4)
    (warning,) = measure_rows(tiny_tokenizer(), few, adapter({"r": 8}))["warnings"]
    assert warning.startswith("rank 8 for 4 training rows")
    assert measure_rows(tiny_tokenizer(), few, adapter({"r": 4}))["warnings"] == []
    (warning,) = measure_rows(tiny_tokenizer(), few, adapter({"r": 4, "rank_pattern": {"q_proj": 64}}))["warnings"]
    assert warning.startswith("rank 64 for 4 training rows")
    assert measure_rows(tiny_tokenizer(), few, adapter({"r": 8}, method="full"))["warnings"] == []


def test_held_out_rows_among_the_training_rows_are_warned_of(tmp_path: Path) -> None:
    (warning,) = measure_rows(tiny_tokenizer(), data(tmp_path, *["ab"] * 20), adapter(near_copies=3))["warnings"]
    assert warning.startswith("3 rows that were kept from training stand in it all the same")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ["q_prj"]}, r"target_modules q_prj match nothing in this model; allowed are down_proj, "),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, r"exclude_modules leaves nothing of"),
        ({"exclude_modules": EVERY_LINEAR}, r"exclude_modules leaves nothing of target_modules all-linear"),
        ({"exclude_modules": ["q_prj"]}, r"exclude_modules q_prj match nothing in this model; allowed are down_proj"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [5]}, r"names layer 5; this model has layers 0 to 1"),
    ],
)
def test_what_would_train_nothing(tmp_path: Path, lora: dict[str, Any], message: str) -> None:
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=message):
        count_parameters(tmp_path, adapter(lora))


def test_full_fine_tuning_trains_every_parameter(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    counts = count_parameters(tmp_path, adapter(method="full"))
    assert counts["trainable_params"] == counts["total_params"] > 50_000
