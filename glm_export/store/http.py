"""A folder on a web server, which lists nothing: each file is asked for by its name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import aiohttp
import fsspec
from fsspec.asyn import sync
from fsspec.config import conf

from glm_export.errors import EnvironmentMissingError
from glm_export.store.address import Address
from glm_export.store.remote import BLOCK_BYTES, ChangedError, Remote, patiently

PLAIN = {"Accept-Encoding": "identity"}
"""The bytes of the file: packed ones have another length, and no hash."""
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
"""Of silence, not of a file: aiohttp's own ends each after five minutes."""
ABSENT, NO_HEAD = (404, 410), (405, 501)
LINKED_ETAG, LINKED_SIZE = "X-Linked-Etag", "X-Linked-Size"
"""Of a hub that leads elsewhere: for files in Git LFS the sha256."""
SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class HttpStore:
    """Files under an ``http(s)`` address, over fsspec's session: its configuration, ``.netrc`` and proxies hold."""

    def __init__(self, address: Address) -> None:
        self.address = address
        kwargs = {"trust_env": True, **conf.get(address.scheme, {}).get("client_kwargs", {})}
        self._files: Any = fsspec.filesystem(address.scheme, client_kwargs=kwargs)
        self._session: aiohttp.ClientSession = self._wait(self._files.set_session)

    def _wait(self, call: Any, *args: Any) -> Any:
        try:
            return sync(self._files.loop, call, *args)
        except aiohttp.InvalidURL as error:
            raise EnvironmentMissingError(f"{self.address.told} is no URL that can be asked; mend it") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            # Its errors show the URL, credentials and all, where they have no words of their own.
            raise ConnectionError(f"{type(error).__name__}, {_reason(error)}") from error

    def listed(self) -> None:
        """It cannot."""
        return

    def ask(self, name: str) -> Remote | None:
        """A file by its head, or by the head of its body where a server sends no heads."""
        found: Remote | None = patiently(self.address.tell(name), lambda: self._wait(self._asked, name))
        return found

    async def _asked(self, name: str) -> Remote | None:
        for method in ("HEAD", "GET"):
            async with self._session.request(
                method, self.address.file(name), headers=PLAIN, timeout=TIMEOUT, allow_redirects=True
            ) as answer:
                if answer.status in NO_HEAD and method == "HEAD":
                    continue
                return self._told(name, answer)
        return None

    def _told(self, name: str, answer: aiohttp.ClientResponse) -> Remote | None:
        if answer.status in ABSENT:
            return None
        self._require_done(name, answer)
        for step in (*answer.history, answer):
            linked = SHA256.fullmatch(step.headers.get(LINKED_ETAG, ""))
            if linked is not None:
                return Remote(name=name, size=_number(step.headers.get(LINKED_SIZE)), sha256=linked[1])
        return Remote(name=name, size=_number(answer.headers.get("Content-Length")), version=_version(answer))

    def _require_done(self, name: str, answer: aiohttp.ClientResponse) -> None:
        """See that an answer is one.

        Raises:
            EnvironmentMissingError: it is a refusal.
            ConnectionError: the server cannot just now.
        """
        if answer.status < 300:
            return
        if answer.status >= 500 or answer.status in (408, 425, 429):
            raise ConnectionError(f"the server answers {answer.status}")
        raise EnvironmentMissingError(
            f"{self.address.tell(name)} is answered with {answer.status}, expected the file, or 404 where there is "
            "none; see what may be read there"
        )

    def stream(self, remote: Remote, offset: int) -> tuple[int, Iterator[bytes]]:
        """Bytes from ``offset`` on where the server can and they are the same, else from the start."""
        answer = self._wait(self._begun, remote, offset)
        try:
            start = self._start(remote, answer, offset)
        except BaseException:
            answer.close()
            raise
        return start, self._blocks(answer)

    async def _begun(self, remote: Remote, offset: int) -> aiohttp.ClientResponse:
        headers = dict(PLAIN)
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if remote.sha256 is None and remote.version is not None:
                headers["If-Range"] = remote.version
        return await self._session.get(self.address.file(remote.name), headers=headers, timeout=TIMEOUT)

    def _start(self, remote: Remote, answer: aiohttp.ClientResponse, offset: int) -> int:
        if answer.status == 416 and offset:
            raise ChangedError(f"{self.address.tell(remote.name)} became shorter while it was read; run it again")
        if answer.status in ABSENT:
            raise ChangedError(f"{self.address.tell(remote.name)} is not there, and should be; upload it again")
        self._require_done(remote.name, answer)
        # Where the hash is known it decides; a server that sends a part need not say of what.
        found = _version(answer)
        if remote.sha256 is None and remote.version != found and not (answer.status == 206 and found is None):
            raise ChangedError(f"{self.address.tell(remote.name)} changed while it was read; run it again")
        if answer.status != 206:
            return 0
        told = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if told is None or int(told[1]) != offset:
            raise ConnectionError("the server sends another part than was asked for")
        return offset

    def _blocks(self, answer: aiohttp.ClientResponse) -> Iterator[bytes]:
        try:
            while block := self._wait(answer.content.read, BLOCK_BYTES):
                yield block
        finally:
            answer.close()


def _version(answer: aiohttp.ClientResponse) -> str | None:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _reason(error: BaseException) -> str:
    system = getattr(error, "os_error", None) or error.__cause__
    return str(getattr(system, "strerror", None) or "the connection broke")
