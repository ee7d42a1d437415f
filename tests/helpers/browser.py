"""A headless Chromium, driven by its own protocol over a pair of pipes: nothing to install but the browser itself.

https://chromedevtools.github.io/devtools-protocol: what ``Page.send`` takes. Clicks, keys and text are the browser's
own input events, as a hand makes them.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60.0
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "End": 35, "Home": 36}


def browser_path() -> str:
    """Where one is; the test is skipped where there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed, and CHROMIUM names none")
    return found


class Browser:
    """The process and its pipes. Messages are JSON, each ended by a zero byte."""

    def __init__(self, folder: Path) -> None:
        path = browser_path()
        reads_3, self._write = os.pipe()
        self._read, writes_4 = os.pipe()
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--lang=en-GB",
            "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
        # The browser wants its pipes as 3 and 4.
        command = ["bash", "-c", f'exec "$@" 3<&{reads_3} 4>&{writes_4}', "bash", path, *options]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, pass_fds=(reads_3, writes_4), stdout=quiet, stderr=quiet)
        os.close(reads_3)
        os.close(writes_4)
        self._held, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def _next(self, seconds: float) -> dict[str, Any] | None:
        while b"\0" not in self._held:
            if not select.select([self._read], [], [], seconds)[0]:
                return None
            piece = os.read(self._read, 1 << 20)
            assert piece, f"the browser ended with {self.process.wait()}"
            self._held += piece
        text, _, self._held = self._held.partition(b"\0")
        return json.loads(text)

    def send(self, method: str, session: str | None = None, **values: Any) -> dict[str, Any]:
        """Ask the browser for something; its events are kept meanwhile."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        text = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while text:
            text = text[os.write(self._write, text) :]
        end = time.monotonic() + SECONDS
        while (answer := self._next(max(0.0, end - time.monotonic()))) is not None:
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)
        raise AssertionError(f"the browser does not answer {method}")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        os.close(self._read)
        os.close(self._write)

    def page(self, address: str, **emulated: Any) -> Page:
        """A page with cookies and storage of its own."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, address)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.emulate(**emulated)
        page.open()
        return page


class Page:
    """A tab: what is in it, and what a hand does to it."""

    def __init__(self, browser: Browser, session: str, address: str) -> None:
        self._browser, self._session, self._address = browser, session, address

    def send(self, method: str, **values: Any) -> dict[str, Any]:
        """Ask this tab."""
        return self._browser.send(method, self._session, **values)

    def emulate(
        self, *, width: int = 1280, height: int = 800, dark: bool = False, language: str = "en-GB", scale: float = 1
    ) -> None:
        """A screen, a theme of the system's, a reader's language."""
        phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        agent = self._browser.send("Browser.getVersion")["userAgent"]
        self.send("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)

    def open(self) -> None:
        """Load it, anew."""
        self.send("Page.navigate", url=self._address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never: {expression}; {self.run('document.body.innerText')}"
            time.sleep(0.03)

    def place(self, selector: str, number: int = 0) -> tuple[float, float]:
        """The middle of what a hand can reach."""
        name = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        self.wait(f"!!{name}")
        return tuple(
            self.run(
                f"(() => {{ const e = {name}; e.scrollIntoView({{block: 'nearest'}});"
                "const r = e.getClientRects()[0]; const at = [r.x + r.width / 2, r.y + r.height / 2];"
                "const hit = document.elementFromPoint(...at);"
                f"if (!e.contains(hit) && !hit?.contains(e)) throw new Error('covered: ' + hit?.outerHTML);"
                "return at; })()"
            )
        )

    def hover(self, selector: str, number: int = 0) -> None:
        """Point at something."""
        x, y = self.place(selector, number)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str, number: int = 0) -> None:
        """Press the mouse's button on something."""
        x, y = self.place(selector, number)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def type(self, text: str) -> None:
        """Text, to where the cursor is."""
        self.send("Input.insertText", text=text)

    def key(self, name: str, modifiers: int = 0) -> None:
        """A key, down and up. ``modifiers``: 2 is Control, 8 Shift."""
        values = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name], "modifiers": modifiers}
        text = {"text": "\r"} if name == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **values, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **values)

    def events(self, method: str) -> list[dict[str, Any]]:
        """What the browser told of this tab so far."""
        told = self._browser.events
        return [one for one in told if one.get("sessionId") == self._session and one["method"] == method]

    def complaints(self) -> list[str]:
        """What the browser has complained of: errors in scripts, and what the policy kept out."""
        self.run("0")
        found = [str(one["params"]["exceptionDetails"]) for one in self.events("Runtime.exceptionThrown")]
        entries = [one["params"]["entry"] for one in self.events("Log.entryAdded")]
        # A status that is no success is told as an error of the network's; whoever asked has seen it.
        found += [one["text"] for one in entries if one["level"] == "error" and one["source"] != "network"]
        said = [one["params"] for one in self.events("Runtime.consoleAPICalled")]
        return found + [str(one["args"]) for one in said if one["type"] == "error"]

    def requests(self) -> list[str]:
        """Every address it has asked for."""
        return [one["params"]["request"]["url"] for one in self.events("Network.requestWillBeSent")]

    def answer_instead(self, path: str) -> None:
        """Requests to a path wait for :meth:`fulfil`."""
        self.send("Fetch.enable", patterns=[{"urlPattern": f"*{path}"}])

    def fulfil(self, body: str) -> None:
        """Answer the next of them with a stream of events."""
        end = time.monotonic() + SECONDS
        while not (paused := self.events("Fetch.requestPaused")):
            assert time.monotonic() < end, "nothing was asked for"
            self.run("0")
        self._browser.events.remove(paused[0])
        headers = [{"name": "Content-Type", "value": "text/event-stream"}]
        text = base64.b64encode(body.encode()).decode()
        request = paused[0]["params"]["requestId"]
        self.send("Fetch.fulfillRequest", requestId=request, responseCode=200, responseHeaders=headers, body=text)

    def picture(self, path: Path) -> None:
        """A picture of what is seen."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def opened_browser(folder: Path) -> Iterator[Callable[..., Page]]:
    """Makes pages; all of them end with the block."""
    browser = Browser(folder)
    try:
        yield browser.page
    finally:
        browser.close()
