"""Targets of every kind of row on a tiny real model: asked as trained, scored by its own probabilities."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.errors import StageError
from tasks.evaluation.bench import Bench
from tasks.evaluation.engine import run, score_cell
from tasks.evaluation.records import read_records, scores_by_document
from tasks.training.rendering import render_pair
from tests.tiny import save_tiny_base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def bench(base: Path) -> Bench:
    return Bench(base, "none", "cpu", batch_size=4)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": [turn("user", question)], "completion": [turn("assistant", answer)]}


def cell(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = {"kind": "target", "name": "own.held_out", "split": "held_out", "limit": None, "max_new_tokens": 4}
    return {**target, "data": str(folder), **changes}


def scored(bench: Bench, asked: dict[str, Any], output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    output.mkdir(exist_ok=True)
    with bench.answering_as(None) as lm:
        facts = score_cell(lm, asked, output)
    return facts, read_records(output / "records.parquet")


@torch.inference_mode()
def loglikelihood(base: Path, prompt: list[int], answer: list[int]) -> float:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    return float(torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).sum())


def test_of_a_pair_the_likelier_answer_counts_with_its_end_token(base: Path, bench: Bench, tmp_path: Path) -> None:
    answers = ["yes", " no, never", "\nperhaps", "because of it"]
    rows = [
        {
            "prompt": [turn("user", f"Why {one}?")],
            "chosen": [turn("assistant", one)],
            "rejected": [turn("assistant", other)],
        }
        for one in answers
        for other in answers
        if one != other
    ]
    facts, records = scored(bench, cell(tmp_path / "data", rows), tmp_path / "out")
    assert (facts["metric"], facts["higher_is_better"], facts["n"]) == ("acc", True, 12)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for row, record in zip(rows, records, strict=True):
        chosen, rejected = render_pair(tokenizer, row)
        wanted = [loglikelihood(base, one.prompt_ids, one.answer_ids) for one in (rejected, chosen)]
        assert record["loglikelihoods"] == pytest.approx(wanted, rel=5e-3)
        assert record["prompt"] == chosen.prompt
        assert record["score"] == (record["loglikelihoods"][1] > record["loglikelihoods"][0])
    assert 0 < facts["score"] < 1


def test_equally_likely_answers_are_no_success(bench: Bench, tmp_path: Path) -> None:
    facts, _ = scored(
        bench, cell(tmp_path / "data", [{"prompt": "Q", "chosen": "same", "rejected": "same"}]), tmp_path / "out"
    )
    assert facts["score"] == 0


def test_text_is_scored_by_its_loss_per_token(base: Path, bench: Bench, tmp_path: Path) -> None:
    rows = [{"text": "Once upon a time."}, {"text": "The end of it all, at last"}]
    facts, records = scored(bench, cell(tmp_path / "data", rows), tmp_path / "out")
    assert (facts["metric"], facts["higher_is_better"]) == ("nll_per_token", False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for row, record in zip(rows, records, strict=True):
        ids = tokenizer(row["text"], add_special_tokens=False).input_ids
        wanted = -loglikelihood(base, [tokenizer.bos_token_id], ids) / len(ids)
        assert record["score"] == pytest.approx(wanted, rel=5e-3)


def test_plain_text_is_continued_without_a_template(bench: Bench, tmp_path: Path) -> None:
    facts, (record,) = scored(
        bench, cell(tmp_path / "data", [{"prompt": "Q: a\nA:", "completion": " b"}]), tmp_path / "out"
    )
    assert (facts["metric"], record["prompt"], record["target"]) == ("exact_match", "Q: a\nA:", "b")


def test_answers_with_and_without_examples_pair_by_document(bench: Bench, tmp_path: Path) -> None:
    rows = [chat(letter, letter * 2) for letter in "abc"]
    (tmp_path / "prompt.json").write_text(json.dumps({"num_fewshot": 1, "shots": [chat("d", "dd")]}))
    asked = cell(tmp_path / "data", rows)
    _, bare = scored(bench, asked, tmp_path / "bare")
    _, shown = scored(bench, {**asked, "prompt": str(tmp_path)}, tmp_path / "shown")
    for one, other in zip(bare, shown, strict=True):
        assert other["prompt"] == "<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\ndd<|im_end|>\n" + one["prompt"]
    documents, prompts = (
        [set(scores_by_document(tmp_path / side / "records.parquet", same)) for side in ("bare", "shown")]
        for same in ("doc_digest", "prompt_digest")
    )
    assert documents[0] == documents[1] and len(documents[0]) == 3
    assert not prompts[0] & prompts[1]


def save_model(base: Path, folder: Path, *, moved: float) -> Path:
    """A complete model: the base with noise of this deviation on its weights."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += moved * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_a_fully_fine_tuned_model_answers_by_itself(base: Path, tmp_path: Path) -> None:
    model, text = save_model(base, tmp_path / "model", moved=0.05), [{"text": "Once upon a time."}]
    asked = cell(tmp_path / "data", text)
    sides = [
        {"name": name, **stands, "cells": [{**asked, "key": name, "output": str(tmp_path / name)}]}
        for name, stands in (("whole", {"model": str(model)}), ("base", {}), ("again", {}))
    ]
    job = {"base": str(base), "quantization": "none", "device": "cpu", "batch_size": 4, "sides": sides}
    facts = run(job, tmp_path)["facts"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(text[0]["text"], add_special_tokens=False).input_ids
    for name, folder in (("whole", model), ("base", base), ("again", base)):
        wanted = -loglikelihood(folder, [tokenizer.bos_token_id], ids) / len(ids)
        assert facts[name]["score"] == pytest.approx(wanted, rel=5e-3)
    assert facts["whole"]["score"] != pytest.approx(facts["base"]["score"], rel=0.02)
    assert facts["again"]["score"] == facts["base"]["score"]


def test_a_model_that_is_the_base_is_refused(base: Path, bench: Bench, tmp_path: Path) -> None:
    same = save_model(base, tmp_path / "same", moved=0.0)
    with pytest.raises(StageError, match="the fine-tuned model does not change"), bench.answering_as_model(same):
        pass
    with bench.answering_as(None) as lm:  # and the base is there again
        assert score_cell(lm, cell(tmp_path / "data", [{"text": "a b c"}]), tmp_path)["n"] == 1
