"""What the Prefect server does by itself when a run dies: mark it, start it again, tell somebody."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.operations.doctor.finding import Finding, absent, ok, warning

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def look_at_watching(client: "SyncPrefectClient") -> Iterator[Finding]:
    yield automations(client)
    yield notices(client)


def automations(client: "SyncPrefectClient") -> Finding:
    """They mark dead runs as crashed and start them again; without them a killed run stays Running for ever."""
    from tasks.operations.automations import RETRY, SILENT, UNSTARTED
    from tasks.operations.notices import TELL

    wanted = (SILENT, UNSTARTED, RETRY)
    there = {one.name: one.enabled for one in client.read_automations()}
    if missing := [one.partition(": ")[2] for one in wanted if one not in there]:
        return warning("automations", f"the server has none for: {'; '.join(missing)}", "run: tunefleet deploy")
    if paused := [one.partition(": ")[2] for one in (*wanted, TELL) if not there.get(one, True)]:
        advice = "if that is not meant: prefect automation resume NAME"
        return warning("automations", f"paused: {'; '.join(paused)}", advice)
    return ok("automations", "dead runs are marked as crashed, and crashed ones started again")


def notices(client: "SyncPrefectClient") -> Finding:
    """Who is told, and whether that is so for a machine that died too: of that only the server itself can tell."""
    from tasks.operations.notices import BLOCK, find_places, told_by_the_server

    places = find_places(client)
    if not places:
        advice = f"make a block called {BLOCK} on the server: slack-webhook, webhook, or a secret with a mailtos:// URL"
        return absent("notices", "nobody is told of runs that failed, crashed or finished", advice)
    found = f"go to {', '.join(one.kind for one in places)} (blocks called {BLOCK})"
    usable, served = [one for one in places if one.of_server], told_by_the_server(client)
    if untold := [one.kind for one in usable if one.id not in served]:
        found += f"; but {', '.join(untold)} is not told of runs whose machine died"
        return warning("notices", found, "run: tunefleet deploy, which gives the server's automation the blocks of now")
    if not usable:
        found += "; but not of runs whose machine died: the server itself cannot use a block of these types"
    return ok("notices", found)
