"""A web server of one folder that can do what servers do to downloads: drop them, ignore parts, change files, lie."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.helpers.http_servers import Quiet

PIECE = 1 << 16


@dataclass(slots=True)
class FolderServer:
    """What is served, how, and what was asked.

    ``cuts``: by name, after how many bytes each next body ends without a word. ``hold``: by name, after how many bytes
    a body waits until ``go_on`` is set. ``sends``: by name, bytes in place of the file's, of its length and tag.
    """

    files: dict[str, bytes]
    ranges: bool = True
    tags: bool = True
    heads: bool = True
    cuts: dict[str, list[int]] = field(default_factory=dict)
    hold: dict[str, int] = field(default_factory=dict)
    sends: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    change_after: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    conditions: list[str | None] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    gone: bool = False
    url: str = ""

    def bodies(self, name: str) -> list[str | None]:
        """Parts of a file that were asked for, with GET."""
        return [part for method, asked, part in self.asked if method == "GET" and asked == name]

    def tag(self, name: str) -> str:
        """Of what lies there now."""
        return f'"{hashlib.md5(self.files[name]).hexdigest()}"'


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder's files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Handler(Quiet):
    """Answers for one folder."""

    protocol_version = "HTTP/1.1"
    state: FolderServer
    name: str

    def do_HEAD(self) -> None:  # noqa: N802 - the handler's
        self._answer(body=False)

    def do_GET(self) -> None:  # noqa: N802 - the handler's
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        asked = self.path.partition("?")[0].removeprefix(f"/{self.name}/")
        part = self.headers.get("Range")
        self.state.asked.append((self.command, asked, part))
        if self.state.gone:
            self.close_connection = True
            return
        status = self.state.statuses.get(asked)
        if not body and not self.state.heads:
            status = 405
        if status is not None or asked not in self.state.files:
            self.send_response(status or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send(asked, part, body=body)

    def _send(self, asked: str, part: str | None, *, body: bool) -> None:
        data, tag = self.state.files[asked], self.state.tag(asked)
        start = 0
        condition = self.headers.get("If-Range")
        if part is not None:
            self.state.conditions.append(condition)
        if self.state.ranges and part is not None and condition in (None, tag):
            start = int(part.removeprefix("bytes=").partition("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if self.state.tags:
            self.send_header("ETag", tag)
        for key, value in self.state.headers.get(asked, {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self._pour(asked, self.state.sends.get(asked, data)[start:])

    def _pour(self, asked: str, data: bytes) -> None:
        cuts = self.state.cuts.get(asked, [])
        cut = cuts.pop(0) if cuts else None
        if cut is not None:
            data = data[:cut]
        for place in range(0, len(data), PIECE):
            if asked in self.state.hold and place >= self.state.hold[asked] and not self.state.go_on.is_set():
                self.wfile.flush()
                self.state.held.set()
                self.state.go_on.wait(30)
            try:
                self.wfile.write(data[place : place + PIECE])
            except OSError:
                self.close_connection = True
                return
        if asked in self.state.change_after:
            self.state.files[asked] = self.state.change_after.pop(asked)
        if cut is not None:
            self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def serving_folder(files: dict[str, bytes], name: str = "model") -> Iterator[FolderServer]:
    """Serve files at ``/NAME/``, until the block ends."""
    state = FolderServer(files=dict(files))

    handler = type("Handler", (Handler,), {"state": state, "name": name})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}/{name}"
        try:
            yield state
        finally:
            # Those who are connected would be answered on.
            state.gone = True
            state.go_on.set()
            server.shutdown()
            thread.join()
