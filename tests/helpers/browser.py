"""Chromium by its own driver: as much of the W3C WebDriver protocol as the tests use."""

import json
import re
import shutil
import subprocess
import urllib.request
from contextlib import contextmanager

MISSING = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
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
    """One session of a browser."""

    def __init__(self, url, width, height):
        self.url = url
        screen = {"width": width, "height": height, "pixelRatio": 1, "touch": False}  # a window has 500 pixels at least
        chrome = {"binary": shutil.which("chromium"), "args": ARGUMENTS, "mobileEmulation": {"deviceMetrics": screen}}
        options = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self.url += f"/session/{session['sessionId']}"

    def ask(self, method, path, value=None):
        body = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["value"]

    def open(self, path):
        self.ask("POST", "/url", {"url": path.as_uri()})

    def find(self, selector):
        found = self.ask("POST", "/element", {"using": "css selector", "value": selector})
        return f"/element/{found[ELEMENT]}"

    def click(self, selector):
        self.ask("POST", f"{self.find(selector)}/click", {})

    def write(self, selector, text):
        self.ask("POST", f"{self.find(selector)}/value", {"text": text})

    def text(self, selector):
        return self.ask("GET", f"{self.find(selector)}/text")

    def run(self, script):
        return self.ask("POST", "/execute/sync", {"script": script, "args": []})

    def log(self):
        """What the console said."""
        return self.ask("POST", "/se/log", {"type": "browser"})


@contextmanager
def browser(width, height=900):
    """A `Browser`, ended with its block."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        port = next(found for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        session = Browser(f"http://127.0.0.1:{port[1]}", width, height)
        try:
            yield session
        finally:
            session.ask("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()
