"""Who answers in a chat: the base, loaded once as it was judged, and adapters that are put on it in turn.

Adapters lie on the base side by side, and one of them at a time is switched on; the base answers with all of them
switched off, so a change of speaker moves no weights. A fully fine-tuned model has weights of its own beside it.
Answers are greedy, as they were when they were judged, and come piece by piece.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftModel
from transformers import AutoTokenizer, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from infra.errors import RequestError
from tasks.training.models import Quantization, load_base
from tasks.training.rendering import Messages, render_prompt

BASE = "base"


class Speakers:
    """`stream(name, messages)` is an answer. `adapters` and `models` are folders by name; BASE always answers too.

    Those in `plain` are asked what was said last as plain text, as they were trained; the others by the chat template.
    """

    def __init__(
        self,
        base: Path,
        adapters: Mapping[str, Path],
        *,
        models: Mapping[str, Path] | None = None,
        plain: Sequence[str] = (),
        quantization: Quantization = "none",
        device: str = "cpu",
        max_new_tokens: int = 256,
    ):
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._plain, self._max_new_tokens = set(plain), max_new_tokens
        model: Any = load_base(base, quantization, device).eval()
        self._inside: dict[str, str] = {}  # name to PEFT's name of it, which may hold no dot
        for number, (name, folder) in enumerate(adapters.items()):
            self._inside[name] = f"adapter_{number}"
            if number:
                model.load_adapter(str(folder), adapter_name=self._inside[name])
            else:  # before anything is computed: PEFT asks for the weights' state, which spoils packed 4-bit ones
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=self._inside[name])
        self._model = model.eval()
        self._models = {name: load_base(folder, "none", device).eval() for name, folder in (models or {}).items()}

    @property
    def names(self) -> list[str]:
        return [BASE, *self._inside, *self._models]

    def stream(self, name: str, messages: Messages) -> Generator[str, None, None]:
        """The answer of `name` to the last message, in pieces. Closing the iterator stops the model after its token.

        RequestError if the conversation leaves no room for an answer, or the chat template refuses it.
        """
        model, worn = self._as(name)
        prompt = self._prompt(name, messages)
        ids = self._tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
        room = getattr(model.config, "max_position_embeddings", None)
        if room and ids.shape[1] + self._max_new_tokens > room:
            raise RequestError(
                f"the conversation has {ids.shape[1]} tokens, an answer may have {self._max_new_tokens}, and the model "
                f"reads {room}: /reset forgets what was said; or lower --max-new-tokens."
            )
        streamer: Any = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        stopped, failed = Event(), []

        def answer() -> None:
            try:
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=self._max_new_tokens,
                    eos_token_id=self._ends(model),
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([_Stopped(stopped)]),
                )
            except Exception as error:  # noqa: BLE001 - raised again in the thread that reads
                failed.append(error)
                streamer.end()

        thread = Thread(target=answer, name=f"answer-{name}", daemon=True)
        with worn:
            thread.start()
            try:
                yield from (piece for piece in streamer if piece)
            finally:
                stopped.set()
                thread.join()
        if failed:
            raise failed[0]

    def _as(self, name: str) -> tuple[Any, AbstractContextManager[Any]]:
        """The model of `name`, and a context in which it is what the name says."""
        if name in self._models:
            return self._models[name], nullcontext()
        if name in self._inside:
            self._model.set_adapter(self._inside[name])
            return self._model, nullcontext()
        return self._model, self._model.disable_adapter() if self._inside else nullcontext()

    def _ends(self, model: Any) -> list[int] | None:
        """What ends an answer: the token that training taught, and those that the model itself names, as judged."""
        named = model.generation_config.eos_token_id
        ends = [self._tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
        return [end for end in dict.fromkeys(ends) if end is not None] or None

    def _prompt(self, name: str, messages: Messages) -> str:
        plain = name in self._plain or not self._tokenizer.chat_template
        try:
            return render_prompt(self._tokenizer, messages[-1]["content"] if plain else messages)
        except TemplateError as error:  # as a rule its own raise_exception: some allow no system message
            raise RequestError(
                f"the base's chat template refuses this conversation: {error}; say it otherwise: /system TEXT is what "
                "they are told before, /reset forgets what was said."
            ) from error


class _Stopped(StoppingCriteria):
    def __init__(self, stopped: Event):
        self._stopped = stopped

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """(batch,) bool: whether each sequence is done."""
        return torch.full((input_ids.shape[0],), self._stopped.is_set(), device=input_ids.device)  # type: ignore[return-value]
