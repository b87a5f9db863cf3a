"""Examples before the question: which rows may be shown, and how they stand in the prompt."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import RequestError
from tasks.prompting.shots import draw, plain_stop, with_shots


def chat(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    return {
        "prompt": [*messages, {"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def plain(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": f"Q: {question}\nA:", "completion": f" {answer}"}


def test_examples_of_a_chat_stand_as_turns_after_the_system_message() -> None:
    asked, shown = chat("c", "3", "Count."), [chat("a", "1", "Count."), chat("b", "2", "Count.")]
    assert [(turn["role"], turn["content"]) for turn in with_shots(asked["prompt"], shown, 2)] == [
        ("system", "Count."),
        *(("user", "a"), ("assistant", "1"), ("user", "b"), ("assistant", "2")),
        ("user", "c"),
    ]


def test_examples_of_plain_text_stand_before_it_with_blank_lines_between() -> None:
    prompt = with_shots("Q: c\nA:", [plain("a", "1"), plain("b", "2")], 2)
    assert prompt == "Q: a\nA: 1\n\nQ: b\nA: 2\n\nQ: c\nA:"


def test_of_a_pair_the_chosen_answer_is_shown() -> None:
    pair = {"prompt": "Q: a\nA:", "chosen": " good", "rejected": " bad"}
    assert with_shots("Q: c\nA:", [pair], 1) == "Q: a\nA: good\n\nQ: c\nA:"


def test_no_examples_leave_the_prompt_as_it_is() -> None:
    prompt = chat("c", "3", "Count.")["prompt"]
    assert with_shots(prompt, [], 0) == prompt
    assert with_shots("Q: c\nA:", [plain("a", "1")], 0) == "Q: c\nA:"


def test_a_question_is_never_its_own_example_and_still_gets_as_many() -> None:
    drawn = [plain(letter, letter) for letter in "abc"]
    assert with_shots(drawn[0]["prompt"], drawn, 2) == "Q: b\nA: b\n\nQ: c\nA: c\n\nQ: a\nA:"
    assert with_shots("Q: d\nA:", drawn, 2) == "Q: a\nA: a\n\nQ: b\nA: b\n\nQ: d\nA:"


@given(
    train=st.lists(st.integers(0, 12), min_size=1),
    held_out=st.lists(st.integers(0, 12)),
    count=st.integers(0, 8),
    seed=st.integers(0, 5),
)
def test_what_is_drawn_has_prompts_of_its_own(train: list[int], held_out: list[int], count: int, seed: int) -> None:
    rows = [plain(str(number), str(place)) for place, number in enumerate(train)]
    kept_out = [plain(str(number), "?") for number in held_out]
    usable = set(train) - set(held_out)
    if len(usable) < count:
        with pytest.raises(RequestError, match=f"there are {len(usable)}; lower num_fewshot"):
            draw(rows, kept_out, count, seed)
        return
    drawn = draw(rows, kept_out, count, seed)
    prompts = {row["prompt"] for row in drawn}
    assert len(prompts) == len(drawn) == count and all(row in rows for row in drawn)
    assert not prompts & {row["prompt"] for row in kept_out}
    assert draw(rows, kept_out, count, seed) == drawn


def test_another_seed_draws_others() -> None:
    rows = [plain(str(number), "x") for number in range(50)]
    assert draw(rows, [], 4, seed=0) != draw(rows, [], 4, seed=1)


def test_text_without_a_question_has_no_examples() -> None:
    rows = [{"text": "a"}, {"text": "b"}]
    assert draw(rows, [], 0, seed=0) == []
    with pytest.raises(RequestError, match="plain text without a question"):
        draw(rows, [], 1, seed=0)


def test_a_blank_line_ends_an_answer_unless_answers_have_some() -> None:
    assert plain_stop([plain("a", "1")]) == ["\n\n"]
    assert plain_stop([plain("a", "1"), plain("b", "two\n\nparts")]) == []
    assert plain_stop([chat("a", "1")]) == plain_stop([]) == []
