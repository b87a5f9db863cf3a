"""Releases are counted by name; the same adapter for the same reason is the same release."""

from pathlib import Path

import pytest

from infra.errors import IntegrityError, RequestError
from infra.storage import Store
from tasks.publishing.release import Published
from tasks.recipe.schema import Destination
from tasks.registry.channels import move
from tasks.registry.inventory import rebased
from tasks.registry.records import (
    Publication,
    add_publication,
    current,
    find,
    place_of_publication,
    publications,
    releases,
)
from tests.registry.fleet import make_member, publish, record_of


def test_numbers_say_what_changed(store: Store) -> None:
    first, second = make_member(store, "mirror"), make_member(store, "mirror", seed=1)
    labels = [record_of(store, one).label for one in (first, first, second, first)]
    assert labels == ["mirror@v1", "mirror@v1", "mirror@v2", "mirror@v1"]
    forced = record_of(store, first, override="the customer waits")
    assert forced.label == "mirror@v3" and record_of(store, first, override="the customer waits") == forced
    assert record_of(store, make_member(store, "other")).label == "other@v1"
    assert [one.label for one in releases(store)] == ["mirror@v1", "mirror@v2", "mirror@v3", "other@v1"]


def test_a_release_is_found_by_number_channel_or_name(store: Store) -> None:
    first, second = (record_of(store, make_member(store, "mirror", seed=seed)) for seed in (0, 1))
    move(store, first, "stable", expected=None)
    assert find(store, "mirror@v1") == find(store, "mirror@stable") == first
    assert find(store, "mirror") == find(store, "mirror@v2") == second
    for label, said in (
        ("mirror@v3", "mirror has v1, v2, and the channels stable"),
        ("mirror@beta", "mirror has v1, v2, and the channels stable"),
        ("mirrer", "no release of 'mirrer' in .*; released are: mirror"),
        ("../mirror", "names no release. Allowed: NAME"),
    ):
        with pytest.raises(RequestError, match=said):
            find(store, label)


def test_the_newest_note_of_a_place_comes_last(store: Store, tmp_path: Path) -> None:
    member = make_member(store, "mirror")
    record = record_of(store, member)
    a, b = (Destination(folder=str(tmp_path / name)) for name in "ab")
    for place in (a, b, a):
        publish(store, record, member, place)
    assert [one.place for one in publications(store, record)] == [b, a]


def test_places_of_two_servers_and_of_two_wordings(store: Store) -> None:
    """One bucket's name on two servers is two places; a slash more, or another access, is none."""
    member = make_member(store, "mirror")
    record = record_of(store, member)
    servers = ("http://127.0.0.1:9000", "http://127.0.0.1:9000/", None, "http://127.0.0.1:9001")
    for server, prefix in zip(servers, ("p", "/p/", "p/", "p"), strict=True):
        place = Destination(s3=f"s3://fleet/{prefix}", endpoint_url=server)
        there = Published(to="s3", uri="s3://fleet/p/mirror/adapter-1/", what="adapter", digest=record.adapter.digest)
        add_publication(store, record, Publication(place=place, published=there))
    for private in (True, False):
        there = Published(to="hub", uri="https://hub/acme/fleet-mirror", what="adapter", digest=record.adapter.digest)
        note = Publication(place=Destination(hub="acme/fleet", private=private), published=there)
        add_publication(store, record, note)
    noted = publications(store, record)
    assert {place_of_publication(one) for one in noted} == {
        *(Destination(s3="s3://fleet/p", endpoint_url=server) for server in (servers[0], None, servers[3])),
        Destination(hub="acme/fleet"),
    }
    assert len(noted) == 4


def test_a_damaged_newest_record_is_told_and_never_numbered_anew(store: Store) -> None:
    first, second = make_member(store, "mirror"), make_member(store, "mirror", seed=1)
    record_of(store, first)
    damaged = Path(store.root) / "releases/mirror/1/release.json"
    damaged.write_text('{"name": ')
    with pytest.raises(IntegrityError, match=r"mirror/1/release\.json is damaged.*Put it back"):
        record_of(store, second)
    assert damaged.read_text() == '{"name": '


def test_a_store_that_was_moved_knows_its_releases(store: Store, tmp_path: Path) -> None:
    member = make_member(store, "mirror")
    record = record_of(store, member)
    Path(store.root).rename(tmp_path / "moved")
    (tmp_path / "linked").symlink_to(tmp_path / "moved")
    for name in ("moved", "linked"):
        opened = Store(str(tmp_path / name))
        for found in (find(opened, "mirror@v1"), record_of(opened, member)):
            for ref in (found.adapter, found.base, found.data, found.verdict):
                assert opened.fetch(ref).is_dir()
            assert found.adapter.digest == record.adapter.digest
        assert opened.fetch(rebased(opened, member["merged"].ref)).is_dir()


def test_a_damaged_move_is_never_read_as_an_older_one(store: Store) -> None:
    record = record_of(store, make_member(store, "mirror"))
    move(store, record, "stable", expected=None)
    (Path(store.root) / "channels/mirror/stable/1.json").write_text('{"number": ')
    with pytest.raises(IntegrityError, match=r"1\.json is damaged; delete it"):
        current(store, "mirror", "stable")
