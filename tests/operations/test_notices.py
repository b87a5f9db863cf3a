"""What is told, sent to servers that are there: over HTTP, as mail, and to those that hang or refuse."""

import logging
import smtplib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from prefect.blocks.system import Secret
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.filesystems import LocalFileSystem
from prefect.settings import PREFECT_API_URL, temporary_settings

from infra.errors import RequestError
from tasks.operations.automations import ensure_automations
from tasks.operations.notices import BLOCK, find_places, on_crashed, on_failure, tell, tell_of, told
from tests.operations.conftest import PrefectServer, free_port
from tests.operations.receivers import http_receiver, smtp_receiver
from tests.reporting.test_summary import general, judged, learned, outcome, summary

pytestmark = pytest.mark.slow


@contextmanager
def saved(*blocks: Block) -> Iterator[None]:
    """On the server under our name, for as long as the block of code lasts."""
    for block in blocks:
        block.save(BLOCK, overwrite=True)
    try:
        yield
    finally:
        for block in blocks:
            type(block).delete(BLOCK)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What tell() logs outside of a run."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener()
    logging.getLogger("prefect.tunefleet").addHandler(listener)
    yield said
    logging.getLogger("prefect.tunefleet").removeHandler(listener)


def custom(url: str) -> CustomWebhookNotificationBlock:
    return CustomWebhookNotificationBlock(
        name="n", url=url, timeout=300, json_data={"title": "{{subject}}", "text": "{{body}}"}
    )


def test_every_block_of_our_name_is_told(use_server: PrefectServer, warnings: list[str]) -> None:
    with http_receiver() as (hook, hooked), http_receiver() as (chat, chatted), smtp_receiver() as (port, mails):
        mail = f"mailto://127.0.0.1:{port}?from=fleet@example.com&to=team@example.com"
        with saved(Webhook(url=hook), custom(chat), Secret(value=mail)):
            tell("finished", "demo: 1 of 1 adapters passed\n- iso-dates: passed", patience=60)
    assert hooked == [{"event": "finished", "text": "demo: 1 of 1 adapters passed\n- iso-dates: passed"}]
    assert chatted == [{"title": "tunefleet: finished", "text": "demo: 1 of 1 adapters passed\n- iso-dates: passed"}]
    (sent,) = mails
    assert "Subject: tunefleet: finished" in sent and "To: team@example.com" in sent
    assert "demo: 1 of 1 adapters passed" in sent and "- iso-dates: passed" in sent
    assert warnings == []


def test_without_a_block_nothing_is_told_and_nothing_said(use_server: PrefectServer, warnings: list[str]) -> None:
    tell("finished", "text")
    assert warnings == []


def test_slack_is_told_by_its_own_block_and_other_types_are_refused_in_words(
    use_server: PrefectServer, warnings: list[str]
) -> None:
    with saved(SlackWebhook(url="https://hooks.slack.com/services/T0/B0/x")), get_client(sync_client=True) as client:
        (place,) = find_places(client)
    assert (place.kind, place.notifies, place.of_server) == ("slack-webhook", True, True)
    with saved(LocalFileSystem(basepath="nowhere")):
        tell("finished", "text")
    assert "a block of type local-file-system cannot send; take slack-webhook, webhook, or secret" in warnings[0]


def test_a_server_that_hangs_delays_nothing_and_one_that_refuses_fails_nothing(
    use_server: PrefectServer, warnings: list[str]
) -> None:
    answer = threading.Event()
    with http_receiver(hang=answer) as (slow, asked), http_receiver(status=500) as (broken, refused):
        with saved(custom(f"{slow}/chat-secret"), Webhook(url=f"{broken}/hook-secret")):
            tell("finished", "text", patience=8)
        assert asked and refused, "both were asked"
        assert not answer.is_set(), "it had not answered when tell() returned"
        answer.set()
    assert any("not delivered within 8 s" in line for line in warnings)
    assert any("notice of 'finished': webhook/tunefleet-notices: HTTPStatusError 500" in line for line in warnings)
    assert "secret" not in " ".join(warnings), "a hook's address is its password"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("mailto://nobody:hunter2hunter2@127.0.0.1:9?from=a@example.com&to=b@example.com", "ConnectionError"),
        ("hunter2hunter2", "ValueError"),
    ],
)
def test_mail_that_cannot_go_is_told_without_its_password(
    use_server: PrefectServer, warnings: list[str], value: str, said: str
) -> None:
    with saved(Secret(value=value)):
        tell("finished", "text")
    assert said in warnings[0] and "hunter2" not in " ".join(warnings)


def test_a_prefect_server_that_is_gone_fails_nothing(warnings: list[str]) -> None:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        tell("finished", "text", patience=1)
    assert warnings and "the run is not concerned" in warnings[0]


def test_a_run_that_fails_is_told_of_without_what_its_error_carries(
    use_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_aVerySecretThing")

    @flow(name="fails", on_failure=[on_failure], on_crashed=[on_crashed])
    def fails(recipe: dict[str, Any]) -> None:
        raise ValueError("no access\nfor hf_aVerySecretThing at https://me:pass@hub.example/x?sig=abc")

    with http_receiver() as (url, received), saved(Webhook(url=url)), pytest.raises(ValueError):
        fails({"name": "demo"})
    (notice,) = received
    assert notice["event"] == "failed"
    assert "fails failed: run " in notice["text"] and "recipe demo" in notice["text"]
    assert "no access for *** at https://***@hub.example/x?***" in notice["text"]
    assert f"{use_server.api.removesuffix('/api')}/runs/flow-run/" in notice["text"]


def test_a_release_that_fails_is_told_of_with_the_run_whose_adapters_it_takes(use_server: PrefectServer) -> None:
    from flows.publish_adapters import publish_adapters

    assert publish_adapters.on_failure_hooks == [on_failure] and publish_adapters.on_crashed_hooks == [on_crashed]

    @flow(name="releases", on_failure=publish_adapters.on_failure_hooks)
    def releases(run: str) -> None:
        raise ValueError("no such bucket")

    with http_receiver() as (url, received), saved(Webhook(url=url)), pytest.raises(ValueError):
        releases("20261123-041700-ab12")
    (notice,) = received
    assert "adapters of run 20261123-041700-ab12" in notice["text"] and "no such bucket" in notice["text"]


def test_a_dashboard_that_is_not_built_is_told_of_with_its_store(use_server: PrefectServer, tmp_path: Path) -> None:
    from flows.build_dashboard import build_dashboard

    (tmp_path / "dashboard").write_text("a file where the folder should be")
    with http_receiver() as (url, received), saved(Webhook(url=url)), pytest.raises(RequestError):
        build_dashboard(str(tmp_path))
    (notice,) = received
    assert f"store {tmp_path}" in notice["text"] and "is no folder or bucket" in notice["text"]


def test_a_crash_is_told_of_once_by_the_run_or_by_the_server(use_server: PrefectServer) -> None:
    @flow(name="crashes", on_crashed=[on_crashed])
    def crashes() -> None:
        raise KeyboardInterrupt

    with http_receiver() as (url, received), smtp_receiver() as (port, mails):
        mail = f"mailto://127.0.0.1:{port}?from=fleet@example.com&to=team@example.com"
        with saved(Webhook(url=url), Secret(value=mail)):
            with pytest.raises(KeyboardInterrupt):
                crashes()  # not of a deployment: no automation sees it
            assert [one["event"] for one in received] == ["crashed"] and len(mails) == 1

            tell("crashed", "text", besides_the_server=True)
            assert len(received) == 2, "the server has no such automation: the run tells"
            ensure_automations()
            try:
                tell("crashed", "text", besides_the_server=True)
            finally:
                _delete_automations()
            assert len(received) == 2, "the server tells, where it can"
            assert len(mails) == 3, "mail is sent by the run alone"


def test_a_block_that_is_newer_than_the_automation_is_told_by_the_run(use_server: PrefectServer) -> None:
    """The server's automation holds the blocks that were there at `tunefleet deploy`."""
    with http_receiver() as (url, first), http_receiver() as (later, second), saved(Webhook(url=url)):
        ensure_automations()
        try:
            with saved(custom(later)):
                tell("crashed", "text", besides_the_server=True)
        finally:
            _delete_automations()
    assert (first, len(second)) == ([], 1)


def _delete_automations() -> None:
    with get_client(sync_client=True) as client:
        for one in client.read_automations():
            if one.name.startswith("tunefleet: "):
                client.delete_automation(one.id)


def test_a_finished_fleet_is_told_in_a_line_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = judged("lost", learned(60), general("capitals", 60, 2), general("pairs", 70, 2))
    kept = judged("kept", learned(60), general("capitals", 2, 2), release="kept@v3", published=[{"what": "adapter"}])
    died = outcome("died", "lora", "none", None, error="out of memory\nat step 3")
    event, text = told(summary(kept, lost, died, outcome("shown", "prompt", "none", None)))
    assert event == "errors"
    head, first, second, third, last = text.splitlines()
    assert head == "r: 1 of 3 adapters passed (run 1)"
    assert first.startswith("- lost: failed: FAIL on general task capitals: lost 60 and gained 2 of 300 documents")
    assert first.endswith(" more)")
    assert second == "- died: error: out of memory at step 3"
    assert third == "- kept: published: kept@v3, +60.0 (+51.8 to +67.7) on its own task"
    assert last == "summary: file:///store/runs/1/summary.json"

    secret = "hf_" + 40 * "s"
    monkeypatch.setenv("HF_TOKEN", secret)
    for before in range(350, 400, 7):  # wherever it is cut
        _, text = told(summary(outcome("died", "lora", "none", None, error=before * "x" + " " + secret)))
        assert "hf_s" not in text

    assert told(summary(kept, lost))[0] == "gates not passed"
    assert told(summary(kept))[0] == "finished"


def test_a_summary_that_cannot_be_put_in_words_fails_no_finished_run(warnings: list[str]) -> None:
    content = summary(judged("kept", learned(60), general("capitals", 2, 2)))
    del content["adapters"][0]["status"]
    tell_of(content)
    assert warnings == ["nobody is told of this run: KeyError; the run is not concerned"]


def test_the_receiver_of_mail_speaks_enough_smtp() -> None:
    with smtp_receiver() as (port, mails), smtplib.SMTP("127.0.0.1", port) as client:
        client.sendmail("a@example.com", "b@example.com", "Subject: x\r\n\r\nhello")
        assert "hello" in mails[0]
