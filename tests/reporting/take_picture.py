"""The README's picture of the dashboard, taken by a headless Chromium.

    python -m tests.reporting.take_picture STORE docs/dashboard.png [ADDRESS]

The page is built from the store and opened at ADDRESS (default: #/fleet), light and 1280 pixels wide. Kept is all down
to the end of its first chart or table: further down the page names the store's folder, which is nobody's concern.
"""

import sys
import tempfile
from pathlib import Path

from infra.storage import Store
from tasks.reporting.dashboard import rebuild
from tests.reporting.browser import browser

WIDTH, MOST = 1280, 300_000  # pixels; bytes


def take(store: str, output: str, address: str = "#/fleet") -> None:
    with tempfile.TemporaryDirectory() as folder, browser() as page:
        built = rebuild(Store(store), f"{folder}/index.html", single_file=True)
        page.look(width=WIDTH)
        page.open(Path(built.page).as_uri() + address)
        page.run("document.documentElement.style.overflow = 'hidden'")  # no room for a scroll bar
        end = page.run("document.querySelector('main figure, main .table').getBoundingClientRect().bottom")
        picture = page.screenshot(Path(output), most=end + 20)
    if picture.stat().st_size > MOST:
        raise SystemExit(f"{output} has {picture.stat().st_size:,} bytes; allowed are {MOST:,}.")
    print(output)


if __name__ == "__main__":
    take(*sys.argv[1:])
