"""Build the dashboard of a store: by hand, or as a deployment after every fleet."""

from prefect import flow, get_run_logger

from infra.settings import default_store
from infra.storage import Store
from tasks.operations.notices import on_crashed, on_failure
from tasks.reporting.dashboard import rebuild
from tasks.reporting.prefect_artifacts import as_url, dashboard_link, leave_dashboard_link


@flow(name="build-dashboard", on_failure=[on_failure], on_crashed=[on_crashed])
def build_dashboard(store: str | None = None, output: str | None = None, single_file: bool | None = None) -> str:
    """The page's place, in the store if `output` names no other; runs that left no results yet are read anew."""
    log = get_run_logger()
    opened = Store(store or default_store())
    built = rebuild(opened, output, single_file=single_file)
    for warning in built.warnings:
        log.warning("%s", warning)
    link = as_url(built.page) if output else dashboard_link(opened.root)
    leave_dashboard_link(link, f"dashboard of {built.adapters} adapters", log.warning)
    return built.page
