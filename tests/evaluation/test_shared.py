"""The shared path answers as HFLM does: the same numbers within 1e-3, the same choices, the same texts."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from tasks.evaluation import shared as shared_path
from tasks.evaluation.bench import Bench
from tasks.evaluation.branches import Rows
from tasks.evaluation.forest import Plans
from tasks.evaluation.noising import noised
from tasks.evaluation.onednn import through_onednn
from tasks.evaluation.shared import COMPARED, ROOM, Footing, SharedLM, as_trained
from tasks.evaluation.suited import why_unsuited
from tasks.recipe.schema import Lora
from tasks.training.models import add_adapter, load_base
from tests.tiny import save_tiny_base, tiny_config, tiny_tokenizer

pytestmark = pytest.mark.slow
SMALL = {"vocab_size": 259, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
WORDS = ("a", "river", "ran", "down", "the", "old", "hill", "we", "saw", "two", "small", "boats", "go", "by", "rain")


def llama(**changes: Any) -> Any:
    return wandering(LlamaForCausalLM(tiny_config(dtype="float32", tie_word_embeddings=False, **changes)).float())


def gpt2(**changes: Any) -> Any:
    settings = {"n_embd": 64, "n_layer": 2, "n_head": 4, "tie_word_embeddings": False}
    return wandering(GPT2LMHeadModel(GPT2Config(**settings, **SMALL, **changes)))


@torch.no_grad()
def wandering(model: Any) -> Any:
    """One whose answers do not settle on one token, and are printable: other bytes are not found again in their text.

    The weights are drawn here: with one seed, those that transformers draws were not the same in each process.
    """
    random = torch.Generator().manual_seed(1)
    for _, weight in sorted(model.named_parameters()):
        if weight.dim() > 1:
            weight.copy_(torch.randn(weight.shape, generator=random) * 0.2)
    model.lm_head.weight[97:] = model.lm_head.weight[:2] = 0
    return model.eval()


def both(model: Any, batch_size: int = 3, as_base: Any = None, **options: Any) -> tuple[SharedLM, HFLM]:
    tokenizer = tiny_tokenizer()
    footing = Footing(Plans(), why_unsuited(model, tokenizer, ROOM * batch_size), as_base)
    return SharedLM(model, tokenizer, batch_size, footing, **options), HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32", **options
    )


def text(random: Random, most: int) -> str:
    return " ".join(random.choice(WORDS) for _ in range(random.randint(1, most)))


def choices(documents: int, seed: int = 0) -> list[Instance]:
    """Documents with few-shot examples or none, an empty context, choices of one token, of many, and twice the same."""
    random = Random(seed)
    examples = text(random, 12)
    asked = []
    for number in range(documents):
        context = random.choice([f"{examples} {text(random, 8)}", f"{text(random, 8)} ", text(random, 3), ""])
        start = text(random, 4)
        continuations = [f" {start} {text(random, 5)}", f" {start}", " x", " y", f" {start}"]
        for index, continuation in enumerate(continuations):
            asked.append(Instance("loglikelihood", {}, (context, continuation), index, ("task", number, 1)))
    return asked


def rolling(documents: int) -> list[Instance]:
    random = Random(5)
    return [
        Instance("loglikelihood_rolling", {}, (text(random, 40),), 0, ("task", number, 1))
        for number in range(documents)
    ]


def prompts(documents: int, **settings: Any) -> list[Instance]:
    random = Random(7)
    return [
        Instance("generate_until", {}, (text(random, 9), {"do_sample": False, **settings}), 0, ("task", number, 1))
        for number in range(documents)
    ]


def assert_same(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [one for one, _ in ours] == pytest.approx([one for one, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@pytest.mark.parametrize("model", [llama, gpt2])
@pytest.mark.parametrize("options", [{}, {"max_length": 60}], ids=["whole", "cut"])
def test_loglikelihoods_are_those_of_hflm(model: Any, options: dict[str, Any]) -> None:
    shared, stock = both(model(), **options)
    asked = choices(50)
    likeliest = stock.generate_until(prompts(2, max_gen_toks=3))
    for request, answer in zip(prompts(2), likeliest, strict=True):  # so that some are greedy
        asked.append(Instance("loglikelihood", {}, (request.args[0], answer), 0, ("task", 99, 1)))
    theirs = stock.loglikelihood(asked)
    assert_same(shared.loglikelihood(asked), theirs)
    assert any(greedy for _, greedy in theirs)
    assert shared.cell_facts() == {"path": "shared", "why": None, "kl": None, "kl_tokens": 0}


@pytest.mark.parametrize("options", [{}, {"max_length": 30}], ids=["whole", "in windows"])
def test_whole_texts_are_as_likely_as_hflm_says(options: dict[str, Any]) -> None:
    shared, stock = both(llama(), **options)
    assert shared.loglikelihood_rolling(rolling(20)) == pytest.approx(
        stock.loglikelihood_rolling(rolling(20)), abs=1e-3
    )


def drafts_of(answers: list[str]) -> dict[str, list[str]]:
    return {
        "none": [""] * len(answers),
        "right": answers,
        "wrong": ["zz" + answer for answer in answers],
        "partly right": [answer[: len(answer) // 2] + "#?" for answer in answers],
        "a part": [answer[:3] for answer in answers],
        "too long": [answer + " and then some more" for answer in answers],
        "mixed": [answer if number % 2 else "no" for number, answer in enumerate(answers)],
    }


@pytest.mark.parametrize("model", [llama, gpt2])
@pytest.mark.parametrize("settings", [{}, {"max_gen_toks": 1}, {"until": ["e", "ou", "\n"]}, {"temperature": 0.0}])
def test_whatever_the_draft_the_text_is_that_of_greedy_decoding(model: Any, settings: dict[str, Any]) -> None:
    shared, stock = both(model(), batch_size=1)
    shared.batch_size_per_gpu = 3
    asked = prompts(12, **{"max_gen_toks": 14, **settings})
    theirs = stock.generate_until(asked)
    assert len(set(theirs)) > 5
    for name, drafts in drafts_of(theirs).items():
        shared.begin_cell({("task", number): draft for number, draft in enumerate(drafts)})
        assert shared.generate_until(asked) == theirs, name
    assert shared.cell_facts()["path"] == "shared"


def test_an_answer_ends_at_a_text_in_its_middle_and_at_any_end_token() -> None:
    model = llama()
    shared, stock = both(model, batch_size=1)
    asked = prompts(12, max_gen_toks=20)
    whole = stock.generate_until(asked)
    until = [answer[5:8] for answer in whole]
    for request, stop in zip(asked, until, strict=True):
        request.args[1]["until"] = [stop]
    cut = stock.generate_until(asked)
    assert any(len(one) < len(other) for one, other in zip(cut, whole, strict=True))
    for drafts in (whole, cut, []):
        shared.begin_cell({("task", number): draft for number, draft in enumerate(drafts)})
        assert shared.generate_until(asked) == cut
    said = shared.tok_encode(whole[0])
    model.generation_config.eos_token_id = [2, said[4], 300]
    plain = prompts(12, max_gen_toks=20)
    theirs = stock.generate_until(plain)
    assert theirs != whole
    for drafts in (whole, theirs):
        shared.begin_cell({("task", number): draft for number, draft in enumerate(drafts)})
        assert shared.generate_until(plain) == theirs


def test_a_right_draft_costs_one_pass_and_a_wrong_one_goes_on_from_the_first_difference() -> None:
    model = llama()
    shared, _ = both(model, batch_size=16)
    asked = prompts(6, max_gen_toks=12)
    answers = shared.generate_until(asked)

    def passes(drafts: list[str]) -> int:
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        shared.begin_cell({("task", number): draft for number, draft in enumerate(drafts)})
        hook = model.register_forward_pre_hook(count)
        assert shared.generate_until(asked) == answers
        hook.remove()
        return calls

    assert len(answers[0]) == 12  # tokens, too
    assert passes(answers) == 1
    assert passes(["", *answers[1:]]) == 1 + 11  # the pass shows the first token of 12
    assert passes([answers[0][:5] + "??", *answers[1:]]) == 1 + 6  # and what follows five letters


@pytest.mark.parametrize("model", [llama, gpt2])
@pytest.mark.parametrize("options", [{}, {"max_length": 40}], ids=["whole", "cut"])
def test_answers_that_take_the_place_of_finished_ones_are_the_same(
    model: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    refilled = 0
    branches = Rows.branches

    def count(rows: Rows) -> Any:
        nonlocal refilled
        refilled += 1
        return branches(rows)

    monkeypatch.setattr(Rows, "branches", count)
    shared, stock = both(model(), batch_size=1, **options)
    asked = prompts(60, max_gen_toks=14)
    for number, (request, answer) in enumerate(zip(asked, stock.generate_until(asked), strict=True)):
        request.args[1]["until"] = [answer[number % 11 :][:2]]
    theirs = stock.generate_until(asked)
    assert len({len(one) for one in theirs}) > 3
    for drafts in ([""] * 60, [answer[:3] for answer in theirs]):
        shared.begin_cell({("task", number): draft for number, draft in enumerate(drafts)})
        assert shared.generate_until(asked) == theirs
        assert refilled
        refilled = 0
    assert shared.cell_facts()["path"] == "shared"


def test_places_taken_a_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = noised(llama(), 3, 0.2)
    answers = []
    for chunk in (5, 10_000):
        monkeypatch.setattr(shared_path, "CHUNK", chunk)
        shared = SharedLM(noise, tiny_tokenizer(), 3, Footing(Plans(), None, noise.disable_adapter))
        answers.append((shared.loglikelihood(choices(6)), shared.cell_facts()))
    (few, some), (whole, all_) = answers
    assert few == whole and some["kl_tokens"] == all_["kl_tokens"] > 50
    assert some["kl"] == pytest.approx(all_["kl"], rel=1e-6) and all_["kl"] > 0.01


@pytest.mark.parametrize(
    ("settings", "config", "why"),
    [
        ({"do_sample": True, "temperature": 0.7}, {}, "a request samples"),
        ({"num_beams": 2}, {}, "a request sets num_beams"),
        ({}, {"repetition_penalty": 1.3}, "repetition_penalty"),
        ({}, {"suppress_tokens": [70]}, "suppress_tokens"),
        ({}, {"max_new_tokens": 12}, "max_new_tokens"),  # wins over the 8 that are asked for
    ],
)
def test_what_is_not_plain_greedy_decoding_goes_hflms_way(
    settings: dict[str, Any], config: dict[str, Any], why: str
) -> None:
    model = llama()
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=2, **config)
    shared, stock = both(model)
    asked = prompts(4, max_gen_toks=8, **settings)
    torch.manual_seed(0)
    theirs = stock.generate_until(asked)
    torch.manual_seed(0)
    assert shared.generate_until(asked) == theirs
    facts = shared.cell_facts()
    assert facts["path"] == "stock" and why in facts["why"]
    shared.begin_cell({})
    assert shared.cell_facts()["path"] == "shared"


UNSUITED = {
    "no position_ids": lambda: BloomForCausalLM(BloomConfig(hidden_size=64, n_layer=2, n_head=4, **SMALL)),
    "ALiBi": lambda: MptForCausalLM(MptConfig(d_model=64, n_layers=2, n_heads=4, vocab_size=259)),
    "recurrent": lambda: MambaForCausalLM(MambaConfig(hidden_size=64, num_hidden_layers=2, **SMALL)),
}


@pytest.mark.parametrize("name", UNSUITED)
def test_a_model_that_does_not_suit_is_scored_by_hflm_which_is_told(name: str) -> None:
    torch.manual_seed(0)
    shared, stock = both(UNSUITED[name]().eval())
    asked = choices(4)
    assert_same(shared.loglikelihood(asked), stock.loglikelihood(asked))
    assert shared.loglikelihood_rolling(rolling(3)) == pytest.approx(stock.loglikelihood_rolling(rolling(3)))
    facts = shared.cell_facts()
    assert facts["path"] == "stock" and "takes no" in facts["why"]


def test_a_model_that_takes_everything_and_mixes_the_branches_is_found_out() -> None:
    model = llama()
    layer = model.model.layers[0]
    plain = layer.forward
    # A state that runs through the row, as a recurrent layer has it.
    layer.forward = lambda hidden, *args, **kwargs: plain(hidden + 0.5 * hidden.cumsum(1), *args, **kwargs)
    why = why_unsuited(model, tiny_tokenizer())
    assert why and "log-probabilities on a small forest are off by" in why


def test_a_window_counts_once_a_sequence_is_longer() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(num_key_value_heads=2, head_dim=16, sliding_window=128, **sizes, **SMALL)
    shared, stock = both(MistralForCausalLM(config).eval())
    short = [*choices(1), Instance("loglikelihood", {}, ("a b", " c d"), 0, ("task", 8, 1))]
    assert_same(shared.loglikelihood(short), stock.loglikelihood(short))
    assert shared.cell_facts()["path"] == "shared"
    long = [*short, Instance("loglikelihood", {}, ("a b " * 40, " c"), 0, ("task", 9, 1))]
    assert_same(shared.loglikelihood(long), stock.loglikelihood(long))
    assert "above its sliding_window, 128" in shared.cell_facts()["why"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = add_adapter(load_base(base, "none", "cpu"), Lora(r=4).model_dump())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def test_kl_is_that_of_base_and_adapter_over_what_the_first_documents_score(base: Path, adapter: Path) -> None:
    asked = [
        Instance("loglikelihood", {}, (f"question {number}:", f" an answer {choice}"), choice, ("task", number, 1))
        for number in range(COMPARED + 8)
        for choice in range(2)
    ]
    bench = Bench(base, "none", "cpu", batch_size=4, dtype=torch.float32)
    with bench.answering_as(None) as lm:
        lm.loglikelihood(asked)
        assert lm.cell_facts()["kl"] is None
    with bench.answering_as(adapter) as lm:
        lm.begin_cell({})
        lm.loglikelihood(asked)
        facts = lm.cell_facts()
        scored: dict[tuple[int, ...], float] = {}  # KL by the tokens before
        for request in asked[: 2 * COMPARED]:
            context, answer = (lm.tok_encode(part) for part in request.args)
            ids = torch.tensor([context + answer])
            with torch.inference_mode():
                ours = lm.model(ids).logits[0].log_softmax(-1)
                with lm.model.disable_adapter():
                    theirs = lm.model(ids).logits[0].log_softmax(-1)
            each = (theirs.exp() * (theirs - ours)).sum(-1)
            for place in range(len(context), len(context) + len(answer)):
                scored[tuple(ids[0, :place].tolist())] = float(each[place - 1])
    assert facts["kl_tokens"] == len(scored)
    assert facts["kl"] == pytest.approx(sum(scored.values()) / len(scored), rel=1e-4) and facts["kl"] > 0.01


def test_kl_of_generation_is_taken_on_the_drafts(base: Path, adapter: Path) -> None:
    bench = Bench(base, "none", "cpu", batch_size=4, dtype=torch.float32)
    with bench.answering_as(adapter) as lm:
        lm.begin_cell({})
        lm.generate_until(prompts(3, max_gen_toks=4))
        assert lm.cell_facts()["kl"] is None
        lm.begin_cell({("task", 0): "abc"})
        lm.generate_until(prompts(3, max_gen_toks=9))
        facts = lm.cell_facts()
        # Behind the prompts, the draft of three letters, and the same after a space.
    assert facts["kl_tokens"] == 3 + 3 + 4 and facts["kl"] > 0.01


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_looking_at_the_base_under_an_adapter_leaves_both_as_they_are(
    base: Path, adapter: Path, quantization: Any
) -> None:
    bench = Bench(base, quantization, "cpu", batch_size=4)
    ids = torch.tensor([[1, 50, 60, 2]])
    with torch.inference_mode():
        with bench.answering_as(None) as lm:
            plain = lm.model(ids).logits
        with bench.answering_as(adapter) as lm:
            adapted = lm.model(ids).logits
            lm.loglikelihood(choices(3))
            assert lm.cell_facts()["kl"] > 0 and lm.footing.as_base
            with lm.footing.as_base():
                assert torch.equal(lm.model(ids).logits, plain)
            assert torch.equal(lm.model(ids).logits, adapted)
        with bench.answering_as(None) as lm:
            assert torch.equal(lm.model(ids).logits, plain)


def test_all_sides_share_the_plans_of_their_bench(base: Path, adapter: Path) -> None:
    bench = Bench(base, "none", "cpu", batch_size=4)
    made = []
    for side in (None, adapter):
        with bench.answering_as(side) as lm:
            lm.loglikelihood(choices(6))
            made.append(dict(lm.footing.plans._made))
    assert made[0] and made[0] == made[1]


def test_an_adapters_own_tasks_stand_on_the_same_footing(base: Path, adapter: Path) -> None:
    with Bench(base, "none", "cpu", batch_size=4).answering_as(adapter) as lm:
        trained = as_trained(lm)
        trained.begin_cell({})
        trained.loglikelihood([Instance("loglikelihood", {}, ("a b ", "c d"), 0, ("task", 0, 1))])
        assert trained.footing is lm.footing and trained.cell_facts()["kl_tokens"] == 3
        assert trained._encode_pair("a ", "b") == (lm.tok_encode("a "), lm.tok_encode("b"))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_noise_has_the_wanted_norm_in_every_linear_layer_and_comes_off_again(base: Path, quantization: Any) -> None:
    whole = load_base(base, "none", "cpu", torch.float32)
    model = noised(load_base(base, quantization, "cpu"), seed=5, strength=0.5)
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    assert len(layers) == 14
    for name, layer in layers.items():
        weight = whole.get_submodule(name.removeprefix("base_model.model.")).weight
        delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert float(delta.norm() / weight.norm()) == pytest.approx(0.5, rel=0.1)
    bench = Bench(base, quantization, "cpu", batch_size=4)
    asked = choices(4)
    with bench.answering_as(None) as lm:
        plain = lm.loglikelihood(asked)
    with bench.answering_as_noised(5, 0.5) as lm:
        damaged = lm.loglikelihood(asked)
        assert isinstance(lm.model, PeftModel) and lm.cell_facts()["kl"] > 0.05
    with bench.answering_as_noised(5, 0.5) as lm:
        assert lm.loglikelihood(asked) == damaged
    with bench.answering_as_noised(6, 0.5) as lm:
        assert lm.loglikelihood(asked) != damaged
    with bench.answering_as(None) as lm:
        assert lm.loglikelihood(asked) == plain


@pytest.mark.parametrize(("batch_size", "again"), [(4, 2), (1, 2)])
def test_the_base_answers_again_in_other_batches(base: Path, batch_size: int, again: int) -> None:
    bench = Bench(base, "none", "cpu", batch_size=batch_size)
    with bench.answering_as(None) as lm:
        first = lm.loglikelihood(choices(6))
    with bench.answering_again() as lm:
        assert lm.batch_size == again
        second = lm.loglikelihood(choices(6))
    assert [one for one, _ in first] == pytest.approx([one for one, _ in second], abs=0.3)


def test_float32_layers_compute_the_same_through_onednn() -> None:
    x = torch.randn(2, 5, 64)
    model = llama()
    model.extra = layers = torch.nn.ModuleList([torch.nn.Linear(64, 32), torch.nn.Linear(64, 32, bias=False)])
    model.half = torch.nn.Linear(64, 32).bfloat16()
    with torch.inference_mode():
        before = [layer(x) for layer in layers]
        through_onednn(model)
        for layer, plain in zip(layers, before, strict=True):
            assert "forward" in vars(layer)
            torch.testing.assert_close(layer(x), plain, atol=1e-5, rtol=1e-5)
    assert "forward" not in vars(model.half)
    layers[0](x).sum().backward()  # where gradients are wanted, PyTorch's own
    assert layers[0].weight.grad is not None
