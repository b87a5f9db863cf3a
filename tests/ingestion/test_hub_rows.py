"""Data sets on the Hub: the commit that a name stands for, and rows of exactly that commit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from infra.errors import RequestError, TransientError
from tasks.ingestion.hub_rows import hub_commit
from tasks.ingestion.task import ingest_work
from tasks.recipe.schema import Adapter
from tests.publishing.hub_server import Blob, HubServer, Repo

OLD = "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(5))
# A process of its own, because `datasets` reads the Hub's address when it is imported.
READ = """
import json, sys
from infra.errors import TunefleetError
from tasks.ingestion.rows import read_rows
from tasks.recipe.schema import Data
for data in json.loads(sys.argv[1]):
    try:
        print(json.dumps([[row.where, row.values] for row in read_rows(Data.model_validate(data))]))
    except TunefleetError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def add(hub: HubServer, name: str, *versions: str) -> Repo:
    repo = hub.repos[name] = Repo(private=False, commits=[])
    for content in versions:
        repo.add("rows", {"train.jsonl": Blob(content.encode(), lfs=False)})
    return repo


@pytest.fixture
def connected(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    return hub


def test_the_commit_stands_in_the_stage_key(connected: HubServer):
    repo = add(connected, "acme/texts", OLD)
    repo.tags["v1"] = repo.head.oid

    def key(**data: Any) -> str:
        return ingest_work(Adapter.model_validate({"name": "a", "data": {"hub": "acme/texts", **data}})).key

    before, tagged = key(), key(hub_revision="v1")
    assert key() == before
    assert hub_commit("acme/texts", None) == hub_commit("acme/texts", "v1") == repo.head.oid
    repo.add("more", {})
    assert key() != before
    assert key(hub_revision="v1") == tagged
    assert hub_commit("acme/texts", None) == repo.head.oid != hub_commit("acme/texts", "v1")


def test_a_whole_commit_needs_no_question(connected: HubServer):
    assert hub_commit("acme/texts", "a" * 40) == "a" * 40
    assert not connected.requests


def test_what_is_not_there(connected: HubServer, monkeypatch: pytest.MonkeyPatch):
    add(connected, "acme/texts", OLD)
    with pytest.raises(RequestError, match=r"data.hub 'acme/none' .* is not on the Hub; a private or gated one needs"):
        hub_commit("acme/none", None)
    with pytest.raises(RequestError, match="has no such revision; name a branch, a tag or a commit"):
        hub_commit("acme/texts", "v9")
    with pytest.raises(RequestError, match=r"data\.hub 'not a name'"):
        hub_commit("not a name", None)
    connected.failing["GET"] = 503
    with pytest.raises(TransientError, match=r"data\.hub 'acme/texts' .*: the Hub could not be reached"):
        hub_commit("acme/texts", None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransientError, match="could not be reached"):
        hub_commit("acme/texts", None)


@pytest.mark.slow
def test_rows_of_one_commit_and_data_sets_that_cannot_be_read(hub: HubServer, tmp_path: Path):
    repo = add(hub, "acme/texts", OLD, '{"text": "new"}\n')
    add(hub, "acme/empty", "")
    add(hub, "acme/mixed", '{"text": "a"}\n{"text": 1}\n')
    hub.repos["acme/nothing"] = Repo(private=False, commits=[])
    hub.repos["acme/nothing"].add("no rows", {"README.md": Blob(b"# Nothing", lfs=False)})
    asked = [
        {"hub": "acme/texts", "hub_revision": repo.commits[0].oid, "limit": 2},
        {"hub": "acme/texts"},
        {"hub": "acme/mixed"},
        {"hub": "acme/texts", "hub_split": "test"},
        {"hub": "acme/texts", "hub_config": "large"},
        {"hub": "acme/texts", "hub_revision": "v9"},
        {"hub": "acme/none"},
        {"hub": "acme/empty"},
        {"hub": "acme/nothing"},
    ]
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", READ, json.dumps(asked)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    old, new, mixed, *refused = map(json.loads, ended.stdout.splitlines())
    assert old == [[f"acme/texts:train[{index}]", {"text": f"text {index}"}] for index in range(2)]
    assert new == [["acme/texts:train[0]", {"text": "new"}]]
    assert [values["text"] for _, values in mixed] == ["a", 1]  # for the format to refuse, with its place
    says = [
        'Unknown split "test". Should be one of',
        "BuilderConfig 'large' not found. Available: ['default']",
        "'v9'",
        "'acme/none'",
        "a file in it is empty",
        "doesn't contain any data files",
    ]
    assert [kind for kind, _ in refused] == ["RequestError"] * len(says)
    assert all(words in message for words, (_, message) in zip(says, refused, strict=True)), refused
