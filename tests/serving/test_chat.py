"""The conversation as a pure loop: lines in, text out, and what each speaker was asked."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from infra.errors import RequestError
from tasks.serving.chat import Chat, converse, visible


class Echoes:
    """Speakers who answer with their name and the last word, in pieces, and keep what they were asked."""

    def __init__(self, *names: str):
        self.names = names
        self.asked: list[tuple[str, list[dict[str, str]]]] = []
        self.closed = 0

    def stream(self, name: str, messages: list[dict[str, str]]) -> Generator[str, None, None]:
        self.asked.append((name, list(messages)))
        last = messages[-1]["content"].split()[-1]
        if last == "toolong":
            raise RequestError("no room: /reset")
        try:
            yield f"{name} says"
            if last == "stop":
                raise KeyboardInterrupt
            yield f" {last}"
        finally:
            self.closed += 1


def talk(lines: list[str], *names: str, **chat: Any) -> tuple[str, Echoes]:
    voices = Echoes(*(names or ("base", "iso", "dots.v2")))
    written: list[str] = []
    converse(Chat(voices, written.append, **chat), lines)
    return "".join(written), voices


def contents(messages: list[dict[str, str]]) -> list[str]:
    return [f"{one['role'][0]}: {one['content']}" for one in messages]


def test_everyone_answers_in_turn_until_one_is_chosen() -> None:
    text, voices = talk(["hello", "", "/iso", "again", "/all", "bye"])
    assert text == (
        "base: base says hello\niso: iso says hello\ndots.v2: dots.v2 says hello\n"
        "iso will answer.\niso says again\n"
        "base, iso, dots.v2 will answer.\nbase: base says bye\niso: iso says bye\ndots.v2: dots.v2 says bye\n"
    )
    assert [name for name, _ in voices.asked] == ["base", "iso", "dots.v2", "iso", "base", "iso", "dots.v2"]


def test_a_name_with_a_message_asks_that_one_once() -> None:
    text, voices = talk(["/base", "/iso 3rd of May", "more", "/all here"])
    assert text.startswith("base will answer.\niso says May\nbase says more\nbase: base says here\n")
    assert [name for name, _ in voices.asked] == ["iso", "base", "base", "iso", "dots.v2"]


def test_each_remembers_only_its_own_conversation() -> None:
    _, voices = talk(["one", "/iso two", "three", "/reset", "four"], "base", "iso")
    last = {name: contents(messages) for name, messages in voices.asked[-4:-2]}
    assert last == {
        "base": ["u: one", "a: base says one", "u: three"],
        "iso": ["u: one", "a: iso says one", "u: two", "a: iso says two", "u: three"],
    }
    assert contents(voices.asked[-1][1]) == ["u: four"]


def test_the_system_message_is_the_given_one_or_the_one_of_training() -> None:
    lines = ["a", "/system Be brief.", "b", "/system", "c"]
    _, voices = talk(lines, "base", "iso", trained_with={"iso": "Be loud."})
    firsts = [(name, contents(messages)[0]) for name, messages in voices.asked]
    assert firsts == [
        *(("base", "u: a"), ("iso", "s: Be loud.")),
        *(("base", "s: Be brief."), ("iso", "s: Be brief.")),
        *(("base", "u: a"), ("iso", "s: Be loud.")),
    ]


def test_an_interrupted_answer_stops_and_is_not_remembered() -> None:
    text, voices = talk(["please stop", "/base go"])
    assert text == "base: base says (stopped)\nbase says go\n"  # nobody after the one who was stopped
    assert contents(voices.asked[-1][1]) == ["u: go"] and voices.closed == 2


def test_an_interrupt_at_the_prompt_leaves() -> None:
    def lines() -> Iterator[str]:
        yield "/base hi"
        raise KeyboardInterrupt

    written: list[str] = []
    voices = Echoes("base")
    converse(Chat(voices, written.append), lines())
    assert "".join(written) == "base says hi\n\n"


def test_who_marks_those_who_answer() -> None:
    text, _ = talk(["/iso", "/who"], about={"iso": "iso@v3; PASS"})
    assert text == "iso will answer.\n  base\n* iso  iso@v3; PASS\n  dots.v2\n"


def test_quit_ends_it() -> None:
    assert talk(["/quit", "never"])[1].asked == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/is", "/is is no command and nobody's name; did you mean /iso?"),
        ("/zzzzzz", "there are /base, /iso, /dots.v2, /all, /help"),
        ("/help", "//TEXT    a text that begins with /"),
        ("/who", "* iso  iso@v3; PASS"),
        ("toolong", "iso: (no room: /reset)\ndots.v2: (no room"),
    ],
)
def test_what_is_answered_without_a_model(line: str, said: str) -> None:
    assert said in talk([line], about={"iso": "iso@v3; PASS"})[0]


def test_a_text_may_begin_with_a_slash() -> None:
    assert talk(["//etc"], "base")[1].asked[0][1][-1]["content"] == "/etc"


def test_an_answer_does_not_steer_the_terminal() -> None:
    assert visible("a\x1b[2Jb\r\nc\td\u202e") == "a\\x1b[2Jb\\r\nc\td\\u202e"
    assert talk(["\x1b[2J"], "base")[0] == "base says \\x1b[2J\n"
