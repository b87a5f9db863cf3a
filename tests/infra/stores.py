"""What the tests of the store make in it: a small artifact, under one key."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fsspec import AbstractFileSystem

from infra.claims import Claim
from infra.storage import ArtifactRef, Store

STAGE, KEY = "train", "0123456789abcdef"
CLAIMS = f"claims/{STAGE}/{KEY}"
FILES = {"adapter_model.safetensors": bytes(range(256)) * 40, "tokenizer/ü b#1.json": b"{}", "empty.txt": b""}


@dataclass
class Maker:
    """Completes `files` in `store`, and counts how often it is called."""

    store: Store
    work: Path
    files: dict[str, bytes]
    calls: int = 0

    def __call__(self, claim: Claim) -> ArtifactRef:
        self.calls += 1
        folder = fill(self.work / f"output-{claim.key}-{claim.token}", self.files)
        facts = {"facts": {"loss": 0.25, "by_step": {10: 1.0, 9: 2.0}}}
        return self.store.complete(folder, claim=claim, kind="adapters", name="capitals", manifest=facts)


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def fast(store: Store, make: Callable[[Claim], ArtifactRef], key: str = KEY) -> tuple[ArtifactRef, bool]:
    return store.once(STAGE, key, make, run_id="run-1", poll_seconds=0.02)


def bare(store: Store) -> AbstractFileSystem:
    """The store's files, for tests to meddle with. Paths start with the store's root."""
    return store.fs


def path_of(store: Store, ref: ArtifactRef, file: str) -> str:
    return f"{store._path}/{ref.uri.removeprefix(store.root + '/')}/{file}"
