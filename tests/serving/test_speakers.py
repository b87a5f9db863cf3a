"""Answers of base and adapters from one loaded base are those of each model loaded by itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.errors import RequestError
from tasks.serving.chat import Chat, converse
from tasks.serving.speakers import BASE, Speakers
from tasks.training.models import load_base
from tests.serving.fleet import Fleet

TOKENS = 12
ASKED = [{"role": "user", "content": "Say something"}]


def alone(fleet: Fleet, name: str, prompt: str, quantization: Any = "none") -> str:
    """What transformers' generate answers with nothing else in memory."""
    tokenizer = AutoTokenizer.from_pretrained(fleet.base_folder)
    model = load_base(fleet.base_folder, quantization, "cpu").eval()
    if name != BASE:
        model = PeftModel.from_pretrained(model, fleet.adapters[name]).eval()
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def chat_prompt(fleet: Fleet) -> str:
    tokenizer = AutoTokenizer.from_pretrained(fleet.base_folder)
    return str(tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True))


@pytest.fixture(scope="module")
def speakers(fleet: Fleet) -> Speakers:
    return Speakers(fleet.base_folder, fleet.adapters, plain=["whispers"], max_new_tokens=TOKENS)


def answer(speakers: Speakers, name: str, messages: list[dict[str, str]] | None = None) -> str:
    return "".join(speakers.stream(name, messages or ASKED))


def test_each_answers_as_if_alone_whoever_spoke_before(fleet: Fleet, speakers: Speakers) -> None:
    names = [BASE, "shouts", "dots.v2"]
    wanted = {name: alone(fleet, name, chat_prompt(fleet)) for name in names}
    assert len(set(wanted.values())) == len(names)  # or the test would not notice a mix-up
    assert speakers.names == [BASE, "shouts", "dots.v2", "whispers"]
    for name in [*names, *reversed(names), BASE, "dots.v2"]:
        assert answer(speakers, name) == wanted[name], name


def test_plain_speakers_are_asked_without_the_chat_template(fleet: Fleet, speakers: Speakers) -> None:
    earlier = [{"role": "system", "content": "never shown"}, *ASKED]
    assert answer(speakers, "whispers", earlier) == alone(fleet, "whispers", "Say something")


def test_on_a_four_bit_base(fleet: Fleet) -> None:
    some = {"dots.v2": fleet.adapters["dots.v2"]}
    quantized = Speakers(fleet.base_folder, some, quantization="nf4", max_new_tokens=TOKENS)
    for name in (BASE, "dots.v2", BASE):
        assert answer(quantized, name) == alone(fleet, name, chat_prompt(fleet), "nf4"), name


def test_a_whole_model_has_its_own_weights(fleet: Fleet, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(fleet.base_folder, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, fleet.adapters["shouts"]).merge_and_unload()
    merged.save_pretrained(tmp_path)
    both = Speakers(fleet.base_folder, {}, models={"whole": tmp_path}, max_new_tokens=TOKENS)
    assert both.names == [BASE, "whole"]
    assert answer(both, BASE) == alone(fleet, BASE, chat_prompt(fleet)) != answer(both, "whole")


def test_an_answer_that_is_given_up_leaves_the_next_one_as_it_is(speakers: Speakers) -> None:
    whole = answer(speakers, BASE)
    stream = speakers.stream("shouts", ASKED)
    next(stream)
    stream.close()
    assert answer(speakers, BASE) == whole


def test_an_answer_that_is_given_up_is_not_computed_to_its_end(fleet: Fleet) -> None:
    patient = Speakers(fleet.base_folder, {}, max_new_tokens=1500)
    steps: list[int] = []
    patient._model.register_forward_hook(lambda *_: steps.append(1))
    stream = patient.stream(BASE, ASKED)
    next(stream)
    stream.close()
    assert len(steps) < 1500


def test_a_conversation_that_is_too_long_says_what_to_do(speakers: Speakers) -> None:
    with pytest.raises(RequestError, match=r"has \d+ tokens, an answer may have 12, and the model reads 2048: /reset"):
        answer(speakers, BASE, [{"role": "user", "content": "x" * 2048}])


def test_an_answer_ends_at_the_tokenizers_end_token_and_at_the_models(fleet: Fleet, tmp_path: Path) -> None:
    folder = shutil.copytree(fleet.base_folder, tmp_path / "base")
    for name in ("config.json", "generation_config.json"):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**said, "eos_token_id": [7, 8]}))
    some = Speakers(folder, {"shouts": fleet.adapters["shouts"]}, max_new_tokens=TOKENS)
    steps: list[int] = []
    wanted = AutoTokenizer.from_pretrained(folder).eos_token_id

    def says_only_that(_module: Any, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return torch.nn.functional.one_hot(torch.tensor(wanted), logits.shape[-1]).to(logits).expand_as(logits)

    some._model.get_output_embeddings().register_forward_hook(says_only_that)
    for name in (BASE, "shouts"):
        for wanted in (2, 7, 8):  # the first is the tokenizer's, and what training teaches
            steps.clear()
            answer(some, name)
            assert len(steps) == 1, (name, wanted)


def test_what_the_chat_template_refuses_is_said_and_the_chat_goes_on(fleet: Fleet, tmp_path: Path) -> None:
    folder = shutil.copytree(fleet.base_folder, tmp_path / "base")
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    template = folder / "chat_template.jinja"
    template.write_text(refuses + template.read_text())
    written: list[str] = []
    chat = Chat(Speakers(folder, {}, max_new_tokens=3), written.append)
    converse(chat, ["hi", "/system Be brief.", "refused", "/system", "again"])
    assert "(the base's chat template refuses this conversation: System role not supported; " in "".join(written)
    assert [one["content"] for one in chat.said[BASE] if one["role"] == "user"] == ["hi", "again"]


def test_what_goes_wrong_while_answering_is_raised(speakers: Speakers, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(speakers._model, "generate", fails)
    with pytest.raises(ZeroDivisionError):
        answer(speakers, "shouts")
