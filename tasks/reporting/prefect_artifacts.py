"""What a run leaves in Prefect's UI: a table with one row an adapter, a picture of it, links to summary and dashboard.

The keys are the recipe's, so that the UI shows how its runs went one after another. The picture travels as a data: URL:
both of Prefect's UIs hand it to an <img>, which runs no script and asks nobody for anything, so that it shows wherever
the store is. In Markdown the newer one drops such URLs, and links that are neither http(s) nor mail.
"""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prefect.artifacts import create_image_artifact, create_link_artifact, create_table_artifact

from infra.redaction import without_secrets
from infra.settings import dashboard_url, default_store
from infra.storage import Store
from tasks.reporting.figures import change, interval, is_fraction
from tasks.reporting.headline import target_of, worst_of
from tasks.reporting.picture import fleet_picture

LONGEST = 400  # characters of an error where it is only shown; the store has it whole
PICTURED = 30  # adapters; the UI writes the whole data: URL below its picture
LINKED = 30  # adapters


def leave_picture(store: Store, summary: Mapping[str, Any], warn: Callable[..., None]) -> None:
    """runs/<run-id>/fleet.svg, if it can be had: it only shows what the summary says."""
    try:
        store.write(f"runs/{summary['run_id']}/fleet.svg", fleet_picture(summary).encode())
    except Exception as error:  # noqa: BLE001 - whatever it was, the summary is kept
        warn("the run's picture is not kept: %s", in_a_line(f"{type(error).__name__}: {error}"))


def leave_artifacts(summary: Mapping[str, Any], warn: Callable[..., None]) -> None:
    """They only show what the store has, so nothing that goes wrong with them fails a run."""
    try:
        recipe, run = summary["recipe"]["name"], summary["run_id"]
        create_table_artifact(
            table=[adapter_row(adapter) for adapter in summary["adapters"]],
            key=artifact_key("adapters", recipe),
            description=f"Recipe {recipe}, run {run}. Differences from the base in points, losses in nats.",
        )
        create_link_artifact(
            link=summary_link(summary),
            link_text=f"summary.json of run {run}",
            key=artifact_key("summary", recipe),
            description=f"`tunefleet flips {run} --store {summary['store']}` shows the documents that changed.",
        )
        create_link_artifact(
            link=dashboard_link(summary["store"], f"/fleet?q={run}"),
            link_text=f"run {run} on the dashboard",
            key=artifact_key("dashboard", recipe),
            description=_adapter_links(summary),
        )
        svg = fleet_picture(summary, most=PICTURED)
        create_image_artifact(
            image_url=f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}",
            key=artifact_key("fleet", recipe),
            description=f"Recipe {recipe}, run {run}. The whole: {summary['store']}/runs/{run}/fleet.svg",
        )
    except Exception as error:  # noqa: BLE001 - whatever it was, the run is finished and its summary is kept
        warn("not all of the run is shown in Prefect: %s", in_a_line(f"{type(error).__name__}: {error}"))


def leave_dashboard_link(link: str, words: str, warn: Callable[..., None], *, key: str = "dashboard") -> None:
    """For the run that built it, or changed what it shows."""
    try:
        create_link_artifact(link=link, link_text=words, key=key)
    except Exception as error:  # noqa: BLE001 - what it leads to is there
        warn("the dashboard is not linked to in Prefect: %s", in_a_line(f"{type(error).__name__}: {error}"))


def adapter_row(adapter: Mapping[str, Any]) -> dict[str, str]:
    """The adapter in six short texts; empty where there is nothing to tell."""
    return {
        "adapter": adapter["name"],
        "verdict": adapter["verdict"] or adapter["status"],
        "target": _target(adapter),
        "worst general task": _worst(adapter),
        "release": adapter["release"] or "",
        "error": in_a_line(adapter["error"] or ""),
    }


def in_a_line(text: str) -> str:
    """What a library wrote, fit to be shown; secrets go first, since half of one would not be known for what it is."""
    line = " ".join(without_secrets(text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _target(adapter: Mapping[str, Any]) -> str:
    """The gain on the task that decides, with its interval."""
    if (task := target_of(adapter)) is None:
        return ""
    fraction = is_fraction(task["metric"])
    return f"{change(task['delta'], fraction)} ({interval(task['ci_low'], task['ci_high'], fraction)})"


def _worst(adapter: Mapping[str, Any]) -> str:
    if (task := worst_of(adapter)) is None:
        return ""
    return f"{task['task']} {change(task['delta'], is_fraction(task['metric']))} ({task['verdict']})"


def _adapter_links(summary: Mapping[str, Any]) -> str:
    """Markdown: the dashboard's view of each adapter."""
    run, adapters = summary["run_id"], summary["adapters"]
    names = [one["name"] for one in adapters[:LINKED]]
    links = [f"[{name}]({dashboard_link(summary['store'], f'/adapter/{name}@{run}')})" for name in names]
    more = f", and {len(adapters) - len(names)} more" if len(adapters) > len(names) else ""
    return f"Built after each run, so it may take a minute. Adapters: {', '.join(links)}{more}"


def dashboard_link(store: str, view: str = "") -> str:
    """Where the dashboard of a store opens, at a view of its own (docs/DASHBOARD.md)."""
    url = dashboard_url()
    if url is None or store != Store(default_store()).root:  # the address is that of one store
        url = as_url(f"{store}/dashboard/index.html")
    return f"{url}#{quote(view, safe='/?=@')}" if view else url


def summary_link(summary: Mapping[str, Any]) -> str:
    """A URL of the summary's file, as the store has it: file:// or s3://."""
    return as_url(f"{summary['store']}/runs/{summary['run_id']}/summary.json")


def as_url(place: str) -> str:
    return place if "://" in place else Path(place).absolute().as_uri()


def artifact_key(what: str, name: str) -> str:
    """Prefect's artifact keys take lower-case letters, digits and dashes."""
    kept = "".join(mark if mark.isascii() and mark.isalnum() else "-" for mark in name.lower())
    return f"{what}-{kept}"
