"""What nothing refers to goes; what a release, a run or somebody living needs stays, and so does all it came from."""

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.errors import IntegrityError, RequestError
from infra.storage import Claim, Store
from tasks.caching import Work
from tasks.recipe.schema import Destination
from tasks.registry.channels import move, promote
from tasks.registry.collect import Garbage, delete, find_garbage
from tasks.registry.inventory import KINDS, Inventory
from tasks.registry.records import find
from tasks.registry.verify import verify
from tests.publishing.s3_server import BUCKET, S3Server
from tests.registry.fleet import make, make_member, publish, record_of, write_summary

LATER = "20261122-110000-bbbb"
DAY = 24 * 3600.0


def age(store: Store, days: float = 2, kinds: Iterable[str] = ("",)) -> None:
    """Let everything in a local store be as old as that."""
    then = time.time() - days * DAY
    for kind in kinds:
        for path in (Path(store.root) / kind).rglob("*"):
            os.utime(path, (then, then))


def kinds(garbage: Iterable[Garbage]) -> list[str]:
    return sorted(one.kind for one in garbage)


def places(garbage: Iterable[Garbage]) -> set[str]:
    return {one.path for one in garbage}


def test_a_finished_run_keeps_what_it_made_and_came_from(store: Store) -> None:
    write_summary(store, LATER, make_member(store, "mirror"))
    age(store)
    # The merged model stands in no summary: it was made for nobody.
    assert kinds(find_garbage(store)) == ["merged"]


def test_what_a_failed_run_made_goes(store: Store) -> None:
    kept = make_member(store, "mirror")
    write_summary(store, LATER, kept)
    make_member(store, "lost", run="20261122-090000-dead")
    age(store)
    garbage = find_garbage(store)
    assert kinds(garbage) == sorted(
        ["adapters", "comparisons", "datasets", "merged", "merged", "scores", "scores", "verdicts"]
    )
    why = {one.why for one in garbage if one.path.startswith("adapters/")}
    assert why == {"nothing refers to it; made by run 20261122-090000-dead"}
    assert all(one.bytes >= (Path(store.root) / one.path / "manifest.json").stat().st_size for one in garbage)
    assert all(delete(store, one) for one in garbage)
    assert find_garbage(store, older_than_days=0) == []
    assert Inventory(store).places == sorted(
        f"{one.ref.kind}/{one.ref.name}-{one.ref.digest[:12]}" for role, one in kept.items() if role != "merged"
    )
    for one in kept.values():
        if one.ref.kind != "merged":
            store.verify(one.ref)


def test_a_release_alone_keeps_its_whole_lineage(store: Store, tmp_path: Path) -> None:
    """No run left a summary; the registry is enough, for what was published, too."""
    released, other = make_member(store, "mirror"), make_member(store, "other")
    record = record_of(store, released)
    publish(store, record, released, Destination(folder=str(tmp_path / "out")), ("adapter", "merged"))
    move(store, record, "stable", expected=None)
    age(store)
    for one in find_garbage(store):
        assert delete(store, one)
    assert all(not one.problems for one in verify("mirror@v1", store))
    store.verify(released["merged"].ref)
    assert not Path(other["adapter"].ref.uri).exists() and Path(released["base"].ref.uri).exists()


def test_small_things_that_cost_time_stay_as_long_as_what_they_were_made_from(store: Store) -> None:
    """The base's answers to a probe stand in no summary and in no verdict; a loser's go with the loser."""
    kept, lost = make_member(store, "mirror"), make_member(store, "lost", run="dead")
    write_summary(store, LATER, kept)
    of_base = {"base": kept["base"].ref.digest, "suites": "0" * 64}
    probe = make(store, "score", "scores", "base", {"records.parquet": "a probe"}, of_base)
    of_lost = {**of_base, "adapter": lost["adapter"].ref.digest}
    lost_probe = make(store, "score", "scores", "lost", {"records.parquet": "another"}, of_lost)
    age(store)
    assert all(delete(store, one) for one in find_garbage(store))
    assert Path(probe.ref.uri).exists() and not Path(lost_probe.ref.uri).exists()


def test_what_a_summary_names_by_digest_stays(store: Store) -> None:
    """A cure's candidates, by whatever key a summary has for them."""
    candidate = make_member(store, "candidate")
    curve = [{"kind": "scale", "digest": candidate["adapter"].ref.digest}]
    store.write_json(f"runs/{LATER}/summary.json", {"adapters": [{"cure": {"curve": curve}}]})
    age(store)
    assert kinds(find_garbage(store)) == ["merged"]


def test_only_the_newest_runs_count_if_asked(store: Store) -> None:
    old, new = make_member(store, "old"), make_member(store, "new", run=LATER)
    write_summary(store, "20261122-100000-aaaa", old)
    write_summary(store, LATER, new)
    age(store)
    assert places(find_garbage(store)) == places(find_garbage(store, keep_runs=2))
    gone = places(find_garbage(store, keep_runs=1))
    assert any(path.startswith("adapters/old") for path in gone)
    assert not any(path.startswith(("adapters/new", "bases/")) for path in gone)
    assert any(path.startswith("adapters/new") for path in places(find_garbage(store, keep_runs=0)))


def test_what_is_young_stays(store: Store) -> None:
    make_member(store, "mirror")
    assert find_garbage(store) == [] and len(find_garbage(store, older_than_days=0)) == 8
    age(store)
    make_member(store, "mirror")  # a run finds it all: it is in use, though nothing refers to it yet
    assert find_garbage(store) == []


def test_what_is_found_between_the_look_and_the_deletion_stays(store: Store) -> None:
    make_member(store, "mirror")
    age(store)
    garbage = find_garbage(store)
    assert len(garbage) == 8
    make_member(store, "mirror")
    assert [delete(store, one) for one in garbage] == [False] * 8


def test_what_a_living_run_found_long_ago_stays(store: Store) -> None:
    """It trains for days on rows that another run made, and nothing refers to them but itself."""
    found, unused = (make(store, "ingest", "datasets", name, {"a": name}, {}, run="over") for name in ("rows", "old"))
    age(store, days=4)
    make(store, "ingest", "datasets", "rows", {"a": "rows"}, {}, run="going-on")
    (entry,) = (path for path in Path(store.root).glob("index/ingest/*") if "rows" in path.read_text())
    two, three = (datetime.now(UTC) - timedelta(days=days) for days in (2, 3))
    os.utime(entry, (two.timestamp(), two.timestamp()))
    with store.held("train", "0" * 64, run_id=f"{three:%Y%m%d-%H%M%S}-abcd") as held:
        assert held and [one.path.split("-")[0] for one in find_garbage(store)] == ["datasets/old"]
    assert places(find_garbage(store)) == {store.relative(one.ref.uri) for one in (found, unused)}


def test_what_stages_do_not_make_is_not_collected(store: Store) -> None:
    """The store's root is the folder to publish to, too, and somebody's own files lie beside."""
    root = Path(store.root)
    for name in ("mirror", "models", "work", "index"):  # an adapter may be called like a kind
        member = make_member(store, name)
        publish(store, record_of(store, member), member, Destination(folder=store.root))
        promote(store, find(store, name), "stable")
    for path in ("backup/of-0123456789ab/file", "notes-0123456789ab/file"):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text("of somebody")
    age(store)
    before = {path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] != "merged"}
    assert kinds(find_garbage(store)) == ["merged"] * 4
    assert all(delete(store, one) for one in find_garbage(store))
    assert {
        path for path in before if not path.exists() and path.relative_to(root).parts[:2] != ("index", "merge")
    } == set()


def test_every_kind_that_a_stage_makes_is_known() -> None:
    """Of what is not known nothing is ever collected."""
    project = Path(__file__).parents[2]
    made: set[str] = set()
    for file in (project / "tasks").rglob("*.py"):
        tree = ast.parse(file.read_text())
        calls = [one for one in ast.walk(tree) if isinstance(one, ast.Call) and getattr(one.func, "id", "") == "Work"]
        for call in calls:
            kind = call.args[2]
            if isinstance(kind, ast.Name):  # the constants that this variable may have
                given = [
                    one.value
                    for one in ast.walk(tree)
                    if isinstance(one, ast.Assign) and any(getattr(to, "id", "") == kind.id for to in one.targets)
                ]
                assert given, file
                choices = [[one.body, one.orelse] if isinstance(one, ast.IfExp) else [one] for one in given]
                made |= {ast.literal_eval(one) for choice in choices for one in choice}
            else:
                made.add(ast.literal_eval(kind))
    assert made == KINDS


def working_run(root: str, ready: threading.Event, end: threading.Event) -> None:
    """A run that has made an adapter, and works on the next stage."""
    store = Store(root)
    adapter = make(store, "train", "adapters", "going", {"a": "b"}, {}, run="going-on")
    work = Work("score", 1, "scores", "going", {}, {"adapter": adapter.ref.digest})

    def score(claim: Claim):
        ready.set()
        end.wait(60)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.once("score", work.key, score, run_id="going-on")


def test_a_run_that_goes_on_keeps_what_it_made(store: Store) -> None:
    """Even if everything is to go at once: its claim is alive."""
    make(store, "train", "adapters", "dead", {"a": "dead"}, {}, run="dead")
    unfinished = Path(store.root) / "adapters" / ("half-" + "0" * 12)
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").write_text("on its way in")
    for path in ("going-on/train-x", "cells/abc"):
        (Path(store.root) / "work" / path).mkdir(parents=True)
        (Path(store.root) / "work" / path / "file").write_text("x")
    ready, end = threading.Event(), threading.Event()
    run = threading.Thread(target=working_run, args=(store.root, ready, end))
    run.start()
    try:
        assert ready.wait(30)
        age(store, kinds=("adapters", "work"))
        found = find_garbage(store, older_than_days=0)
        assert [one.path.split("-")[0] for one in found] == ["adapters/dead"]
    finally:
        end.set()
        run.join()
    assert len(find_garbage(store, older_than_days=0)) == 5  # both adapters, the unfinished one, both folders of work


def test_a_claim_on_the_very_key_protects_it(store: Store) -> None:
    make(store, "train", "adapters", "mirror", {"a": "b"}, {}, run="made-it")
    age(store)
    (one,) = find_garbage(store)
    (key,) = store.list_names("index/train")
    claim = store.claims.take("train", key.removesuffix(".json"), "another")
    assert claim and find_garbage(store) == [] and delete(store, one) is False
    store.claims.hold(claim, until=0)
    assert delete(store, one) is True


def test_several_keys_of_one_artifact_all_lead_to_nothing_afterwards(store: Store) -> None:
    """Equal bytes are kept once: the first key's manifest, and an index entry for each key."""
    first = make(store, "train", "adapters", "mirror", {"a": "b"}, {}, spec={"seed": 1})
    second = make(store, "train", "adapters", "mirror", {"a": "b"}, {}, spec={"seed": 2})
    assert first.ref == second.ref and store.manifest(first.ref)["spec"] == {"seed": 1}
    age(store)
    (one,) = find_garbage(store)
    assert len(one.entries) == 2 and delete(store, one)
    assert not Path(first.ref.uri).exists() and store.list_names("index/train") == []
    again = make(store, "train", "adapters", "mirror", {"a": "b"}, {}, spec={"seed": 2})
    assert not again.cached


def test_a_key_that_leads_to_something_newer_goes_on_doing_so(store: Store) -> None:
    """An artifact was damaged, and made again with other bytes: the old one goes, and its key is the new one's."""
    first = make(store, "train", "adapters", "mirror", {"a": "b"}, {})
    manifest = Path(first.ref.uri) / "manifest.json"
    aside = manifest.rename(manifest.with_name("aside"))
    second = make(store, "train", "adapters", "mirror", {"a": "c"}, {})
    aside.rename(manifest)
    store.write_json(f"runs/{LATER}/summary.json", {"adapters": [{"adapter_uri": second.ref.uri}]})
    age(store)
    (one,) = find_garbage(store)
    assert one.path.endswith(first.ref.digest[:12]) and delete(store, one)
    assert make(store, "train", "adapters", "mirror", {"a": "never made"}, {}).ref == second.ref


def test_entries_that_lead_nowhere_and_half_artifacts_go(store: Store) -> None:
    made = make(store, "train", "adapters", "mirror", {"a": "b"}, {})
    shutil.rmtree(made.ref.uri)
    half = make(store, "train", "adapters", "half", {"a": "c"}, {})
    (Path(half.ref.uri) / "manifest.json").unlink()
    age(store)
    garbage = find_garbage(store)
    assert kinds(garbage) == ["index", "unfinished"] and all(delete(store, one) for one in garbage)
    assert find_garbage(store, older_than_days=0) == [] and store.list_names("index/train") == []


def test_what_stopped_work_left_goes(store: Store) -> None:
    work = Path(store.root) / "work"
    for path in ("20261122-100000-aaaa/train-x", "cells/0123456789abcdef", "checkpoints/0123", "checkpoints/young"):
        (work / path).mkdir(parents=True)
        (work / path / "file").write_bytes(b"x" * 1000)
    (work / "cells/0123456789abcdef.facts.json").write_text("{}")
    age(store)
    os.utime(work / "checkpoints/young/file")
    garbage = find_garbage(store)
    assert places(garbage) == {
        *("work/20261122-100000-aaaa", "work/cells/0123456789abcdef", "work/cells/0123456789abcdef.facts.json"),
        "work/checkpoints/0123",
    }
    assert all(delete(store, one) for one in garbage)
    assert sorted(path.name for path in work.rglob("*")) == ["cells", "checkpoints", "file", "young"]


@pytest.mark.parametrize("path", [f"runs/{LATER}/summary.json", "releases/mirror/1/release.json"])
def test_nothing_goes_while_something_that_refers_cannot_be_read(path: str, store: Store) -> None:
    member = make_member(store, "mirror")
    record_of(store, member)
    write_summary(store, LATER, member)
    (Path(store.root) / path).write_text('{"adapters": [')
    age(store)
    with pytest.raises(IntegrityError, match="cannot be read, and what it refers to is not known"):
        find_garbage(store)


def test_nothing_goes_while_a_kept_manifest_is_altered(store: Store) -> None:
    member = make_member(store, "mirror")
    write_summary(store, LATER, member)
    manifest = Path(member["adapter"].ref.uri) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "upstream": {}}))
    age(store)
    with pytest.raises(IntegrityError, match="the manifest was altered"):
        find_garbage(store)


@pytest.mark.parametrize(("days", "runs"), [(-1, None), (float("nan"), None), (1, -1)])
def test_wrong_numbers(days: float, runs: int | None, store: Store) -> None:
    with pytest.raises(RequestError, match="allowed are 0 and more"):
        find_garbage(store, older_than_days=days, keep_runs=runs)


READER = """
import sys, time
from infra.errors import IntegrityError
from infra.storage import Store
from tests.registry.fleet import make
store = Store(sys.argv[1])
for _ in range(40):
    try:
        made = make(store, "train", "adapters", "mirror", {"a": "b", "c/d": "e"}, {}, run="reader")
    except IntegrityError as error:  # found, and gone before it was read
        assert "no manifest" in str(error), error
    time.sleep(0.02)
"""


@pytest.mark.slow
def test_a_reader_finds_an_artifact_or_none(store: Store) -> None:
    """While one process collects all it can again and again, another's lookups are whole or miss."""
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, store.root],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    deleted = 0
    while reader.poll() is None:
        deleted += sum(delete(store, one) for one in find_garbage(store, older_than_days=0) if one.kind != "work")
    _, error = reader.communicate()
    assert reader.returncode == 0, error
    assert deleted > 3


def test_on_s3(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / "cache"))
    store = Store(f"s3://{BUCKET}/collected")
    kept, lost = make_member(store, "mirror"), make_member(store, "lost", run="dead")
    write_summary(store, LATER, kept)
    assert find_garbage(store) == []
    time.sleep(1.1)  # a server's times are whole seconds
    (unused,) = (one for one in find_garbage(store, older_than_days=0) if one.path.startswith("merged/mirror"))
    time.sleep(1.1)
    make_member(store, "mirror")  # a run finds it meanwhile
    assert delete(store, unused) is False
    time.sleep(1.1)
    garbage = find_garbage(store, older_than_days=0)
    assert len(garbage) == 8 and all(one.bytes > 0 for one in garbage)
    assert all(delete(store, one) for one in garbage)
    assert s3.objects("collected/adapters/lost") == {} and Inventory(store).find(lost["adapter"].ref.digest) is None
    for role, one in kept.items():
        if role != "merged":
            store.verify(one.ref)
    assert find_garbage(store, older_than_days=0) == []


def test_checkpoints_in_a_remote_store_go_when_they_are_old(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    store, keys = Store(f"s3://{BUCKET}/stopped"), ("0" * 64, "1" * 64)
    for key in keys:
        store.fs.pipe_file(f"{store.root}/work/checkpoints/{key}/cpu-batch-4/checkpoint-8/optimizer.pt", b"x" * 1000)
    assert find_garbage(store) == []
    time.sleep(1.1)  # a server's times are whole seconds
    with store.held("train", keys[0], run_id="going-on"):
        (one,) = find_garbage(store, older_than_days=0)
        assert (one.path, one.kind, one.bytes) == (f"work/checkpoints/{keys[1]}", "work", 1000)
    with store.held("train", keys[1], run_id="taken-up-again"):
        assert delete(store, one) is False
    assert delete(store, one) is True
    assert len(s3.keys("stopped/work")) == 1
    assert [one.path for one in find_garbage(store, older_than_days=0)] == [f"work/checkpoints/{keys[0]}"]
