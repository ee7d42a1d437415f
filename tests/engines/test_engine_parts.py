"""Parts around an engine that need no TensorRT: its modules found or not, the driver, and implicit INT8's data."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from glm_export import families
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.trt_cache import cache_text, read_cache
from glm_export.engines import fit, plan, vendor
from glm_export.engines.implicit_int8 import (
    CALIBRATORS,
    cache_version,
    calibration_feeds,
    packed_rows,
    require_float_program,
    write_cache_for,
)
from glm_export.engines.options import ENTROPY, MIN_MAX, BuildOptions
from glm_export.engines.vendor import BuildLog, TensorRT
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.machine import gpu
from glm_export.spec.signature import Cache, decoder_signature, past_names
from tests.helpers.tiny import tiny_values


def runtime(version: str, name: str = vendor.TENSORRT, **names: Any) -> TensorRT:
    """A version of TensorRT that has these names and no others."""
    return TensorRT(name=name, module=SimpleNamespace(**names), version=version, logger=None, log=BuildLog())


# -- the door to NVIDIA's modules ----------------------------------------------------------------------


def test_what_a_version_lacks_is_said_in_one_line() -> None:
    flags = SimpleNamespace(REFIT=3)
    old = runtime("8.6.1", BuilderFlag=flags)
    assert old.find("BuilderFlag.REFIT") == old.require("BuilderFlag.REFIT", "refit") == 3
    assert old.find("BuilderFlag.STRIP_PLAN.value") is None
    assert old.find("Nothing.at.all") is None
    with pytest.raises(InputError) as raised:
        old.require("BuilderFlag.STRIP_PLAN", "leave the weights out of a plan")
    assert str(raised.value) == (
        "tensorrt 8.6.1 cannot leave the weights out of a plan: it has no BuilderFlag.STRIP_PLAN; leave it out or "
        "change version"
    )
    for options in (BuildOptions(stripped=True), BuildOptions(hardware_compatible="ampere-plus")):
        with pytest.raises(InputError, match=r"tensorrt 8\.6\.1 cannot .*: it has no "):
            options.require_offered(old)
    BuildOptions(refittable=True).require_offered(old)


def test_what_went_wrong_is_told_in_one_line() -> None:
    log, heard = BuildLog(), list[tuple[str, str]]()
    assert log.reason == "it gave no reason"
    log.listener = lambda severity, text: heard.append((severity, text))
    for severity, text in (("ERROR", "first\n  line"), ("INFO", "not this"), ("INTERNAL_ERROR", "second")):
        log.take(severity, text)
    assert log.reason == "first line; second"
    assert [severity for severity, _ in heard] == ["ERROR", "INFO", "INTERNAL_ERROR"]
    log.clear()
    assert log.errors == []


def test_a_runtime_that_is_not_there_or_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="runtime 'tensorflow' is unknown; known: tensorrt, tensorrt-rtx"):
        vendor.load("tensorflow")
    (tmp_path / "runtime_without_libraries.py").write_text("raise OSError('libnvinfer.so.10: cannot open')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(vendor.MODULES, vendor.TENSORRT, ("a_module_nobody_has",))
    monkeypatch.setitem(vendor.MODULES, vendor.TENSORRT_RTX, ("a_module_nobody_has", "runtime_without_libraries"))
    monkeypatch.setattr(vendor, "load", vendor.load.__wrapped__)
    with pytest.raises(
        EnvironmentMissingError, match=r"tensorrt is not installed; pip install 'glm-export\[tensorrt\]' "
    ) as raised:
        vendor.load(vendor.TENSORRT)
    assert raised.value.exit_code == 3
    with pytest.raises(EnvironmentMissingError, match=r"cannot be loaded: libnvinfer\.so\.10: cannot open; pip"):
        vendor.load(vendor.TENSORRT_RTX)
    found = fit.probe_host()
    assert found.versions == {}
    assert found.missing[vendor.TENSORRT] == f"not installed; {vendor.INSTALL[vendor.TENSORRT]}"
    assert "libnvinfer.so.10" in found.missing[vendor.TENSORRT_RTX]


class Features:
    """The preview features of a builder's configuration, as one version has them by itself."""

    def __init__(self, *on: int) -> None:
        self.on, self.set = set(on), list[tuple[int, bool]]()

    def get_preview_feature(self, feature: int) -> bool:
        return feature in self.on

    def set_preview_feature(self, feature: int, value: bool) -> None:
        self.set.append((feature, value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured(TensorRT):
    """A version whose Polygraphy hands out these features as a configuration."""

    features: Features

    def polygraphy(self) -> Any:
        return SimpleNamespace(CreateConfig=lambda **_: lambda *_: self.features)


def test_two_contexts_may_begin_with_one_profile() -> None:
    """TensorRT 8.6 and 9 are asked for it; 10 has it, and lets nobody change it; 11 has no such name."""
    sharing = {"PreviewFeature": SimpleNamespace(PROFILE_SHARING_0806=7)}
    for version, names, by_itself, asked in (
        ("8.6.1", sharing, (), [(7, True)]), ("10.16", sharing, (7,), []),
        ("11.4", {"PreviewFeature": SimpleNamespace()}, (), []),
    ):  # fmt: skip
        features = Features(*by_itself)
        names = {"NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1), **names}
        tensorrt = Configured(
            name=vendor.TENSORRT, module=SimpleNamespace(**names), version=version, logger=None, log=BuildLog(),
            features=features,
        )  # fmt: skip
        job: Any = SimpleNamespace(profiles=(), options=BuildOptions(), timing_cache=None, calibrator=None)
        network: Any = SimpleNamespace(builder=None, network=None)
        assert plan._configured(tensorrt, job, network, None) is features
        assert features.set == asked


# -- the driver ----------------------------------------------------------------------------------------


class Driver:
    """``libcuda``, as far as it is asked: one GPU of compute capability 8.9, or what a test says."""

    def __init__(self, *, refusal: int = 0, count: int = 1) -> None:
        self.refusal, self.count = refusal, count

    def cuInit(self, _: int) -> int:  # noqa: N802
        return self.refusal

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12080
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = f"GPU {device.value}".encode()
        return 0 if size == 256 else 1

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:  # noqa: N802
        memory._obj.value = 24 << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 9}[attribute]
        return 0


def test_machines_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library, a driver without a device, one that refuses."""

    def missing(name: str) -> Any:
        assert name == "libcuda.so.1"
        raise OSError(f"{name}: cannot open shared object file")

    for opened in (missing, lambda _: Driver(count=0), lambda _: Driver(refusal=100)):
        monkeypatch.setattr(ctypes, "CDLL", opened)
        assert gpu.has_driver() is False
        assert gpu.gpus() == []
        assert gpu.used_gpu() is None
        assert gpu.driver_version() is None
        with pytest.raises(EnvironmentMissingError, match="loading an engine needs an NVIDIA GPU and its driver"):
            runtime("10.9").require_driver("loading an engine")


def test_machines_with_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(count=2))
    assert gpu.has_driver() is True
    assert gpu.driver_version() == "CUDA 12.8"
    assert gpu.gpus() == [
        gpu.Gpu(name=f"GPU {index}", compute_capability="8.9", memory_bytes=24 << 30) for index in range(2)
    ]
    used = gpu.used_gpu()
    assert used is not None
    assert used.name == f"GPU {gpu.DEVICE}"


def test_this_machine_answers_without_a_crash() -> None:
    assert gpu.has_driver() == bool(gpu.gpus()) == (gpu.driver_version() is not None)


# -- implicit INT8 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "written"),
    [
        ("8.6.1", "8601"), ("8.6.1.post1", "8601"), ("8.5.3.1", "8503"), ("9.3.0.post12.dev1", "9300"),
        ("10.13.3.9.post1", "101303"), ("10.0.1", "100001"), ("10.9", "100900"),
    ],
)  # fmt: skip
def test_versions_as_caches_write_them(version: str, written: str) -> None:
    assert cache_version(version) == written


@pytest.mark.parametrize(
    ("version", "algorithm", "first"),
    [
        ("10.13.3.9", ENTROPY, "TRT-101303-EntropyCalibration2"), ("8.6.1", MIN_MAX, "TRT-8601-MinMaxCalibration"),
    ],
)  # fmt: skip
def test_a_cache_is_rewritten_for_the_version_that_reads_it(
    version: str, algorithm: str, first: str, tmp_path: Path
) -> None:
    """Only the first line: every scale keeps its bits."""
    thresholds = {"layers.0.mlp/Mul_1": 3.75, "odd: name": 1e-6, "large": 61234.5}
    source, path = tmp_path / "measured.cache", tmp_path / "for this version"
    source.write_text(cache_text(thresholds))
    write_cache_for(runtime(version), source, algorithm, path)
    header, *lines = path.read_text().splitlines()
    assert header == first
    assert lines == source.read_text().splitlines()[1:]
    assert read_cache(path.read_text()) == pytest.approx(thresholds)
    assert lines[0].endswith(struct.pack(">f", 3.75 / 127).hex())


def test_what_is_no_cache(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "path"
    with pytest.raises(InputError, match=r"source is missing; 'glm-export export --dialect portable --ranges'"):
        write_cache_for(runtime("8.6.1"), source, ENTROPY, path)
    for text in ("", "no cache\n", "TRT-8601-EntropyCalibration2\nx: 12\n", "TRT-8601-EntropyCalibration2\nnothing\n"):
        source.write_text(text)
        with pytest.raises(InputError, match="calibration cache"):
            write_cache_for(runtime("8.6.1"), source, ENTROPY, path)
    assert not path.exists()


def test_texts_are_packed_into_rows() -> None:
    """One after another; what does not fill a row is dropped, and too little is refused."""
    assert packed_rows([(1, 2, 3), (4,), (), (5, 6, 7)], 3) == [(1, 2, 3), (4, 5, 6)]
    assert packed_rows([(1, 2, 3), (4, 5, 6)], 3) == [(1, 2, 3), (4, 5, 6)]
    assert packed_rows([(1, 2)], 1) == [(1,), (2,)]
    with pytest.raises(InputError, match="the corpus has 2 tokens, calibration needs at least 3"):
        packed_rows([(1,), (2,)], 3)


def program_of(family: str, cache: Cache = Cache.GROWING, recipe: str | None = None) -> OnnxProgram:
    """A program that is nothing but its signature."""
    config = families.read_config(tiny_values(family))
    return OnnxProgram(
        folder=Path("program"), config=config, dialect="portable" if cache is Cache.GROWING else "tensorrt",
        signature=decoder_signature(config, dtype="float16", logits="last", cache=cache, max_length=64),
        dtype="float16", logits="last", manifest={}, recipe=recipe,
    )  # fmt: skip


@pytest.mark.parametrize("integers", [np.int32, np.int64])
@pytest.mark.parametrize("family", ["chatglm2", "chatglm", "glm_infilling"])
def test_feeds_have_the_dtypes_the_engine_takes(family: str, integers: type) -> None:
    """8.6 knows no 64-bit integers; caches are empty, and float32 whatever the program's dtype is."""
    program = program_of(family)
    dtypes: dict[str, np.dtype[Any]] = {spec.name: np.dtype(integers) for spec in program.signature.inputs}
    if program.config.prefix_mask:
        dtypes["attention_mask"] = np.dtype(np.bool_)
    rows = [(5, 6, 7, 8), (9, 10, 11, 12)]
    calls = list(calibration_feeds(program, rows, dtypes))
    assert len(calls) == len(rows)
    for row, call in zip(rows, calls, strict=True):
        assert call.keys() == {spec.name for spec in program.signature.inputs}
        assert call["input_ids"].tolist() == [list(row)]
        for name, array in call.items():
            assert array.flags.c_contiguous
            is_cache = name.startswith("past_key_values")
            assert array.dtype == (np.float32 if is_cache else dtypes[name])
        assert call[past_names(1)[1]].shape == (1, program.config.kv_heads, 0, program.config.head_dim)
    mask = calls[0]["attention_mask"]
    if program.config.prefix_mask:
        # All but the last token see each other, and the last one sees all.
        assert mask[0, 0].tolist() == [[True, True, True, False]] * 3 + [[True] * 4]
    else:
        assert mask.tolist() == [[1, 1, 1, 1]]


def begun(program: OnnxProgram) -> OnnxProgram:
    """The same, behind a prefix."""
    return replace(program, config=replace(program.config, prefix_length=8))


@pytest.mark.parametrize(
    ("program", "tensorrt", "message"),
    [
        (program_of("chatglm2"), runtime("1.7", vendor.TENSORRT_RTX, **{CALIBRATORS[ENTROPY]: 0}), "1.7 has no impl"),
        (program_of("chatglm2"), runtime("11.4"), r"tensorrt 11\.4 has no implicit INT8"),
        (program_of("chatglm2", recipe="int8-static"), None, "quantized by int8-static already"),
        (program_of("chatglm2", Cache.STATIC), None, "needs a program of dialect portable, program is tensorrt"),
        (begun(program_of("chatglm2")), None, r"program starts from a prefix, .* on an empty cache; take a recipe"),
        (program_of("chatglm2"), None, None),
    ],
)
def test_implicit_int8_needs(program: OnnxProgram, tensorrt: TensorRT | None, message: str | None) -> None:
    def refuse() -> None:
        require_float_program(program, tensorrt or runtime("10.9", **{CALIBRATORS[ENTROPY]: 0}))

    if message is None:
        refuse()
        return
    with pytest.raises(InputError, match=message):
        refuse()
