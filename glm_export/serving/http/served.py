"""A model behind the server: its session, the worker that drives it, and its name."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm_export import api
from glm_export.artifacts.engine import Engine as EngineFolder
from glm_export.artifacts.open import Kind, located, open_artifact
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.inputs.prompts import Prompt
from glm_export.serving.engine import Engine
from glm_export.serving.http.failures import HttpError
from glm_export.serving.options import MEGABYTE, ServeOptions
from glm_export.serving.worker import Worker
from glm_export.sessions.load import session_of
from glm_export.sessions.session import Session
from glm_export.store.address import is_url
from glm_export.tokenizers import Tokenizer, stop_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model. ``name``: what requests call it. ``proof``: what is recorded of its files.

    ``max_context``: what the server grants at most; None grants what the model can.
    """

    name: str
    session: Session
    worker: Worker
    proof: dict[str, Any]
    max_context: int | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tokenizer(self) -> Tokenizer:
        """Beside the model."""
        return self.session.tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a reply."""
        return frozenset(stop_ids(self.session.config, self.tokenizer))

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        positions = self.session.config.text_positions
        return min(positions, self.session.capacity or positions, self.max_context or positions)

    def prompt(self, ids: Sequence[int]) -> Prompt:
        """Ids as a prompt the model can read.

        Raises:
            HttpError: they are more than its context.
            InputError: it cannot for another reason.
        """
        if len(ids) > self.context:
            told = f"the prompt has {len(ids)} tokens, and the maximum context length is {self.context}; shorten it"
            raise HttpError(400, told, code="context_length_exceeded")
        prompt = self.session.prompt(ids)
        self.session.feeds([prompt])
        return prompt


@contextmanager
def opened(
    sources: Sequence[str], options: ServeOptions, names: Sequence[str] = ()
) -> Iterator[dict[str, ServedModel]]:
    """Load models, each with a worker; all of them end with the block.

    Args:
        sources: exported folders, engines, checkpoints, or their URLs; or embedded models by name.
        options: of the server.
        names: what requests call them; without any, as their folders are called.

    Yields:
        Models by name, the first one first.

    Raises:
        GlmExportError: one is none of these, is damaged, cannot run here, or two have the same name.
    """
    with ExitStack() as stack:
        models: dict[str, ServedModel] = {}
        folders = [str(located(source)) if is_url(source) else source for source in sources]
        for source, name in zip(folders, names or map(name_of, folders), strict=True):
            if name in models:
                raise InputError(f"two models are called {name!r}; rename a folder")
            session, proof = _load(source, options)
            stack.enter_context(session)
            kept, most = options.prefix_megabytes * MEGABYTE, options.max_context
            engine = Engine(
                session, options.scheduler, prefix_bytes=kept, max_context=most, speculate=options.speculate
            )
            worker = stack.enter_context(Worker(engine, max_waiting=options.queue, name=name))
            logger.info(
                "%s: %d rows at most, %d MB of prefixes kept, %d requests may wait",
                name,
                options.max_batch,
                options.prefix_megabytes,
                options.queue,
            )
            models[name] = ServedModel(name=name, session=session, worker=worker, proof=proof, max_context=most)
        yield models


def name_of(source: str) -> str:
    """What a model is called where nobody says."""
    return Path(source).resolve().name if Path(source).exists() else source


def _load(source: str, options: ServeOptions) -> tuple[Session, dict[str, Any]]:
    if open_artifact(source).kind not in (Kind.ENGINE, Kind.PROGRAM):
        checkpoint = api.open_checkpoint(source)
        return session_of(checkpoint, threads=options.threads), {"checkpoint": checkpoint.identity.name}
    written: OnnxProgram | EngineFolder = api.open_exported(source)
    # Whoever asks is told what was proven: so the files are what was written.
    written.require_undamaged()
    told = ("checkpoint", "created", "dialect", "dtype", "recipe", "batch_invariance", "packages", "sha256")
    proof = {key: written.manifest[key] for key in told if key in written.manifest}
    return session_of(written, threads=options.threads, cache=not options.no_cache), proof
