"""The verb that shows the results of all runs."""

import sys
from typing import Annotated

from cyclopts import Parameter

from flows.commands.options import StoreOption
from infra.errors import RequestError, TunefleetError


def dashboard(
    *,
    store: StoreOption = None,
    output: Annotated[
        str | None, Parameter(help="folder or .html file, local or s3://; default the store's dashboard/")
    ] = None,
    serve: Annotated[
        bool, Parameter(negative=(), help="serve it on this machine, built anew when results change")
    ] = False,
    port: Annotated[int, Parameter(help="of --serve; 0 takes a free one")] = 8800,
    single_file: Annotated[
        bool | None, Parameter(negative="--many-files", help="all data in the page; default for small fleets")
    ] = None,
) -> int:
    """Build one page of all results in a store: fleet, learned against forgotten, every adapter, releases, the bench.

    Prints the page's place. It opens from a disk, a web server, a bucket or a static Space, and asks nothing of others.

    Example: tunefleet dashboard --serve
    """
    if not 0 <= port <= 65535:
        raise RequestError(f"--port is {port}; allowed are 0 to 65535.")
    from infra.settings import default_store
    from infra.storage import Store
    from tasks.reporting.dashboard import rebuild
    from tasks.reporting.page.serving import serve_dashboard

    opened = Store(store or default_store())
    if serve:
        serve_dashboard(opened, output, single_file=single_file, port=port)
        return 0
    built = rebuild(opened, output, single_file=single_file)
    for warning in built.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    beside = f", {built.files} data files beside it" if built.files else ""
    print(f"{built.adapters} adapters, {built.size / 1e6:.1f} MB{beside}", file=sys.stderr)
    print(built.page)
    return 0


def build_dashboard(store: str, json_: bool) -> None:
    """Build the store's dashboard and say where it is; what was done before counts, whatever comes of it.

    With `json_`, standard output is left to the answer.
    """
    from infra.storage import Store
    from tasks.reporting.dashboard import rebuild

    try:
        built = rebuild(Store(store), None, single_file=None)
    except Exception as error:  # noqa: BLE001 - whatever it was, the command's exit code is not concerned
        said = error if isinstance(error, TunefleetError) else f"{type(error).__name__}: {error}"
        print(f"warning: the dashboard was not built: {said}", file=sys.stderr)
        return
    for warning in built.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"dashboard: {built.page}", file=sys.stderr if json_ else sys.stdout)
