"""Everything is hashed again: each kind of damage in each kind of place is told, and what is whole is said to be."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from huggingface_hub import constants
from rich.console import Console

from infra.errors import IntegrityError, RequestError, TransientError
from infra.hashing import digest_file, digest_json, digest_tree
from infra.storage import Store
from tasks.artifacts import StageResult
from tasks.recipe.schema import Destination
from tasks.registry.channels import promote
from tasks.registry.records import ReleaseRecord
from tasks.registry.tables import print_findings, print_published
from tasks.registry.verify import Finding, read_manifests, require_whole, verify
from tests.publishing.hub_server import Blob, HubServer
from tests.publishing.s3_server import BUCKET, S3Server
from tests.registry.fleet import make_member, publish, record_of

ROLES = ("base", "data", "adapter", "compared", "verdict", "scores of base", "scores of own")


@pytest.fixture
def member(store: Store) -> Mapping[str, StageResult]:
    return make_member(store, "mirror")


@pytest.fixture
def record(store: Store, member: Mapping[str, StageResult]) -> ReleaseRecord:
    return record_of(store, member)


def problems(findings: list[Finding]) -> list[str]:
    return [f"{one.uri}: {problem}" for one in findings for problem in one.problems]


def append(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"x")


def empty(file: Path) -> None:
    file.write_text("")


DAMAGES: dict[str, Callable[[Path], None]] = {"altered": append, "missing": Path.unlink, "empty": empty}


def test_a_release_is_whole_with_all_it_came_from_and_all_places(
    store: Store, member: Mapping[str, StageResult], record: ReleaseRecord, tmp_path: Path
) -> None:
    publish(store, record, member, Destination(folder=str(tmp_path / "a")), ("adapter", "merged"))
    findings = verify("mirror@v1", store)
    assert problems(findings) == [] and all(one.files > 0 and not one.notes for one in findings)
    uris = {one.uri for one in findings}
    assert {member[role].ref.uri for role in ROLES} < uris
    assert len([uri for uri in uris if uri.startswith(str(tmp_path / "a"))]) == 2
    require_whole(findings)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("role", ROLES)
def test_damage_in_the_store_is_told(
    role: str, damage: str, store: Store, member: Mapping[str, StageResult], record: ReleaseRecord
) -> None:
    folder = Path(member[role].ref.uri)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        before = file.read_bytes()
        if damage == "empty" and not before:
            continue
        DAMAGES[damage](file)
        findings = verify("mirror@v1", store)
        assert any(
            uri_of in one for one in problems(findings) for uri_of in (str(folder), member[role].ref.digest[:12])
        )
        with pytest.raises(IntegrityError):
            require_whole(findings)
        file.write_bytes(before)
    assert problems(verify("mirror@v1", store)) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_a_published_folder_is_told(
    damage: str, store: Store, member: Mapping[str, StageResult], record: ReleaseRecord, tmp_path: Path
) -> None:
    (published,) = publish(store, record, member, Destination(folder=str(tmp_path / "a")))
    promote(store, record, "stable")
    folder = Path(published.uri)
    pointer = str(tmp_path / "a/mirror/channels/stable.json")
    assert [problems(verify(uri)) for uri in (published.uri, pointer)] == [[], []]
    for file in sorted(folder.iterdir()):
        before = file.read_bytes()
        DAMAGES[damage](file)
        assert len(problems(verify("mirror@v1", store))) == 1, file.name
        if not (file.name == "tunefleet.json" and damage == "missing"):
            assert problems(verify(published.uri)) == problems(verify(pointer)) == problems(verify("mirror@v1", store))
            assert str(folder) in problems(verify(pointer))[0]
        file.write_bytes(before)


def test_a_file_and_its_digest_altered_together_are_told(
    store: Store, member: Mapping[str, StageResult], record: ReleaseRecord, tmp_path: Path
) -> None:
    """Whoever can write to the place can write the manifest, too; the folder's name and the registry still know."""
    (published,) = publish(store, record, member, Destination(folder=str(tmp_path / "a")))
    file, manifest = (Path(published.uri) / name for name in ("adapter_config.json", "tunefleet.json"))
    content = json.loads(manifest.read_text())
    file.write_text('{"r": 9}')
    content["files"]["adapter_config.json"]["sha256"] = digest_file(file)
    manifest.write_text(json.dumps(content))
    assert "the files it lists are not those of digest" in problems(verify(published.uri))[0]
    content["digest"] = digest_tree(
        {path: one["sha256"] for path, one in content["files"].items() if path != "README.md"}
    )
    manifest.write_text(json.dumps(content))
    for uri, opened in ((published.uri, None), ("mirror@v1", store)):
        assert f"not {record.adapter.digest[:12]}" in problems(verify(uri, opened))[0]


def test_what_stands_there_as_well_is_noted(
    store: Store, member: Mapping[str, StageResult], record: ReleaseRecord, tmp_path: Path
) -> None:
    (published,) = publish(store, record, member, Destination(folder=str(tmp_path / "a")))
    for folder in (published.uri, record.adapter.uri):
        (Path(folder) / "notes.txt").write_text("of somebody")
        (finding,) = verify(folder)
        assert finding.notes == ["notes.txt stands there too, and is not part of it"] and not finding.problems


def test_a_manifest_of_the_store_that_was_altered_is_told(store: Store, record: ReleaseRecord) -> None:
    manifest = Path(record.adapter.uri) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"loss": 0.5', '"loss": 0.1'))
    for uri, opened in (("mirror@v1", store), (record.adapter.uri, None)):
        assert problems(verify(uri, opened)) == [f"{record.adapter.uri}: manifest.json was altered"]


def test_what_is_gone_from_the_store_is_said(store: Store, record: ReleaseRecord) -> None:
    shutil.rmtree(record.data.uri)
    assert problems(verify("mirror@v1", store)) == [
        f"{store.root}: artifact {record.data.digest[:12]}: not in the store any more"
    ]


def test_s3(store: Store, member: Mapping[str, StageResult], record: ReleaseRecord, s3: S3Server) -> None:
    place = Destination(s3=f"s3://{BUCKET}/verified", endpoint_url=s3.endpoint_url)
    (published,) = publish(store, record, member, place)
    promote(store, record, "stable")
    prefix = published.uri.removeprefix(f"s3://{BUCKET}/")
    uris = (published.uri, published.uri.rstrip("/"), f"s3://{BUCKET}/verified/mirror/channels/stable.json")
    for uri in uris:
        assert [(one.files > 1, one.problems) for one in verify(uri, None, s3.endpoint_url)] == [(True, [])]
        assert read_manifests(uri, s3.endpoint_url)[0]["digest"] == record.adapter.digest
    objects = s3.objects(prefix)
    for key, data in objects.items():
        for change in (lambda key=key: s3.client.delete_object(Bucket=BUCKET, Key=key),
                       lambda key=key: s3.client.put_object(Bucket=BUCKET, Key=key, Body=b"other")):  # fmt: skip
            change()
            assert len(problems(verify("mirror@v1", store))) == 1, key
            s3.client.put_object(Bucket=BUCKET, Key=key, Body=data)
    s3.client.put_object(Bucket=BUCKET, Key=prefix + "more.txt", Body=b"")
    (finding,) = verify(published.uri, None, s3.endpoint_url)
    assert finding.notes == ["more.txt stands there too, and is not part of it"] and not finding.problems
    with pytest.raises(RequestError, match="holds neither tunefleet"):
        verify(f"s3://{BUCKET}/verified/nothing", None, s3.endpoint_url)
    with pytest.raises(RequestError, match="'absent' does not exist"):
        verify("s3://absent/prefix", None, s3.endpoint_url)


def test_a_store_on_s3(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / "cache"))
    store = Store(f"s3://{BUCKET}/verified-store")
    member = make_member(store, "mirror")
    record = record_of(store, member)
    publish(store, record, member, Destination(folder=str(tmp_path / "out")))
    promote(store, record, "stable")
    findings = verify("mirror@stable", store)
    assert problems(findings) == [] and len(findings) == 8 and all(one.files and not one.notes for one in findings)
    key = member["data"].ref.uri.removeprefix(f"s3://{BUCKET}/") + "/train.jsonl"
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=b"other rows")
    (problem,) = problems(verify("mirror@v1", store))
    assert problem.startswith(f"{member['data'].ref.uri}: train.jsonl has digest")


def test_one_place_out_of_reach_hides_no_other(
    store: Store,
    member: Mapping[str, StageResult],
    record: ReleaseRecord,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Destination(s3=f"s3://{BUCKET}/unreachable", endpoint_url=s3.endpoint_url)
    publish(store, record, member, place)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    append(Path(record.adapter.uri) / "adapter_config.json")
    found = problems(verify("mirror@v1", store))
    assert len(found) == 2 and "adapter_config.json has digest" in found[0] and "cannot be read" in found[1]


def test_the_hub(
    store: Store,
    member: Mapping[str, StageResult],
    record: ReleaseRecord,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)  # both are read at import
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    (published,) = publish(store, record, member, Destination(hub="acme/fleet"))
    assert promote(store, record, "stable").moved == ["hf://acme/fleet"]
    repo = hub.repos["acme/fleet-mirror"]
    for uri in (
        "hf://acme/fleet-mirror",
        "hf://acme/fleet-mirror@stable",
        "hf://acme/fleet-mirror@" + published.revision,
    ):
        assert [(one.files > 1, one.problems, one.notes) for one in verify(uri)] == [(True, [], [])]
    assert problems(verify("mirror@v1", store)) == []
    for path in [path for path in repo.head.tree if path != ".gitattributes"]:
        whole = repo.head.tree
        repo.add("damage", {**whole, path: Blob(b"other", lfs=whole[path].lfs)})
        assert len(problems(verify("hf://acme/fleet-mirror"))) == 1, path
        repo.add("loss", {other: blob for other, blob in whole.items() if other != path})
        if path != "tunefleet.json":
            assert problems(verify("hf://acme/fleet-mirror")) == [f"hf://acme/fleet-mirror: {path} is missing"]
        repo.add("mended", dict(whole))
    hub.commit_as_somebody_else("acme/fleet-mirror", "theirs.md", b"hello")
    assert verify("hf://acme/fleet-mirror")[0].notes == ["theirs.md stands there too, and is not part of it"]
    for uri in ("hf://acme/absent", "hf://acme/fleet-mirror@v99"):
        with pytest.raises(RequestError, match="no such repository or revision"):
            verify(uri)
    hub.failing["GET"] = 503
    with pytest.raises(TransientError, match="did not answer"):
        verify("hf://acme/fleet-mirror")


@pytest.mark.parametrize("path", ["../secret", "{tmp_path}/secret", "sub/../../secret"])
def test_nothing_outside_of_a_strangers_folder_is_read(path: str, tmp_path: Path) -> None:
    """Whoever reads the report must not learn of a file of the one who asked."""
    (tmp_path / "secret").write_text("s")
    sha256 = digest_file(tmp_path / "secret")
    path = path.format(tmp_path=tmp_path)
    digest = digest_tree({path: sha256})
    folder = tmp_path / f"adapter-{digest[:12]}"
    folder.mkdir()
    (folder / "tunefleet.json").write_text(json.dumps({"digest": digest, "files": {path: {"sha256": "0" * 64}}}))
    (finding,) = verify(str(folder))
    assert finding.problems and finding.files == 0 and sha256[:12] not in str(finding)
    (folder / "tunefleet.json").unlink()
    manifest = {"digest": digest, "files": [{"path": path, "sha256": "0" * 64}]}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "manifest_sha256": digest_json(manifest)}))
    (finding,) = verify(str(folder))
    assert any("no path inside" in one for one in finding.problems)
    assert finding.files == 0 and sha256[:12] not in str(finding)


def test_a_strangers_channel_leads_to_nothing_elsewhere(tmp_path: Path) -> None:
    stable = {"name": "m", "channel": "stable", "number": 1, "adapter": "0" * 64, "moved": "2026"}
    (tmp_path / "m/channels").mkdir(parents=True)
    pointer = {**stable, "releases": {"adapter": "../../elsewhere"}}
    (tmp_path / "m/channels/stable.json").write_text(json.dumps(pointer))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/tunefleet.json").write_text("{}")
    with pytest.raises(IntegrityError, match="is no pointer of ours"):
        verify(str(tmp_path / "m/channels/stable.json"))


def test_what_a_terminal_would_act_on_is_never_printed(tmp_path: Path) -> None:
    evil = "\x1b]0;title\x07\x9b31m\u202e"
    folder = tmp_path / ("adapter-" + "0" * 12)
    folder.mkdir()
    content = {"name": evil, evil: {evil: evil}, "list": [evil], "digest": evil, "files": {evil: {"sha256": evil}}}
    (folder / "tunefleet.json").write_text(json.dumps(content))
    (folder / "more\x1b[2J").write_text("")
    console = Console(file=io.StringIO(), force_terminal=False, width=160)
    print_published(read_manifests(str(folder))[0], console)
    findings = verify(str(folder))
    print_findings(findings, console)
    with pytest.raises(IntegrityError) as error:
        require_whole(findings)
    for said in (console.file.getvalue(), str(error.value)):
        assert "title" in said and not [one for one in said if not one.isprintable() and one != "\n"]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("./absent", "there is no folder"),
        ("s3://bucket", "names no prefix of a bucket"),
        ("hf://nobody", "names no repository"),
        ("ftp://there/it/is", "of no kind that can be read"),
        ("./channels/stable.json", "there is no folder"),
        ("/", "holds neither tunefleet.json nor manifest.json"),
        ("mirror@v1", "say which store"),
    ],
)
def test_what_is_not_understood_is_answered_with_what_is_allowed(uri: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=said):
        verify(uri)
