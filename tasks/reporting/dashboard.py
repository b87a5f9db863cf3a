"""The dashboard of a store's results: one page, or for a large fleet a page with its data in files beside it.

Both open from a disk, a web server, a bucket or a static Space. Data files carry their content's digest in their
names, so that a page never reads those of another build; the page itself is written last.
"""

import io
import re
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from infra.errors import RequestError
from infra.files import Files
from infra.hashing import SHORT, digest_stream
from infra.storage import Store
from tasks.reporting.page.content import parts_of
from tasks.reporting.page.shell import data_file, render
from tasks.reporting.queries import open_results

FOLDER = "dashboard"
PAGE = "index.html"
DATA = "data"
SMALL = 3_000_000  # characters of JSON that one page may hold; the page has to stay below 5 MB
OURS = re.compile(r"(fleet|tradeoff|heat|history|bench|adapters)(-\d+)?-[0-9a-f]{12}\.js")
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
TITLE = "Tunefleet results"


class Built(NamedTuple):
    page: str  # its path or URI
    made: str  # when; an open page knows by it whether it is the newest
    files: int  # beside it
    size: int  # bytes of the page
    adapters: int
    warnings: tuple[str, ...]


def build_dashboard(
    store: Store, output: str | None = None, *, single_file: bool | None = None, watch: float | None = None
) -> Built:
    """Write the dashboard to `output`, a folder or an .html file, local or s3:// (default: <store>/dashboard).

    `single_file` keeps all data in the page, or none of it; None decides by their size. A page that is served asks
    every `watch` seconds whether it was built anew. RequestError if `output` cannot be written.
    """
    folder, page = _target(store, output)
    if single_file is None and page != PAGE:
        single_file = True
    target = _Target(folder, page, single_file)
    with open_results(store) as results:
        rows = results.fleet()
        for name, text in parts_of(results, rows):
            target.add(name, text)
        warnings = tuple(results.warnings)
    made = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    size = target.finish(store.root, warnings, made=made, watch=watch)
    return Built(f"{folder.root}/{page}", made, len(target.files), size, len(rows), warnings)


def _target(store: Store, output: str | None) -> tuple[Files, str]:
    place = output or f"{store.root}/{FOLDER}"
    if not place.endswith(".html"):
        return Files(place), PAGE
    parent, _, page = place.rpartition("/")
    return Files(parent or "."), page


class _Target:
    """Where parts go: kept while they are few, written beside the page as soon as they are too many."""

    def __init__(self, folder: Files, page: str, single_file: bool | None):
        self.folder, self.page, self.single_file = folder, page, single_file
        self.kept: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.beside = single_file is False
        self.size = 0

    def add(self, name: str, text: str) -> None:
        self.size += len(text)
        if self.single_file is None and self.size > SMALL:
            self.beside = True
        self.kept[name] = text
        if self.beside:
            for one, content in self.kept.items():
                data = data_file(one, content)
                self.files[one] = f"{DATA}/{one}-{digest_stream(io.BytesIO(data))[:SHORT]}.js"
                self._write(self.files[one], data)
            self.kept = {}

    def finish(self, store: str, warnings: tuple[str, ...], *, made: str, watch: float | None) -> int:
        """Write the page, and remove data files of earlier builds; bytes of the page."""
        site: dict[str, Any] = {"made": made, "title": TITLE, "files": self.files, "watch": watch}
        page = render(site, title=TITLE, store=store, warnings=warnings, inlined=self.kept).encode("utf-8", "replace")
        self._write(self.page, page)
        if self.page == PAGE:
            mine = {PurePosixPath(path).name for path in self.files.values()}
            for name in self.folder.list_names(DATA):
                if name not in mine and OURS.fullmatch(name):
                    self.folder.fs.rm_file(f"{self.folder.root}/{DATA}/{name}")
        return len(page)

    def _write(self, path: str, data: bytes) -> None:
        uri = f"{self.folder.root}/{path}"
        try:
            if not self.folder.is_local:  # browsers go by the type that a bucket tells them
                self.folder.fs.pipe_file(uri, data, ContentType=TYPES[PurePosixPath(path).suffix])
            elif path == self.page:
                self.folder.write(path, data)
            else:  # named by its content, and written anew by each build: no need to wait for the disk
                Path(uri).parent.mkdir(parents=True, exist_ok=True)
                Path(uri).write_bytes(data)
        except Exception as error:  # an OSError, or whatever a bucket's client raises
            raise RequestError(
                f"the dashboard cannot be written to {uri}: {type(error).__name__}: {error}. Give a folder that is "
                "yours, or s3://bucket/prefix, with --output."
            ) from error
