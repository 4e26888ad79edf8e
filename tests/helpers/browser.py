"""Control Chromium by its driver, with the part of the W3C WebDriver protocol that the tests need."""

import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def _find_program(*names: str) -> str | None:
    """Path of the first of these programs that is installed, or None."""
    return next(filter(None, map(shutil.which, names)), None)


CHROMIUM = _find_program("chromium", "chromium-browser", "google-chrome")
DRIVER = _find_program("chromedriver")
MISSING = [name for name, path in (("chromium or google-chrome", CHROMIUM), ("chromedriver", DRIVER)) if not path]
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for a reference to an element


class Browser:
    """A browser session with a screen of `width` x `height` pixels.

    Selectors are CSS selectors. If the driver fails, for example without such an element, it raises
    urllib.error.HTTPError.
    """

    def __init__(self, url: str, width: int, height: int):
        self.url = url
        screen = {
            "width": width,
            "height": height,
            "pixelRatio": 1,
            "touch": False,
        }  # a window is at least 500 pixels wide
        chrome = {"binary": CHROMIUM, "args": ARGUMENTS, "mobileEmulation": {"deviceMetrics": screen}}
        options = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self.url += f"/session/{session['sessionId']}"

    def ask(self, method: str, path: str, value: dict | None = None) -> Any:
        body = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["value"]

    def open(self, path: Path) -> None:
        self.ask("POST", "/url", {"url": path.as_uri()})

    def find(self, selector: str) -> str:
        reference = self.ask("POST", "/element", {"using": "css selector", "value": selector})
        return f"/element/{reference[ELEMENT]}"

    def click(self, selector: str) -> None:
        self.ask("POST", f"{self.find(selector)}/click", {})

    def write(self, selector: str, text: str) -> None:
        self.ask("POST", f"{self.find(selector)}/value", {"text": text})

    def text(self, selector: str) -> str:
        return self.ask("GET", f"{self.find(selector)}/text")

    def run(self, script: str) -> Any:
        return self.ask("POST", "/execute/sync", {"script": script, "args": []})

    def log(self) -> list[dict]:
        """Messages of the console."""
        return self.ask("POST", "/se/log", {"type": "browser"})


@contextmanager
def browser(width: int, height: int = 900) -> Iterator[Browser]:
    """Yield a `Browser`. Without Chromium the test is skipped; on GitHub it fails."""
    if MISSING:
        (pytest.fail if os.environ.get("GITHUB_ACTIONS") else pytest.skip)(f"not installed: {', '.join(MISSING)}")
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = next(match for line in driver.stdout if (match := re.search(r"successfully on port (\d+)", line)))
        session = Browser(f"http://127.0.0.1:{port[1]}", width, height)
        try:
            yield session
        finally:
            session.ask("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()
