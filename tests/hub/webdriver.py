"""A browser without a window, through the WebDriver interface of chromedriver."""

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1100"]


def find_browser() -> tuple[str, str] | None:
    """Paths of Chromium and of its driver, or `None`."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """Context manager: one page."""

    def __init__(self, port: int):
        self.base = f"http://127.0.0.1:{port}"
        browser, driver = find_browser()
        self.process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.options = {"binary": browser, "args": OPTIONS}

    def __enter__(self) -> "Browser":
        wait_for(lambda: self.call("GET", "/status")["ready"], 60, "chromedriver does not start")
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": self.options}}
        session = self.call("POST", "/session", {"capabilities": capabilities})
        self.base += f"/session/{session['sessionId']}"
        return self

    def __exit__(self, *error) -> None:
        try:
            self.call("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait(30)

    def call(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        body = None if method == "GET" else json.dumps(content or {}).encode()
        request = urllib.request.Request(self.base + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read())["value"]

    def open(self, address: str) -> None:
        self.call("POST", "/url", {"url": address})

    def find(self, selector: str, seconds: float = 60) -> str:
        """The first element of a CSS selector, once it is there."""

        def look() -> str:
            return self.call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

        return wait_for(look, seconds, f"there is no {selector}")

    def write(self, selector: str, text: str) -> None:
        """Types into an element; a path into a file input."""
        self.call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))


def wait_for(look, seconds: float, message: str) -> Any:
    """What `look` gives, once it gives something and does not fail."""
    end = time.monotonic() + seconds
    while True:
        try:
            found = look()
            if found:
                return found
        except (OSError, urllib.error.URLError, KeyError):
            found = None
        if time.monotonic() > end:
            raise TimeoutError(message)
        time.sleep(0.2)
