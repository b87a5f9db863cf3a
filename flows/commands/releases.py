"""Verbs that look at releases and move their channels."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.commands.dashboards import build_dashboard
from flows.commands.options import AsJson, StoreOption
from infra.errors import RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from infra.storage import Store
    from tasks.registry.channels import Promotion

EndpointUrl = Annotated[str | None, Parameter(help="address of an S3-compatible server, for s3://")]


def list_releases(
    name: Annotated[str | None, Parameter(name="NAME", help="only releases of this adapter")] = None,
    *,
    store: StoreOption = None,
    json_: AsJson = False,
) -> int:
    """List the releases of a store: verdict, gain, channels, where they went.

    Example: tunefleet list iso-dates
    """
    from tasks.registry.overview import overview

    opened = _store(store)
    rows = overview(opened, name)
    if json_:
        print(json.dumps(rows, ensure_ascii=False))
        return 0
    from tasks.registry.tables import print_releases

    if rows:
        print_releases(rows, _console())
    else:
        print(f"nothing was released from {opened.root} yet")
    return 0


def show_release(
    release: Annotated[
        str, Parameter(name="RELEASE", help="NAME@VERSION, or where one stands: a folder, s3://..., hf://ORG/NAME")
    ],
    *,
    endpoint_url: EndpointUrl = None,
    store: StoreOption = None,
    json_: AsJson = False,
) -> int:
    """Show where a release comes from: rows, recipe, base, commit, libraries, and every verdict.

    Example: tunefleet show iso-dates@v3
    """
    from tasks.registry.verify import is_label

    if not is_label(release):
        return _show_published(release, endpoint_url, json_)
    from tasks.registry.lineage import lineage
    from tasks.registry.records import find

    opened = _store(store)
    found = lineage(opened, find(opened, release))
    if json_:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    from tasks.registry.tables import print_lineage

    print_lineage(found, _console())
    return 0


def _show_published(uri: str, endpoint_url: str | None, json_: bool) -> int:
    from tasks.registry.verify import read_manifests

    manifests = read_manifests(uri, endpoint_url)
    if json_:
        print(json.dumps(manifests))  # in ASCII: a stranger's manifest may hold what a terminal acts on
        return 0
    from tasks.registry.tables import print_published

    for manifest in manifests:
        print_published(manifest, _console())
    return 0


def promote_release(
    release: Annotated[str, Parameter(name="RELEASE", help="NAME@VERSION")],
    *,
    to: Annotated[str, Parameter(help="the channel that is to lead to it")] = "stable",
    reason: Annotated[str | None, Parameter(help="kept with the move")] = None,
    store: StoreOption = None,
    json_: AsJson = False,
) -> int:
    """Let a channel lead to a release, in every place that holds what its channel leads to, and in the store.

    Example: tunefleet promote iso-dates@v3 --to stable
    """
    from tasks.registry.channels import promote
    from tasks.registry.records import find

    opened = _store(store)
    record = find(opened, release)
    _moved(record.name, to, promote(opened, record, to, reason=reason), json_)
    build_dashboard(opened.root, json_)
    return 0


def rollback_release(
    name: Annotated[str, Parameter(name="NAME", help="of the adapter")],
    *,
    channel: Annotated[str, Parameter(help="the channel to take back")] = "stable",
    store: StoreOption = None,
    json_: AsJson = False,
) -> int:
    """Take a channel back to the release that stood before, wherever that one still stands.

    Exits with 1 if the channel still leads somewhere to what is taken back. Example: tunefleet rollback iso-dates
    """
    from tasks.registry.channels import rollback

    opened = _store(store)
    done = rollback(opened, name, channel)
    _moved(name, channel, done, json_)
    build_dashboard(opened.root, json_)
    for place in done.behind:
        print(f"error: {channel} of {name} was not taken back in {place}", file=sys.stderr)
    return 1 if done.behind else 0


def verify_release(
    uri: Annotated[
        str,
        Parameter(name="URI", help="NAME@VERSION, a folder, s3://bucket/prefix, hf://ORG/NAME, or a channel's .json"),
    ],
    *,
    endpoint_url: EndpointUrl = None,
    store: StoreOption = None,
    json_: AsJson = False,
) -> int:
    """Hash everything again: all that a release came from and every place where it stands, or one place.

    Exits with 1 if anything is missing or altered. Example: tunefleet verify iso-dates@stable
    """
    from dataclasses import asdict

    from tasks.registry.verify import is_label, require_whole, verify

    findings = verify(uri, _store(store) if is_label(uri) else None, endpoint_url)
    if json_:
        print(json.dumps([asdict(one) for one in findings], ensure_ascii=False))
    else:
        from tasks.registry.tables import print_findings

        print_findings(findings, _console())
    require_whole(findings)
    return 0


def collect_garbage(
    *,
    dry_run: Annotated[bool, Parameter(negative=(), help="only say what would go")] = False,
    older_than: Annotated[float, Parameter(help="days; what was made or used since then stays")] = 1.0,
    keep_runs: Annotated[int | None, Parameter(help="only what the newest so many runs refer to; else all")] = None,
    store: StoreOption = None,
    json_: AsJson = False,
) -> int:
    """Delete what neither a release nor a finished run refers to, and what stopped runs left.

    Example: tunefleet gc --dry-run
    """
    from dataclasses import asdict

    from tasks.registry.collect import delete, find_garbage

    opened = _store(store)
    found = find_garbage(opened, older_than_days=older_than, keep_runs=keep_runs)
    gone = found if dry_run else [one for one in found if delete(opened, one)]
    if json_:
        print(json.dumps({"dry_run": dry_run, "garbage": [asdict(one) for one in gone]}, ensure_ascii=False))
        return 0
    from tasks.registry.tables import print_garbage

    print_garbage(gone, _console())
    print("nothing was deleted" if dry_run else f"deleted from {opened.root}")
    return 0


def _moved(name: str, channel: str, done: "Promotion", json_: bool) -> None:
    """Say what moved. Places that were left are warnings: they are the reader's to decide on."""
    for one in done.left:
        print(f"warning: {one}", file=sys.stderr)
    if json_:
        answer: dict[str, Any] = {"name": name, "channel": channel, "before": done.before, **done.move.model_dump()}
        print(json.dumps({**answer, "moved": done.moved, "left": done.left, "behind": done.behind}, ensure_ascii=False))
        return
    before = f"v{done.before}" if done.before else "nothing"
    if done.before == done.move.number:
        print(f"{channel} of {name} stands at v{done.move.number} already")
    else:
        print(f"{channel} of {name}: from {before} to v{done.move.number}")
    for place in done.moved:
        print(f"  leads to it in {place}")


def _store(store: str | None) -> "Store":
    from pathlib import Path

    from infra.settings import default_store
    from infra.storage import Store

    opened = Store(store or default_store())
    if opened.is_local and not Path(opened.root).is_dir():
        raise RequestError(f"there is no store at {opened.root}; name the one of your runs with --store.")
    return opened


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)
