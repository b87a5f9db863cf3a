"""A base model without its weights: config and tokenizer, which is all that counting, estimating and showing need.

A package's GGUF is asked for its header alone; that takes seconds, so what comes of it is kept under
TUNEFLEET_CACHE/architectures, by the file's digest. A folder is taken as it stands, and may hold only config.json.
"""

import secrets
from collections.abc import Callable
from pathlib import Path

from infra.errors import RequestError
from infra.hashing import digest_file
from infra.settings import cache_folder
from tasks.ingestion.base_model import WANTED, hub_errors, identify, packaged_file, wanted_objects
from tasks.recipe.schema import Base

SMALL = tuple(pattern for pattern in WANTED if pattern != "*.safetensors")


def architecture(base: Base, imported: str | None = None) -> Path:
    """A local folder with config.json and, if the base has one, its tokenizer; `imported` is its uri in a store.

    RequestError if there is no config; TransientError if the Hub cannot be reached.
    """
    source = imported or base.model
    if source.startswith("package://"):
        return _from_gguf(packaged_file(source))
    if source.startswith("s3://"):
        return _from_objects(source)
    if Path(source).is_absolute():
        if not (Path(source) / "config.json").is_file():
            identify(source, None)  # says what is wrong with it
        return Path(source)
    from huggingface_hub import snapshot_download

    with hub_errors(base.model, base.revision):
        return Path(snapshot_download(base.model, revision=base.revision, allow_patterns=list(SMALL)))


def _from_gguf(path: Path) -> Path:
    def extract(folder: Path) -> None:
        from transformers import AutoConfig, AutoTokenizer

        try:
            AutoConfig.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise RequestError(f"{path}: its header cannot be read as a model: {error}") from error

    return _kept(digest_file(path), extract)


def _from_objects(uri: str) -> Path:
    fs, names = wanted_objects(uri)

    def fetch(folder: Path) -> None:
        for name in names:
            if not name.endswith(".safetensors"):
                fs.get_file(name, str(folder / Path(name).name))
        if not (folder / "config.json").is_file():
            raise RequestError(f"base.model {uri!r}: there is no config.json; it is not a transformers model.")

    return _kept(identify(uri, None)["digest"], fetch)


def _kept(digest: str, make: Callable[[Path], None]) -> Path:
    """The folder kept for `digest`, made by `make` if it is not there; whole or not there at all."""
    folder = cache_folder() / "architectures" / digest
    if folder.is_dir():
        return folder
    beside = folder.with_name(f".writing-{secrets.token_hex(8)}")
    beside.mkdir(parents=True)
    make(beside)
    try:
        beside.rename(folder)
    except OSError:  # another process was faster
        if not folder.is_dir():
            raise
    return folder
