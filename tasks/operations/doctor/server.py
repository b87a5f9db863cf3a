"""The Prefect server: whether it answers, which version it is, who may use it, what keeps its data.

No server is started, and nothing on it is changed. Every request has a short limit and is made once; Prefect's own
client would try for a minute.
"""

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from tasks.operations.doctor.apart import first_line
from tasks.operations.doctor.finding import Finding, absent, fault, ok, warning

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_REQUEST_SECONDS = 5.0
_GUARD = "set PREFECT_SERVER_API_AUTH_STRING=user:password for the server, PREFECT_API_AUTH_STRING for all others"
_START = "start one with `prefect server start`, or correct PREFECT_API_URL"


def look_at_server() -> Iterator[Finding]:
    """First the server itself, then what this project has on it; nothing further where it does not answer."""
    import httpx
    from prefect.client.base import ServerType
    from prefect.client.orchestration import get_client
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
        temporary_settings,
    )

    from tasks.operations.doctor.deployed import look_at_deployments

    url = PREFECT_API_URL.value()
    if not url:
        yield no_server(PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value())
        return
    once = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
    with once, get_client(httpx_settings={"timeout": _REQUEST_SECONDS}, sync_client=True) as client:
        try:
            if (error := client.api_healthcheck()) is not None:
                raise error
            if client.server_type == ServerType.CLOUD:
                yield ok("server", f"{url}, Prefect Cloud")
            else:
                yield version(client.api_version(), client.client_version(), url)
                yield access(url)
                yield database(client)
            yield from look_at_deployments(client)
        except httpx.TimeoutException as error:
            found = f"{url} takes connections, but did not answer within {_REQUEST_SECONDS:g} s"
            if isinstance(error, httpx.ConnectTimeout):
                found = f"{url} cannot be reached: no connection within {_REQUEST_SECONDS:g} s"
            yield fault("server", found, "look at the server's log and load; is a firewall or a proxy between?")
        except httpx.HTTPStatusError as error:
            yield _refused(url, error.response.status_code, first_line(error))
        except httpx.HTTPError as error:
            yield fault("server", f"nobody answers at {url}: {first_line(error)}", _START)
        except (ValueError, TypeError) as error:  # what came back is no JSON, or is no version
            found = f"what answers at {url} is no Prefect API: {first_line(error)}"
            yield fault("server", found, "correct PREFECT_API_URL; it ends in /api")


def no_server(may_start_its_own: bool) -> Finding:
    """No fault for work on one machine."""
    if may_start_its_own:
        found = "PREFECT_API_URL is not set: each run here starts a temporary server (15-20 s); deployments need one"
        return absent("server", found, "for deployments: prefect server start, and set PREFECT_API_URL to it")
    found = "PREFECT_API_URL is not set, and temporary servers are switched off, so no run can start"
    return fault("server", found, "set PREFECT_API_URL, or PREFECT_SERVER_ALLOW_EPHEMERAL_MODE=true")


def _refused(url: str, status: int, error: str) -> Finding:
    if status in (401, 403):
        advice = "set PREFECT_API_AUTH_STRING to the server's user:password (Prefect Cloud: PREFECT_API_KEY)"
        return fault("server", f"{url} answered {status}: it does not accept who asks", advice)
    if status in (404, 405):
        return fault("server", f"what answers at {url} is no Prefect API ({status})", "correct it; it ends in /api")
    return fault("server", f"{url} fails: {error}", "look at the server's log; is its database up?")


def version(server: str, client: str, url: str) -> Finding:
    from packaging.version import Version

    there, here = Version(server), Version(client)
    found = f"{url}, version {server}; client {client}"
    if there.major != here.major:
        return fault("server", found, f"they do not understand each other: install prefect=={server} here, or upgrade")
    if (there.major, there.minor) < (here.major, here.minor):
        return warning("server", found, "upgrade the server first, then workers and clients")
    return ok("server", found)


def access(url: str) -> Finding:
    """Whether the API answers to whoever can reach it. An open one also hands out its secret blocks."""
    import httpx
    from prefect.client.orchestration import SyncPrefectClient

    is_local = _is_this_machine(urlsplit(url).hostname or "")
    with SyncPrefectClient(url, httpx_settings={"timeout": _REQUEST_SECONDS}) as stranger:
        try:
            stranger.api_version()
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (401, 403):
                raise
            return ok("access", "asks for a password")
    if is_local:
        return absent("access", "no password: fine only if it listens on 127.0.0.1, which it does not say", _GUARD)
    found = "open to everybody who can reach it: they can read secret blocks and start runs, which are code"
    return warning("access", found, _GUARD)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def database(client: "SyncPrefectClient") -> Finding:
    kind = database_kind(client)
    if kind == "SQLite":
        advice = "for several workers: PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://..."
        return warning("database", "SQLite: one writer at a time, so several workers wait for each other", advice)
    if kind is None:
        return absent("database", "the server does not tell which it uses; several workers need PostgreSQL")
    return ok("database", kind)


def database_kind(client: "SyncPrefectClient") -> Literal["SQLite", "PostgreSQL"] | None:
    """Told by how it matches patterns: the API keeps its address secret.

    In LIKE a backslash is an escape in PostgreSQL, and a character like others in SQLite unless ESCAPE makes it one
    (https://www.postgresql.org/docs/current/functions-matching.html, https://sqlite.org/lang_expr.html#like). So
    `S\\lack` finds the block type Slack, which every server has, in the first only. None if neither finds it.
    """

    def finds(pattern: str) -> bool:
        asked = {"block_types": {"name": {"like_": pattern}}, "limit": 1}
        return bool(client.request("POST", "/block_types/filter", json=asked).json())

    if not finds("Slack"):
        return None
    return "PostgreSQL" if finds("S\\lack") else "SQLite"
