"""``TritonPythonModel``, which Triton's Python backend calls: an engine an instance, all requests in its batch."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glm_export import api
from glm_export.errors import EnvironmentMissingError, GlmExportError
from glm_export.serving.engine import Engine
from glm_export.serving.http.literal import literal, names_of
from glm_export.serving.options import MEGABYTE, ServeOptions
from glm_export.serving.request import Request
from glm_export.serving.triton.answering import Answering, Row, Values, code_of, told_of
from glm_export.serving.triton.asked import Asked, read_request
from glm_export.serving.triton.gauges import Gauges
from glm_export.serving.triton.settings import from_parameters
from glm_export.serving.triton.tensors import INPUTS, OUTPUTS
from glm_export.serving.worker import Worker
from glm_export.serving.written_text import WrittenText
from glm_export.sessions.load import session_of
from glm_export.tokenizers import stop_ids

if TYPE_CHECKING:
    from glm_export.sessions.session import Session

LOG = logging.getLogger(__name__)
MODEL_FOLDER = "model"
"""The exported folder, or engine, within a version's."""
NUMPY = {"STRING": np.object_, "INT32": np.int32, "UINT32": np.uint32}
"""Of outputs, by Triton's dtype."""


class TritonSender:
    """A request's responses, as the Python backend takes them.

    Args:
        triton: ``triton_python_backend_utils``.
        request: its own.
    """

    def __init__(self, triton: Any, request: Any) -> None:
        self._triton, self._sender = triton, request.get_response_sender()
        wanted = set(request.requested_output_names())
        self._outputs = [tensor for tensor in OUTPUTS if not wanted or tensor.name in wanted]

    def send(self, values: Values, *, last: bool) -> None:
        """One response, with the outputs that the request names."""
        tensors = []
        for output in self._outputs:
            value = values[output.name]
            items = value if isinstance(value, list) else [value.encode() if isinstance(value, str) else value]
            tensors.append(self._triton.Tensor(output.name, np.array(items, NUMPY[output.dtype])))
        response = self._triton.InferenceResponse(output_tensors=tensors)
        self._sender.send(response, flags=self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)

    def fail(self, told: str, code: str) -> None:
        """The last response, an error."""
        error = self._triton.TritonError(told, getattr(self._triton.TritonError, code))
        response = self._triton.InferenceResponse(output_tensors=[], error=error)
        self._sender.send(response, flags=self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return bool(self._sender.is_cancelled())


class TritonPythonModel:
    """An exported folder or an engine, batched continuously. Triton makes it, and calls its three methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model beside ``model.py``.

        Args:
            args: Triton's: ``model_config`` (JSON), ``model_repository`` (the model's folder), ``model_version``, …

        Raises:
            TritonModelException: it cannot be loaded; in one line.
        """
        import triton_python_backend_utils as triton

        self._triton = triton
        self._open = ExitStack()
        try:
            _require_numpy(triton)
            parameters = json.loads(args["model_config"]).get("parameters", {})
            said = {name: value["string_value"] for name, value in parameters.items()}
            self._options = from_parameters(said)
            folder = Path(args["model_repository"]) / args["model_version"] / MODEL_FOLDER
            self._start(folder, {name: args[f"model_{name}"] for name in ("name", "version", "instance_name")})
        except GlmExportError as error:
            # What was loaded before it went wrong is let go.
            self._open.close()
            raise triton.TritonModelException(str(error)) from None

    def _start(self, folder: Path, names: dict[str, str]) -> None:
        options = self._options
        written = api.open_exported(folder)
        # As for every server: the files are those that were written.
        written.require_undamaged()
        session = session_of(written, threads=options.threads, cache=not options.no_cache)
        self._session: Session = self._open.enter_context(session)
        kept = options.prefix_megabytes * MEGABYTE
        engine = Engine(
            self._session,
            options.scheduler,
            prefix_bytes=kept,
            max_context=options.max_context,
            speculate=options.speculate,
        )
        self._worker = Worker(engine, max_waiting=options.queue, name=names["name"])
        labels = {"model": names["name"], "version": names["version"], "instance": names["instance_name"]}
        gauges = Gauges(self._triton, self._worker, labels)
        # The worker ends first, and what it then says is still told.
        self._answering = self._open.enter_context(Answering(self._worker, gauges.observe))
        self._open.enter_context(self._worker)
        self._names = None if options.allow_special_tokens else names_of(self._session.tokenizer)
        self._stop_ids = frozenset(stop_ids(self._session.config, self._session.tokenizer))

    def execute(self, requests: Sequence[Any]) -> None:
        """Let requests be written; their responses come later. One that cannot be is told why, and hurts nobody."""
        for request in requests:
            sender = TritonSender(self._triton, request)
            try:
                self._answering.submit(self._row(request, sender), **_bounds(self._options))
            except Exception as error:  # whatever a request holds, the model lives
                if not isinstance(error, GlmExportError):
                    LOG.exception("a request failed")
                sender.fail(told_of(error), code_of(error))

    def _row(self, request: Any, sender: TritonSender) -> Row:
        """A row for a request, not begun.

        Raises:
            InputError: it asks for what cannot be.
        """
        found = {tensor.name: self._triton.get_input_tensor_by_name(request, tensor.name) for tensor in INPUTS}
        asked = read_request({name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None})
        tokenizer = self._session.tokenizer
        ids = self._prompt_ids(asked)
        # A reply's thoughts and calls stand between names of special tokens.
        text = WrittenText(tokenizer.detokenizer(names=asked.messages is not None), asked.stop_words)
        size = self._session.config.vocab_size
        own = frozenset(token for token in asked.stop_token_ids if 0 <= token < size)
        return Row(
            request=Request(
                key=uuid.uuid4().hex,
                prompt=self._session.prompt(ids),
                sampling=asked.sampling,
                max_new_tokens=asked.max_tokens,
                min_new_tokens=asked.min_tokens,
                stop_ids=own if asked.ignore_eos else own | self._stop_ids,
                ends=text.push,
            ),
            sender=sender,
            text=text,
            stream=asked.stream,
            echo=(asked.text if asked.text is not None else tokenizer.decode(list(ids))) if asked.echo else "",
        )

    def _prompt_ids(self, asked: Asked) -> Sequence[int]:
        if asked.text is not None:
            return self._session.encode(asked.text)
        if asked.ids is not None:
            return asked.ids
        messages, tools = literal(asked.messages, self._names), literal(asked.tools, self._names)
        return self._session.tokenizer.chat(messages, tools=tools, options=asked.template_options)

    def finalize(self) -> None:
        """Answer what was accepted, within a bound, and let the model go."""
        self._worker.drain(self._options.drain_seconds)
        self._open.close()


def _require_numpy(triton: Any) -> None:
    """See that the backend and numpy agree how an array lies in memory; else every input would be misread.

    A backend that was built with pybind11 before 2.12 reads numpy 2 wrongly
    (triton-inference-server/python_backend, pull request 384).

    Raises:
        EnvironmentMissingError: they do not.
    """
    there = triton.Tensor("numbers", np.array([7, 8], np.int32))
    back = triton.Tensor.from_dlpack("numbers", there.to_dlpack()).as_numpy()
    if back.tolist() != [7, 8]:
        raise EnvironmentMissingError(
            f"this server's Python backend cannot read arrays of numpy {np.__version__}; install 'numpy<2' in its "
            "Python, or take a newer server"
        )


def _bounds(options: ServeOptions) -> dict[str, float]:
    return {"wait_s": options.wait_seconds, "run_s": options.deadline}
