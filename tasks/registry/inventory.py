"""What artifacts a store holds, found by their digests: manifests name what they were made from by digest alone.

Folders are listed once and manifests read when asked. Of one digest there may be several folders: two adapters with the
same rows have one data set under two names. Whatever else lies under the root is not an artifact: a store may share its
folder or prefix with published releases and with other people's files.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from infra.hashing import SHORT
from infra.storage import MANIFEST, ArtifactRef, Store, is_whole

KINDS = {  # all that any stage makes; a test compares it with the stages
    *("bases", "datasets", "preflights", "prompts", "adapters", "models", "merged", "ggufs"),
    *("scores", "comparisons", "verdicts", "judgements", "replays"),
}
FROM_OUTSIDE = {"file", "hub", "suites"}  # roles of upstream digests that never were artifacts
FOLDER = re.compile(rf".*-(?P<short>[0-9a-f]{{{SHORT}}})")
DIGEST = re.compile(r"[0-9a-f]{64}")

Manifest = dict[str, Any]


def place_of(ref: ArtifactRef) -> str:
    """Where an artifact lies under the root, also of a store that was moved since `ref` was written."""
    return f"{ref.kind}/{ref.name}-{ref.digest[:SHORT]}"


def rebased(store: Store, ref: ArtifactRef) -> ArtifactRef:
    """`ref` as `store` has it now: the store may have been moved since, or be opened under another path."""
    return ref.model_copy(update={"uri": f"{store.root}/{place_of(ref)}"})


def made_from(manifest: Manifest) -> dict[str, str]:
    """{role: digest} of the artifacts that one was made from; what came from outside the store is left out."""
    upstream = manifest.get("upstream") or {}
    return {
        role: digest for role, digest in upstream.items() if role not in FROM_OUTSIDE and DIGEST.fullmatch(str(digest))
    }


class Inventory:
    """The artifacts of one store as they stood when this was made."""

    def __init__(self, store: Store):
        self.store = store
        self._places: dict[str, list[str]] = defaultdict(list)
        self._read: dict[str, Manifest | None] = {}
        for kind in sorted(KINDS):
            for folder in store.list_names(kind):
                if found := FOLDER.fullmatch(folder):
                    self._places[found["short"]].append(f"{kind}/{folder}")

    @property
    def places(self) -> list[str]:
        """Every folder that is or was to be an artifact, under the root."""
        return sorted(place for places in self._places.values() for place in places)

    def manifest(self, place: str) -> Manifest | None:
        """None: never completed, gone since, or altered."""
        if place not in self._read:
            self._read[place] = self.store.read_json(f"{place}/{MANIFEST}")
        manifest = self._read[place]
        return manifest if is_whole(manifest) else None

    def altered(self, digest: str) -> list[str]:
        """The folders named by this digest that have a manifest which no longer is what was written."""
        named = self._places.get(digest[:SHORT], ())
        return [place for place in named if self.manifest(place) is None and self._read[place] is not None]

    def places_of(self, digest: str) -> list[str]:
        """The folders whose whole manifest bears this digest."""
        return [
            place
            for place in self._places.get(digest[:SHORT], ())
            if (manifest := self.manifest(place)) is not None and manifest["digest"] == digest
        ]

    def find(self, digest: str, name: str | None = None) -> Manifest | None:
        """The manifest of an artifact with this digest, if possible the one of that name; None if there is none."""
        found = self.all_of(digest)
        return next((one for one in found if one["name"] == name), found[0] if found else None)

    def all_of(self, digest: str) -> list[Manifest]:
        """The manifests of all artifacts with this digest."""
        return [manifest for place in self.places_of(digest) if (manifest := self.manifest(place))]

    def reached(self, digests: Iterable[str], name: str | None = None) -> dict[str, list[Manifest]]:
        """{digest: manifests} of these and of all that they were made from, in that order; [] for what is gone.

        With `name`, only what the artifact of that name was made from is followed, where there are several of a digest.
        """
        found: dict[str, list[Manifest]] = {}
        waiting = list(digests)
        while waiting:
            digest = waiting.pop(0)
            if digest not in found:
                one = self.find(digest, name) if name else None
                found[digest] = [one] if one else self.all_of(digest)
                waiting += [upstream for manifest in found[digest] for upstream in made_from(manifest).values()]
        return found
