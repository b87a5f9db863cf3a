"""Notices: somebody is told of a finished fleet, of gates that did not pass, and of runs that failed or crashed.

Where they go is a setting of the Prefect server, not of a recipe: every block called `tunefleet-notices` is told.

    slack-webhook, and Prefect's other notification blocks (Teams, Mattermost, Discord, PagerDuty, SendGrid, ...)
    webhook   a POST of {"event", "text"}, which Slack-compatible receivers take as it is
    secret    a URL of Apprise, which Prefect brings along: mailtos://user:password@smtp.example.com?to=team@example.com
              sends mail by SMTP. Only a run can send it: the server's own automations take blocks of the kinds above.

A notice never fails a run and delays it by seconds at most. What it says comes from the summary; whatever looks like a
secret in an error is blanked, and of a delivery that fails only the kind of fault is logged: addresses are secrets.
That is so for what runs tell. The server's own notice of a crash (automations.py) repeats the state's message as it is.
"""

import asyncio
import inspect
import threading
from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import CallWebhook, SendNotification
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

from infra.redaction import without_secrets
from tasks.reporting.prefect_artifacts import adapter_row, in_a_line, summary_link

BLOCK = "tunefleet-notices"
TELL = "tunefleet: crashes are told of"  # the automation of the server that tells them, see automations.py
PATIENCE = 15.0  # seconds that a notice may delay a run; one second is usual, mail and a cold start take more


@dataclass(frozen=True)
class Place:
    """A block document that bears our name."""

    id: UUID
    kind: str  # the block type's slug
    notifies: bool  # Prefect's server can send a notification through it

    @property
    def of_server(self) -> bool:
        return self.notifies or self.kind == "webhook"


def find_places(client: SyncPrefectClient) -> list[Place]:
    """The blocks called `tunefleet-notices`, whatever their type; none if there is none."""
    asked = {"block_documents": {"name": {"any_": [BLOCK]}}, "include_secrets": False}
    answer = client.request("POST", "/block_documents/filter", json=asked)
    return [
        Place(
            id=UUID(one["id"]),
            kind=one["block_type"]["slug"],
            notifies="notify" in one["block_schema"]["capabilities"],
        )
        for one in answer.json()
    ]


def told_by_the_server(client: SyncPrefectClient) -> set[UUID]:
    """The blocks that the server's automation of crashes holds: those that were there at `tunefleet deploy`."""
    return {
        action.block_document_id
        for one in client.read_automations_by_name(TELL)
        if one.enabled
        for action in one.actions
        if isinstance(action, CallWebhook | SendNotification)
    }


def told(summary: Mapping[str, Any]) -> tuple[str, str]:
    """The event and the text for a finished run: who passed, who failed and why, a line each."""
    judged = [one for one in summary["adapters"] if one["status"] != "compared"]
    passed = [one for one in judged if one["status"] in ("passed", "published")]
    errors = [one for one in judged if one["status"] == "error"]
    event = "errors" if errors else "finished" if len(passed) == len(judged) else "gates not passed"
    lines = [
        f"{summary['recipe']['name']}: {len(passed)} of {len(judged)} adapters passed (run {summary['run_id']})",
        *(_line(one) for one in sorted(judged, key=lambda one: one in passed)),
        f"summary: {summary_link(summary)}",
    ]
    return event, "\n".join(lines)


def _line(adapter: Mapping[str, Any]) -> str:
    row = adapter_row(adapter)
    if adapter["error"]:
        why = adapter["error"]
    elif adapter["status"] in ("passed", "published"):
        why = f"{row['target']} on its own task"
        if adapter["release"]:
            why = f"{adapter['release']}, {why}"
    else:
        reasons = [one.partition(";")[0] for one in adapter["reasons"] if not one.startswith("PASS")]
        why = (reasons or ["no reason was given"])[0]
        why += f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"- {adapter['name']}: {adapter['status']}: {in_a_line(why)}"


def tell_of(summary: Mapping[str, Any]) -> None:
    """Tell of a finished run. Its results are kept: nothing that goes wrong here, in words or on the way, fails it."""
    try:
        tell(*told(summary))
    except Exception as error:  # noqa: BLE001 - a notice fails nothing, whatever it was
        _logger().warning("nobody is told of this run: %s; the run is not concerned", _named(error))


def tell(event: str, text: str, *, patience: float = PATIENCE, besides_the_server: bool = False) -> None:
    """Send a notice to every place; what is not delivered within `patience` seconds is left to itself.

    `besides_the_server`: leave out the places that the server's own automation tells.
    """
    faults: list[str] = []
    said = without_secrets(text)
    thread = _start(_tell_all, event, said, besides_the_server, faults)
    thread.join(patience)
    if thread.is_alive():
        faults.append(f"not delivered within {patience:g} s")
    for fault in list(faults):
        _logger().warning("notice of %r: %s; the run is not concerned", event, fault)


def _tell_all(event: str, text: str, besides_the_server: bool, faults: list[str]) -> None:
    try:
        with get_client(sync_client=True) as client:
            places = find_places(client)
            if besides_the_server:
                served = told_by_the_server(client)
                places = [place for place in places if place.id not in served]
    except Exception as error:  # noqa: BLE001 - a notice fails nothing, whatever it was
        faults.append(f"the server was not asked where to: {_named(error)}")
        return
    for thread in [_start(_send, place, event, text, faults) for place in places]:
        thread.join()


def _send(place: Place, event: str, text: str, faults: list[str]) -> None:
    from prefect.blocks import notifications, system, webhook  # noqa: F401 - makes their types known to load
    from prefect.blocks.core import Block

    try:
        block: Any = Block.load(f"{place.kind}/{BLOCK}")
        if place.kind == "webhook":
            asyncio.run(block.call({"event": event, "text": text})).raise_for_status()
        elif place.notifies:
            with block.raise_on_failure():
                sending = block.notify(body=text, subject=f"tunefleet: {event}")
                if inspect.isawaitable(sending):
                    asyncio.run(_awaited(sending))
        elif place.kind == "secret":
            _by_apprise(str(block.get()), event, text)
        else:
            faults.append(f"a block of type {place.kind} cannot send; take slack-webhook, webhook, or secret")
    except Exception as error:  # noqa: BLE001 - a notice fails nothing, whatever it was
        faults.append(f"{place.kind}/{BLOCK}: {_named(error)}")


async def _awaited(sending: Any) -> Any:
    return await sending


def _by_apprise(url: str, event: str, text: str) -> None:
    from apprise import Apprise

    way = Apprise()
    if not way.add(url):
        raise ValueError("not a URL that Apprise knows")
    if not way.notify(body=text, title=f"tunefleet: {event}"):
        raise ConnectionError("not delivered")


def on_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """For @flow(on_failure=[...]): a run that ended with an error."""
    tell("failed", _of_run("failed", flow, flow_run, state))


def on_crashed(flow: Any, flow_run: Any, state: Any) -> None:
    """For @flow(on_crashed=[...]): a run whose process ended. Runs of deployments are told by the server, if it can."""
    tell("crashed", _of_run("crashed", flow, flow_run, state), besides_the_server=bool(flow_run.deployment_id))


def _of_run(what: str, flow: Any, flow_run: Any, state: Any) -> str:
    from prefect.utilities.urls import url_for

    lines = [
        f"{flow.name} {what}: run {flow_run.name}, {_asked_for(flow_run.parameters or {})}",
        in_a_line((state.message or "without a message").strip()),
        url_for(flow_run, url_type="ui") or f"flow run {flow_run.id}",
    ]
    return "\n".join(lines)


def _asked_for(parameters: Mapping[str, Any]) -> str:
    """What train-adapters trains, whose adapters publish-adapters releases, or what build-dashboard shows."""
    if "output" in parameters:
        return f"store {parameters.get('store') or 'of its worker'}"
    if "run" in parameters:
        return f"adapters of run {parameters['run']}"
    recipe = parameters.get("recipe")
    name = recipe.get("name") if isinstance(recipe, dict) else getattr(recipe, "name", recipe)
    return f"recipe {name or 'not known'}"


def _named(error: Exception) -> str:
    """The kind of fault, and an HTTP status; messages repeat the address, which often is the secret."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"{type(error).__name__} {status}" if status else type(error).__name__


def _start(function: Any, *args: Any) -> threading.Thread:
    """A thread that sees the run's context, and that nobody waits for at the end of the process."""
    thread = threading.Thread(target=copy_context().run, args=(function, *args), daemon=True)
    thread.start()
    return thread


def _logger() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("tunefleet")
