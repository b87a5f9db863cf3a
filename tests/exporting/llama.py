"""llama.cpp itself, through the wheel of its server in `xllamacpp`; tests that import this are skipped without it.

pip install xllamacpp        (a prebuilt wheel of 34 MB; in requirements/dev.txt)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")


@dataclass
class Llama:
    """A model that llama.cpp has loaded."""

    http: httpx.Client

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        response = self.http.post(path, json=fields, timeout=120)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def tokens(self, text: str, *, add_special: bool = True) -> list[int]:
        content = self.post("/tokenize", content=text, add_special=add_special, parse_special=True)
        return list(content["tokens"])

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """The messages in the model's own chat template."""
        return str(self.post("/apply-template", messages=messages)["prompt"])

    def complete(self, ids: list[int], count: int, **fields: Any) -> dict[str, Any]:
        """Greedy: {"tokens", "stop_type", ...}; a stop token is the last of the tokens."""
        fields |= {"n_predict": count, "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
        return self.post("/completion", prompt=ids, **fields)

    def log_probabilities(self, ids: list[int], vocabulary: int) -> list[float]:
        """Of each token after `ids`, before any sampling.

        The server leaves them out for a token that is part of a character; so it is made to choose "a".
        """
        chosen = self.tokens("a", add_special=False)[0]
        answer = self.complete(ids, 1, n_probs=vocabulary, logit_bias=[[chosen, 1000.0]])
        said = {one["id"]: one["logprob"] for one in answer["completion_probabilities"][0]["top_logprobs"]}
        return [said[number] for number in range(vocabulary)]


@contextmanager
def llama(model: Path, adapter: Path | None = None, context: int = 512) -> Iterator[Llama]:
    """Load `model`, with `adapter` laid over it, in float32 wherever llama.cpp has a choice."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup, params.fit_params = context, 1, False, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address) as http:
        yield Llama(http)
    del server
