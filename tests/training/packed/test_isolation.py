"""Members do not feel each other: what one is, how it fares and where it stands moves no other's weights.

Where the others bring the same numbers of tokens, every product has the same shape, and a member ends in the same
bytes. Where not, the library that multiplies may cut a product otherwise and add up in another order. On the CPU that
was tried it does so for a handful of rows in float32, and for hundreds from a width of 576 on in both precisions; the
tiny model is below that, and ended in the same bytes throughout. Asserted is rounding: TOLERANCE for float32, in which
a leak would be seen, and for bfloat16 IN_16_BITS of the norm of all weights, as in test_against_trl.py.
"""

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tasks.training import runaway
from tasks.training.packed import pack
from tasks.training.packed.passing import Part
from tasks.training.packed.shared_base import SharedBase
from tests.tiny import tiny_config, tiny_tokenizer
from tests.training.jobs import training_job
from tests.training.packed.packs import compute_in, pack_job, some_data

pytestmark = pytest.mark.slow

TOLERANCE, IN_16_BITS = 2e-6, 0.06
MEMBERS: dict[str, dict[str, Any]] = {
    "long": {"max_steps": 8, "lora": {"target_modules": "all-linear"}, "seed": 0},
    "other": {"max_steps": 7, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "seed": 1},
    "short": {"max_steps": 4, "seed": 2, "lora": {"r": 8}},
}
WRECK = {"max_steps": 20, "lr_scheduler_type": "constant", "lora": {"target_modules": "all-linear"}}
Adapters = dict[str, bytes]
Train = Callable[[dict[str, dict[str, Any]]], tuple[dict[str, Any], Adapters]]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head that can be very wrong: one token, which no row has, is ten times as loud."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(tie_word_embeddings=False))
    with torch.no_grad():
        model.model.norm.weight *= 5
        model.lm_head.weight[200] *= 10
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {"usual": some_data(root / "usual"), "more": some_data(root / "more", rows=30, validation=3)}


@pytest.fixture(scope="module")
def train(base: Path, data: dict[str, Path], dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains a pack; what it says of each member, and the file of each adapter."""

    def train_pack(members: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], Adapters]:
        root = tmp_path_factory.mktemp("pack")
        own = {
            name: training_job(base, data[one.get("data", "usual")], root / name,
                               **{key: value for key, value in one.items() if key != "data"})
            for name, one in members.items()
        }  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            compute_in(patch, dtype)
            facts = pack.train(pack_job(own))["members"]
        json.dumps(facts, allow_nan=False)  # it is to be written as result.json, whatever came of one of them
        files = {name: root / name / "adapter_model.safetensors" for name in members}
        return facts, {name: file.read_bytes() for name, file in files.items() if file.exists()}

    return train_pack


@pytest.fixture(scope="module")
def undisturbed(train: Train) -> Adapters:
    return train(MEMBERS)[1]


def assert_close(own: bytes, expected: bytes, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = []
    for number, content in enumerate((own, expected)):
        (tmp_path / str(number)).write_bytes(content)
        found = load_file(tmp_path / str(number))
        tensors.append(torch.cat([found[name].flatten() for name in sorted(found)]))
    if dtype == torch.float32:
        torch.testing.assert_close(*tensors, rtol=0, atol=TOLERANCE)
    assert float((tensors[0] - tensors[1]).norm() / tensors[1].norm()) < IN_16_BITS


def test_another_learning_rate_of_one_leaves_the_others_to_the_byte(train: Train, undisturbed: Adapters) -> None:
    _, made = train({**MEMBERS, "other": {**MEMBERS["other"], "learning_rate": 3e-2, "weight_decay": 0.1}})
    assert {name for name in MEMBERS if made[name] != undisturbed[name]} == {"other"}


@pytest.mark.parametrize(
    "change", [{"data": "more"}, {"per_device_train_batch_size": 7}, {"max_steps": 2}, {"lora": {"r": 16}}], ids=str
)
def test_other_rows_or_ranks_of_one_leave_the_others(
    train: Train, undisturbed: Adapters, change: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    _, made = train({**MEMBERS, "other": {**MEMBERS["other"], **change}})
    assert made["other"] != undisturbed["other"]
    for name in ("long", "short"):
        assert_close(made[name], undisturbed[name], dtype, tmp_path)


@pytest.mark.parametrize("names", [("short", "other", "long"), ("other", "long"), ("long",), ("short",)], ids=" ".join)
def test_neither_order_nor_company_matters(
    train: Train, undisturbed: Adapters, names: tuple[str, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    _, made = train({name: MEMBERS[name] for name in names})
    for name in names:
        assert_close(made[name], undisturbed[name], dtype, tmp_path)


@pytest.mark.parametrize(
    ("wreck", "said"),
    [
        ({"learning_rate": 1e36}, r"the loss is nan at step 2, learning rate 1e\+36, rows train\.jsonl:\d+, train"),
        ({"learning_rate": 1e36, "max_steps": 1}, r"validation loss is nan at step 1, learning rate 1e\+36, rows trai"),
        (
            {"learning_rate": 30, "seed": 3},
            r"the loss ran away: .* at step 2, learning rate 30, rows train\.jsonl:\d+, tra",
        ),
    ],
    ids=["not finite", "not finite at the end", "runaway"],
)
def test_who_diverges_ends_alone_and_the_others_go_on(
    train: Train,
    undisturbed: Adapters,
    wreck: dict[str, Any],
    said: str,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runaway, "RUNAWAY_STEPS", 1)  # of so small a model none stays lost for three
    facts, made = train({"long": MEMBERS["long"], "wreck": {**WRECK, **wreck}, **MEMBERS})
    assert facts["wreck"].keys() == {"error"} and facts["wreck"]["error"]["kind"] == "diverged"
    assert re.search(said, facts["wreck"]["error"]["message"]), facts["wreck"]["error"]["message"]
    assert set(made) == set(MEMBERS), "it leaves no adapter"
    for name in MEMBERS:
        assert_close(made[name], undisturbed[name], dtype, tmp_path)


def test_what_spreads_through_a_pass_ends_only_whose_it_is(
    train: Train, undisturbed: Adapters, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every machine as on one whose kernels let NaN of one row into the next (oneDNN's issue 5717), and worse."""
    losses, spread = SharedBase.losses, []

    def spreading(self: SharedBase, parts: Sequence[Part], *, trains: bool) -> dict[str, float]:
        made = losses(self, parts, trains=trains)
        if trains and len(made) > 1 and not all(map(math.isfinite, made.values())):
            spread.append(list(made))
            for layer in self._shared.values():
                for one in layer.adaptations.values():
                    one.b.grad.fill_(torch.nan)
        return made

    monkeypatch.setattr(SharedBase, "losses", spreading)
    facts, made = train({"long": MEMBERS["long"], "wreck": {**WRECK, "learning_rate": 1e36}, **MEMBERS})
    assert spread == [["long", "wreck", "other", "short"]], "in the second round, and then it is gone"
    assert "the loss is nan at step 2" in facts["wreck"]["error"]["message"]
    for name in MEMBERS:
        assert_close(made[name], undisturbed[name], dtype, tmp_path)


def test_whose_rows_cannot_be_rendered_is_refused_alone(
    base: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_in(monkeypatch, torch.float32)
    bad = some_data(tmp_path / "bad")
    (bad / "train.jsonl").write_text('{"id": "0", "prompt": "a", "completion": "one<|im_end|>two"}\n')
    jobs = {name: training_job(base, data["usual"], tmp_path / name, **MEMBERS["short"]) for name in ("good", "bad")}
    jobs["bad"]["data"] = str(bad)
    facts = pack.train(pack_job(jobs))["members"]
    assert facts["bad"]["error"]["kind"] == "bad_input" and "the end token" in facts["bad"]["error"]["message"]
    assert facts["good"]["steps"] == 4 and facts["good"]["pack"] == ["good"]


def test_the_time_of_a_pack_is_shared_out(train: Train) -> None:
    started = time.monotonic()
    facts, _ = train(MEMBERS)
    assert 0 < sum(one["seconds"] for one in facts.values()) <= time.monotonic() - started
