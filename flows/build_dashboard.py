"""Build the dashboard of a store: by hand, or as a deployment after every fleet."""

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact

from infra.settings import default_store
from infra.storage import Store
from tasks.reporting.dashboard import build_dashboard as build
from tasks.reporting.results import fill_in


@flow(name="build-dashboard")
def build_dashboard(store: str | None = None, output: str | None = None, single_file: bool | None = None) -> str:
    """The page's place, in the store if `output` names no other; runs that left no results yet are read anew."""
    log = get_run_logger()
    opened = Store(store or default_store())
    fill_in(opened, log.warning)
    built = build(opened, output, single_file=single_file)
    for warning in built.warnings:
        log.warning("%s", warning)
    create_link_artifact(link=built.page, link_text=f"dashboard of {built.adapters} adapters", key="dashboard")
    return built.page
