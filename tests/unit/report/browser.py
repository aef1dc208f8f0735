"""A headless Chromium driven through chromedriver's own protocol, as far as the report's test needs it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"up": "\ue013", "home": "\ue011"}


def is_there() -> bool:
    return all(shutil.which(name) for name in ("chromium", "chromedriver"))


class Browser:
    """One page in one window."""

    def __init__(self, address: str, session: str) -> None:
        self._base = f"{address}/session/{session}"

    def open(self, address: str) -> None:
        call(f"{self._base}/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        return call(f"{self._base}/execute/sync", {"script": script, "args": list(arguments)})

    def resize(self, width: int, height: int) -> None:
        # A window cannot be as narrow as a phone; the emulated screen can.
        command = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self.command("Emulation.setDeviceMetricsOverride", command)

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        return call(f"{self._base}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def find(self, selector: str) -> str:
        found = call(f"{self._base}/element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    def click(self, selector: str, *, right: int = 0, down: int = 0) -> None:
        """Click at an offset from the middle of an element."""
        origin = {ELEMENT: self.find(selector)}
        move = {"type": "pointerMove", "duration": 0, "x": right, "y": down, "origin": origin}
        press, release = {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}
        mouse = {"type": "pointer", "id": "mouse", "actions": [move, press, release]}
        call(f"{self._base}/actions", {"actions": [mouse]})

    def type(self, selector: str, text: str) -> None:
        """Replace the text of a field, or choose a file by its path."""
        field = f"{self._base}/element/{self.find(selector)}"
        if text.startswith("/"):
            call(f"{field}/value", {"text": text})
            return
        call(f"{field}/clear", {})
        call(f"{field}/value", {"text": text})

    def wheel(self, selector: str, amount: int) -> None:
        origin = {ELEMENT: self.find(selector)}
        scroll = {"type": "scroll", "x": 0, "y": 0, "deltaX": 0, "deltaY": amount, "duration": 0, "origin": origin}
        call(f"{self._base}/actions", {"actions": [{"type": "wheel", "id": "wheel", "actions": [scroll]}]})

    def press(self, key: str) -> None:
        value = KEYS.get(key, key)
        actions = [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        call(f"{self._base}/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def console(self) -> list[str]:
        """Return what was written to the console since the last call; advice on speed is about the test's own looks."""
        entries = call(f"{self._base}/se/log", {"type": "browser"})
        return [str(entry["message"]) for entry in entries if "willReadFrequently" not in entry["message"]]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the last call."""
        entries = call(f"{self._base}/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(call(f"{self._base}/screenshot")))

    def quit(self) -> None:
        call(self._base, method="DELETE")


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile in `folder`, and end it."""
    log = folder / "driver.log"
    with log.open("w") as stream:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=stream, stderr=stream)
    try:
        address = _address(log)
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {
                "binary": shutil.which("chromium"),
                "args": [*FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1200,1000"],
            },
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = call(f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        browser = Browser(address, session)
        try:
            yield browser
        finally:
            browser.quit()
    finally:
        driver.terminate()
        driver.wait()


def call(url: str, body: Any = None, *, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the driver is on this machine
    with opener.open(request, timeout=60) as answer:
        return json.loads(answer.read())["value"]


def _address(log: Path) -> str:
    for _ in range(200):
        words = log.read_text().split("successfully on port ")
        if len(words) > 1:
            return f"http://127.0.0.1:{words[1].split('.')[0].strip()}"
        time.sleep(0.05)
    raise AssertionError(f"chromedriver did not start: {log.read_text()}")
