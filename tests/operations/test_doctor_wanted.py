"""What a recipe needs beside its rows: the Hub, destinations, a judge, memory and disk."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, constants

from infra.device_memory import Device
from tasks.operations.doctor import wanted
from tasks.operations.doctor.finding import GIB, Finding
from tasks.recipe.loading import load_recipe
from tests.judging.chat_server import NAME, chat_server
from tests.operations.conftest import free_port
from tests.publishing.hub_server import TOKEN, HubServer
from tests.publishing.s3_server import BUCKET, S3Server

ROWS = {
    "rows": [{"question": "a"}, {"question": "b"}],
    "messages": {"user": "{{ question }}", "assistant": "ok"},
    "held_out": 1,
}


def recipe(folder: Path, **changes: object) -> str:
    adapters = [{"name": "one", "data": ROWS}]
    content = {"name": "wanting", "adapters": adapters, "publish": {"to": [{"folder": str(folder / "out")}]}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "wants"),
    [
        ({}, []),
        ({"base": {"model": "org/model"}}, ["base org/model"]),
        ({"base": {"model": "/a/folder"}}, []),
        ({"base": {"model": "s3://bucket/model"}}, []),
        ({"adapters": [{"name": "one", "data": {"hub": "org/rows", "format": "text"}}]}, ["data org/rows"]),
        ({"evaluation": {"general": ["capitals_choice", "hellaswag"]}}, ["task hellaswag"]),
        ({"evaluation": {"general": ["own"], "include_path": "/own"}}, []),
        ({"evaluation": {"judge": {"model": "org/judge"}}}, ["judge org/judge"]),
    ],
)
def test_what_a_recipe_wants_of_the_hub(changes: dict[str, object], wants: list[str], tmp_path: Path) -> None:
    assert wanted.wants_hub(load_recipe(Path(recipe(tmp_path, **changes)))) == wants


def test_the_hub_is_asked_for_base_and_rows(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    HfApi(endpoint=hub.endpoint, token=TOKEN).create_repo("tester/base")
    adapters = [{"name": "one", "data": {"hub": "tester/none", "format": "text"}}]
    path = recipe(tmp_path, base={"model": "tester/base"}, adapters=adapters)
    readable, missing = wanted.hub(path)
    assert (readable.status, readable.found) == ("ok", "model tester/base can be read")
    assert missing.status == "fault" and "dataset tester/none is not there" in missing.found
    assert f"{hub.endpoint}/datasets/tester/none" in missing.advice and "HF_TOKEN" in missing.advice


def test_a_hub_that_cannot_be_reached(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    (finding,) = wanted.hub(recipe(tmp_path, base={"model": "tester/base"}))
    assert finding.status == "fault" and "cannot be reached" in finding.found and "base tester/base" in finding.found
    (finding,) = wanted.hub(recipe(tmp_path, evaluation={"general": ["hellaswag"]}))
    assert finding.status == "fault" and "task hellaswag" in finding.found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (finding,) = wanted.hub(recipe(tmp_path, base={"model": "tester/base"}))
    assert finding.status == "warning" and "HF_HUB_OFFLINE" in finding.found


def test_destinations_are_asked_one_by_one(s3: S3Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = [
        {"folder": str(tmp_path / "out")},
        {"folder": str(tmp_path / "file")},
        {"s3": f"s3://{BUCKET}/doctor", "endpoint_url": s3.endpoint_url},
        {"s3": f"s3://{BUCKET}/doctor", "endpoint_url": f"http://127.0.0.1:{free_port()}"},
        {"hub": "tester/fleet"},
    ]
    path = recipe(tmp_path, publish={"to": places})
    found = [one for number in range(5) for one in wanted.destination(path, str(number))]
    assert [(one.check, one.status) for one in found] == [
        ("publish.to.0", "ok"),
        ("publish.to.1", "fault"),
        ("publish.to.2", "ok"),
        ("publish.to.3", "fault"),
        ("publish.to.4", "fault"),
    ]
    assert "is a file" in found[1].found and "cannot be reached" in found[3].found
    assert "no Hugging Face token" in found[4].found
    assert s3.keys("doctor") == []


def test_a_judge_behind_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-judge-secret")

    def judged(name: str, key: str) -> list[Finding]:
        judge = {"endpoint": server.address, "name": name, "api_key": key}
        return list(wanted.judge(recipe(tmp_path, evaluation={"judge": judge})))

    with chat_server() as server:
        assert [(one.check, one.status) for one in judged(NAME, "JUDGE_KEY")] == [("judge", "ok")]
        without, wrong = judged("nobody", "NO_SUCH_KEY")
        assert without.status == "absent" and "NO_SUCH_KEY is not set" in without.found
        assert wrong.status == "fault" and "nobody" in wrong.found
        server.key = "another"
        (refused,) = judged(NAME, "JUDGE_KEY")
    assert refused.status == "fault" and "401" in refused.found and "sk-judge-secret" not in refused.found


def test_what_does_not_fit() -> None:
    def planned(**changes: object) -> dict[str, object]:
        adapter = {"name": "one", "processes": 1, "memory": {"total": 2 * GIB}, "does_not_fit": None, "warnings": []}
        disk = {"total": 3 * GIB, "free": 4 * GIB}
        return {"adapters": [adapter | changes], "devices": [{"name": "cpu"}], "disk": disk, "store": "/store"}

    def fits(planned: dict[str, object], *, may_run_elsewhere: bool = False) -> list[Finding]:
        return list(wanted.fits(planned, may_run_elsewhere=may_run_elsewhere))

    assert [one.status for one in fits(planned())] == ["ok", "ok"]
    assert fits(planned())[0].found == "the largest training takes 2.0 GiB, and fits"
    first, *_ = fits(planned(does_not_fit="needs 9 GiB"))
    assert (first.status, first.found) == ("fault", "one, on this machine: needs 9 GiB")
    *_, last = fits(planned(warnings=["a", "b"]))
    assert (last.status, last.found) == ("warning", "one: a; and 1 more")
    full = {**planned(), "disk": {"total": 5 * GIB, "free": 4 * GIB}}
    assert [one.status for one in fits(full)] == ["ok", "fault"]

    assert [one.status for one in fits(full, may_run_elsewhere=True)] == ["ok", "warning"]
    elsewhere, *_ = fits(planned(does_not_fit="needs 9 GiB"), may_run_elsewhere=True)
    assert (elsewhere.status, elsewhere.found) == ("warning", "one, on this machine: needs 9 GiB")
    several, *_ = fits(planned(does_not_fit="wants 16 devices, and there are 1", processes=16))
    assert several.status == "warning", "it is meant for larger machines, or for several"


@pytest.mark.slow
def test_with_a_server_a_plan_counts_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe for a cluster, asked about on a login node: whatever it lacks here keeps no run from working."""
    from tests.tiny import save_tiny_base

    save_tiny_base(tmp_path / "base")
    path = recipe(tmp_path, base={"model": str(tmp_path / "base")})
    monkeypatch.setattr("tasks.planning.plan.local_devices", lambda: [Device("cpu", "cpu", 1)])  # a byte free
    alone = {one.check: one.status for one in plan_of(path, tmp_path, None)}
    beside = {one.check: one.status for one in plan_of(path, tmp_path, "http://127.0.0.1:9/api")}
    assert (alone["memory"], beside["memory"]) == ("fault", "warning")


def plan_of(path: str, folder: Path, api: str | None) -> list[Finding]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api}, restore_defaults={PREFECT_API_URL}):
        return list(wanted.plan(path, str(folder / "store")))
