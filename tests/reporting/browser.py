"""A headless Chromium for the page's tests, spoken to over its DevTools protocol: no driver, no download of a browser.

Debian's package is used; if it is missing it is installed where that is allowed, else the tests say so and are skipped.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WAIT = 30.0  # seconds for the browser to start, and for a condition of the page to hold
INSTALL = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]


def chromium() -> str:
    """The path of a Chromium; the test is skipped, with the reason, if there is none and none can be installed."""
    if found := next((path for name in NAMES if (path := shutil.which(name))), None):
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip(f"no Chromium here, and only root of a Debian can install it: {' '.join(INSTALL)}")
    for command in (["apt-get", "update"], INSTALL):
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if done.returncode or not (found := shutil.which("chromium")):
        pytest.skip(f"{' '.join(INSTALL)} failed: {done.stderr[-300:]}")
    return found


class Page:
    """One tab, and everything it complained of or asked for."""

    def __init__(self, socket: ClientConnection):
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []  # console errors, exceptions, refused by the policy
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # as if somebody looked at it

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT))
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:600])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert", "warning"):
            self.complaints.append(json.dumps(params["args"])[:600])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a JavaScript condition holds."""
        late = time.monotonic() + WAIT
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < late, f"never came true: {condition}; {self.complaints}; {self.text()[:500]}"
            time.sleep(0.03)

    def open(self, url: str) -> None:
        """Load a page anew, and wait until its first view stands."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.until("document.body && document.body.dataset.shown !== undefined")

    def go(self, route: str) -> str:
        """Follow a route within the page; the text of its view."""
        self.run(f"location.hash = {json.dumps(route)}")
        self.until(f"document.body.dataset.shown === {json.dumps(route)}")
        return self.text()

    def text(self) -> str:
        """What a reader sees of the view."""
        return str(self.run("(document.querySelector('main') ?? document.body)?.innerText ?? ''"))

    def click(self, words: str, *, within: str = "body") -> None:
        """Click the first button with exactly these words."""
        found = f"[...document.querySelector({json.dumps(within)}).querySelectorAll('button')]"
        self.run(f"{found}.find(one => one.textContent === {json.dumps(words)}).click()")

    def choose(self, selector: str, value: str, event: str = "change") -> None:
        """Give a field a value, as a person would."""
        self.run(
            f"(box => {{ box.value = {json.dumps(value)}; box.dispatchEvent(new Event({json.dumps(event)})) }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False, printed: bool = False) -> None:
        """Another window size or colour scheme, or as it would be printed."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features, media="print" if printed else "")
        time.sleep(0.4)  # the page draws its charts anew

    def screenshot(self, path: Path, *, most: float = 6000) -> Path:
        """The whole page, up to so many pixels of its height."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], most), "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a fresh profile; the browser is ended with the test."""
    with tempfile.TemporaryDirectory(prefix="tunefleet-browser-", ignore_cleanup_errors=True) as profile:
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--lang=en-US")
        command = [chromium(), *flags, *quiet, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_address(Path(profile), process), max_size=None, open_timeout=WAIT) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(timeout=WAIT)


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    import urllib.request

    late = time.monotonic() + WAIT
    while time.monotonic() < late:
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        try:
            port = (profile / "DevToolsActivePort").read_text().split("\n")[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{int(port)}/json/list") as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        except (OSError, ValueError):
            pass
        time.sleep(0.05)
    raise AssertionError("Chromium did not open its DevTools in time")
