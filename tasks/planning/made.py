"""Whether a piece of work is in the store already, as far as can be told without reading its bytes.

A run hashes what it finds before it believes it (infra/storage.py). That takes as long as reading a model, so a plan
compares the manifest and the sizes, and leaves the hashing to the run.
"""

from pydantic import ValidationError

from infra.errors import IntegrityError
from infra.storage import ArtifactRef, Store
from tasks.caching import Work


def made(store: Store, work: Work) -> ArtifactRef | None:
    """The artifact that `work` led to, with all its files in their sizes; None if it has to be made."""
    entry = store.read_json(f"index/{work.stage}/{work.key}.json")
    if entry is None:
        return None
    try:
        uri = f"{store.root}/{entry['path']}"
        ref = ArtifactRef(kind=entry["kind"], name=entry["name"], uri=uri, digest=entry["digest"])
        manifest = store.manifest(ref)
        whole = all(store.fs.info(f"{ref.uri}/{file['path']}")["size"] == file["size"] for file in manifest["files"])
    except (KeyError, TypeError, ValidationError, IntegrityError, FileNotFoundError):  # altered, or gone
        return None
    return ref if whole and manifest["digest"] == ref.digest else None
