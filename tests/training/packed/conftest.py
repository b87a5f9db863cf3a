"""What tests of the packed engine change in the libraries, to be able to see small differences."""

from collections.abc import Iterator

import pytest
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.training.packed.exact import exact_norm


@pytest.fixture(scope="module")
def exact_norms() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaRMSNorm, "forward", exact_norm)
        yield
