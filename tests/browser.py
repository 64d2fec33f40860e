"""A headless Chromium through ChromeDriver's HTTP interface: what a page logs, asks for and measures."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-color-profile=srgb",
]  # fmt: skip


def missing() -> str | None:
    """Why no browser can be started, or None."""
    gone = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(gone)} not installed (apt-get install chromium chromium-driver)" if gone else None


@dataclass(frozen=True)
class Seen:
    """What happened when a page was opened."""

    console: list[str]
    requests: list[str]
    scroll_width: int
    client_width: int
    overflowing: list[str]
    height: int
    png: bytes


class Browser:
    """One session; every call is one HTTP request to ChromeDriver."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.session = ""

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body if body is not None else {}).encode() if method == "POST" else None
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def cdp(self, command: str, **params: Any) -> Any:
        return self.call("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": params})

    def script(self, text: str) -> Any:
        return self.call("POST", f"{self.session}/execute/sync", {"script": text, "args": []})

    def log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("POST", f"{self.session}/se/log", {"type": kind})
        return found

    def see(self, page: Path, width: int, dark: bool, shot: bool = False) -> Seen:
        """Open a file at a width in CSS pixels, light or dark."""
        self.log("browser"), self.log("performance")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("POST", f"{self.session}/url", {"url": page.resolve().as_uri()})
        root = "document.documentElement"
        inside = (
            "const w = document.documentElement.clientWidth; const bad = [];"
            "for (const e of document.querySelectorAll('body *')) { if (e.closest('.scroll, svg')) continue;"
            "const r = e.getBoundingClientRect(); if (r.right > w + 0.5) bad.push(e.tagName + '.' + e.className); } return bad;"
        )
        overflowing = self.script(inside)
        height = self.script(f"return {root}.scrollHeight")
        png = b""
        if shot:
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            png = base64.b64decode(self.cdp("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"])
        events = [json.loads(e["message"])["message"] for e in self.log("performance")]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        asked = [p["request"]["url"] for p in sent if p["documentURL"].startswith(page.resolve().as_uri())]
        return Seen(
            console=[e["message"] for e in self.log("browser")],
            requests=[u for u in asked if not u.startswith(("data:", page.resolve().as_uri()))],
            scroll_width=self.script(f"return {root}.scrollWidth"),
            client_width=self.script(f"return {root}.clientWidth"),
            overflowing=overflowing,
            height=height,
            png=png,
        )


@contextmanager
def browser() -> Iterator[Browser]:
    """A started browser with an empty profile; ended afterwards."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        b = Browser(port)
        try:
            for _ in range(100):
                try:
                    if b.call("GET", "/status")["ready"]:
                        break
                except OSError:
                    time.sleep(0.1)
            options = {
                "goog:chromeOptions": {
                    "binary": shutil.which("chromium"),
                    "args": [*FLAGS, f"--user-data-dir={profile}"],
                },
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            made = b.call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
            b.session = f"/session/{made['sessionId']}"
            yield b
            b.call("DELETE", b.session)
        finally:
            driver.terminate()
            driver.wait(timeout=10)
