"""The licence of a base: as its README.md states it, and unknown where nothing does."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from tasks.ingestion.licence import licence_of
from tests.publishing.hub_server import HubServer


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# x\n", "apache-2.0"),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", None),
        ("---\nlanguage: en\n---\n", None),
        ("---\nlicense: ''\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("---\n---\n", None),
        ("# license: mit\n", None),
        ("", None),
    ],
)
def test_a_folder_states_it_in_its_readme(tmp_path: Path, readme: str, licence: str | None):
    (tmp_path / "README.md").write_text(readme)
    assert licence_of(tmp_path, None) == licence


def test_a_folder_without_a_readme_states_none(tmp_path: Path):
    assert licence_of(tmp_path, None) is None


def test_the_hub_is_asked_at_the_revision(hub: HubServer, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    HfApi(endpoint=hub.endpoint).create_repo("acme/base")
    hub.commit_as_somebody_else("acme/base", "README.md", b"---\nlicense: mit\n---\n")
    revision = hub.repos["acme/base"].head.oid
    hub.commit_as_somebody_else("acme/base", "README.md", b"---\nlicense: llama3.2\n---\n")
    assert licence_of(tmp_path, "acme/base") == "llama3.2"
    assert licence_of(tmp_path, "acme/base", revision) == "mit"


def test_what_cannot_be_asked_is_not_known(hub: HubServer, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    assert licence_of(tmp_path, "acme/nowhere") is None
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert licence_of(tmp_path, "acme/base") is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert licence_of(tmp_path, "acme/base") is None
