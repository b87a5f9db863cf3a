"""Whether a base could be written as GGUF at all: told from its settings and tokenizer, before anything is trained.

Weights are not looked at; what training and merging leave has the same settings and the same tokenizer.
"""

from pathlib import Path

from infra.errors import Fault, RequestError
from tasks.exporting.architecture import architecture_of
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
