"""The verb that releases what a run made."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flows.commands.dashboards import build_dashboard
from flows.commands.options import AsJson, StoreOption
from flows.commands.recipes import quiet_prefect
from infra.errors import RequestError

if TYPE_CHECKING:
    from tasks.recipe.schema import Destination

Artifact = Literal["adapter", "merged", "gguf", "report"]


def publish(
    run: Annotated[str, Parameter(name="RUN", help="a run's id, or latest")],
    adapters: Annotated[tuple[str, ...], Parameter(name="ADAPTER", help="all that passed, if none is named")] = (),
    *,
    to: Annotated[
        tuple[str, ...], Parameter(negative=(), help="folder, s3://bucket/prefix or hf://ORG/PREFIX; else the recipe's")
    ] = (),
    endpoint_url: Annotated[str | None, Parameter(help="address of an S3-compatible server, for s3://")] = None,
    what: Annotated[tuple[Artifact, ...], Parameter(negative=(), help="which of them; else the recipe's")] = (),
    channel: Annotated[str | None, Parameter(help="channel to move to it; else the recipe's")] = None,
    override: Annotated[str | None, Parameter(help="a reason to release without a PASS; it is recorded")] = None,
    store: StoreOption = None,
    json_: AsJson = False,
) -> int:
    """Publish adapters of a finished run, to its recipe's places or to others.

    Example: tunefleet publish latest iso-dates --to s3://models/fleet --what adapter --what merged
    """
    quiet_prefect()
    from flows.publish_adapters import publish_adapters
    from infra.settings import default_store

    if endpoint_url and not any(one.startswith("s3://") for one in to):
        raise RequestError("--endpoint-url is for s3:// places, and --to names none.")
    places = [_place(one, endpoint_url) for one in to]
    answer = publish_adapters(run, adapters, store=store, what=what, to=places, channel=channel, override=override)
    if json_:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        for one in answer["adapters"]:
            print(f"{one['release'] or one['name']}: {one['error'] or 'published'}")
            for place in one["published"]:
                print(f"  {place['what']}: {place['uri']}" + (f" at {place['revision']}" if place["revision"] else ""))
    build_dashboard(store or default_store(), json_)
    return 1 if any(one["error"] for one in answer["adapters"]) else 0


def _place(uri: str, endpoint_url: str | None) -> "Destination":
    """The destination that `uri` names."""
    from pydantic import ValidationError

    from tasks.recipe.schema import Destination

    allowed = "Allowed: a folder, s3://bucket/prefix, hf://ORG/PREFIX."
    try:
        if uri.startswith("s3://"):
            return Destination(s3=uri, endpoint_url=endpoint_url)
        if uri.startswith("hf://"):
            return Destination(hub=uri.removeprefix("hf://"))
    except ValidationError as error:  # the address is not repeated: a password may stand in it
        raise RequestError(f"--to: {'; '.join(one['msg'] for one in error.errors())}. {allowed}") from error
    if "://" in uri:
        raise RequestError(f"--to {uri.partition('://')[0]}://...: no such kind of place. {allowed}")
    return Destination(folder=uri)
