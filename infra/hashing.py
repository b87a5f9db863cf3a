"""Digests: what content is called. SHA-256 in lower-case hex everywhere, over bytes or over canonical JSON."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHORT = 12  # hex digits of a digest that stand in a folder's name: 48 bits


def digest_stream(stream: Any) -> str:
    """SHA-256 of the binary file object `stream`, which stands at its start; read in blocks."""
    return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_file(path: Path) -> str:
    with path.open("rb") as stream:
        return digest_stream(stream)


def canonical_json(value: Any) -> str:
    """One spelling for each JSON value: sorted keys, no spaces, no NaN (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_tree(files: Mapping[str, str]) -> str:
    """Digest of a folder's content from {relative posix path: SHA-256 of the file}."""
    return digest_json(dict(files))
