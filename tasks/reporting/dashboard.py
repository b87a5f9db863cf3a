"""The dashboard of a store's results: one page, or for a large fleet a page with its data in files beside it.

Both open from a disk, a web server, a bucket or a static Space. Data files carry their content's digest in their
names, so that a page never reads those of another build; the page itself is written last.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from infra.errors import RequestError
from infra.files import Files
from infra.hashing import SHORT, digest_stream
from infra.redaction import without_secrets
from infra.storage import Store
from tasks.reporting.page.content import parts_of
from tasks.reporting.page.data_files import DATA, DataFiles, write
from tasks.reporting.page.shell import data_file, in_page, render
from tasks.reporting.queries import open_results
from tasks.reporting.results import fill_in

FOLDER = "dashboard"
PAGE = "index.html"
SMALL = 3_000_000  # bytes of JSON that one page may hold; the page has to stay below 5 MB
TITLE = "Tunefleet results"


class Built(NamedTuple):
    page: str  # its path or URI
    made: str  # when; an open page knows by it whether it is the newest
    files: int  # beside it
    size: int  # bytes of the page
    adapters: int
    warnings: tuple[str, ...]


def build_dashboard(
    store: Store,
    output: str | None = None,
    *,
    single_file: bool | None = None,
    watch: float | None = None,
    told: Sequence[str] = (),
) -> Built:
    """Write the dashboard to `output`, a folder or an .html file, local or s3:// (default: <store>/dashboard).

    `single_file` keeps all data in the page, or none of it; None decides by their size. A page that is served asks
    every `watch` seconds whether it was built anew. `told` are warnings from before, for the page's foot. RequestError
    if `output` cannot be written.
    """
    folder, page = _target(store, output)
    if single_file is None and page != PAGE:
        single_file = True
    target = _Target(folder, page, single_file)
    with open_results(store) as results:
        rows = results.fleet()
        for name, text in parts_of(results, rows):
            target.add(name, text)
        warnings = tuple(without_secrets(warning) for warning in (*told, *results.warnings))
    made = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    size = target.finish(store.root, warnings, made=made, watch=watch)
    warnings = (*warnings, *map(without_secrets, target.remove_old()))
    return Built(f"{folder.root}/{page}", made, len(target.files), size, len(rows), warnings)


def rebuild(store: Store, output: str | None, *, single_file: bool | None = None) -> Built:
    """The dashboard as the store stands now, with the runs that had left no results yet."""
    told: list[str] = []
    fill_in(store, told.append)
    return build_dashboard(store, output, single_file=single_file, told=told)


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
        self.data = DataFiles(folder)

    def add(self, name: str, text: str) -> None:
        self.size += len(in_page(text))
        if self.single_file is None and self.size > SMALL:
            self.beside = True
        self.kept[name] = text
        if self.beside:
            for one, content in self.kept.items():
                data = data_file(one, content)
                file = f"{one}-{digest_stream(io.BytesIO(data))[:SHORT]}.js"
                self.files[one] = f"{DATA}/{file}"
                with self._told(self.files[one]):
                    self.data.add(file, data)
            self.kept = {}

    def finish(self, store: str, warnings: tuple[str, ...], *, made: str, watch: float | None) -> int:
        """Write the page; its bytes."""
        site: dict[str, Any] = {"made": made, "title": TITLE, "files": self.files, "watch": watch}
        page = render(site, title=TITLE, store=store, warnings=warnings, inlined=self.kept).encode("utf-8", "replace")
        with self._told(self.page):
            self.data.leave(self.page)
            write(self.folder, self.page, page)
        return len(page)

    def remove_old(self) -> list[str]:
        """Why data files of earlier builds stay, if they have to: the page is there all the same."""
        try:
            self.data.remove_old()
        except Exception as error:  # noqa: BLE001 - an OSError, or whatever a bucket's client raises
            return [f"old files in {self.folder.root}/{DATA} are not removed: {type(error).__name__}: {error}"]
        return []

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # an OSError, or whatever a bucket's client raises
            raise RequestError(
                f"the dashboard cannot be written to {self.folder.root}/{path}: {type(error).__name__}: {error}. Give "
                "a folder that is yours, or s3://bucket/prefix, with --output."
            ) from error
