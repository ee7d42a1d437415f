"""Every name the package uses of TensorRT's API is in TensorRT 8.6, 10.16, 11.4 and TensorRT-RTX 1.7, or is asked for.

Nothing of TensorRT is run: the package's text is held against the recorded names of each version. What a keyword of a
call is named, and in what order arguments come, is not recorded and not checked.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import rtx
from tests.helpers.api_check.modules import ROOT, Library, Module
from tests.helpers.api_check.objects import Objects
from tests.helpers.api_check.uses import Found, Guards, Use, Uses, in_some_version, reached
from tests.helpers.recorded_names import REQUIRED, RTX, api, required, versions

ENGINES, SESSIONS = "glm_export/engines", "glm_export/sessions"
TRITON = "glm_export/serving/triton/"
SINCE_10 = ("10.16", "11.4", "RTX 1.7")


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """A function that only some versions get to, because of what is asked in another place.

    ``names``: what of its uses this is about; none: all. ``needs`` and ``lacks``: names that a version then has, and
    has not; ``asked_in`` asks for them. ``reaching``: the versions that get there, which must follow from these.
    """

    file: str
    function: str
    asked_in: str
    reaching: tuple[str, ...]
    why: str
    names: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    @property
    def known(self) -> Guards:
        """What holds there."""
        return frozenset({((name,), True) for name in self.needs} | {((name,), False) for name in self.lacks})

    def covers(self, use: Use) -> bool:
        """Whether a use is one of these."""
        inside = use.function == self.function or use.function.startswith(f"{self.function}.")
        return use.file == self.file and inside and (not self.names or set(use.names) <= set(self.names))


GUARDED_ELSEWHERE = (
    Elsewhere(
        file=f"{ENGINES}/inspection.py", function="activations", names=("ICudaEngine.device_memory_size",),
        lacks=("ICudaEngine.get_device_memory_size_for_profile_v2", "ICudaEngine.get_device_memory_size_for_profile"),
        asked_in=f"{ENGINES}/inspection.py activations", reaching=("8.6",),
        why="the loop before it returns where either is there",
    ),
    Elsewhere(
        file=f"{ENGINES}/inspection.py", function="refit", needs=("BuilderFlag.STRIP_PLAN",),
        asked_in=f"{ENGINES}/options.py BuildOptions.require_offered", reaching=SINCE_10,
        why="only a stripped plan is refitted, and no other version builds one",
    ),
    Elsewhere(
        file=f"{ENGINES}/network.py", function="Network.allow_decomposition", needs=("IAttentionInputLayer",),
        asked_in=f"{ENGINES}/plan.py _failure", reaching=SINCE_10,
        why="called where the builder had no fused kernel for attention, which is asked first",
    ),
    Elsewhere(
        file=f"{ENGINES}/network.py", function="_refusal", names=("ParserError.node_operator",),
        needs=("ParserError.node_name",), asked_in=f"{ENGINES}/network.py _refusal", reaching=SINCE_10,
        why="there is a name only where node_name is there, and both came together",
    ),
    Elsewhere(
        file=f"{ENGINES}/plan.py", function="_configured", names=("IBuilderConfig.set_calibration_profile",),
        needs=("IInt8EntropyCalibrator2",), asked_in=f"{ENGINES}/implicit_int8.py require_implicit",
        reaching=("8.6", "10.16"), why="there is a calibrator only where implicit INT8 was not refused",
    ),
    Elsewhere(
        file=f"{ENGINES}/plan.py", function="_stream_writer", needs=("Builder.build_serialized_network_to_stream",),
        asked_in=f"{ENGINES}/plan.py _serialize", reaching=SINCE_10, why="called for what takes a stream",
    ),
    *(
        Elsewhere(
            file=f"{SESSIONS}/tensorrt/kernel_cache.py", function=f"KernelCache.{function}",
            needs=("IRuntimeConfig.create_runtime_cache",),
            asked_in=f"{SESSIONS}/tensorrt/kernel_cache.py KernelCache.of",
            reaching=("RTX 1.7",), why="there is a KernelCache only where it was asked for",
        )
        for function in ("runtime_config", "save")
    ),
    Elsewhere(
        file=f"{SESSIONS}/tensorrt/weight_streaming.py", function="stream_weights",
        needs=("ICudaEngine.weight_streaming_budget_v2",),
        asked_in=f"{ENGINES}/options.py BuildOptions.require_offered", reaching=SINCE_10,
        why="only an engine built with weight streaming sets a budget, and no other version builds one",
    ),
)  # fmt: skip


@cache
def read() -> tuple[Library, list[Module]]:
    """Modules that talk to TensorRT, and those that use them: what the latter get may be TensorRT's."""
    library = Library()
    every = [library.of_file(path) for path in sorted((ROOT / "glm_export").rglob("*.py")) if not _linked(path)]
    # Triton's models are no TensorRT objects, though an engine may be told in them.
    every = [module for module in every if not module.file.startswith(TRITON)]
    core = {module.name for module in every if module.file.startswith((f"{ENGINES}/", f"{SESSIONS}/tensorrt/"))}
    return library, [module for module in every if module.name in core or core & module.imported]


def _linked(path: Path) -> bool:
    """Whether it is a room's, which knows no runtime; ``graphs`` and ``calibration`` stand at the top."""
    return any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(ROOT / "glm_export"))


@cache
def found() -> dict[str, Found]:
    """What each module says, by file."""
    library, modules = read()
    objects = Objects(library, modules)
    return {module.file: Uses(module, objects).found for module in modules}


def faults(said: Found) -> list[str]:
    """What is wrong, with what is guarded elsewhere allowed."""
    wrong = list(said.faults)
    for use in said.uses:
        known: Guards = frozenset().union(*(entry.known for entry in GUARDED_ELSEWHERE if entry.covers(use)))
        lacking = use.lacking(required(), known)
        where, names = f"{use.file}:{use.line}: {use.function}", ", ".join(use.names)
        if not all(map(in_some_version, use.names)):
            wrong.append(f"{where} uses {names}, which no version has")
        elif lacking:
            wrong.append(f"{where} uses {names}, which is not in {', '.join(lacking)}")
    return wrong


def faults_with(module: Module) -> list[str]:
    """The faults of a module that stands among the package's."""
    library, modules = read()
    others = [other for other in modules if other.name != module.name]
    return faults(Uses(module, Objects(Library(module, like=library), [module, *others])).found)


def planted(text: str) -> list[str]:
    """The faults of a text."""
    head = "from typing import Any\nfrom glm_export.engines.vendor import TensorRT\n"
    return faults_with(Module("glm_export.engines.planted", "planted.py", head + text))


def misspelt(module: Module) -> Iterator[tuple[str, Module]]:
    """Copies of a module in which one name of TensorRT's has a letter too many, each with the name."""
    ends = {use.end for use in found()[module.file].uses}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and (node.end_lineno, node.end_col_offset) in ends:
            lines = [line.encode() for line in module.text.split("\n")]
            line, end = (node.end_lineno or 0) - 1, node.end_col_offset or 0
            lines[line] = lines[line][:end] + b"z" + lines[line][end:]
            yield node.attr, Module(module.name, module.file, b"\n".join(lines).decode())


def test_every_name_is_in_every_version_or_asked_for() -> None:
    assert [fault for said in found().values() for fault in faults(said)] == []


def test_the_check_sees_what_the_package_does() -> None:
    """It would be content with modules it cannot read."""
    used = {name for said in found().values() for use in said.uses for name in use.names}
    asked = {name for said in found().values() for names in said.asked.values() for name in names}
    assert used >= {
        "Builder", "Builder.create_network", "Builder.build_serialized_network", "OnnxParser.parse_from_file",
        "ParserError.desc", "INetworkDefinition.get_layer", "ITensor.dtype", "IAttention.decomposable", "nptype",
        "IBuilderConfig.create_timing_cache", "ITimingCache.combine", "IProgressMonitor.step_complete", "ILogger.log",
        "IStreamWriter.write", "Runtime.deserialize_cuda_engine", "LayerInformationFormat.JSON",
        "EngineInspector.get_engine_information", "ICudaEngine.get_device_memory_size_for_profile_v2",
        "IExecutionContext.execute_async_v3", "IExecutionContext.set_tensor_address", "Refitter.refit_cuda_engine",
    }  # fmt: skip
    assert asked >= {
        "BuilderFlag.STRIP_PLAN", "IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator", "ComputeCapability",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "HardwareCompatibilityLevel.AMPERE_PLUS",
        "IAttentionInputLayer", "INetworkDefinition.add_kv_cache_update", "MemoryPoolType.WORKSPACE",
    }  # fmt: skip


@pytest.mark.parametrize("entry", GUARDED_ELSEWHERE, ids=lambda entry: entry.function)
def test_what_is_guarded_elsewhere_is_asked_there_and_needed(entry: Elsewhere) -> None:
    file, _, function = entry.asked_in.partition(" ")
    assert found()[file].asked[function] >= {*entry.needs, *entry.lacks}
    assert tuple(reached(required(), entry.known)) == entry.reaching
    covered = [use for use in found()[entry.file].uses if entry.covers(use)]
    assert any(use.lacking(required()) for use in covered), "no longer needed"


def test_no_name_of_the_package_can_be_misspelt_unseen() -> None:
    """One letter added to each, one at a time."""
    modules = [module for module in read()[1] if found()[module.file].uses]
    copies = [copy for module in modules for copy in misspelt(module)]
    assert len(copies) > 50
    for name, copy in copies:
        assert any(f"{name}z" in fault for fault in faults_with(copy)), f"{name} in {copy.file}"


WRONG = {
    "gone in 10": (
        "def f(engine: Any): return engine.num_bindings",
        "ICudaEngine.num_bindings, which is not in 10.16, 11.4, RTX 1.7",
    ),
    "gone in 11": (
        "def f(config: Any): config.int8_calibrator = None",
        "IBuilderConfig.int8_calibrator, which is not in 11.4, RTX 1.7",
    ),
    "misspelt": (
        "def f(builder: Any): return builder.build_serialised_network()",
        "Builder.build_serialised_network, which no version has",
    ),
    "an enum's member": (
        "def f(tensorrt: TensorRT): return tensorrt.module.BuilderFlag.FP16",
        "BuilderFlag.FP16, which is not in 11.4, RTX 1.7",
    ),
    "misspelt where it is asked for": (
        "def f(tensorrt: TensorRT): return tensorrt.find('BuilderFlag.STRIPPLAN')",
        "no version has BuilderFlag.STRIPPLAN",
    ),
    "misspelt in hasattr": (
        "def f(engine: Any): return hasattr(engine, 'num_bindingz')",
        "no version has ICudaEngine.num_bindingz",
    ),
    "a name that is not written out": (
        "def f(tensorrt: TensorRT, name: str): return tensorrt.find(name)",
        "cannot tell which names",
    ),
    "by getattr": ("def f(engine: Any): return getattr(engine, 'num_bindings')", "ICudaEngine.num_bindings"),
    "of who knows what": ("def f(thing: Any): return thing.num_bindings", "cannot tell what thing is"),
    "of what another library made": (
        "import lib\ndef f(engine: Any): return lib.wrap(engine).num_bindings",
        "lib.wrap(engine) may be TensorRT's",
    ),
    "of a list of them": (
        "def f(engine: Any): return [it.execute for it in (1, *[engine.create_execution_context()] * 2)]",
        "IExecutionContext.execute, which is not in 10.16",
    ),
    "of the list itself": (
        "def f(engine: Any): return [engine.create_execution_context()].execute",
        "cannot tell what [engine.create_execution_context()] is",
    ),
    "through a lambda": (
        "def f(engine: Any):\n made = lambda: engine.create_execution_context()\n return made().execute",
        "IExecutionContext.execute, which is not in 10.16",
    ),
    "of a dictionary": (
        "def f(held: dict[str, Any]): return held['decode'].num_io_tensors",
        "held['decode'] may be TensorRT's",
    ),
    "of a dictionary of them": (
        "def f(contexts: dict[str, Any]): return contexts['decode'].execute",
        "IExecutionContext.execute, which is not in 10.16",
    ),
    "a method that overrides nothing": (
        "def f(trt: Any):\n class Log(trt.ILogger):\n  def lag(self, severity: Any, text: str): ...",
        "ILogger.lag, which no version has",
    ),
    "a class newer than 8.6": (
        "def f(trt: Any):\n class Reads(trt.IStreamReaderV2): ...",
        "IStreamReaderV2, which is not in 8.6",
    ),
    "through an attribute": (
        (
            "class Runs:\n"
            " def __init__(self, engine: Any): self._it = engine.create_execution_context()\n"
            " def run(self): self._it.execute_async_v2()"
        ),
        "IExecutionContext.execute_async_v2, which is not in 10.16, 11.4, RTX 1.7",
    ),
    "through a function": (
        (
            "def made(runtime: Any) -> tuple[int, Any]: return 1, runtime.deserialize_cuda_engine(b'')\n"
            "def f(runtime: Any):\n"
            " for _ in range(2):\n"
            "  one, it = made(runtime)\n"
            "  it.num_bindings"
        ),
        "ICudaEngine.num_bindings",
    ),
    "where it was found missing": (
        (
            "def f(tensorrt: TensorRT, config: Any):\n"
            " if tensorrt.find('IBuilderConfig.int8_calibrator') is not None:\n"
            "  return\n"
            " config.int8_calibrator = None"
        ),
        "IBuilderConfig.int8_calibrator, which is not in 11.4, RTX 1.7",
    ),
    "where something else was found": (
        (
            "def f(tensorrt: TensorRT, network: Any):\n"
            " if tensorrt.find('IAttention') is not None:\n"
            "  network.add_attention_v2()"
        ),
        "INetworkDefinition.add_attention_v2, which is not in 10.16",
    ),
    "of a class whose members are not recorded": (
        (
            "def f(tensorrt: TensorRT):\n"
            " it = tensorrt.find('IInt8EntropyCalibrator2')\n"
            " if it is not None:\n"
            "  it().read_calibration_cache"
        ),
        "IInt8EntropyCalibrator2.read_calibration_cache, which no version has",
    ),
}
"""A defect -> a module that has it, and what must be said of it."""


@pytest.mark.parametrize("defect", WRONG)
def test_a_wrong_name_is_found(defect: str) -> None:
    text, fault = WRONG[defect]
    (only,) = planted(text)
    assert fault in only
    assert only.startswith("planted.py:")


@pytest.mark.parametrize(
    "body",
    [
        "if tensorrt.find('IBuilderConfig.int8_calibrator') is not None:\n  config.int8_calibrator = None",
        "if hasattr(config, 'int8_calibrator') and config.int8_calibrator: ...",
        "if tensorrt.find('IBuilderConfig.int8_calibrator') is None:\n  return\n config.int8_calibrator = None",
        "flag = tensorrt.find('BuilderFlag.FP16')\n if flag is not None:\n  tensorrt.module.BuilderFlag.FP16",
        "tensorrt.require('IBuilderConfig.int8_calibrator', 'x')\n config.int8_calibrator = None",
        "if tensorrt.rtx:\n  config.num_compute_capabilities = 1",
        "it = None if tensorrt.find('IProgressMonitor') is None else tensorrt.module.IProgressMonitor",
        "if not tensorrt.find('IProgressMonitor'):\n  raise ValueError\n config.progress_monitor = None",
        "import logging\n logging.getLogger('x').info('y')\n return [layer.upper() for layer in ('a', 'b')]",
    ],
)
def test_a_name_that_is_asked_for_may_be_used(body: str) -> None:
    assert planted(f"def f(tensorrt: TensorRT, config: Any):\n {body}") == []


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("BuilderFlag.FP16", {"8.6", "10.16"}),
        ("INetworkDefinition.add_kv_cache_update", {"10.16", "11.4", "RTX 1.7"}),
        ("IInt8EntropyCalibrator2", {"8.6", "10.16"}),
        ("NetworkDefinitionCreationFlag.EXPLICIT_BATCH", {"8.6", "10.16"}),
        ("ICudaEngine.num_bindings", {"8.6"}),
        ("BuilderFlag.STRIP_PLAN", {"10.16", "11.4", "RTX 1.7"}),
        ("IAttention.causal_kind", {"11.4", "RTX 1.7"}),
        ("IAttentionInputLayer.attention", {"10.16", "11.4", "RTX 1.7"}),
        ("ComputeCapability.SM89", {"RTX 1.7"}),
        ("ILogger.Severity.ERROR", set(REQUIRED)),
        ("ICudaEngine.num_io_tensors", set(REQUIRED)),
        ("nptype", set(REQUIRED)),
    ],
)
def test_known_facts(name: str, labels: set[str]) -> None:
    assert {label for label, version in required().items() if version.has(name)} == labels


def test_a_record_that_contradicts_itself_is_refused() -> None:
    newest = versions()[REQUIRED["11.4"]]
    for gone, come in (({"Builder.no_such_name"}, set()), (set(), {"Builder.create_network"})):
        with pytest.raises(ValueError, match=r"Builder\."):
            newest.changed(gone, come)


def test_recorded_names_of_tensorrt_rtx_are_those_of_the_package() -> None:
    """Both ways: what was worked out from 11.4 and the differences is what NVIDIA's module has."""
    trt = rtx.require_installed()
    if not trt.__version__.startswith("1.7."):
        pytest.skip(f"recorded for 1.7, installed is {trt.__version__}")
    real = {name for name in dir(trt) if not name.startswith("__")}
    for name in list(real):
        if isinstance(getattr(trt, name), type) and getattr(trt, name).__module__.startswith("tensorrt_rtx"):
            real |= {f"{name}.{member}" for member in vars(getattr(trt, name)) if not member.startswith("_")}
    for logger in ("ILogger", "Logger"):
        real |= {f"{logger}.Severity.{member}" for member in trt.ILogger.Severity.__members__}
    # The record has of enums their members only.
    every_enum_has = {f"{name}.{member}" for name in api().enums for member in ("name", "value")} | {
        "DataType.itemsize"
    }
    assert real - every_enum_has == versions()[RTX].names
