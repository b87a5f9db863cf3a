"""The models that answer: one base in memory, and those that take turns on it or in its place."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer

from infra.errors import StageError
from tasks.training.models import Quantization, load_base


class Bench:
    """Hands out each side's model in turn."""

    def __init__(self, base: Path, quantization: Quantization, device: str, batch_size: int):
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self._folder, self._quantization, self._device = base, quantization, device
        self._batch_size = batch_size
        self._base: Any = None
        self._plain: torch.Tensor | None = None  # the base's probe logits

    @contextmanager
    def answering_as(self, adapter: Path | None) -> Iterator[HFLM]:
        """lm-eval's model of one side: the base itself for None, else the base with this adapter on it.

        StageError if the adapter leaves the logits as they are: then the base would be scored under its name.
        """
        base = self._loaded()
        if adapter is None:
            yield self._as_lm(base)
            return
        adapted = PeftModel.from_pretrained(base, adapter).eval()
        try:
            self._refuse_unchanged(adapted, f"{adapter}: the adapter")
            yield self._as_lm(adapted)
        finally:
            self._base = adapted.unload()

    @contextmanager
    def answering_as_model(self, folder: Path) -> Iterator[HFLM]:
        """The same of a fully fine-tuned model. The base leaves the memory for it, and is loaded again on need."""
        if self._plain is None:
            self._loaded()
        self._base = None
        gc.collect()
        model = load_base(folder, "none", self._device).eval()
        self._refuse_unchanged(model, f"{folder}: the fine-tuned model")
        yield self._as_lm(model)

    def _loaded(self) -> Any:
        if self._base is None:
            self._base = load_base(self._folder, self._quantization, self._device).eval()
            _keep_packed(self._base)
            self._probe_logits(self._base)  # packs the weights, so that every side is answered from the same ones
            self._plain = self._probe_logits(self._base)
        return self._base

    def _as_lm(self, model: Any) -> HFLM:
        return _language_model(HFLM, model, self.tokenizer, self._batch_size)

    def _refuse_unchanged(self, model: Any, name: str) -> None:
        if self._plain is not None and torch.equal(self._probe_logits(model), self._plain):
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


class _AsTrained(HFLM):
    """Prompts and answers are tokenised apart and nothing is put before them, as in training.

    HFLM by itself tokenises the sum of both, moves a prompt's last spaces into the answer, and lets the tokenizer put
    its begin token before whatever has none.
    """

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.tok_encode(context), self.tok_encode(continuation)


def as_trained(lm: HFLM) -> HFLM:
    """The same model, asked as it was trained: for an adapter's own tasks, not for those of lm-eval."""
    return _language_model(_AsTrained, lm.model, lm.tokenizer, lm.batch_size, add_bos_token=False)


def _language_model(kind: type[HFLM], model: Any, tokenizer: Any, batch_size: int, **options: Any) -> HFLM:
    # Log-probabilities in float32: a softmax in bfloat16 rounds a document's sum to the nearest half.
    return kind(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32", **options)
