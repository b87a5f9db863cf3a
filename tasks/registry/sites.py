"""Where a release stands outside the store, and where its channel leads there.

All places are read before the first channel is moved, and in one order: of two people who move a channel at once, the
one who is first at the first place is first everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.errors import IntegrityError, TunefleetError
from infra.storage import Store
from tasks.publishing.pointer import pointer_to
from tasks.publishing.release import MANIFEST, Published, slug_of
from tasks.recipe.schema import Destination
from tasks.registry.places import of_published, published_digest
from tasks.registry.records import ReleaseRecord, place_of_publication, publications, releases

Holdings = Mapping[Destination, Mapping[str, Published]]


@dataclass(frozen=True)
class Site:
    """One place as it was when it was looked at."""

    place: Destination
    holds: Mapping[str, Published]  # of the release that the channel is to lead to
    seen: Mapping[str, Any]  # the channel's pointers
    leads: Mapping[str, frozenset[int]]  # each form that the channel leads to: of which release, if that is known
    error: TunefleetError | None = None  # why it could not be read

    @property
    def uri(self) -> str:
        return said(self.place)

    def may_lead_to(self, number: int | None) -> bool:
        return bool(self.error) or any(not numbers or number in numbers for numbers in self.leads.values())

    def leads_only_to(self, *allowed: int) -> bool:
        return all(numbers & set(allowed) for numbers in self.leads.values())

    @property
    def standing(self) -> str:
        known = sorted(set().union(*self.leads.values()))
        return ", ".join(f"v{number}" for number in known) or "a release that this store does not know"

    def lacks(self, record: ReleaseRecord, channel: str) -> str:
        """Why the channel must not be moved to `record` here; "" if it may."""
        standing = f"{channel} leads to {', '.join(sorted(self.leads))} of {self.standing} there"
        if not self.holds:
            unread = f"; where {channel} leads there could not be read: {self.error}" if self.error else ""
            now = f"; {standing}" if self.leads else unread
            return f"{self.uri} holds nothing of {record.label}: publish it there{now}"
        if missing := sorted(self.leads.keys() - self.holds.keys()):
            only = ", ".join(sorted(self.holds))
            return f"{self.uri} holds only {only} of {record.label}: publish {', '.join(missing)}, too; {standing}"
        return ""

    def move(self, record: ReleaseRecord, channel: str) -> None:
        """Let the channel lead to the release; LostRaceError if somebody has moved it since it was looked at."""
        from tasks.publishing import destinations  # boto3 and huggingface_hub, which listing releases does not need

        if self.error:
            raise self.error
        pointer = pointer_to(
            {slug_of(one.what, one.digest): one for one in self.holds.values()},
            name=record.name,
            channel=channel,
            number=record.number,
            adapter=record.adapter.digest,
        )
        destinations.move(self.place, pointer, self.seen, {what: one.revision for what, one in self.holds.items()})


def look(store: Store, record: ReleaseRecord, channel: str, *, leaving: int | None) -> list[Site]:
    """Every place that holds something of `record`, or of the release with the number `leaving`."""
    stands = {one.number: _by_place(store, one) for one in releases(store, record.name)}
    places = {*stands.get(record.number, {}), *stands.get(leaving or 0, {})}
    return [_site(place, record, channel, stands) for place in sorted(places, key=str)]


def _site(place: Destination, record: ReleaseRecord, channel: str, stands: Mapping[int, Holdings]) -> Site:
    from tasks.publishing import destinations

    here = {number: holdings[place] for number, holdings in stands.items() if place in holdings}
    holds = here.get(record.number, {})
    forms: list[Any] = sorted({what for of in here.values() for what in of})
    try:
        seen = destinations.seen(place, record.name, channel, forms)
        for one in holds.values():
            _require_standing(record, one, place)
    except TunefleetError as error:
        return Site(place, holds, {}, {}, error)
    if place.hub is None:
        pointer = seen[""].pointer
        leads = dict.fromkeys(pointer.releases, frozenset({pointer.number})) if pointer else {}
    else:  # there each form has a channel of its own: a tag, which tells a commit, and the notes know whose it is
        leads = {
            what: frozenset(number for number, of in here.items() if what in of and of[what].revision == one.token)
            for what, one in seen.items()
            if one.token is not None
        }
    return Site(place, holds, seen, leads)


def _require_standing(record: ReleaseRecord, one: Published, place: Destination) -> None:
    there = of_published(one, place.endpoint_url)
    if published_digest(there.read(MANIFEST)) != one.digest:
        raise IntegrityError(
            f"{record.label} no longer stands at {there.uri} as {one.what}: publish it there again, or "
            f"promote another release. What is wrong says: tunefleet verify {record.label}"
        )


def _by_place(store: Store, record: ReleaseRecord) -> dict[Destination, dict[str, Published]]:
    """What of a release stands where, by the newest note of each place."""
    holds: dict[Destination, dict[str, Published]] = {}
    for one in publications(store, record):
        holds.setdefault(place_of_publication(one), {})[one.published.what] = one.published
    return holds


def said(place: Destination) -> str:
    return place.folder or place.s3 or f"hf://{place.hub}"
