"""The verbs of the registry as a user meets them: what they print where, and the code they exit with."""

import json
import os
import time
from pathlib import Path

import pytest

from infra.storage import Store
from tasks.recipe.schema import Destination
from tasks.registry.records import find
from tests.flows.test_cli import tunefleet
from tests.registry.fleet import make_member, publish, record_of, write_summary


@pytest.fixture
def store(nobodys_accounts: None, tmp_path: Path) -> Store:
    """Two releases of mirror, published to a folder; the second without a PASS."""
    opened = Store(str(tmp_path / "store"))
    for number, override in ((1, None), (2, "the [b]customer[/b] waits")):
        member = make_member(opened, "mirror", seed=number)
        publish(opened, record_of(opened, member, override=override), member, Destination(folder=str(tmp_path / "out")))
        write_summary(opened, f"20261122-1{number}0000-aaaa", member)
    return opened


def test_list(store: Store, tmp_path: Path) -> None:
    done = tunefleet("list", "--store", store.root, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (line for line in done.stdout.splitlines() if line.strip().startswith("mirror "))
    assert "v1" in first and "PASS" in first and "acme/tiny" in first and "+50.0 (+25.0 to +75.0)" in first
    assert "FAIL override" in second and "folder: adapter" in second and "2026-11-22 10:00" in second
    assert "ada@desk let it through at 2026-11-22T10:00:00+00:00: the [b]customer[/b] waits" in done.stdout
    rows = json.loads(tunefleet("list", "mirror", "--json", "--store", store.root, cwd=tmp_path).stdout)
    assert [(one["release"], one["gain"]["delta"], one["channels"]) for one in rows] == [
        ("mirror@v1", 0.5, []),
        ("mirror@v2", 0.5, []),
    ]


def test_promote_and_roll_back(store: Store, tmp_path: Path) -> None:
    pointer = tmp_path / "out/mirror/channels/stable.json"
    for version in (1, 2):
        done = tunefleet("promote", f"mirror@v{version}", "--to", "stable", "--store", store.root, cwd=tmp_path)
        assert done.returncode == 0 and f"to v{version}" in done.stdout and str(tmp_path / "out") in done.stdout
        assert json.loads(pointer.read_text())["number"] == version
    page = Path(store.root) / "dashboard" / "index.html"
    assert done.stdout.endswith(f"dashboard: {page}\n") and page.exists()
    again = tunefleet("promote", "mirror@v2", "--store", store.root, cwd=tmp_path)
    assert again.returncode == 0 and "stable of mirror stands at v2 already" in again.stdout
    back = tunefleet("rollback", "mirror", "--json", "--store", store.root, cwd=tmp_path)
    assert back.returncode == 0 and json.loads(pointer.read_text())["number"] == 1
    answer = json.loads(back.stdout)
    assert (answer["before"], answer["number"], answer["moved"]) == (2, 1, [str(tmp_path / "out")])
    nothing = tunefleet("rollback", "mirror", "--store", store.root, cwd=tmp_path)
    assert nothing.returncode == 2 and "there is nothing to roll back to" in nothing.stderr
    listed = json.loads(tunefleet("list", "--json", "--store", store.root, cwd=tmp_path).stdout)
    assert [one["channels"] for one in listed] == [["stable"], []]


def test_a_rollback_that_left_a_place_behind_exits_with_1(store: Store, tmp_path: Path) -> None:
    member = make_member(store, "mirror", seed=2)
    publish(store, find(store, "mirror@v2"), member, Destination(folder=str(tmp_path / "new")))
    for version in (1, 2):
        done = tunefleet("promote", f"mirror@v{version}", "--store", store.root, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    back = tunefleet("rollback", "mirror", "--json", "--store", store.root, cwd=tmp_path)
    assert back.returncode == 1 and f"error: stable of mirror was not taken back in {tmp_path / 'new'}" in back.stderr
    answer = json.loads(back.stdout)
    assert (answer["moved"], answer["behind"]) == ([str(tmp_path / "out")], [str(tmp_path / "new")])


def test_show(store: Store, tmp_path: Path) -> None:
    (published,) = (path for path in (tmp_path / "out/mirror").glob("adapter-*") if '"v1"' in manifest(path))
    done = tunefleet("show", "mirror@v1", "--store", store.root, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for said in ("mirror@v1", "train.jsonl", "base acme/tiny, revision main", "mirror.held_out, target: PASS", "peft"):
        assert said in done.stdout
    found = json.loads(tunefleet("show", "mirror@v1", "--json", "--store", store.root, cwd=tmp_path).stdout)
    assert found["published"][0]["uri"] == str(published)
    outside = tunefleet("show", published, "--json", cwd=tmp_path)
    assert json.loads(outside.stdout)[0]["digest"] == found["adapter"]["digest"]
    tree = tunefleet("show", published, cwd=tmp_path)
    assert tree.returncode == 0 and "mirror v1" in tree.stdout and "3 files" in tree.stdout


def manifest(path: Path) -> str:
    return (path / "tunefleet.json").read_text()


def test_verify(store: Store, tmp_path: Path) -> None:
    done = tunefleet("verify", "mirror@v1", "--store", store.root, cwd=tmp_path)
    assert done.returncode == 0 and "whole" in done.stdout and "damaged" not in done.stdout, done.stderr
    for file in (tmp_path / "out/mirror").glob("adapter-*/adapter_config.json"):
        file.write_text("{}")
    for words in (("mirror@v1",), (file.parent,)):
        for more in ((), ("--json",)):
            wrong = tunefleet("verify", *words, *more, "--store", store.root, cwd=tmp_path)
            assert wrong.returncode == 1 and "adapter_config.json has digest" in wrong.stderr
            assert "Traceback" not in wrong.stderr
    assert [one["problems"] != [] for one in json.loads(wrong.stdout)] == [True]


def test_gc(store: Store, tmp_path: Path) -> None:
    lost = make_member(store, "lost", run="dead")
    then = time.time() - 2 * 24 * 3600
    for path in Path(store.root).rglob("*"):
        os.utime(path, (then, then))
    dry = tunefleet("gc", "--dry-run", "--store", store.root, cwd=tmp_path)
    assert dry.returncode == 0 and "9 in all" in dry.stdout and "nothing was deleted" in dry.stdout, dry.stderr
    assert f"adapters/lost-{lost['adapter'].ref.digest[:12]}" in dry.stdout and Path(lost["adapter"].ref.uri).exists()
    assert "0 in all" in tunefleet("gc", "--older-than", "3", "--store", store.root, cwd=tmp_path).stdout
    done = tunefleet("gc", "--json", "--store", store.root, cwd=tmp_path)
    assert done.returncode == 0 and len(json.loads(done.stdout)["garbage"]) == 9
    assert not Path(lost["adapter"].ref.uri).exists()
    assert tunefleet("verify", "mirror@v2", "--store", store.root, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("list", "mirrer"), "there is no release of 'mirrer' in"),
        (("show", "mirror@v9"), "mirror has v1, v2"),
        (("show", "./absent"), "there is no folder"),
        (("promote", "mirror@v1", "--to", "v2"), "'v2' cannot be a channel"),
        (("promote", "mirror@beta"), "'mirror@beta' is not there"),
        (("rollback", "mirror", "--channel", "beta"), "there is nothing to roll back to: beta of mirror has never"),
        (("verify", "hf://x"), "names no repository of the Hub"),
        (("gc", "--older-than", "-1"), "allowed are 0 and more"),
    ],
)
def test_a_wrong_request_exits_with_2_and_says_what_is_allowed(
    words: tuple[str, ...], said: str, store: Store, tmp_path: Path
) -> None:
    done = tunefleet(*words, "--store", store.root, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for words in (("list",), ("verify", "mirror"), ("gc",)):
        done = tunefleet(*words, "--store", tmp_path / "none", cwd=tmp_path)
        assert done.returncode == 2 and "there is no store at" in done.stderr and not (tmp_path / "none").exists()
