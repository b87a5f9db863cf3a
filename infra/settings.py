"""Where this machine keeps things: read from the environment when asked, never at import.

TUNEFLEET_STORE          the store's root, a folder or s3://bucket/prefix (default: .tunefleet in the current folder)
TUNEFLEET_CACHE          local copies and scratch of a remote store (default: ~/.cache/tunefleet)
TUNEFLEET_DASHBOARD_URL  where people open the dashboard of the store above (default: the file in the store)
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.storage import Store

PROJECT = Path(__file__).resolve().parents[1]


def default_store() -> str:
    return os.environ.get("TUNEFLEET_STORE") or ".tunefleet"


def dashboard_url() -> str | None:
    """The address of the default store's dashboard, if somebody gave one."""
    return os.environ.get("TUNEFLEET_DASHBOARD_URL") or None


def cache_folder() -> Path:
    return Path(os.environ.get("TUNEFLEET_CACHE") or "~/.cache/tunefleet").expanduser().absolute()


def scratch_folder(store: "Store") -> Path:
    """Local disk for work in progress; inside a local store, so that finished files move without a copy."""
    return Path(store.root) / "work" if store.is_local else cache_folder() / "work"


def enter_project() -> dict[str, str]:
    """A pull step of the deployments: Prefect makes "directory" the working directory of the flow run."""
    return {"directory": str(PROJECT)}
