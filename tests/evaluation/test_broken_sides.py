"""What cannot be scored is said, and by no number: diverged adapters, empty texts, drafts that a task cannot give."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from peft import PrefixTuningConfig, get_peft_model

from infra.errors import PreemptedError, RequestError, StageError
from tasks.evaluation import engine
from tasks.evaluation.bench import Bench
from tasks.evaluation.engine import drafts_of, run
from tasks.evaluation.records import records_of
from tasks.recipe.schema import Lora
from tasks.training.models import add_adapter, load_base
from tests.evaluation.test_resuming import job
from tests.evaluation.test_shared import both, choices, llama
from tests.tiny import save_tiny_base

pytestmark = pytest.mark.slow
TASK = "capitals_choice"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def adapter(base: Path, folder: Path, value: float) -> Path:
    model = add_adapter(load_base(base, "none", "cpu"), Lora(r=4).model_dump())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, value)
    model.save_pretrained(folder)
    return folder


def sides(base: Path, folder: Path, adapters: dict[str, Path | None]) -> dict[str, Any]:
    every = []
    for name, one in adapters.items():
        (side,) = job(base, folder / name, TASK)["sides"]
        side["cells"][0]["key"] = name
        every.append({**side, "name": name, "adapter": str(one) if one else None})
    return {**job(base, folder), "sides": every}


def test_an_adapter_that_diverged_or_does_not_fit_stops_nobody_else(base: Path, tmp_path: Path) -> None:
    diverged, good = adapter(base, tmp_path / "nan", math.nan), adapter(base, tmp_path / "good", 0.1)
    misfit = adapter(base, tmp_path / "misfit", 0.1)
    config = json.loads((misfit / "adapter_config.json").read_text())
    (misfit / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))  # put on in part, then it fails
    plain = run(sides(base, tmp_path / "plain", {"base": None, "good": good}), tmp_path)
    found = run(
        sides(base, tmp_path / "all", {"diverged": diverged, "misfit": misfit, "base": None, "good": good}), tmp_path
    )
    assert found["failed"].keys() == {"diverged", "misfit"}
    assert "logits that are not numbers (NaN)" in found["failed"]["diverged"]
    assert found["failed"]["misfit"].startswith("RuntimeError: ") and "size mismatch" in found["failed"]["misfit"]
    assert {key: facts["score"] for key, facts in found["facts"].items()} == {
        key: facts["score"] for key, facts in plain["facts"].items()
    }
    assert found["facts"]["good"]["kl"] == plain["facts"]["good"]["kl"]


@pytest.mark.parametrize(
    ("side", "error", "told"),
    [
        ("one", ValueError("odd"), "ValueError: odd"),
        ("one", StageError("broken"), "broken"),
        ("base", StageError("broken"), "broken"),
        ("base", ValueError("odd"), None),
        ("one", PreemptedError("stop"), None),
        ("one", RequestError("wrong"), None),
        ("one", torch.OutOfMemoryError("full"), None),
        ("one", RuntimeError("DefaultCPUAllocator: can't allocate memory"), None),
        ("one", KeyboardInterrupt(), None),
    ],
)
def test_what_ends_a_side_and_what_ends_all(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, error: BaseException, told: str | None
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(engine, "_answering", fail)
    asked = sides(base, tmp_path, {side: None})
    if told:
        assert run(asked, tmp_path) == {"facts": {}, "failed": {side: told}}
    else:
        with pytest.raises(type(error)):
            run(asked, tmp_path)


def test_a_log_likelihood_that_is_no_number_is_no_score() -> None:
    asked = {"doc": {}, "doc_id": 7, "doc_hash": "d", "target": "0", "filter": "none", "acc": 1.0, "metrics": ["acc"]}
    sample = {**asked, "arguments": [("Q", " a"), ("Q", " b")]}
    results: dict[str, Any] = {"configs": {"t": {"output_type": "multiple_choice"}}}
    results["higher_is_better"] = {"t": {"acc": True}}

    def loglikelihoods(*both: float) -> list[float]:
        results["samples"] = {"t": [{**sample, "resps": [[(one, False)] for one in both]}]}
        ((record,), _) = records_of(results, "general", lambda *_: 1)
        return record["loglikelihoods"]

    assert loglikelihoods(-1.0, -math.inf) == [-1.0, -math.inf]
    with pytest.raises(StageError, match=r"t, document 7: a log-likelihood is not a number \(NaN\)"):
        loglikelihoods(math.nan, -1.0)


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_no_number_is_none(kl: float) -> None:
    shared, _ = both(llama())
    shared.cell.kl, shared.cell.kl_tokens = kl, 3
    assert shared.cell_facts()["kl"] is None


def test_an_adapter_of_virtual_tokens_is_refused_and_leaves_the_base_as_it_is(base: Path, tmp_path: Path) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(load_base(base, "none", "cpu", torch.float32), config).save_pretrained(str(tmp_path))
    bench = Bench(base, "none", "cpu", batch_size=2, dtype=torch.float32)
    with bench.answering_as(None) as lm:
        plain = lm.loglikelihood(choices(1))
    with pytest.raises(StageError, match="PREFIX_TUNING adapter puts tokens of its own"), bench.answering_as(tmp_path):
        pass
    with bench.answering_as(None) as lm:
        assert lm.loglikelihood(choices(1)) == plain


def test_nothing_has_no_likelihood_and_no_answer() -> None:
    shared, _ = both(llama())
    asked = [Instance("loglikelihood", {}, ("abc", text), n, ("task", 0, 1)) for n, text in enumerate((" x", ""))]
    with pytest.raises(StageError, match=r"the continuation '' behind '\.\.\.abc' has no tokens"):
        shared.loglikelihood(asked)
    settings = {"max_gen_toks": 4, "do_sample": False}
    prompts = [Instance("generate_until", {}, (text, settings), 0, ("mine", n, 1)) for n, text in enumerate(("a", ""))]
    with pytest.raises(StageError, match="mine, document 1: the prompt has no tokens"):
        shared.generate_until(prompts)


def test_drafts_are_made_without_a_trace_and_where_there_is_none_there_is_none() -> None:
    def wanted(document: int) -> str:
        if document == 1:
            raise KeyError("no answer")
        return f"{random.random()} {torch.rand(1)}"

    config = SimpleNamespace(task="t", output_type="generate_until", doc_to_choice=None)
    task = SimpleNamespace(config=config, doc_iterator=lambda **_: enumerate(range(3)), doc_to_target=wanted)
    random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), float(torch.rand(1))
    random.seed(5)
    torch.manual_seed(5)
    assert drafts_of({"t": task}, None).keys() == {("t", 0), ("t", 2)}
    assert (random.random(), float(torch.rand(1))) == expected


def test_a_stop_that_comes_while_drafts_are_made_is_heard() -> None:
    def wanted(_: int) -> str:
        raise PreemptedError("stop")

    config = SimpleNamespace(task="t", output_type="generate_until", doc_to_choice=None)
    task = SimpleNamespace(config=config, doc_iterator=lambda **_: enumerate(range(3)), doc_to_target=wanted)
    with pytest.raises(PreemptedError):
        drafts_of({"t": task}, None)
