"""The stage key, and running a stage at most once per key.

A key is the digest of (stage, its version, the spec that the stage sees, the digests of what it reads). It holds
nothing else: no run id, no path, no time. So the same work has the same key in every run, on every machine. A change
of a stage's code that changes its output raises the stage's version.

Prefect's own result cache is not used for artifacts: it trusts a stored value whose files are gone. The store looks
first, hashes what it finds, and a task whose result was there says so by ending in a state named "Cached".
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from infra.errors import StaleWriterError
from infra.hashing import SHORT, digest_json
from infra.settings import scratch_folder
from infra.storage import ArtifactRef, Claim, Store
from tasks.artifacts import StageResult

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "peft", "trl", "bitsandbytes", "accelerate", "datasets"),
    *("lm_eval", "sacrebleu", "rouge_score", "prefect"),
)


def stage_key(stage: str, *, version: int, spec: Any, upstream: Mapping[str, str]) -> str:
    """SHA-256 that names the work: `spec` as JSON, `upstream` as {role: digest}."""
    return digest_json({"stage": stage, "version": version, "spec": spec, "upstream": dict(upstream)})


@dataclass(frozen=True)
class Work:
    """A piece of work before it is done: what makes its key, and what its artifact will be called."""

    stage: str
    version: int
    kind: str  # of artifact
    name: str
    spec: Any
    upstream: Mapping[str, str]

    @property
    def key(self) -> str:
        return stage_key(self.stage, version=self.version, spec=self.spec, upstream=self.upstream)


def run_stage_once(
    store: Store, work: Work, make: Callable[[Path, Path], dict[str, Any]], *, run_id: str
) -> StageResult:
    """The result of a piece of work, from the store or by calling `make`.

    `make(work, output)` leaves the artifact's files in the folder `output` and returns its facts (JSON). `work` is
    a folder for everything else; it is removed on success and stays for a look after a failure.
    """
    key = work.key

    def build(claim: Claim) -> ArtifactRef:
        folder = scratch_folder(store) / run_id / f"{work.stage}-{work.name}-{key[:SHORT]}-{claim.token}"
        shutil.rmtree(folder, ignore_errors=True)
        output = folder / "output"
        output.mkdir(parents=True)
        started = time.monotonic()
        facts = make(folder, output)
        manifest = {
            "facts": facts,
            "spec": work.spec,
            "upstream": dict(work.upstream),
            "versions": library_versions(),
            "git_commit": git_commit(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 3),
        }
        ref = store.complete(output, claim=claim, kind=work.kind, name=work.name, manifest=manifest)
        shutil.rmtree(folder)
        return ref

    try:
        ref, cached = store.once(work.stage, key, build, run_id=run_id)
    except StaleWriterError:  # the writer that took over has the result, or is making it
        ref, cached = store.once(work.stage, key, build, run_id=run_id)
    return StageResult(ref=ref, facts=store.manifest(ref)["facts"], cached=cached)


@lru_cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide results, without importing them."""
    return {library: metadata.version(library) for library in LIBRARIES}


@lru_cache
def git_commit() -> str | None:
    """The project's commit, with "+" if files differ from it; what an image says of itself; None if nobody knows."""
    root = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("TUNEFLEET_COMMIT") or None
