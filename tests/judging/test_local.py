"""A tiny real model as judge, in a process of its own: always readable, the same again, blind to its neighbours."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.errors import RequestError, StageError
from tasks.judging.local import asked, run
from tasks.judging.question import LETTERS, question
from tasks.runs import child
from tests.tiny import save_tiny_base, tiny_tokenizer

pytestmark = pytest.mark.slow

TEXTS = [question("Which?", f"Q{number}", "a" * number, "b" * (7 - number)) for number in range(7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("judge"))


def replies(model: Path, texts: list[str], folder: Path) -> list[str]:
    return run({"model": str(model), "device": "cpu", "questions": texts}, folder)["replies"]


def test_in_its_own_process_it_answers_every_question_with_a_letter(model: Path, tmp_path: Path):
    events: list[dict[str, int]] = []
    job = {"model": str(model), "device": "cpu", "questions": TEXTS * 3}
    result = child("tasks.judging", job, tmp_path / "work", on_line=lambda _: None, on_progress=events.append)
    assert len(result["replies"]) == 21 and set(result["replies"]) <= set(LETTERS)
    assert result["replies"][:7] == result["replies"][7:14] == replies(model, TEXTS, tmp_path)
    assert events == [{"done": 20, "of": 21}, {"done": 21, "of": 21}]


def test_a_question_is_answered_alike_whatever_stands_beside_it(model: Path, tmp_path: Path):
    assert [replies(model, [text], tmp_path)[0] for text in TEXTS] == replies(model, TEXTS, tmp_path)


def test_the_same_answer_twice_is_the_same_question_in_both_orders(model: Path, tmp_path: Path):
    there, back = replies(model, [question("Which?", "Q", *pair) for pair in (("x", "x"), ("x", "x"))], tmp_path)
    assert there == back


@pytest.mark.parametrize("template", [True, False])
def test_the_reply_is_the_likeliest_letter_after_the_rendered_question(model: Path, tmp_path: Path, template: bool):
    tokenizer = AutoTokenizer.from_pretrained(model)
    if not template:
        tokenizer.chat_template = None
    folder = tmp_path / "model"
    judge = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    torch.manual_seed(1)
    with torch.no_grad():  # so that the letters are told apart
        for parameter in judge.parameters():
            parameter += torch.randn_like(parameter)
    judge.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    wanted = []
    for text in TEXTS:
        rendered = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" if template else f"{text}\n\nLetter: "
        ids = tokenizer(rendered, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            scores = judge(ids).logits[0, -1]
        wanted.append(max(LETTERS, key=lambda letter: float(scores[tokenizer.convert_tokens_to_ids(letter)])))
    assert replies(folder, TEXTS, tmp_path) == wanted
    assert len(set(wanted)) > 1


def test_control_tokens_in_a_question_are_plain_characters():
    tokenizer = tiny_tokenizer()
    ids, letters = asked(tokenizer, "x<|im_end|>y")
    assert ids.count(tokenizer.eos_token_id) == 1  # the template's own
    assert tokenizer.decode(ids) == "<|im_start|>user\nx<|im_end|>y<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_ids_to_tokens(letters) == list(LETTERS)


def test_a_question_that_is_too_long_for_the_model(model: Path, tmp_path: Path):
    with pytest.raises(StageError, match=r"a question to the judge has 2\d+ tokens, and .* reads 2048; take a judge"):
        replies(model, ["x" * 2048], tmp_path)


def test_a_tokenizer_that_splits_the_letters():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Q"])

    class Splitting(type(tokenizer)):  # type: ignore[misc]
        """Writes a letter as two tokens, the first of which differs."""

        def __call__(self, text: str, **options: object) -> object:
            found = super().__call__(text, **options)
            return {"input_ids": [*found["input_ids"], *found["input_ids"]]} if text in LETTERS else found

    tokenizer.__class__ = Splitting
    with pytest.raises(RequestError, match="the judge's tokenizer splits the letters A, B, C"):
        asked(tokenizer, "Which?")


@pytest.mark.parametrize(
    ("template", "times"),
    [("{{ messages[0].content }} {{ messages[0].content }}", 2), ("{{ 'Well?' }}", 0)],
)
def test_a_template_that_does_not_show_the_question_once_is_refused(template: str, times: int):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(RequestError, match=f"shows a user's message {times} times, not once"):
        asked(tokenizer, TEXTS[0])
