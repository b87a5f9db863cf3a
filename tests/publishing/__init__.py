"""Publishing, tested against a real S3 server and a local Hub. `make_release` makes a small release to publish."""

import hashlib
from pathlib import Path
from typing import Any

from infra.hashing import digest_tree
from tasks.publishing.release import Release

ROOT = Path(__file__).parents[2]
CARD = "---\nlibrary_name: peft\ntags:\n- tunefleet\n---\n\n# A card\n"
FILES = {
    "adapter_config.json": b'{"r": 8}\n',
    "adapter_model.safetensors": bytes(range(256)) * 40,
    "README.md": b"what PEFT wrote, which the card replaces\n",
    "tokenizer/tokenizer.json": '{"ü": 1}\n'.encode(),
}
PUBLISHED = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer/tokenizer.json",
    "README.md",
    "tunefleet.json",
}

OVERRIDDEN = {"version": "v2", "override": {"reason": "the customer waits", "by": "ada@desk", "at": "today"}}


def make_release(folder: Path, files: dict[str, bytes] | None = None, **changes: Any) -> Release:
    """Write `files` into `folder` and make them a release; `changes` are fields of Release."""
    files = FILES if files is None else files
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    fields: dict[str, Any] = {
        "name": "capitals",
        "number": 1,
        "what": "adapter",
        "digest": digest_tree({path: hashlib.sha256(data).hexdigest() for path, data in files.items()}),
        "folder": folder,
        "card": CARD,
        "manifest": {"base": {"model": "tiny"}, "verdict": "PASS"},
    }
    return Release(**{**fields, **changes})


def files_under(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
