"""What a release holds, and who may have one."""

import hashlib
import json
from pathlib import Path

import pytest

from infra.errors import GateNotPassed, IntegrityError, RequestError
from tasks.publishing.release import contents, released_files, require_pass
from tests.publishing import CARD, FILES, PUBLISHED, make_release

DIGEST = "a" * 64


def test_a_pass_for_exactly_this_digest_opens_the_door():
    require_pass({"adapter_digest": DIGEST, "verdict": "PASS"}, DIGEST)


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        (None, "no verdict"),
        ({}, "no verdict of its own"),
        ({"verdict": "PASS"}, "no verdict of its own"),
        ({"adapter_digest": "b" * 64, "verdict": "PASS"}, "the one given is for bbbbbbbbbbbb"),
        ({"adapter_digest": DIGEST[:12], "verdict": "PASS"}, "no verdict of its own"),
        ({"adapter_digest": DIGEST}, "its verdict is None"),
        ({"adapter_digest": DIGEST, "verdict": "FAIL"}, "its verdict is FAIL"),
        ({"adapter_digest": DIGEST, "verdict": "INCONCLUSIVE"}, "its verdict is INCONCLUSIVE"),
        ({"adapter_digest": DIGEST, "verdict": "pass"}, "its verdict is pass"),
        ({"adapter_digest": DIGEST, "verdict": True}, "its verdict is True"),
    ],
)
def test_anything_else_keeps_it_shut(verdict, says):
    with pytest.raises(GateNotPassed, match=says):
        require_pass(verdict, DIGEST)


@pytest.mark.parametrize("says", ["FAIL", "INCONCLUSIVE"])
def test_a_reason_stands_in_for_the_pass_and_never_for_the_verdict(says: str):
    require_pass({"adapter_digest": DIGEST, "verdict": says}, DIGEST, "the customer knows")
    with pytest.raises(GateNotPassed, match="not PASS"):
        require_pass({"adapter_digest": DIGEST, "verdict": says}, DIGEST, "")
    for verdict in (None, {"adapter_digest": "b" * 64, "verdict": "PASS"}):
        with pytest.raises(GateNotPassed):
            require_pass(verdict, DIGEST, "the customer knows")


def test_a_release_is_named_by_its_content_and_tagged_by_its_number(tmp_path: Path):
    release = make_release(tmp_path, number=3, what="merged")
    assert release.slug == f"merged-{release.digest[:12]}"
    assert release.tag == f"v3-{release.digest[:12]}"


def test_contents_are_the_files_the_card_and_last_the_manifest(tmp_path: Path):
    listed = contents(make_release(tmp_path))
    assert {content.path for content in listed} == PUBLISHED
    assert [content.path for content in listed[-2:]] == ["README.md", "tunefleet.json"]
    for content in listed:
        assert hashlib.sha256(content.read()).hexdigest() == content.sha256
        assert len(content.read()) == content.size
    assert listed[-2].read() == CARD.encode()


def test_further_texts_are_listed_before_the_card(tmp_path: Path):
    extra = {".eval_results/gsm8k.yaml": "ü\n", "adapter_config.json": "in place of the artifact's\n"}
    listed = contents(make_release(tmp_path, extra=extra))
    assert [content.path for content in listed[-4:]] == [*sorted(extra), "README.md", "tunefleet.json"]
    assert {content.path for content in listed} == PUBLISHED | extra.keys()
    assert listed[-4].read() == "ü\n".encode()
    assert released_files(listed[-1].read()) == {content.path: content.sha256 for content in listed[:-1]}


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../up", "README.md", "tunefleet.json"])
def test_further_texts_stay_within_the_release(tmp_path: Path, path: str):
    with pytest.raises(RequestError, match="no paths for further files"):
        make_release(tmp_path, extra={path: "x"})


def test_the_manifest_keeps_the_lineage_and_lists_every_other_file(tmp_path: Path):
    *others, last = contents(make_release(tmp_path, FILES | {"tunefleet.json": b"an older one"}))
    manifest = json.loads(last.read())
    assert manifest["base"] == {"model": "tiny"}
    assert {path: entry["size"] for path, entry in manifest["files"].items()} == {
        file.path: file.size for file in others
    }
    assert released_files(last.read()) == {file.path: file.sha256 for file in others}


def test_the_manifest_of_the_store_stays_in_the_store(tmp_path: Path):
    release = make_release(tmp_path)
    (tmp_path / "manifest.json").write_text('{"run_id": "one of several that wrote the same bytes"}')
    assert {content.path for content in contents(release)} == PUBLISHED


@pytest.mark.parametrize("path", ["adapter_config.json", "README.md", "extra.json"])
def test_files_that_are_not_those_of_the_digest_are_not_released(tmp_path: Path, path: str):
    release = make_release(tmp_path)
    (tmp_path / path).write_text("altered")
    with pytest.raises(IntegrityError, match="no longer holds the files"):
        contents(release)


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../up", "a//b", ".", "", "a\0b"])
def test_a_manifest_that_names_files_elsewhere_vouches_for_nothing(path: str):
    entry = {"sha256": "0" * 64, "size": 1}
    assert released_files(json.dumps({"files": {"a/b..c": entry}}).encode()) == {"a/b..c": "0" * 64}
    assert released_files(json.dumps({"files": {"a": entry, path: entry}}).encode()) is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"files": []}', b'{"files": {"a": {}}}', b"\xff"])
def test_what_is_no_manifest_vouches_for_nothing(data: bytes):
    assert released_files(data) is None


def test_an_empty_folder_is_not_a_release(tmp_path: Path):
    with pytest.raises(RequestError, match="holds no files"):
        contents(make_release(tmp_path, {"README.md": b"only a card"}))


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a\\b", ".hidden"])
def test_names_that_would_lead_elsewhere_are_refused(tmp_path: Path, name: str):
    with pytest.raises(RequestError, match="cannot publish under the name"):
        make_release(tmp_path, name=name)


@pytest.mark.parametrize("digest", ["", "abc", "A" * 64, "g" * 64, "a" * 65])
def test_what_is_no_sha256_is_refused(tmp_path: Path, digest: str):
    with pytest.raises(RequestError, match="not a sha256"):
        make_release(tmp_path, digest=digest)
