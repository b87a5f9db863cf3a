"""Whether a base could be written as GGUF at all, and how large that would be, told before anything is trained.

Settings and tokenizer are looked at, not weights: what training and merging leave has the same ones.
"""

from pathlib import Path
from typing import Any

from infra.errors import Fault, RequestError
from tasks.exporting.architecture import architecture_of
from tasks.exporting.numbers import bytes_of, type_for
from tasks.exporting.vocabulary import read_vocabulary


def export_faults(folder: Path) -> list[Fault]:
    """Everything that llama.cpp would compute otherwise, or split otherwise, in the model that `folder` holds."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    faults: list[Fault] = []
    try:
        architecture_of(config)
    except RequestError as error:
        faults += error.faults
    if (rows := getattr(config, "vocab_size", None)) is not None:  # models of several parts keep it elsewhere
        try:
            read_vocabulary(folder, rows)
        except RequestError as error:
            faults += error.faults
    return faults


def expected_bytes(model: Any, type: str) -> int:
    """Of the tensors of a transformers model, which may be on the meta device; the vocabulary is small beside them."""
    ends = {id(one.weight) for one in (model.get_input_embeddings(), model.get_output_embeddings())}
    total = 0
    for parameter in model.parameters():
        name = "token_embd.weight" if id(parameter) in ends else ""
        total += bytes_of(parameter.shape, type_for(name, parameter.shape, type))
    return total
