"""ONNX Runtime's own session: which providers, how many threads, which options."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnxruntime

from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import ComparisonFailedError, EnvironmentMissingError, InputError, shown
from glm_export.machine.gpu import has_driver
from glm_export.sessions.batch_invariance import recipe_of
from glm_export.sessions.onnxruntime.cuda_graph import ENABLE
from glm_export.sessions.onnxruntime.packed import PackedPrograms
from glm_export.sessions.onnxruntime.saturation import adds_in_16_bits
from glm_export.spec.session_entries import ACCURACY, EXACT_SUMS, LEAST_FOR_RAGGED, LEAST_ON_CUDA, session_entries

logger = logging.getLogger(__name__)
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
PREFERRED_PROVIDERS = (CUDA, CPU)
EXACT = {"use_tf32": "0"}
"""By default products of float32 are rounded to 11 bits on GPUs that can."""
MANY_CORES = 4


def providers() -> list[str]:
    """Execution providers to use here, best first."""
    available = set(onnxruntime.get_available_providers())
    if not has_driver():
        # The GPU wheel lists its provider on every machine, and complains at length when it cannot load it.
        available.discard(CUDA)
    return [name for name in PREFERRED_PROVIDERS if name in available]


def providers_of(device: str | None) -> list[str] | None:
    """Execution providers of a device; None leaves them to :func:`providers`."""
    return {None: None, "cpu": [CPU], "cuda": [CUDA, CPU]}[device]


def require_providers(asked: Sequence[str]) -> list[str]:
    """Execution providers that are asked for by name.

    Raises:
        InputError: none is asked for, or by no list of names.
        EnvironmentMissingError: this build of ONNX Runtime has not all of them.
    """
    if isinstance(asked, str) or not asked:
        raise InputError(f"providers are a list of names such as {CPU!r}, found {shown(asked)}")
    known = onnxruntime.get_available_providers()
    missing = [name for name in asked if name not in known]
    if missing:
        raise EnvironmentMissingError(
            f"ONNX Runtime {onnxruntime.__version__} has no {', '.join(missing)} here; it has {', '.join(known)}"
        )
    return list(asked)


def usable_threads() -> int:
    """One thread a core this process may use; both of its hyperthreads where there are few cores.

    The runtime's own choice counts cores of the machine, not those of the container.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for processor in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        cores.add(siblings.read_text(encoding="ascii") if siblings.is_file() else str(processor))
    return len(cores) if len(cores) >= MANY_CORES else len(allowed)


def reads_ragged(chosen: list[str] | None) -> bool:
    """Whether the runtime takes rows with different numbers of tokens in one call: on the CPU, in late versions."""
    return (chosen or providers())[0] == CPU and _numbers(onnxruntime.__version__) >= LEAST_FOR_RAGGED


@contextmanager
def stopping_in_one_line() -> Iterator[None]:
    """A program that stops inside has failed its comparison; what the runtime says names the node.

    Raises:
        ComparisonFailedError: in place of the runtime's own exceptions.
    """
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions share no public base
        if type(error).__module__.split(".")[0] != "onnxruntime":
            raise
        raise ComparisonFailedError(
            f"the program stops in ONNX Runtime: {' '.join(str(error).split())[:400]}"
        ) from error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _require_operators(program: OnnxProgram, version: str) -> None:
    least = program.least_onnxruntime
    if _numbers(version) < least:
        raise EnvironmentMissingError(
            f"{program.folder} needs ONNX Runtime {'.'.join(map(str, least))} or later, for operators as it has them; "
            f"found {version}: pip install -U onnxruntime, or export without --recipe, or to dialect onnx"
        )


def _require_kernels(version: str) -> None:
    if _numbers(version) < LEAST_ON_CUDA:
        raise EnvironmentMissingError(
            f"ONNX Runtime {version} lacks kernels for CUDA, {'.'.join(map(str, LEAST_ON_CUDA))} and later have them; "
            "pip install 'glm-export[cuda]', or choose the provider CPUExecutionProvider"
        )


def graph_session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    """Any graph on the processor, told what sessions of quantized programs are told.

    Args:
        graph: an ONNX file.
        threads: of one operator.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    for key, value in ACCURACY.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(str(graph), options, providers=[CPU])


def entries_of(program: OnnxProgram) -> dict[str, str]:
    """Configuration entries of a program's session on this processor.

    Raises:
        EnvironmentMissingError: its prompts are multiplied by integers that this processor cannot add, in branches,
            which no entry reaches.
    """
    entries, recipe = session_entries(program.recipe), recipe_of(program)
    # Of float16 ONNX Runtime makes no integer product, and with the entry it refuses the zero points it adds.
    if program.dtype == "float16" or recipe is None or not recipe.multiplies_integers or recipe.sums_in_16_bits:
        return entries
    if not adds_in_16_bits():
        return entries
    if recipe.prompt is not None:
        raise EnvironmentMissingError(
            f"{program.folder} has integers that this processor, which has no VNNI, cannot add exactly; "
            "export again, which writes integers that it can"
        )
    return entries | EXACT_SUMS


def inference_session(
    program: OnnxProgram,
    chosen: list[str] | None = None,
    *,
    threads: int | None = None,
    cuda_graph: bool = False,
    stream: int | None = None,
    packed: PackedPrograms | None = None,
) -> onnxruntime.InferenceSession:
    """Load a program into ONNX Runtime.

    Args:
        program: an exported folder.
        chosen: execution providers; None takes the best there are.
        threads: of one operator; None takes :func:`usable_threads`.
        cuda_graph: prepare CUDA for capturing steps.
        stream: of CUDA, to compute on.
        packed: where programs lie as this processor reads them; None packs anew, in memory of the process.

    Raises:
        EnvironmentMissingError: this machine's providers cannot run it, or are too old for it.
    """
    entries = entries_of(program)

    def options() -> onnxruntime.SessionOptions:
        made = onnxruntime.SessionOptions()
        made.log_severity_level = 3
        made.intra_op_num_threads = threads or usable_threads()
        for key, value in entries.items():
            made.add_session_config_entry(key, value)
        return made

    _require_operators(program, onnxruntime.__version__)
    chosen = chosen or providers()
    if CUDA in chosen:
        _require_kernels(onnxruntime.__version__)
        onnxruntime.preload_dlls()
    try:
        cuda = EXACT | (ENABLE if cuda_graph else {})
        if stream is not None:
            cuda |= {"user_compute_stream": str(stream)}
        given = [(name, cuda) if name == CUDA else name for name in chosen]

        def load(made: onnxruntime.SessionOptions, graph: Path) -> onnxruntime.InferenceSession:
            return onnxruntime.InferenceSession(str(graph), made, providers=given)

        # What ONNX Runtime takes of these is said by the session.
        logger.info("%s: by ONNX Runtime %s, providers %s", program.folder, onnxruntime.__version__, ", ".join(chosen))
        for key, value in entries.items():
            logger.debug("%s: session entry %s is %s", program.folder, key, value)
        if packed is not None and chosen == [CPU]:
            return packed.load(program, entries, options, load)
        return load(options(), program.model_path)
    except Exception as error:  # onnxruntime's exceptions share no public base
        hint = "; export with --dtype float32 for this machine" if program.dtype != "float32" else ""
        raise EnvironmentMissingError(
            f"ONNX Runtime {onnxruntime.__version__} ({', '.join(chosen)}) cannot load {program.model_path}: "
            f"{' '.join(str(error).split())[:300]}{hint}"
        ) from error
