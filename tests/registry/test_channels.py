"""Channels move one step at a time, everywhere or with a word on where not, and go back the way they came."""

import json
import multiprocessing
import shutil
from collections.abc import Mapping
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from infra.errors import IntegrityError, RequestError, TransientError
from infra.storage import Store
from tasks.artifacts import StageResult
from tasks.publishing.pointer import LostRaceError
from tasks.recipe.schema import Destination
from tasks.registry import channels
from tasks.registry.channels import history, move, promote, rollback
from tasks.registry.records import ReleaseRecord, current, find
from tasks.registry.sites import Site
from tests.publishing.hub_server import HubServer
from tests.publishing.s3_server import BUCKET, S3Server
from tests.registry.fleet import make_member, publish, record_of

ROUNDS = 5
Release = tuple[ReleaseRecord, Mapping[str, StageResult]]


def released(store: Store, count: int) -> list[Release]:
    members = [make_member(store, "mirror", seed=seed) for seed in range(count)]
    return [(record_of(store, member), member) for member in members]


def pointer(folder: Path, channel: str = "stable") -> dict:
    return json.loads((folder / "mirror" / "channels" / f"{channel}.json").read_text())


def test_each_move_is_a_further_file(store: Store) -> None:
    (first, _), (second, _) = released(store, 2)
    made = [
        move(store, first, "stable", expected=None),
        move(store, second, "stable", expected=1, reason="better"),
        move(store, second, "stable", expected=1),  # stands there already, whatever was expected
    ]
    assert history(store, "mirror", "stable") == made[:2] and made[2] == made[1]
    assert [(one.sequence, one.number, one.reason) for one in made[:2]] == [(1, 1, None), (2, 2, "better")]
    assert "@" in made[0].by and history(store, "mirror", "beta") == []


def test_who_looked_too_early_is_told(store: Store) -> None:
    (first, _), (second, _), (third, _) = released(store, 3)
    move(store, first, "stable", expected=None)
    move(store, second, "stable", expected=1)
    for expected in (None, 1, 7):
        with pytest.raises(LostRaceError, match="tunefleet promote mirror@v3 --to stable"):
            move(store, third, "stable", expected=expected)
    assert current(store, "mirror", "stable") == 2


def race(root: str, label: str, expected: list[int | None], start: Barrier, won: "multiprocessing.Queue") -> None:
    store = Store(root)
    record = find(store, label)
    for number, standing in enumerate(expected):
        start.wait()
        try:
            move(store, record, f"channel-{number}", expected=standing)
            won.put(number)
        except LostRaceError:
            pass
        start.wait()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["folder", "s3"])
def test_of_two_processes_one_moves_the_channel(
    where: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "store")
    if where == "s3":
        server: S3Server = request.getfixturevalue("s3")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)
        root = f"s3://{BUCKET}/raced"
        monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / "cache"))
    store = Store(root)
    (zero, _), (first, _), (second, _) = released(store, 3)
    for number in range(ROUNDS):
        move(store, zero, f"channel-{number}", expected=None)
    context = multiprocessing.get_context("spawn")
    start, won = context.Barrier(2), context.Queue()
    racers = [context.Process(target=race, args=(root, one.label, [1] * ROUNDS, start, won)) for one in (first, second)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert sorted(won.get(timeout=5) for _ in range(ROUNDS)) == list(range(ROUNDS)) and won.empty()
    for number in range(ROUNDS):
        assert [one.sequence for one in history(store, "mirror", f"channel-{number}")] == [1, 2]


def test_a_promotion_moves_every_place_and_then_the_store(store: Store, tmp_path: Path) -> None:
    places = [Destination(folder=str(tmp_path / name)) for name in "ab"]
    fleet = released(store, 2)
    for record, member in fleet:
        for place in places:
            publish(store, record, member, place, ("adapter", "merged"))
    for record, member in fleet:
        done = promote(store, record, "stable", reason="tried by hand")
        assert done.moved == [str(tmp_path / name) for name in "ab"] and done.left == []
        assert (done.before, done.move.number, done.move.reason) == (
            record.number - 1 or None,
            record.number,
            "tried by hand",
        )
        for name in "ab":
            found = pointer(tmp_path / name)
            assert found["number"] == record.number and found["adapter"] == member["adapter"].ref.digest
            assert set(found["releases"]) == {"adapter", "merged"}
            for slug in found["releases"].values():
                assert (tmp_path / name / "mirror" / slug / "tunefleet.json").is_file()
    again = promote(store, fleet[1][0], "stable")
    assert again.move.sequence == 2 and len(history(store, "mirror", "stable")) == 2


def test_places_that_lack_what_their_channel_leads_to_are_left_and_named(store: Store, tmp_path: Path) -> None:
    full, more, part, old = (tmp_path / name for name in ("full", "more", "part", "old"))
    (first, member), (second, newer) = released(store, 2)
    for place in (full, more, old):
        publish(store, first, member, Destination(folder=str(place)))
    publish(store, first, member, Destination(folder=str(part)), ("adapter", "merged"))
    promote(store, first, "stable")
    for place in (full, part):
        publish(store, second, newer, Destination(folder=str(place)))
    publish(store, second, newer, Destination(folder=str(more)), ("adapter", "merged"))
    done = promote(store, second, "stable")
    assert done.moved == [str(full), str(more)]
    assert [pointer(place)["number"] for place in (full, more, part, old)] == [2, 2, 1, 1]
    assert done.left == [
        f"{old} holds nothing of mirror@v2: publish it there; stable leads to adapter of v1 there",
        f"{part} holds only adapter of mirror@v2: publish merged, too; stable leads to adapter, merged of v1 there",
    ]
    assert done.behind == [str(old), str(part)]


def test_forms_that_are_spread_over_places_move_in_each(store: Store, tmp_path: Path) -> None:
    """The adapter goes to a folder, the merged model to another: neither ever holds both."""
    fleet = released(store, 2)
    for record, member in fleet:
        publish(store, record, member, Destination(folder=str(tmp_path / "a")))
        publish(store, record, member, Destination(folder=str(tmp_path / "b")), ("merged",))
    for record, _ in fleet:
        done = promote(store, record, "stable")
        assert (done.moved, done.left) == ([str(tmp_path / name) for name in "ab"], [])
    done = rollback(store, "mirror", "stable")
    assert (done.moved, done.behind) == ([str(tmp_path / name) for name in "ab"], [])
    assert [pointer(tmp_path / name)["number"] for name in "ab"] == [1, 1]


def test_the_tags_of_the_hub_tell_whose_they_are(
    store: Store, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)  # both are read at import
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    place = Destination(hub="acme/fleet", private=False)
    fleet = released(store, 2)
    commits: dict[int, str | None] = {}
    for (record, member), what in zip(fleet, (("adapter",), ("adapter", "merged")), strict=True):
        commits[record.number] = publish(store, record, member, place, what)[0].revision
    adapters = hub.repos["acme/fleet-mirror"].tags
    for record, _ in fleet:
        assert promote(store, record, "stable").moved == ["hf://acme/fleet"]
        assert adapters["stable"] == commits[record.number]
    back = rollback(store, "mirror", "stable")  # v1 has no merged model, and readers of v2's would be left with it
    assert back.behind == ["hf://acme/fleet"] and adapters["stable"] == commits[2]
    assert "stable leads to adapter, merged of v2 there" in back.left[0]


def test_one_place_in_two_wordings_is_moved_once(store: Store, tmp_path: Path, s3: S3Server) -> None:
    record, member = released(store, 1)[0]
    for wording, server in (("spelled", s3.endpoint_url), ("spelled/", s3.endpoint_url + "/")):
        place = Destination(s3=f"s3://{BUCKET}/{wording}", endpoint_url=server)
        publish(store, record, member, place, ("adapter",) if wording == "spelled" else ("merged",))
    assert promote(store, record, "stable").moved == [f"s3://{BUCKET}/spelled"]
    objects = s3.objects("spelled/mirror/channels/")
    assert set(json.loads(objects["spelled/mirror/channels/stable.json"])["releases"]) == {"adapter", "merged"}


def test_who_is_overtaken_at_one_place_moves_no_further_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between one person's look and the first move, another promotion goes through all places."""
    (first, member), (second, newer), (third, newest) = released(store, 3)
    # In another order for each release: people must meet at the same place first.
    for (record, made), names in (((first, member), "ab"), ((second, newer), "ab"), ((third, newest), "ba")):
        for name in names:
            publish(store, record, made, Destination(folder=str(tmp_path / name)))
    promote(store, first, "stable")
    overtaken = channels.look

    def look_and_dream(*given: Any, **named: Any) -> Any:
        sites = overtaken(*given, **named)
        monkeypatch.setattr(channels, "look", overtaken)
        publishers = Site.move
        moved: list[str] = []

        def only_the_first(site: Site, *words: Any) -> None:
            if not moved:
                moved.append(site.uri)
                publishers(site, *words)
            else:
                raise TransientError("the other one stops for a while")

        monkeypatch.setattr(Site, "move", only_the_first)
        with pytest.raises(TransientError):
            promote(store, third, "stable")
        monkeypatch.setattr(Site, "move", publishers)
        return sites

    monkeypatch.setattr(channels, "look", look_and_dream)
    with pytest.raises(LostRaceError, match="stable was moved nowhere"):
        promote(store, second, "stable")
    assert [pointer(tmp_path / name)["number"] for name in "ab"] == [3, 1] and current(store, "mirror", "stable") == 1


def test_a_place_that_fails_keeps_the_store_back_until_it_is_mended(store: Store, tmp_path: Path) -> None:
    (first, member), (second, newer) = released(store, 2)
    places = [Destination(folder=str(tmp_path / name)) for name in "abc"]
    for record, made in ((first, member), (second, newer)):
        for place in places:
            publish(store, record, made, place)
    promote(store, first, "stable")
    (gone,) = (path for path in (tmp_path / "b/mirror").glob("adapter-*") if second.adapter.digest[:12] in path.name)
    shutil.move(gone, tmp_path / "aside")
    with pytest.raises(IntegrityError) as error:
        promote(store, second, "stable")
    said = str(error.value)
    assert f"mirror@v2 no longer stands at {gone}" in said
    assert f"stable leads to mirror@v2 in {tmp_path / 'a'}, {tmp_path / 'c'}" in said
    assert [pointer(tmp_path / name)["number"] for name in "abc"] == [2, 1, 2]
    assert current(store, "mirror", "stable") == 1
    shutil.move(tmp_path / "aside", gone)
    assert promote(store, second, "stable").before == 1
    assert [pointer(tmp_path / name)["number"] for name in "abc"] == [2, 2, 2]
    assert current(store, "mirror", "stable") == 2


def test_a_release_that_was_swapped_is_not_pointed_at(store: Store, tmp_path: Path) -> None:
    record, member = released(store, 1)[0]
    (published,) = publish(store, record, member, Destination(folder=str(tmp_path / "a")))
    manifest = Path(published.uri) / "tunefleet.json"
    manifest.write_text(manifest.read_text().replace(record.adapter.digest, "0" * 64))
    with pytest.raises(IntegrityError, match="no longer stands"):
        promote(store, record, "stable")
    assert current(store, "mirror", "stable") is None


def test_a_release_that_left_for_nowhere_moves_only_the_store(store: Store) -> None:
    record, _ = released(store, 1)[0]
    done = promote(store, record, "stable")
    assert (done.moved, done.left) == ([], []) and current(store, "mirror", "stable") == 1


def test_s3_is_moved_too(store: Store, tmp_path: Path, s3: S3Server) -> None:
    place = Destination(s3=f"s3://{BUCKET}/promoted", endpoint_url=s3.endpoint_url)
    fleet = released(store, 2)
    for record, member in fleet:
        publish(store, record, member, place)
    for record, _ in fleet:
        assert promote(store, record, "stable").moved == [f"s3://{BUCKET}/promoted"]
        objects = s3.objects("promoted/mirror/channels/")
        assert json.loads(objects["promoted/mirror/channels/stable.json"])["number"] == record.number
    rollback(store, "mirror", "stable")
    assert json.loads(s3.objects("promoted/")["promoted/mirror/channels/stable.json"])["number"] == 1


@pytest.mark.parametrize(
    ("moves", "back"),
    [
        ([1, 2], [1, None]),
        ([1, 2, 3], [2, 1, None]),
        ([1, 3, 2], [3, 1, None]),
        ([1, 2, 1], [None]),  # gone back by hand: what was left behind does not return
        ([1, 2, 1, 3], [1, None]),
        ([1], [None]),
        ([], [None]),
    ],
)
def test_rolling_back_goes_the_way_it_came(store: Store, moves: list[int], back: list[int | None]) -> None:
    fleet = {record.number: record for record, _ in released(store, 3)}
    for number in moves:
        promote(store, fleet[number], "stable")
    standing = moves[-1] if moves else None
    for number in back:
        if number is None:
            with pytest.raises(RequestError, match="there is nothing to roll back to"):
                rollback(store, "mirror", "stable")
        else:
            done = rollback(store, "mirror", "stable")
            assert (done.before, done.move.number) == (standing, number) and current(
                store, "mirror", "stable"
            ) == number
            assert done.move.reason == f"rolled back from v{standing} to v{number}"
            standing = number


def test_a_rollback_moves_the_places_and_says_where_it_cannot(store: Store, tmp_path: Path) -> None:
    (first, member), (second, newer) = released(store, 2)
    publish(store, first, member, Destination(folder=str(tmp_path / "both")))
    promote(store, first, "stable")
    for name in ("both", "new"):
        publish(store, second, newer, Destination(folder=str(tmp_path / name)))
    promote(store, second, "stable")
    done = rollback(store, "mirror", "stable")
    assert [pointer(tmp_path / name)["number"] for name in ("both", "new")] == [1, 2]
    assert done.moved == [str(tmp_path / "both")] and done.behind == [str(tmp_path / "new")]
    assert done.left == [
        f"{tmp_path / 'new'} holds nothing of mirror@v1: publish it there; stable leads to adapter of v2 there"
    ]


def test_no_rollback_while_a_place_stands_elsewhere(store: Store, tmp_path: Path) -> None:
    """A publication moved one place to v3 and broke off: v2 is what stood before there, v1 in the store."""
    places = [Destination(folder=str(tmp_path / name)) for name in "ab"]
    fleet = released(store, 3)
    for record, member in fleet:
        for place in places:
            publish(store, record, member, place)
    for record, _ in fleet[:2]:
        promote(store, record, "stable")
    (tmp_path / "b/mirror").rename(tmp_path / "aside")
    with pytest.raises(IntegrityError):
        promote(store, fleet[2][0], "stable")
    (tmp_path / "aside").rename(tmp_path / "b/mirror")
    assert [pointer(tmp_path / name)["number"] for name in "ab"] == [3, 2]
    with pytest.raises(RequestError) as error:
        rollback(store, "mirror", "stable")
    said = f"stable of mirror stands at v2 in the store, but in {tmp_path / 'a'} at v3"
    assert said in str(error.value) and "tunefleet promote mirror@v2 --to stable" in str(error.value)
    assert [pointer(tmp_path / name)["number"] for name in "ab"] == [3, 2] and current(store, "mirror", "stable") == 2
    promote(store, fleet[1][0], "stable")
    rollback(store, "mirror", "stable")
    assert [pointer(tmp_path / name)["number"] for name in "ab"] == [1, 1]


@pytest.mark.parametrize("channel", ["", "v3", "a/b", "..", "Stable", "main", "x" * 65])
def test_names_that_are_no_channels(store: Store, channel: str) -> None:
    record, _ = released(store, 1)[0]
    with pytest.raises(RequestError, match="cannot be a channel"):
        promote(store, record, channel)
