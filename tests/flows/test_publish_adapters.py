"""Releases of a finished run: other places, numbers, channels, an override, and no secret in what is left."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from prefect.artifacts import Artifact
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_LOCAL_STORAGE_PATH

from infra.errors import GateNotPassed, RequestError
from infra.storage import Store
from tasks.artifacts import StageResult
from tasks.publishing.pointer import LostRaceError
from tasks.recipe.schema import Destination
from tasks.registry import channels
from tasks.registry.records import current, find, publications, releases
from tasks.runs import Run
from tests.flows.conftest import FinishedRun
from tests.flows.test_cli import tunefleet
from tests.publishing.hub_server import TOKEN, USER, HubServer
from tests.publishing.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.slow


def publish(run: FinishedRun, adapters: tuple[str, ...] = (), **options: object) -> dict:
    from flows.publish_adapters import publish_adapters

    return publish_adapters("latest", adapters, store=str(run.store), **options)


def of_folder(folder: Path, name: str) -> dict[str, dict]:
    """{what: tunefleet.json} of what the channel of `name` leads to."""
    pointer = json.loads((folder / name / "channels" / "stable.json").read_text())
    return {
        what: json.loads((folder / name / slug / "tunefleet.json").read_text())
        for what, slug in pointer["releases"].items()
    }


def test_the_run_itself_released_the_adapter_that_passed(finished_run: FinishedRun) -> None:
    store = Store(str(finished_run.store))
    (learns,) = (one for one in finished_run.summary["adapters"] if one["name"] == "learns")
    assert learns["release"] == "learns@v1" and current(store, "learns", "stable") == 1
    record = find(store, "learns@stable")
    assert (record.adapter.digest, record.verdict_says, record.override) == (learns["digest"], "PASS", None)
    assert {one.published.uri for one in publications(store, record)} == {one["uri"] for one in learns["published"]}
    assert releases(store, "idles") == []


def test_publishing_again_elsewhere_is_the_same_release(finished_run: FinishedRun, tmp_path: Path) -> None:
    places = [Destination(folder=str(tmp_path / "there"))]
    for _ in range(2):
        answer = publish(finished_run, to=places, what=("adapter", "merged", "report"))
        (learns,) = answer["adapters"]
        assert (learns["release"], learns["error"]) == ("learns@v1", None)
        assert [one["what"] for one in learns["published"]] == ["adapter", "merged", "report"]
    link = Artifact.get(f"dashboard-{finished_run.summary['recipe']['name']}")
    assert link and f"/dashboard/index.html#/fleet?q={finished_run.summary['run_id']})" in str(link.data)
    manifests = of_folder(tmp_path / "there", "learns")
    record = find(Store(str(finished_run.store)), "learns@v1")
    assert manifests.keys() == {"adapter", "merged", "report"}
    for manifest in manifests.values():
        assert manifest["data"]["digest"] == record.data.digest and manifest["recipe"]["name"] == "tiny"
        assert manifest["base"]["digest"] == record.base.digest and manifest["verdict"]["verdict"] == "PASS"
        assert manifest["training"]["adapter_digest"] == record.adapter.digest and manifest["override"] is None


def test_the_command_says_where_to_and_the_dashboard_knows(finished_run: FinishedRun, tmp_path: Path) -> None:
    run, there, root = finished_run.summary["run_id"], tmp_path / "there", finished_run.store
    done = tunefleet("publish", run, "learns", "--to", there, "--what", "report", "--store", root, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, place, dashboard = done.stdout.splitlines()
    assert first == "learns@v1: published" and place.startswith(f"  report: {there}")
    page = root / "dashboard" / "index.html"
    assert dashboard == f"dashboard: {page}" and str(there) in page.read_text()


def test_what_did_not_pass_leaves_only_with_a_reason(finished_run: FinishedRun, tmp_path: Path) -> None:
    places = [Destination(folder=str(tmp_path / "there"))]
    with pytest.raises(GateNotPassed, match="may not be published"):
        publish(finished_run, ("learns", "idles"), to=places)
    assert not (tmp_path / "there").exists()
    answer = publish(finished_run, ("idles",), to=places, override="the *customer* wants to see it", channel="beta")
    assert answer["adapters"][0]["release"] == "idles@v1"
    store = Store(str(finished_run.store))
    record = find(store, "idles@beta")
    assert record.override and record.override.reason == "the *customer* wants to see it"
    assert record.verdict_says != "PASS" and current(store, "idles", "stable") is None
    (folder,) = (path for path in (tmp_path / "there" / "idles").iterdir() if path.name.startswith("adapter-"))
    assert json.loads((folder / "tunefleet.json").read_text())["override"]["by"] == record.override.by
    assert "the \\*customer\\* wants to see it" in (folder / "README.md").read_text()


def test_another_form_joins_the_channel_and_the_first_stays(finished_run: FinishedRun, tmp_path: Path) -> None:
    places = [Destination(folder=str(tmp_path / "there"))]
    publish(finished_run, to=places, what=("adapter",))
    publish(finished_run, to=places, what=("report",))
    assert of_folder(tmp_path / "there", "learns").keys() == {"adapter", "report"}


def test_a_publisher_that_is_tried_again_does_not_win_a_race_that_it_lost(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    from tasks.publishing.task import publish as send
    from tasks.publishing.task import read_channels

    place = Destination(folder=str(tmp_path / "there"))
    run = Run("by hand", str(finished_run.store))
    record = find(run.store, "learns@v1")
    artifact = StageResult(ref=record.adapter, facts=run.store.manifest(record.adapter)["facts"], cached=True)
    (before,) = read_channels.fn("learns", [place], ["adapter"], "stable")
    other = record.model_copy(update={"number": 2})
    with disable_run_logger():
        send.fn(run, other, place, {"adapter": artifact}, "stable", before)
    for _ in range(2):
        with disable_run_logger(), pytest.raises(LostRaceError, match="tunefleet promote learns@v1"):
            send.fn(run, record, place, {"adapter": artifact}, "stable", before)


def test_running_again_does_not_undo_a_rollback(finished_run: FinishedRun, tmp_path: Path) -> None:
    store, place = Store(str(finished_run.store)), Destination(folder=str(tmp_path / "there"))
    publish(finished_run, ("idles",), to=[place], override="first", channel="undone")
    publish(
        finished_run, ("idles",), to=[Destination(folder=str(tmp_path / "new"))], override="other", channel="undone"
    )
    newer = current(store, "idles", "undone")
    channels.rollback(store, "idles", "undone")
    standing = current(store, "idles", "undone")
    assert standing != newer
    publish(
        finished_run, ("idles",), to=[Destination(folder=str(tmp_path / "new"))], override="other", channel="undone"
    )
    assert current(store, "idles", "undone") == standing


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"override": "  "}, "reason to release without a PASS is empty"),
        ({"channel": "v3"}, "channel: .*'v3' is what a version is called"),
        ({"channel": "Big"}, "channel: String should match"),
    ],
)
def test_a_request_that_cannot_be_is_refused(
    finished_run: FinishedRun, tmp_path: Path, options: dict, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        publish(finished_run, ("idles",), to=[Destination(folder=str(tmp_path / "there"))], **options)
    assert not (tmp_path / "there").exists()


def test_wrong_requests_name_what_there_is(finished_run: FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no judged adapter 'nobody'; it has learns, idles"):
        publish(finished_run, ("nobody",), to=[Destination(folder=str(tmp_path))])


def test_no_secret_is_left_anywhere(
    finished_run: FinishedRun,
    s3: S3Server,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    began = finished_run.recipe.stat().st_mtime
    places = [
        Destination(s3=f"s3://{BUCKET}/fleet", endpoint_url=s3.endpoint_url),
        Destination(hub=f"{USER}/fleet"),
        Destination(folder=str(tmp_path / "there")),
    ]
    answer = publish(finished_run, to=places)
    assert {one["to"] for one in answer["adapters"][0]["published"]} == {"s3", "hub", "folder"}, answer
    secrets = [TOKEN.encode(), s3.secret_key.encode()]
    said = "".join(capfd.readouterr()).encode()
    database = Path(PREFECT_API_DATABASE_CONNECTION_URL.value().partition("///")[2])
    assert database.is_file(), "Prefect's database is to be searched"
    folders = finished_run.folder, tmp_path, PREFECT_LOCAL_STORAGE_PATH.value(), database.parent
    left = {path: path.read_bytes() for path in _files(*folders) if path.stat().st_mtime >= began}
    for secret in secrets:
        assert secret not in said
        assert [path for path, content in left.items() if secret in content] == []


def _files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]
