"""LoRA's variants, full fine-tuning and preference pairs: what each leaves answers like what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Data, Lora
from tasks.training.models import add_adapter, load_base
from tasks.training.train import train as run_job
from tests.training.jobs import training_job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = tuple({"n": number} for number in range(10))
    build_dataset(
        Data(rows=rows, held_out=0, messages={"user": "{{ n }}?", "assistant": "ok"}), folder, needs_held_out=False
    )
    return folder


def train(base: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return run_job(training_job(base, data, output, **changes), output.parent / f"{output.name}-work")


def answer_loss(base: Path, adapter: Path | None, method: str = "lora") -> float:
    """The loss of "ok" after an unseen question, by base, adapter on the untouched base, or whole model."""
    quantization: Any = "nf4" if method == "qlora" else "none"
    folder = adapter if method == "full" and adapter else base
    model = load_base(folder, quantization, "cpu", dtype=torch.float32)
    if adapter and method != "full":
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer("<|im_start|>user\n77?<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt").input_ids
    answer = tokenizer("ok<|im_end|>", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model.eval()(torch.cat([prompt, answer], dim=1)).logits[0, prompt.shape[1] - 1 : -1].float()
    return float(torch.nn.functional.cross_entropy(logits, answer[0]))


@pytest.mark.parametrize(
    ("lora", "method"),
    [
        ({"use_rslora": True}, "lora"),
        ({"use_dora": True}, "lora"),
        ({"use_dora": True}, "qlora"),
        ({"init_lora_weights": "gaussian"}, "lora"),
        ({"init_lora_weights": "orthogonal"}, "lora"),
        ({"init_lora_weights": "pissa"}, "lora"),
        ({"init_lora_weights": "pissa_niter_4"}, "lora"),
        ({"init_lora_weights": "olora"}, "lora"),
        ({"init_lora_weights": "loftq"}, "qlora"),
        ({"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 8}}, "lora"),
        ({"layers_to_transform": (1,)}, "qlora"),
        ({"target_modules": None}, "lora"),
        ({"target_modules": "all-linear", "exclude_modules": ("down_proj",)}, "lora"),
    ],
    ids=str,
)
def test_every_variant_learns_and_loads_on_the_untouched_base(
    base: Path, data: Path, tmp_path: Path, lora: dict[str, Any], method: str
) -> None:
    facts = train(base, data, tmp_path / "a", method=method, lora=lora, max_steps=8)
    losses = [point["loss"] for point in facts["curve"]]
    assert losses[-1] < losses[0]
    assert answer_loss(base, tmp_path / "a", method) < answer_loss(base, None, method) - 0.3
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_pairs_of_similar_length_go_together(base: Path, tmp_path: Path) -> None:
    rows = tuple({"prompt": "?" * n, "chosen": "yes", "rejected": "no"} for n in range(1, 13))
    folder = tmp_path / "data"
    folder.mkdir()
    build_dataset(Data(rows=rows, held_out=0), folder, needs_held_out=False)
    assert train(base, folder, tmp_path / "a", group_by_length=True)["steps"] == 4


def test_pissa_and_olora_resume_and_hand_over_a_plain_adapter(base: Path, data: Path, tmp_path: Path) -> None:
    """What comes out changes the untouched base as training changed the altered one: twice the rank, B at a start."""
    train(base, data, tmp_path / "a", lora={"init_lora_weights": "pissa"}, max_steps=2, learning_rate=1e-6)
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert all(weight.shape[0] == 8 for name, weight in weights.items() if "lora_A" in name)
    assert answer_loss(base, tmp_path / "a") == pytest.approx(answer_loss(base, None), abs=1e-3)


def test_loftq_starts_nearer_to_the_exact_weights(base: Path) -> None:
    exact = load_base(base, "none", "cpu", dtype=torch.float32)
    ids = torch.arange(3, 60)[None]

    def distance(model: Any) -> float:
        with torch.inference_mode():
            return float((model.eval()(ids).logits.float() - exact(ids).logits).norm())

    lora = {"r": 16, "lora_alpha": 4, "target_modules": "all-linear"}
    plain = add_adapter(load_base(base, "nf4", "cpu"), Lora(**lora).model_dump(), base)
    loftq = add_adapter(load_base(base, "nf4", "cpu"), Lora(**lora, init_lora_weights="loftq").model_dump(), base)
    assert distance(loftq) < 0.8 * distance(plain)


def test_full_fine_tuning_leaves_a_whole_model(base: Path, data: Path, tmp_path: Path) -> None:
    facts = train(base, data, tmp_path / "a", method="full", learning_rate=1e-3, max_steps=6)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in base.iterdir()}
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "a"))
    assert before.keys() == after.keys()
    assert all(weight.dtype == torch.bfloat16 for weight in after.values())
    matrices = [name for name in before if before[name].ndim > 1]  # bfloat16 has no number between 1 and 1.0078
    assert all(not torch.equal(before[name], after[name]) for name in matrices)
    assert facts["trainable_params"] == facts["total_params"] == sum(weight.numel() for weight in before.values())
    assert answer_loss(base, tmp_path / "a", "full") < answer_loss(base, None) - 0.3
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert reloaded.config.use_cache and reloaded.dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_preference_pairs_make_the_chosen_answer_likelier(base: Path, tmp_path: Path, method: str) -> None:
    rows = tuple({"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(8))
    folder = tmp_path / "data"
    folder.mkdir()
    build_dataset(Data(rows=rows, held_out=0, validation=2), folder, needs_held_out=False)
    facts = train(
        base, folder, tmp_path / "a", method=method, learning_rate=1e-2 if method != "full" else 1e-3, max_steps=8
    )
    assert facts["loss"] < 0.6 < facts["curve"][0]["loss"] == pytest.approx(0.693, abs=0.01)
    assert facts["validation_loss"] < 0.69
    if method != "full":
        assert {path.name for path in (tmp_path / "a").rglob("*")} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
    assert facts["tokens"] > 0
