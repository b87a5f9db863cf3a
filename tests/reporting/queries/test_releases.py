"""Releases of the registry: what their runs measured, and how they are read."""

from pathlib import Path

import pytest

from infra.storage import Store
from tasks.publishing.release import Published
from tasks.recipe.schema import Destination
from tasks.registry.channels import move
from tasks.registry.records import Publication, add_publication, current, publications, releases
from tasks.reporting.queries import open_results
from tasks.reporting.queries_releases import standing_releases
from tasks.reporting.results import results_path
from tests.reporting.finished_store import FIRST, SECOND, member, release, target
from tests.reporting.queries.asking import Summaries, ask, details_of


def test_history_is_each_release_with_what_its_run_measured(store: Store, summaries: Summaries) -> None:
    (one,) = ask(store, lambda of: of.history())["tuned"]
    assert (one["release"], one["number"], one["run_id"], one["channels"]) == ("tuned@v1", 1, FIRST, ["stable"])
    assert one["created"] == "2026-11-22T10:00:00Z"
    assert {task["task"]: task["gain"] for task in one["tasks"]} == {
        task["task"]: -task["delta"] if task["task"] == "prose" else task["delta"]
        for task in summaries[FIRST]["adapters"][0]["tasks"]
    }
    Path(store.root, results_path(FIRST)).unlink()
    (one,) = ask(store, lambda of: of.history())["tuned"]
    assert one["tasks"] == [] and one["verdict"] == "PASS"


def test_a_damaged_release_is_told_and_the_rest_is_answered(store: Store, summaries: Summaries) -> None:
    store.write_json("releases/broken/1/release.json", {"name": "broken"})
    with open_results(store) as results:
        assert list(results.history()) == ["tuned"] and len(results.fleet()) == 4
        assert [warning.partition(":")[0] for warning in results.warnings] == ["releases of broken are left out"]


@pytest.mark.parametrize("where", ["store", "bucket"])
def test_releases_are_read_together_as_the_registry_reads_them_one_by_one(
    where: str, request: pytest.FixtureRequest
) -> None:
    store = request.getfixturevalue(where)
    for name in ("tuned", "other"):
        record = release(store, FIRST, member(store, FIRST, name, target(name, 60)))
        move(store, record, "stable", expected=None)
        release(store, SECOND, member(store, SECOND, name, target(name, 70)))
        published = Published(to="s3", what="adapter", uri=f"s3://elsewhere/{name}", revision=None, digest="d" * 64)
        add_publication(store, record, Publication(place=Destination(s3="s3://elsewhere"), published=published))
    store.write("releases/half/1/release.json", b'{"name": ')
    warnings: list[str] = []
    found = standing_releases(store, warnings)
    assert list(found) == ["half", "other", "tuned"] and warnings == []
    for name, some in found.items():
        wanted = releases(store, name)
        assert [(one.number, one.run_id, one.verdict) for one in some] == [
            (one.number, one.run_id, one.verdict_says) for one in wanted
        ]
        sent = [tuple(each.published.uri for each in publications(store, one)) for one in wanted]
        assert [one.published for one in some] == sent
        stands = [one.number for one in some if "stable" in one.channels]
        assert stands == ([current(store, name, "stable")] if wanted else [])


@pytest.mark.parametrize(
    "uri, card", [("s3://bucket/tuned/", "s3://bucket/tuned/README.md"), ("https://h.co/a", "https://h.co/a")]
)
def test_the_card_of_what_was_published_later_is_linked(
    store: Store, summaries: Summaries, uri: str, card: str
) -> None:
    (record,) = releases(store, "tuned")
    published = Published(to="s3", what="adapter", uri=uri, revision=None, digest="d" * 64)
    add_publication(store, record, Publication(place=Destination(s3="s3://bucket"), published=published))
    cards = {row["run_id"]: row["card_uri"] for row in ask(store, lambda of: of.fleet()) if row["name"] == "tuned"}
    assert cards == {FIRST: card, SECOND: None}
    assert details_of(store, "tuned", FIRST)["uris"]["card"] == card
    assert details_of(store, "tuned", SECOND)["uris"]["card"] is None
