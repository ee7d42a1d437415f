"""How a server is started."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from glm_export.errors import InputError
from glm_export.model_folder import read_bounded
from glm_export.serving.scheduler import SchedulerOptions
from glm_export.spec.option import described, listed

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MEGABYTE = 1 << 20


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where a server listens, what it takes, and how long anything may last."""

    host: str = field(default="127.0.0.1", metadata=described("Address to listen at; others than loopback want a key."))
    port: int = field(default=8000, metadata=described("0 takes a free one.", least=0, most=65535))
    max_batch: int = field(default=8, metadata=described("Rows at once, of each model.", least=1, most=512))
    max_context: int | None = field(
        default=None, metadata=described("Tokens of prompt and answer together, where fewer than the model's.", least=2)
    )
    chunk_tokens: int = field(default=128, metadata=described("Of a prompt, between two tokens of others.", least=1))
    exact: bool = field(default=False, metadata=described("Decode in calls apart: the same bits in any company."))
    speculate: bool = field(
        default=False, metadata=described("Guess what answers repeat, and read several tokens of a row at once.")
    )
    queue: int = field(default=256, metadata=described("Requests that may wait; the next one is told when.", least=0))
    wait_seconds: float = field(default=300.0, metadata=described("A request waits for a row at most this long."))
    deadline: float = field(default=1800.0, metadata=described("A request takes at most this long."))
    drain_seconds: float = field(default=60.0, metadata=described("On SIGTERM what was accepted has this long."))
    prefix_megabytes: int = field(default=256, metadata=described("Kept of prompts that begin alike.", least=0))
    max_body_megabytes: int = field(default=8, metadata=described("Of a request at most.", least=1, most=1024))
    api_key_file: Path | None = field(default=None, metadata=described("A key a line, wanted of all but health."))
    allow_special_tokens: bool = field(
        default=False, metadata=described("Let names like <|user|> in messages be the tokens of that name.")
    )
    otlp_traces_endpoint: str | None = field(
        default=None, metadata=described("Where an OpenTelemetry collector takes traces; a span a request.")
    )
    threads: int | None = field(default=None, metadata=described("Of one operator."))
    no_cache: bool = field(
        default=False, metadata=described("Keep no weights packed for this processor, and use none that are kept.")
    )

    @property
    def scheduler(self) -> SchedulerOptions:
        """What an engine's steps may be."""
        return SchedulerOptions(
            max_rows=self.max_batch,
            chunk_tokens=self.chunk_tokens,
            step_tokens=self.max_batch + 2 * self.chunk_tokens,
            exact=self.exact,
        )

    def keys(self) -> frozenset[str]:
        """Those of the file; none where there is no file.

        Raises:
            InputError: the file is missing or holds none, or an address that others reach has no key.
        """
        if self.api_key_file is None:
            if self.host not in LOOPBACK:
                raise InputError(
                    f"--host {self.host} is reached by others, and no key is asked of them; give --api-key-file FILE"
                )
            return frozenset()
        return frozenset(keys_of(self.api_key_file))


def keys_of(file: Path) -> list[str]:
    """Keys of a file, a line each.

    Raises:
        InputError: it is missing or holds none.
    """
    if not file.is_file():
        raise InputError(f"--api-key-file {file} is no file; write one with a key a line")
    text = read_bounded(file, MEGABYTE).decode("utf-8", errors="replace")
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys:
        raise InputError(f"--api-key-file {file} holds no key; write one a line")
    return keys
