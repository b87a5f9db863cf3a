"""Publishing to the Hub, against a local one that keeps real commits."""

import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants, snapshot_download

from infra.errors import IntegrityError, RequestError, TransientError, TunefleetError
from tasks.publishing import hub as publishing
from tasks.publishing.pointer import LostRaceError, Pointer, Seen
from tasks.publishing.release import Published, Release, contents
from tests.publishing import CARD, FILES, PUBLISHED, files_under, make_release
from tests.publishing.hub_server import FINE_TOKEN, READ_TOKEN, TOKEN, HubServer
from tests.publishing.test_card import render

REPO = "tester/capitals"


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return make_release(tmp_path / "artifact")


@pytest.fixture
def publish(hub: HubServer) -> Callable[[Release], Published]:
    return lambda release: publishing.publish(release, repo_id=REPO, endpoint=hub.endpoint)


def pointer(number: int = 1) -> Pointer:
    return Pointer(name="capitals", channel="stable", number=number, adapter="a" * 64, releases={}, moved="now")


def whole(release: Release) -> dict[str, bytes]:
    return {content.path: content.read() for content in contents(release)}


def test_one_commit_holds_exactly_the_release(hub: HubServer, release: Release, publish):
    published = publish(release)
    repo = hub.repos[REPO]
    assert repo.files == whole(release)
    assert repo.files.keys() == PUBLISHED
    assert [commit.message for commit in repo.commits] == ["initial commit", f"Publish {release.tag}"]
    assert repo.tags == {release.tag: repo.head.oid}
    assert repo.private
    assert release.tag == f"v1-{release.digest[:12]}"
    assert published == Published(
        to="hub", uri=f"{hub.endpoint}/{REPO}", what="adapter", digest=release.digest, revision=repo.head.oid
    )


def test_a_repository_can_be_public(hub: HubServer, release: Release, caplog: pytest.LogCaptureFixture):
    for private in (False, True):
        publishing.publish(release, repo_id="acme/capitals", private=private, endpoint=hub.endpoint)
        assert not hub.repos["acme/capitals"].private
        assert ("acme/capitals is public, and stays so" in caplog.text) == private


def test_a_private_repository_is_nothing_to_warn_of(publish, release: Release, caplog: pytest.LogCaptureFixture):
    publish(release)
    publish(release)
    assert "public" not in caplog.text


@pytest.mark.parametrize("revision", ["main", "tag", "commit"])
def test_what_is_downloaded_is_what_was_published(
    hub: HubServer, release: Release, tmp_path: Path, publish, revision: str
):
    published = publish(release)
    name = {"main": "main", "tag": release.tag, "commit": published.revision}[revision]
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
    assert repo.tags == {release.tag: old.revision, newer.tag: repo.commits[2].oid}


@pytest.mark.parametrize(("status", "raised"), [(503, TransientError), (429, TransientError), (403, RequestError)])
def test_a_manifest_that_cannot_be_read_is_said(
    hub: HubServer, release: Release, publish, status: int, raised: type[TunefleetError], monkeypatch
):
    published = publish(release)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub tries several times, with pauses
    hub.failing["/resolve/"] = status
    with pytest.raises(raised):
        publish(release)
    hub.failing.clear()
    assert publish(release) == published


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
    assert hub.repos[REPO].tags == {release.tag: hub.repos[REPO].head.oid}


def test_a_tag_on_other_weights_is_not_accepted(hub: HubServer, release: Release, tmp_path: Path, publish):
    publish(make_release(tmp_path / "other", {"adapter_model.safetensors": b"\1" * 500}))
    hub.repos[REPO].tags[release.tag] = hub.repos[REPO].head.oid
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


def everything_said(error: BaseException | None) -> str:
    """An exception's text and those of all that it came from, as a traceback would show them."""
    return "" if error is None else "".join(traceback.format_exception(error)) + repr(error)


def test_the_token_stands_nowhere(
    hub: HubServer, release: Release, publish, monkeypatch, caplog: pytest.LogCaptureFixture, capfd
):
    caplog.set_level("DEBUG")
    said: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        assert publishing.check([REPO], hub.endpoint) == []
        published = publish(release)
        publishing.move_channel(REPO, pointer(), published.revision, Seen(None, None), endpoint=hub.endpoint)
        for broken, status in (("POST /api/repos/create", 500), ("GET /api/whoami", 401), ("GET .*/tree/", 403)):
            hub.failing = {broken: status}
            said += [str(fault) for fault in publishing.check([REPO], hub.endpoint)]
            try:
                publish(release)
            except TunefleetError as error:
                said.append(everything_said(error))
    repo = hub.repos[REPO]
    said += [published.model_dump_json(), caplog.text, *capfd.readouterr(), *(str(entry.message) for entry in warned)]
    said += [path for _, path in hub.requests] + [commit.message for commit in repo.commits]
    files = [blob.data for commit in repo.commits for blob in commit.tree.values()]
    assert len(said) > 5 and "told to fail" in "".join(said)
    assert not any(TOKEN in text for text in said)
    assert not any(TOKEN.encode() in data for data in [*files, *files_under(release.folder).values()])


def test_a_token_that_is_refused_stands_in_no_error(hub: HubServer, release: Release, publish, monkeypatch, caplog):
    token = "hf_unknownToken9876543210"
    monkeypatch.setenv("HF_TOKEN", token)
    caplog.set_level("DEBUG")
    with pytest.raises(RequestError, match="hf auth login") as raised:
        publish(release)
    assert token not in everything_said(raised.value) + caplog.text
    assert hub.repos == {}


def test_check_finds_no_fault_asks_once_and_makes_nothing(hub: HubServer):
    assert publishing.check([REPO, "tester/dates-merged", "acme/capitals"], hub.endpoint) == []
    assert hub.requests == [("GET", "/api/whoami-v2")]
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("repo_id", "token", "says"),
    [
        (REPO, None, "no Hugging Face token was found: set HF_TOKEN"),
        (REPO, "hf_unknown", "hf auth login"),
        (REPO, READ_TOKEN, "may only read"),
        (
            "stranger/capitals",
            TOKEN,
            "tester cannot publish to stranger with this Hugging Face token, only to tester, acme",
        ),
        ("museum/capitals", TOKEN, "cannot publish to museum"),
        ("tester/dates", FINE_TOKEN, "cannot publish to tester with this Hugging Face token, only to acme"),
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
    (fault,) = publishing.check([repo_id], hub.endpoint)
    assert says in fault.message
    assert token is None or token not in fault.message


@pytest.mark.parametrize("repo_id", ["acme/dates", REPO], ids=["an organization", "one repository"])
def test_a_fine_grained_token_may_write_where_it_says(hub: HubServer, monkeypatch, repo_id: str):
    monkeypatch.setenv("HF_TOKEN", FINE_TOKEN)
    assert publishing.check([repo_id], hub.endpoint) == []


def test_check_names_everything_at_once(hub: HubServer, monkeypatch):
    faults = publishing.check(["stranger/a", "stranger/b", "other/a"], hub.endpoint)
    assert [fault.message.split()[4] for fault in faults] == ["other", "stranger"]
    monkeypatch.delenv("HF_TOKEN")
    assert len(publishing.check(["capitals", "a/b/c"], "localhost")) == 4


@pytest.mark.parametrize("failing", [False, True], ids=["no server", "busy"])
def test_a_check_that_gets_no_answer_is_worth_another_try(hub: HubServer, failing: bool):
    hub.failing["GET /api/whoami"] = 503
    with pytest.raises(TransientError, match="busy or failing" if failing else "cannot be reached"):
        publishing.check([REPO], hub.endpoint if failing else "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("repo_id", "token", "says"),
    [
        ("stranger/capitals", TOKEN, "does not let this token publish to stranger/capitals.*rights"),
        (REPO, READ_TOKEN, "hf auth login.*may only read"),
        (REPO, "hf_unknownToken9876543210", "hf auth login"),
    ],
)
def test_who_may_not_publish_is_told_and_ends_with_2(
    hub: HubServer, release: Release, monkeypatch, repo_id: str, token: str, says: str
):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(RequestError, match=f"(?s){says}") as raised:
        publishing.publish(release, repo_id=repo_id, endpoint=hub.endpoint)
    assert raised.value.exit_code == 2
    assert hub.repos == {}


def test_a_wrong_repository_id_is_refused_before_anything_is_sent(hub: HubServer, release: Release):
    with pytest.raises(RequestError, match="namespace/name"):
        publishing.publish(release, repo_id="capitals", endpoint=hub.endpoint)
    assert hub.requests == []


def test_further_texts_are_in_the_same_commit_and_may_be_reworded(hub: HubServer, release: Release, publish):
    path = ".eval_results/gsm8k.yaml"
    publish(replace(release, extra={path: "- value: 1.0\n"}))
    assert hub.repos[REPO].files[path] == b"- value: 1.0\n"
    assert len(hub.repos[REPO].commits) == 2
    publish(replace(release, extra={path: "- value: 2.0\n"}))
    assert hub.repos[REPO].files[path] == b"- value: 2.0\n"
    publish(release)
    assert hub.repos[REPO].files == whole(release)


@pytest.fixture
def two(release: Release, tmp_path: Path, publish) -> tuple[str, str]:
    """Commits of an older and a newer release."""
    newer = make_release(tmp_path / "newer", FILES | {"adapter_model.safetensors": b"\1" * 500}, number=2)
    return publish(release).revision, publish(newer).revision


@pytest.fixture
def move(hub: HubServer) -> Callable[[str, Seen], None]:
    return lambda revision, seen: publishing.move_channel(REPO, pointer(2), revision, seen, endpoint=hub.endpoint)


def read(hub: HubServer) -> Seen:
    return publishing.read_channel(REPO, "stable", hub.endpoint)


def test_a_channel_that_is_not_there_is_read_as_none(hub: HubServer, publish, release: Release):
    assert read(hub) == Seen(None, None)  # no repository
    publish(release)
    assert read(hub) == Seen(None, None)


def test_a_branch_is_no_channel(hub: HubServer, two):
    with pytest.raises(RequestError, match="'main' is a branch of tester/capitals"):
        publishing.read_channel(REPO, "main", hub.endpoint)
    main = Pointer(name="capitals", channel="main", number=2, adapter="a" * 64, releases={}, moved="now")
    with pytest.raises(RequestError, match="publish under another channel"):
        publishing.move_channel(REPO, main, two[1], Seen(None, None), endpoint=hub.endpoint)
    assert "main" not in hub.repos[REPO].tags


def test_a_channel_is_made_and_moved(hub: HubServer, two, move, tmp_path: Path):
    old, new = two
    move(old, read(hub))
    assert read(hub).token == old
    move(new, read(hub))
    assert read(hub).token == new
    folder = snapshot_download(REPO, revision="stable", endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    assert (Path(folder) / "adapter_model.safetensors").read_bytes() == b"\1" * 500
    move(old, read(hub))
    assert read(hub).token == old


def test_a_channel_that_stands_where_it_shall_is_left_alone(hub: HubServer, two, move):
    old, _ = two
    move(old, read(hub))
    hub.requests.clear()
    move(old, Seen(None, None))  # a publisher that was cut off after the move comes again
    assert [method for method, _ in hub.requests] == ["GET"]


def test_a_channel_that_somebody_moved_meanwhile_is_left_alone(hub: HubServer, two, move):
    old, new = two
    before = read(hub)
    move(old, before)
    with pytest.raises(LostRaceError, match=r"promote capitals@v2 --to stable"):
        move(new, before)
    assert read(hub).token == old


@pytest.mark.parametrize("standing", [False, True], ids=["a first tag", "a tag to replace"])
def test_of_two_publishers_the_second_to_tag_is_told(hub: HubServer, two, move, standing: bool):
    old, new = two
    if standing:
        move(old, read(hub))
    between = hub.repos[REPO].commits[0].oid
    hub.before_tag = lambda: hub.repos[REPO].tags.update(stable=between)
    with pytest.raises(LostRaceError):
        move(new, read(hub))
    assert read(hub).token == between


def test_a_tag_that_is_deleted_meanwhile_is_a_lost_race(hub: HubServer, two, move):
    old, new = two
    move(old, read(hub))
    seen = read(hub)
    hub.before_untag = lambda: hub.repos[REPO].tags.pop("stable")
    with pytest.raises(LostRaceError):
        move(new, seen)


def test_a_tag_that_cannot_be_made_is_put_back(hub: HubServer, two, move):
    old, new = two
    move(old, read(hub))
    hub.failing[f"POST .*/tag/{new}"] = 503
    with pytest.raises(TransientError, match="busy or failing"):
        move(new, read(hub))
    assert read(hub).token == old
    hub.failing.clear()
    move(new, read(hub))
    assert read(hub).token == new


def test_the_hub_takes_a_real_card(hub: HubServer, tmp_path: Path, publish, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    card = render()
    ModelCard(card).validate()
    publish(make_release(tmp_path / "artifact", card=card))
    data = publishing.HfApi(endpoint=hub.endpoint).model_info(REPO).card_data
    assert (data.license, data.base_model) == ("apache-2.0", "acme/tiny-llama")
    assert [result.metric_value for result in data.eval_results] == [0.875]
    with pytest.raises(ValueError, match="base_model"):
        ModelCard(card.replace("acme/tiny-llama", "package://a/b")).validate()


@pytest.mark.slow
def test_what_is_downloaded_loads_in_peft(hub: HubServer, tmp_path: Path, publish):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    from tests.tiny import save_tiny_base

    base, folder = save_tiny_base(tmp_path / "base"), tmp_path / "adapter"
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    made.save_pretrained(folder)
    publish(make_release(folder, files_under(folder)))
    down = snapshot_download(
        REPO, revision="main", endpoint=hub.endpoint, local_dir=tmp_path / "down", cache_dir=tmp_path / "cache"
    )
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), down).eval()
    ids = torch.tensor([[1, 40, 50, 60]])
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, made(ids).logits)
        assert not torch.equal(loaded(ids).logits, loaded.unload()(ids).logits)
