"""The base model of a plan: its architecture, its tokenizer if it has one, and whether the store has it already."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import RequestError
from infra.storage import ArtifactRef, Store
from tasks.ingestion.architecture import architecture
from tasks.ingestion.chat_template import read_chat_template, with_fixed_date
from tasks.ingestion.task import base_work
from tasks.planning.made import made
from tasks.recipe.schema import Base

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
MOST_HASHED = 4 * 2**30  # bytes of a local folder; more would take longer to hash than a plan may take


@dataclass(frozen=True)
class PlannedBase:
    model: str
    folder: Path  # config.json, and the tokenizer if there is one
    tokenizer: Any | None
    ref: ArtifactRef | None
    unhashed_bytes: int = 0  # of a folder that is too large to be looked up here

    def notes(self) -> list[str]:
        """What a reader should know of a base that can be planned with but not, or not wholly, looked at."""
        notes = []
        if Path(self.model).is_absolute() and not any(Path(self.model).glob("*.safetensors")):
            notes.append("the folder holds no .safetensors: enough to count and estimate, too little to train")
        if self.unhashed_bytes:
            size = self.unhashed_bytes / 2**30
            notes.append(f"{size:.0f} GiB of weights were not hashed here, so the store was not asked for them")
        return notes


def look_at(base: Base, store: Store | None) -> PlannedBase:
    """RequestError if there is no such model, or config or tokenizer cannot be read. Weights are not loaded."""
    unhashed = _too_large_to_hash(base.model)
    ref = made(store, base_work(base)) if store and not unhashed else None
    folder = architecture(base, ref.uri if ref else None)
    return PlannedBase(base.model, folder, load_tokenizer(base, folder), ref, unhashed)


def load_tokenizer(base: Base, folder: Path) -> Any | None:
    """With the recipe's chat template, if it gives one; None for a folder without a tokenizer."""
    template = read_chat_template(base.chat_template) if base.chat_template else None
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"base.model {base.model!r}: its tokenizer cannot be loaded: {error}") from error
    if template:
        tokenizer.chat_template = template
    if tokenizer.chat_template:
        tokenizer.chat_template = with_fixed_date(tokenizer.chat_template)
    return tokenizer


def meta_model(base: PlannedBase) -> Any:
    """The architecture without weights; RequestError if transformers does not know it."""
    from tasks.training.models import meta_base

    try:
        return meta_base(base.folder)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"base.model {base.model!r}: its config.json cannot be read as a model: {error}") from error


def _too_large_to_hash(model: str) -> int:
    folder = Path(model)
    if not folder.is_absolute() or not folder.is_dir():
        return 0
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return size if size > MOST_HASHED else 0
