"""Publishing to the Hub, against a local one that keeps real commits."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from infra.errors import IntegrityError, RequestError, TransientError
from tasks.publishing import hub as publishing
from tasks.publishing.release import Published, Release, contents
from tests.publishing import CARD, FILES, PUBLISHED, files_under, make_release
from tests.publishing.hub_server import READ_TOKEN, TOKEN, HubServer

REPO = "tester/capitals"


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return make_release(tmp_path / "artifact")


@pytest.fixture
def publish(hub: HubServer) -> Callable[[Release], Published]:
    return lambda release: publishing.publish(release, repo_id=REPO, endpoint=hub.endpoint)


def whole(release: Release) -> dict[str, bytes]:
    return {content.path: content.read() for content in contents(release)}


def test_one_commit_holds_exactly_the_release(hub: HubServer, release: Release, publish):
    published = publish(release)
    repo = hub.repos[REPO]
    assert repo.files == whole(release)
    assert repo.files.keys() == PUBLISHED
    assert [commit.message for commit in repo.commits] == ["initial commit", f"Publish {release.version}"]
    assert repo.tags == {f"v-{release.digest[:12]}": repo.head.oid}
    assert repo.private
    assert published == Published(to="hub", uri=f"{hub.endpoint}/{REPO}", revision=repo.head.oid)


def test_a_repository_can_be_public(hub: HubServer, release: Release):
    publishing.publish(release, repo_id="acme/capitals", private=False, endpoint=hub.endpoint)
    assert not hub.repos["acme/capitals"].private


@pytest.mark.parametrize("revision", ["main", "tag", "commit"])
def test_what_is_downloaded_is_what_was_published(
    hub: HubServer, release: Release, tmp_path: Path, publish, revision: str
):
    published = publish(release)
    name = {"main": "main", "tag": f"v-{release.digest[:12]}", "commit": published.revision}[revision]
    folder = snapshot_download(
        REPO, revision=name, endpoint=hub.endpoint, local_dir=tmp_path / "down", cache_dir=tmp_path / "cache"
    )
    down = {path: data for path, data in files_under(Path(folder)).items() if not path.startswith((".cache/", ".git"))}
    assert down == whole(release)


def test_publishing_again_makes_no_commit(hub: HubServer, release: Release, publish):
    first = publish(release)
    hub.requests.clear()
    assert publish(release) == first
    assert len(hub.repos[REPO].commits) == 2
    assert not [path for method, path in hub.requests if method == "PUT" or "/commit/" in path or "/preupload/" in path]


def test_only_what_changed_is_sent(hub: HubServer, release: Release, tmp_path: Path, publish):
    publish(release)
    hub.requests.clear()
    reworded = make_release(tmp_path / "artifact", card=CARD + "\nReworded.\n")
    publish(reworded)
    assert hub.repos[REPO].files == whole(reworded)
    assert len(hub.repos[REPO].commits) == 3
    assert not [path for _, path in hub.requests if "lfs" in path]  # the weights stayed where they were


def test_shards_of_the_release_before_go_and_what_others_put_there_stays(hub: HubServer, tmp_path: Path, publish):
    shards = {f"model-0000{n}-of-00003.safetensors": bytes([n]) * 1000 for n in (1, 2, 3)}
    publish(make_release(tmp_path / "three", {"config.json": b"{}"} | shards, what="merged"))
    hub.commit_as_somebody_else(REPO, "LICENSE", b"a licence")
    single = make_release(tmp_path / "one", {"config.json": b"{}", "model.safetensors": b"\0" * 1000}, what="merged")
    publish(single)
    assert hub.repos[REPO].files == {**whole(single), "LICENSE": b"a licence"}
    assert len(hub.repos[REPO].commits) == 4


def test_a_release_can_be_rolled_back_to(hub: HubServer, release: Release, tmp_path: Path, publish):
    old = publish(release)
    newer = make_release(tmp_path / "newer", FILES | {"adapter_model.safetensors": b"\1" * 500})
    publish(newer)
    back = publish(release)
    repo = hub.repos[REPO]
    assert repo.files == whole(release)
    assert back.revision == repo.head.oid != old.revision
    assert repo.tags == {f"v-{release.digest[:12]}": old.revision, f"v-{newer.digest[:12]}": repo.commits[2].oid}


def test_a_damaged_file_is_put_right(hub: HubServer, release: Release, publish):
    publish(release)
    hub.commit_as_somebody_else(REPO, "adapter_config.json", b'{"r": 9}\n')
    publish(release)
    assert hub.repos[REPO].files == whole(release)


def test_a_commit_that_came_in_between_is_not_overwritten(hub: HubServer, release: Release, publish):
    publishing.HfApi(endpoint=hub.endpoint).create_repo(REPO)
    hub.before_commit = lambda: hub.commit_as_somebody_else(REPO, "README.md", b"theirs")
    with pytest.raises(TransientError, match="somebody else committed"):
        publish(release)
    assert hub.repos[REPO].files == {"README.md": b"theirs"}
    assert hub.repos[REPO].tags == {}
    publish(release)
    assert hub.repos[REPO].files == whole(release)


def test_a_publisher_that_broke_off_before_the_tag_is_completed(hub: HubServer, release: Release, publish):
    hub.failing["POST .*/tag/"] = 503
    with pytest.raises(TransientError, match="busy or failing"):
        publish(release)
    hub.failing.clear()
    publish(release)
    assert len(hub.repos[REPO].commits) == 2
    assert hub.repos[REPO].tags == {f"v-{release.digest[:12]}": hub.repos[REPO].head.oid}


def test_a_tag_on_other_weights_is_not_accepted(hub: HubServer, release: Release, tmp_path: Path, publish):
    publish(make_release(tmp_path / "other", {"adapter_model.safetensors": b"\1" * 500}))
    hub.repos[REPO].tags[f"v-{release.digest[:12]}"] = hub.repos[REPO].head.oid
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        publish(release)


def test_files_that_the_repository_ignores_are_missed(hub: HubServer, release: Release, publish):
    publishing.HfApi(endpoint=hub.endpoint).create_repo(REPO)
    hub.commit_as_somebody_else(REPO, ".gitignore", b"adapter_config.json\n")
    with pytest.raises(IntegrityError, match=r"does not hold.*adapter_config.json.*gitignore"):
        publish(release)
    assert hub.repos[REPO].tags == {}


def test_a_card_that_the_hub_refuses_is_a_wrong_request(hub: HubServer, tmp_path: Path, publish):
    with pytest.raises(RequestError, match="base_model"):
        publish(make_release(tmp_path / "artifact", card="---\nbase_model: package://a/b\n---\n\n# x\n"))
    assert len(hub.repos[REPO].commits) == 1


@pytest.mark.parametrize(
    ("failing", "status", "raised"),
    [
        ("POST /api/repos/create", 500, TransientError),
        ("GET /api/models/[^/]+/[^/]+$", 429, TransientError),
        ("POST .*/commit/", 503, TransientError),
        ("POST .*/commit/", 403, RequestError),
        ("PUT /lfs/", 403, RequestError),
    ],
)
def test_what_the_server_answers_decides_about_another_try(
    hub: HubServer, release: Release, publish, failing, status, raised
):
    hub.failing[failing] = status
    with pytest.raises(raised):
        publish(release)


def test_no_connection_is_worth_another_try(hub: HubServer, release: Release):
    with pytest.raises(TransientError, match="cannot be reached"):
        publishing.publish(release, repo_id=REPO, endpoint="http://127.0.0.1:9")


def test_offline_mode_is_not(hub: HubServer, release: Release, publish, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match="HF_HUB_OFFLINE"):
        publish(release)


def test_a_server_without_xet_is_no_obstacle(hub: HubServer, release: Release, publish, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    publish(release)
    assert not [path for _, path in hub.requests if "xet" in path]


def test_the_token_is_published_nowhere(
    hub: HubServer, release: Release, publish, caplog: pytest.LogCaptureFixture, capfd
):
    caplog.set_level("DEBUG")
    with warnings.catch_warnings(record=True) as warned:
        published = publish(release)
    repo = hub.repos[REPO]
    for commit in repo.commits:
        assert TOKEN not in commit.message
        assert not any(TOKEN.encode() in blob.data for blob in commit.tree.values())
    said = [published.model_dump_json(), caplog.text, *capfd.readouterr(), *(str(entry.message) for entry in warned)]
    assert not any(TOKEN in text for text in said)
    assert not any(TOKEN in path for _, path in hub.requests)


def test_errors_do_not_say_the_token(hub: HubServer, release: Release, publish, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_unknownToken9876543210")
    with pytest.raises(RequestError, match="hf auth login") as raised:
        publish(release)
    assert "hf_unknownToken9876543210" not in str(raised.value)
    assert hub.repos == {}


def test_check_finds_no_fault_and_makes_nothing(hub: HubServer):
    assert publishing.check(REPO, hub.endpoint) == []
    assert publishing.check("acme/capitals", hub.endpoint) == []
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("repo_id", "token", "says"),
    [
        (REPO, None, "no Hugging Face token was found: set HF_TOKEN"),
        (REPO, "hf_unknown", "hf auth login"),
        (REPO, READ_TOKEN, "may only read"),
        ("stranger/capitals", TOKEN, "cannot publish to stranger, only to tester, acme"),
        ("capitals", TOKEN, "namespace/name"),
        ("a/b/c", TOKEN, "namespace/name"),
        ("tester/has space", TOKEN, "not one the Hub takes"),
        ("tester/x.git", TOKEN, "not one the Hub takes"),
    ],
)
def test_check_names_what_is_wrong(hub: HubServer, monkeypatch, repo_id: str, token: str | None, says: str):
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    (fault,) = publishing.check(repo_id, hub.endpoint)
    assert says in fault.message
    assert TOKEN not in fault.message


def test_check_names_everything_at_once(hub: HubServer, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    messages = [fault.message for fault in publishing.check("capitals", "localhost")]
    assert len(messages) == 3


def test_check_names_a_server_that_is_not_there(hub: HubServer):
    (fault,) = publishing.check(REPO, "http://127.0.0.1:9")
    assert "cannot be reached" in fault.message


def test_a_wrong_repository_id_is_refused_before_anything_is_sent(hub: HubServer, release: Release):
    with pytest.raises(RequestError, match="namespace/name"):
        publishing.publish(release, repo_id="capitals", endpoint=hub.endpoint)
    assert hub.requests == []
