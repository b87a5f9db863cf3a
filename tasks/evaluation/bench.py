"""The models that answer: one base in memory, and those that take turns on it or in its place."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoTokenizer

from infra.errors import StageError
from tasks.evaluation.divergence import BaseStates
from tasks.evaluation.forest import Plans
from tasks.evaluation.noising import noised
from tasks.evaluation.onednn import through_onednn
from tasks.evaluation.shared import ROOM, Footing, SharedLM
from tasks.evaluation.suited import why_unsuited
from tasks.training.models import COMPUTE_DTYPE, Quantization, load_base


class Bench:
    """Hands out each side's model in turn."""

    def __init__(
        self,
        base: Path,
        quantization: Quantization,
        device: str,
        batch_size: int,
        dtype: torch.dtype = COMPUTE_DTYPE,
    ):
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self._folder, self._quantization, self._device, self._dtype = base, quantization, device, dtype
        self._batch_size = batch_size
        self._plans, self._states = Plans(), BaseStates()
        self._base: Any = None
        self._unsuited: str | None = None  # why the base cannot be scored on the shared path
        self._plain: torch.Tensor | None = None  # the base's probe logits

    @contextmanager
    def answering_as(self, adapter: Path | None) -> Iterator[SharedLM]:
        """lm-eval's model of one side: the base itself for None, else the base with this adapter on it.

        StageError if the adapter leaves the logits as they are: then the base would be scored under its name.
        StageError, too, if its logits are no numbers, or it is of a kind that no recipe makes.
        """
        if adapter is None:
            yield self._as_lm(self._loaded(), self._unsuited)
            return
        if (kind := PeftConfig.from_pretrained(str(adapter))).is_prompt_learning:
            raise StageError(
                f"{adapter}: a {kind.peft_type} adapter puts tokens of its own before every row, which cannot be "
                "scored here; give one that changes weights, such as LoRA."
            )
        with self._wearing(partial(PeftModel.from_pretrained, model_id=adapter), f"{adapter}: the adapter") as lm:
            yield lm

    @contextmanager
    def answering_as_noised(self, seed: int, strength: float) -> Iterator[SharedLM]:
        """The base damaged on purpose: to every linear layer is added noise of `strength` times the layer's norm."""
        put_on = partial(noised, seed=seed, strength=strength)
        with self._wearing(put_on, f"noise of {strength} times the weights") as lm:
            yield lm

    @contextmanager
    def answering_again(self) -> Iterator[SharedLM]:
        """The base in batches of another size: how its answers differ from the base's is the engine's noise floor."""
        base = self._loaded()
        yield self._as_lm(base, self._unsuited, batch_size=self._batch_size // 2 or 2)

    @contextmanager
    def answering_as_model(self, folder: Path) -> Iterator[SharedLM]:
        """The same of a fully fine-tuned model. The base leaves the memory for it, and is loaded again on need."""
        if self._plain is None:
            self._loaded()
        self._base = None
        gc.collect()
        model = load_base(folder, "none", self._device, self._dtype).eval()
        through_onednn(model)
        self._refuse_unchanged(model, f"{folder}: the fine-tuned model")
        yield self._as_lm(model, self._why_unsuited(model))

    @contextmanager
    def _wearing(self, put_on: Callable[[Any], Any], name: str) -> Iterator[SharedLM]:
        """The base with an adapter on it, which is taken off again."""
        base, self._base = self._loaded(), None  # an adapter that can be put on in part only spoils the base
        adapted = put_on(base)
        try:
            adapted.eval()
            self._refuse_unchanged(adapted, name)
            yield self._as_lm(adapted, self._unsuited)
        finally:
            self._base = adapted.unload()

    def _loaded(self) -> Any:
        if self._base is None:
            self._base = load_base(self._folder, self._quantization, self._device, self._dtype).eval()
            _keep_packed(self._base)
            through_onednn(self._base)
            self._probe_logits(self._base)  # packs the weights, so that every side is answered from the same ones
            self._plain = self._probe_logits(self._base)
            self._unsuited = self._why_unsuited(self._base)
        return self._base

    def _as_lm(self, model: Any, unsuited: str | None, batch_size: int | None = None) -> SharedLM:
        as_base = model.disable_adapter if isinstance(model, PeftModel) else None
        footing = Footing(self._plans, unsuited, as_base, self._states)
        return SharedLM(model, self.tokenizer, batch_size or self._batch_size, footing)

    def _why_unsuited(self, model: Any) -> str | None:
        return why_unsuited(model, self.tokenizer, ROOM * max(self._batch_size, 2))

    def _refuse_unchanged(self, model: Any, name: str) -> None:
        logits = self._probe_logits(model)
        if logits.isnan().any():
            raise StageError(f"{name} gives logits that are not numbers (NaN); its training may have diverged.")
        if self._plain is not None and torch.equal(logits, self._plain):
            raise StageError(f"{name} does not change the base's logits; it was not applied, or nothing was learned.")

    @torch.inference_mode()
    def _probe_logits(self, model: Any) -> torch.Tensor:
        """Logits (1, tokens, vocabulary) of a short fixed text."""
        ids = self.tokenizer("The quick brown fox jumps over the lazy dog.", return_tensors="pt").input_ids
        return model(ids.to(model.device)).logits.float()


def _keep_packed(model: Any) -> None:
    """Keep bitsandbytes from unpacking 4-bit weights whenever somebody asks for a state_dict, as PEFT does.

    On CPUs with AVX512-bf16, the first forward repacks the weights; Linear4bit's state_dict undoes that and quantises
    the scales anew, which changes them (seen in 0.50.2). So loading an adapter would change the base under it.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module._save_to_state_dict = MethodType(nn.Linear._save_to_state_dict, module)
