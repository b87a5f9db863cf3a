"""A conversation with base and adapters side by side: lines in, answers out.

It knows no terminal: lines come from an iterator, text goes to a function. Each speaker remembers only what was asked
of it and what it answered, so nobody answers to another's words. Who was never asked a question does not know it.
"""

import difflib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

from infra.errors import RequestError

HELP = """\
/NAME           from now on NAME answers, /base among them       /NAME TEXT   asks only NAME, once
/all            from now on everyone answers, in turn            /all TEXT    asks everyone, once
/system TEXT    what they are told before the conversation; without TEXT what each was trained with, if anything
/reset          forget what was said        /who    who is there        //TEXT    a text that begins with /
/quit           leave; so does the end of the input. Ctrl-C stops an answer, at the prompt it leaves."""
COMMANDS = ("all", "help", "quit", "reset", "system", "who")

Message = dict[str, str]
Write = Callable[[str], object]


class Voices(Protocol):
    """Who can be asked; tasks/serving/speakers.py."""

    @property
    def names(self) -> Sequence[str]: ...

    def stream(self, name: str, messages: list[Message]) -> Generator[str, None, None]: ...


@dataclass
class Chat:
    """The state of one conversation. `about` says a line of each speaker, `trained_with` its own system message."""

    voices: Voices
    write: Write
    about: Mapping[str, str] = field(default_factory=dict)
    trained_with: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None  # over what each was trained with
    said: dict[str, list[Message]] = field(default_factory=dict)
    answering: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answering = list(self.voices.names)

    def take(self, line: str) -> bool:
        """Do what one line says; False if the conversation is over."""
        line = line.strip()
        if line.startswith("/") and not line.startswith("//"):
            word, _, text = line[1:].partition(" ")
            return self._command(word, text.strip())
        if line:
            self._ask(self.answering, line.removeprefix("/"))
        return True

    def _command(self, word: str, text: str) -> bool:
        if word == "quit":
            return False
        if word == "help":
            self._say(HELP)
        elif word == "who":
            for name in self.voices.names:
                self._say(f"{'*' if name in self.answering else ' '} {name}  {self.about.get(name, '')}".rstrip())
        elif word == "reset":
            self.said.clear()
            self._say("forgotten.")
        elif word == "system":
            self.system = text or None
            self._say(f"system: {text}" if text else "system: what each was trained with.")
        elif word == "all" or word in self.voices.names:
            some = list(self.voices.names) if word == "all" else [word]
            if text:
                self._ask(some, text)
            else:
                self.answering = some
                self._say(f"{', '.join(some)} will answer.")
        else:
            known = [*self.voices.names, *COMMANDS]
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean /{near[0]}?" if near else f"there are {', '.join('/' + one for one in known)}."
            self._say(f"/{word} is no command and nobody's name; {hint}")
        return True

    def _ask(self, names: Sequence[str], text: str) -> None:
        """Each of `names` in turn; Ctrl-C stops the one that speaks, and those after it."""
        for name in names:
            if len(names) > 1:
                self.write(f"{name}: ")
            said = self.said.setdefault(name, [])
            pieces: list[str] = []
            try:
                question = {"role": "user", "content": text}
                messages = [*self._told(name), *said, question]
                with closing(self.voices.stream(name, messages)) as answer:
                    for piece in answer:
                        pieces.append(piece)
                        self.write(visible(piece))
            except RequestError as error:
                self._say(f"({error})")
                continue
            except KeyboardInterrupt:
                self._say(" (stopped)")
                return
            self._say("")
            said += [question, {"role": "assistant", "content": "".join(pieces)}]

    def _told(self, name: str) -> list[Message]:
        system = self.system or self.trained_with.get(name)
        return [{"role": "system", "content": system}] if system else []

    def _say(self, text: str) -> None:
        self.write(text + "\n")


def converse(chat: Chat, lines: Iterable[str]) -> None:
    """Until the lines end, one of them is /quit, or Ctrl-C comes while the next one is awaited."""
    try:
        for line in lines:
            if not chat.take(line):
                return
    except KeyboardInterrupt:
        chat.write("\n")


def visible(text: str) -> str:
    """Control characters but line breaks and tabs spelled out: an answer must not steer the reader's terminal."""
    return "".join(one if one.isprintable() or one in "\n\t" else repr(one)[1:-1] for one in text)
