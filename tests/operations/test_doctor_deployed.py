"""What a file of deployments names, and what a real Prefect server has of it."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from tasks.operations.declared import declared_in, pools_of
from tasks.operations.doctor import deployed
from tasks.operations.doctor.deployed import look_at_deployments
from tasks.operations.doctor.finding import Finding
from tests.operations.conftest import PrefectServer, running

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = """
deployments:
  - name: one
    entrypoint: flows.doctor_trial.doctor_trial
    concurrency_limit: {limit: 2, collision_strategy: ENQUEUE}
    work_pool: {name: doctor-pool}
    schedules: [{cron: "0 3 * * *"}, {cron: "5 * * * *", timezone: Europe/Berlin}, {interval: 600}]
  - name: two
    flow_name: Renamed
    entrypoint: flows/doctor_trial.py:other
    concurrency_limit: 3
    work_pool: {name: "{{ $POOL }}"}
  - name: three
    entrypoint: flows.doctor_trial.third
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prefect.yaml"
    path.write_text(FILE)
    return path


def test_the_file_is_read_as_prefect_reads_it(file: Path) -> None:
    declared = declared_in(file)
    assert [(one.name, one.pool, one.limit) for one in declared] == [
        ("doctor-trial/one", "doctor-pool", 2),
        ("Renamed/two", None, 3),
        ("third/three", None, None),
    ]
    assert pools_of(declared) == ["doctor-pool"], "what the environment names cannot be made from here"
    assert [one.schedules for one in declared] == [
        ("at 0 3 * * * UTC", "at 5 * * * * Europe/Berlin", "interval 600"),
        (),
        (),
    ]


def test_the_project_s_own_file_is_read() -> None:
    own = declared_in()
    assert "train-adapters/train-adapters" in {one.name for one in own}
    assert pools_of(own) == ["tunefleet", "tunefleet-gpu"] and all(one.pool for one in own)


class Trial:
    """A pool and a deployment of the test's own on the session's server, and what doctor says of them."""

    def __init__(self, file: Path):
        from prefect.client.orchestration import get_client

        self.file, self.client = file, get_client(sync_client=True)

    def look(self) -> dict[str, Finding]:
        with_watching = look_at_deployments(self.client, self.file)
        return {one.check: one for one in with_watching}

    def deploy(self, **options: object) -> UUID:
        flow = self.client.create_flow_from_name("doctor-trial")
        wanted = {"work_pool_name": "doctor-pool", "entrypoint": "flows.doctor_trial.doctor_trial", **options}
        return self.client.create_deployment(flow, "one", **wanted)  # type: ignore[arg-type]

    def update_pool(self, **changes: object) -> None:
        from prefect.client.schemas.actions import WorkPoolUpdate

        self.client.update_work_pool("doctor-pool", WorkPoolUpdate(**changes))  # type: ignore[arg-type]


@pytest.fixture
def trial(use_server: PrefectServer, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    from prefect.exceptions import ObjectNotFound

    monkeypatch.setattr(deployed, "git_commit", lambda: COMMIT + "+")
    trial = Trial(file)
    with trial.client:
        yield trial
        try:
            trial.client.delete_work_pool("doctor-pool")
            trial.client.delete_deployment(trial.client.read_deployment_by_name("doctor-trial/one").id)
        except ObjectNotFound:
            pass


def make_pool(trial: Trial) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    trial.client.create_work_pool(WorkPoolCreate(name="doctor-pool", type="process"))


@pytest.mark.slow
def test_a_server_where_nothing_is_deployed(trial: Trial) -> None:
    found = trial.look()
    assert {name: one.status for name, one in found.items()} == {"pool doctor-pool": "absent", "deployments": "absent"}
    make_pool(trial)  # nobody sends anything there yet
    assert trial.look()["pool doctor-pool"].status == "warning"


@pytest.mark.slow
def test_pools_limits_and_workers(trial: Trial, use_server: PrefectServer) -> None:
    make_pool(trial)
    trial.deploy(version=COMMIT[:8], concurrency_limit=2)
    found = trial.look()
    lonely = found["pool doctor-pool"]
    assert lonely.status == "fault" and "no worker online: runs wait" in lonely.found
    assert lonely.advice == "prefect worker start --pool doctor-pool"
    assert found["doctor-trial/one"].status == "ok"
    assert found["doctor-trial/one"].found == "pool doctor-pool, of this commit, 0 of 2 runs at a time"
    assert found["Renamed/two"].status == found["third/three"].status == "warning"

    trial.update_pool(is_paused=True)
    assert "paused: no run starts" in trial.look()["pool doctor-pool"].found
    trial.update_pool(is_paused=False, concurrency_limit=0)
    assert "a limit of 0 runs" in trial.look()["pool doctor-pool"].found

    trial.update_pool(concurrency_limit=4)
    words = ("worker", "start", "--pool", "doctor-pool", "--type", "process", "--name", "somebody", "--run-once")
    with running(use_server, *words, log="doctor-worker.log") as worker:
        worker.wait(120)
    busy = trial.look()["pool doctor-pool"]
    assert busy.status == "ok" and busy.found == "process, 0 of 4 runs; 1 worker online: somebody"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ({"version": COMMIT, "concurrency_limit": 2}, "ok", "of this commit"),
        ({"version": "af9574bbdddeac17f29381740cc7ba43", "concurrency_limit": 2}, "ok", "of an unknown commit"),
        ({"version": "fedcba98", "concurrency_limit": 2}, "warning", "this checkout is at 0123456"),
        ({"concurrency_limit": 5}, "warning", "0 of 5 runs at a time: prefect.yaml limits it to 2 runs"),
        ({}, "warning", "limits it to 2 runs at a time"),
        ({"concurrency_limit": 2, "entrypoint": "other.py:flow"}, "warning", "it starts other.py:flow"),
    ],
)
def test_what_the_server_has_otherwise(trial: Trial, options: dict[str, object], status: str, said: str) -> None:
    make_pool(trial)
    trial.deploy(**options)
    finding = trial.look()["doctor-trial/one"]
    assert finding.status == status and said in finding.found
    assert (finding.advice == "run: tunefleet deploy") == (status == "warning")


@pytest.mark.slow
def test_a_deployment_whose_pool_was_deleted(trial: Trial) -> None:
    make_pool(trial)
    trial.deploy()
    trial.client.delete_work_pool("doctor-pool")
    found = trial.look()
    assert found["doctor-trial/one"].status == "fault" and "no work pool any more" in found["doctor-trial/one"].found


@pytest.mark.slow
def test_automations(trial: Trial) -> None:
    from tasks.operations.automations import SILENT, ensure_automations

    make_pool(trial)
    trial.deploy()
    for old in trial.client.read_automations_by_name(SILENT):
        trial.client.delete_automation(old.id)
    without = trial.look()["automations"]
    assert without.status == "warning" and SILENT.partition(": ")[2] in without.found
    ensure_automations(silent_after=timedelta(minutes=5))
    assert trial.look()["automations"].status == "ok"


@pytest.mark.slow
def test_who_is_told_of_a_machine_that_died(trial: Trial) -> None:
    from prefect.blocks.notifications import SlackWebhook
    from prefect.blocks.system import Secret
    from prefect.blocks.webhook import Webhook

    from tasks.operations.automations import ensure_automations
    from tasks.operations.notices import BLOCK, TELL

    make_pool(trial)
    trial.deploy()
    ensure_automations()
    try:
        assert trial.look()["notices"].status == "absent"
        Secret(value="mailto://127.0.0.1?from=a@example.com&to=b@example.com").save(BLOCK, overwrite=True)
        ensure_automations()
        by_mail = trial.look()["notices"]
        assert by_mail.status == "ok" and "but not of runs whose machine died" in by_mail.found

        Webhook(url="http://127.0.0.1:9").save(BLOCK, overwrite=True)
        late = trial.look()["notices"]
        assert late.status == "warning" and "but webhook is not told of runs whose machine died" in late.found
        assert late.advice.startswith("run: tunefleet deploy")
        ensure_automations()
        told = trial.look()["notices"]
        assert told.status == "ok" and "but" not in told.found
        SlackWebhook(url="https://hooks.slack.com/services/T0/B0/x").save(BLOCK, overwrite=True)
        assert "but slack-webhook is not told of" in trial.look()["notices"].found, "it is not in the automation yet"

        (automation,) = trial.client.read_automations_by_name(TELL)
        trial.client.pause_automation(automation.id)
        assert "crashes are told of" in trial.look()["automations"].found
    finally:
        for block in (Secret, Webhook, SlackWebhook):
            with suppress(ValueError):
                block.delete(BLOCK)
        for one in trial.client.read_automations_by_name(TELL):
            trial.client.delete_automation(one.id)
