"""Calibration: the walk measures what the whole model shows; a killed run ends in the same bytes; refusals name places.

What is measured is checked against the reference model in one piece, with plain hooks of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch import Tensor

from glm_export import api, modeling
from glm_export.calibration import recipes, walk
from glm_export.calibration.corpus import Corpus, Sample, load_corpus
from glm_export.calibration.ranges import RANGES, RANGES_MANIFEST, Ranges, load_ranges
from glm_export.calibration.spool import SpoolWriter, read_spool
from glm_export.calibration.walk import calibrate
from glm_export.checkpoint import Checkpoint
from glm_export.config import GlmConfig
from glm_export.errors import CheckpointError, InputError
from glm_export.feeds import prefill_feeds
from glm_export.modeling import linear_weights
from glm_export.proof import random_prompt
from glm_export.sessions.torch import load_reference
from glm_export.tokenizers import load_tokenizer
from tests.golden_data import Golden
from tests.tiny import random_tensors, tiny_values, write_checkpoint

ROOT = Path(__file__).parent.parent
HALF, FLOAT = 1e-3, 1e-5
"""What may be lost between layers, where hidden states lie in half precision; and if they did not."""
LAYER_NORM = 3e-3
"""As HALF, where norms take off a mean that is larger than what is left."""
LENGTHS = (40, 23, 9, 31)
GPTQ = "int4-gptq"
LAYER = "transformer.encoder.layers.{}.{}.weight"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from more, and where other processes run they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_corpus(config: GlmConfig, seed: int = 0, lengths: Sequence[int] = LENGTHS) -> Corpus:
    """Rows of random ids; all of these say the same of where they come from."""
    source = np.random.default_rng(seed)
    prompts = [random_prompt(source, length, config) for length in lengths]
    samples = tuple(Sample(prompt=prompt, counted_from=len(prompt.ids)) for prompt in prompts)
    return Corpus(name="random", origin="a generator", licence="none", sha256="0", samples=samples)


def poems(checkpoint: Checkpoint, count: int = 32) -> Corpus:
    tokenizer = load_tokenizer(checkpoint.folder, checkpoint.config)
    return load_corpus("poems", tokenizer, checkpoint.config, max_samples=count)


def opened_with_corpora(name: str) -> tuple[Checkpoint, Corpus, Corpus]:
    """A checkpoint, text for it, and other text."""
    if name == "demo":
        checkpoint = api.open_checkpoint(name)
        every = poems(checkpoint, 16)
        return checkpoint, replace(every, samples=every.samples[:9]), replace(every, samples=every.samples[9:])
    checkpoint = api.open_checkpoint(Golden(name).folder)
    return checkpoint, random_corpus(checkpoint.config), random_corpus(checkpoint.config, seed=1)


def contents(folder: Path) -> dict[str, str]:
    """Every file's hash."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


# -- what is measured ----------------------------------------------------------------------------------


class WholeModel:
    """The reference run over samples. ``values``: of products' inputs, keys and values, ``[T, K]``."""

    def __init__(self, model: modeling.Decoder, samples: Sequence[Sample]) -> None:
        self.maxima: dict[str, float] = defaultdict(float)
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._layers = len(model.layers)
        self.inputs = linear_weights(model)
        for weight in self.inputs:
            product = model.get_submodule(weight.removesuffix(".weight"))
            product.register_forward_pre_hook(self._keeps(weight))
        for index, layer in enumerate(model.layers):
            # The residual sums: before attention, before the MLP, behind it.
            layer.register_forward_pre_hook(self._sees(f"layers.{index}.input"))
            layer.mlp_norm.register_forward_pre_hook(self._sees(f"layers.{index}.mlp_norm.input"))
            layer.register_forward_hook(lambda _, __, output, index=index: self._see(f"layers.{index}", output[0]))
        attend, turns = modeling.grouped_attention, iter(range(self._layers * len(samples)))

        def watched(q_BSC: Tensor, k_BSC: Tensor, *rest: Any, num_heads: int, kv_heads: int) -> Any:
            q_SND, k_SKD = (x[0].unflatten(-1, (count, -1)) for x, count in ((q_BSC, num_heads), (k_BSC, kv_heads)))
            k_SND = k_SKD.repeat_interleave(num_heads // kv_heads, dim=1)
            scores = torch.einsum("snd,tnd->nst", q_SND, k_SND) / q_SND.shape[-1] ** 0.5
            self._see(f"layers.{next(turns) % self._layers}.attention.scores", scores)
            return attend(q_BSC, k_BSC, *rest, num_heads=num_heads, kv_heads=kv_heads)

        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.setattr(modeling, "grouped_attention", watched)
            for sample in samples:
                feeds = prefill_feeds([sample.prompt], model.config)
                output = model(*map(torch.from_numpy, feeds.named().values()))
                for index, pair in enumerate(output.past_key_values):
                    for kind, kept_BKSD in zip(("key", "value"), pair, strict=True):
                        self._values[f"layers.{index}.{kind}"].append(kept_BKSD[0].transpose(0, 1).flatten(1))

    def values(self, name: str) -> np.ndarray:
        return torch.cat(self._values[name]).double().abs().numpy()

    @property
    def names(self) -> list[str]:
        return list(self._values)

    def _keeps(self, name: str) -> Callable[..., None]:
        return lambda _, given: self._values[name].append(given[0][0])

    def _sees(self, place: str) -> Callable[..., None]:
        return lambda _, given: self._see(place, given[0])

    def _see(self, place: str, values: Tensor) -> None:
        self.maxima[place] = max(self.maxima[place], float(values.abs().max()))


def differences(found: Ranges, whole: WholeModel) -> dict[str, float]:
    """How far numbers of each kind are apart at most, as a share of the tensor's largest."""
    worst: dict[str, float] = defaultdict(float)

    def compare(kind: str, number: Any, expected: Any, largest: float) -> None:
        worst[kind] = max(worst[kind], float(np.abs(np.asarray(number) - expected).max() / largest))

    for place, expected in whole.maxima.items():
        kind = place.split(".", 2)[-1] if place.count(".") > 1 else "layer"
        compare(kind, found.maxima()[place], expected, expected)
    for name in whole.names:
        values_TK, numbers = whole.values(name), found.tensors
        largest, kind = values_TK.max(), name.removesuffix(".weight").split(".")[-1]
        compare(f"maxima of {kind}", numbers[f"{name}/channel_maxima"], values_TK.max(axis=0), largest)
        compare(f"means of {kind}", numbers[f"{name}/channel_means"], values_TK.mean(axis=0), values_TK.mean(axis=0).max())
        tokens_T = values_TK.max(axis=1)
        compare("tokens", numbers[f"{name}/token_maxima"], [tokens_T.min(), tokens_T.max()], largest)
        compare("threshold", found.threshold(name, "min_max"), largest, largest)
        for smoothing in ("smoothquant", "awq"):
            if f"{name}/{smoothing}" in numbers:
                levelled = (values_TK / numbers[f"{name}/{smoothing}"]).max()
                compare("levelled", numbers[f"{name}/{smoothing}/levelled"], levelled, levelled)
    return worst


class ExactSpool(SpoolWriter):
    """Hidden states as they are: what is left is the walk's own."""

    def add(self, hidden_SH: Tensor) -> None:
        np.save(self._file, hidden_SH.numpy())


def read_exactly(path: Path) -> Iterator[Tensor]:
    with path.open("rb") as file:
        while file.peek(1):
            yield torch.from_numpy(np.load(file))


@pytest.mark.parametrize("spool", ["half", "exact"])
@pytest.mark.parametrize("name", ["chatglm2", "glm4_hf", "chatglm", "glm", "glm4_moe", "demo"])
def test_the_walk_measures_what_the_whole_model_shows(
    name: str, spool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs of products, keys and values, scores, residual sums; and the control: other text has other numbers."""
    bound = LAYER_NORM if name == "glm" else HALF
    if spool == "exact":
        monkeypatch.setattr(walk, "SpoolWriter", ExactSpool)
        monkeypatch.setattr(walk, "read_spool", read_exactly)
        bound = FLOAT
    checkpoint, corpus, other = opened_with_corpora(name)
    found = calibrate(checkpoint, corpus, tmp_path / "ranges")
    whole = WholeModel(load_reference(checkpoint), corpus.samples)
    assert sorted(found.inputs) == sorted(whole.inputs)
    assert found.layers == checkpoint.config.num_layers
    worst = differences(found, whole)
    assert {kind: apart for kind, apart in worst.items() if not apart <= bound} == {}
    control = differences(found, WholeModel(load_reference(checkpoint), other.samples))
    assert {kind: apart for kind, apart in control.items() if apart <= bound} == {}
    assert len(worst) == len(control) == 21


def test_behind_a_rounded_layer_comes_what_rounded_weights_make(tmp_path: Path) -> None:
    """GPTQ measures the last layer's and the head's inputs in the model it leaves; the control is the one given."""
    checkpoint = api.open_checkpoint(Golden("chatglm2").folder)
    corpus = random_corpus(checkpoint.config)
    recipe = recipes.load(GPTQ)
    found = calibrate(checkpoint, corpus, tmp_path / "ranges", recipe=recipe)
    rounded = found.quantization(recipe.carried_by("onnx"), "float32")
    names = [f"layers.{checkpoint.config.num_layers - 1}.attention.qkv.weight", "head.weight"]

    def apart(whole: WholeModel, name: str) -> float:
        expected_K = whole.values(name).max(axis=0)
        return float(np.abs(found.tensors[f"{name}/channel_maxima"] - expected_K).max() / expected_K.max())

    same = WholeModel(load_reference(checkpoint, quantization=rounded), corpus.samples)
    given = WholeModel(load_reference(checkpoint), corpus.samples)
    for name in names:
        assert apart(same, name) <= HALF
        assert apart(given, name) > HALF


# -- between layers ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 6), st.floats(-12, 30)), min_size=1, max_size=5), channels=st.integers(1, 9),
    seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_spooled_rows_lose_what_half_precision_loses(
    rows: list[tuple[int, float]], channels: int, seed: int, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Up to 2 ** 30; of small values beside large ones, which have no exponent of their own, 2 ** -39 of the largest."""
    generator = torch.Generator().manual_seed(seed)
    given_rows = [
        (torch.randn(tokens, channels, generator=generator).clamp(-1, 1) * 2.0**magnitude).to(dtype)
        for tokens, magnitude in rows
    ]
    path = tmp_path_factory.mktemp("spool") / "spool"
    with SpoolWriter(path) as spool:
        for row in given_rows:
            spool.add(row)
    assert [file.name for file in path.parent.iterdir()] == ["spool"]
    for row, back in zip(given_rows, read_spool(path), strict=True):
        assert back.dtype == torch.float32
        exact, largest = row.double(), float(row.abs().max())
        allowed = (exact.abs() * 2.0**-11).clamp(min=max(largest * 2.0**-39, 2.0**-25))
        assert bool(((back.double() - exact).abs() <= allowed).all())
        # The control: half precision alone cannot.
        assert bool(row.half().isinf().any()) == (largest >= 65520)


def test_rows_come_one_at_a_time(tmp_path: Path) -> None:
    rows, tokens, channels = 24, 128, 1024
    path = tmp_path / "spool"
    with SpoolWriter(path) as spool:
        for row in range(rows):
            spool.add(torch.full((tokens, channels), float(row)))

    def peak(read: Callable[[], object]) -> int:
        tracemalloc.start()
        read()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # A row is read as bytes and widened by numpy, which is where this sees it: 2 + 4 bytes a value.
    one = tokens * channels * 6
    assert peak(lambda: [float(row[0, 0]) for row in read_spool(path)]) < 2 * one
    assert peak(lambda: [path.read_bytes() for _ in range(1)]) > 2 * one  # the control


def test_a_spool_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), SpoolWriter(tmp_path / "spool") as spool:
        spool.add(torch.ones(2, 2))
        assert not (tmp_path / "spool").exists()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


# -- killed and started again --------------------------------------------------------------------------


def kill_and_resume(root: str, recipe: str, trials: str) -> None:
    """In a process of its own: runs killed twice each at random moments, then run to the end. Prints what was found."""
    torch.set_num_threads(1)
    checkpoint = api.open_checkpoint("demo")
    corpus, rounding = poems(checkpoint), recipes.load(recipe) if recipe else None

    def started(out: Path) -> int:
        child = os.fork()  # killed like any other process, without importing torch again
        if child:
            return child
        calibrate(checkpoint, corpus, out, recipe=rounding)
        os._exit(0)

    def finished(out: Path) -> dict[str, str]:
        assert os.waitpid(started(out), 0)[1] == 0
        return contents(out)

    whole, ends, left = finished(Path(root) / "whole"), [], []
    for trial in range(int(trials)):
        chance, out = random.Random(trial), Path(root) / f"trial-{trial}"
        work = out.with_name(f".{out.name}.work")
        for begun in sorted(chance.sample(range(checkpoint.config.num_layers + 1), 2)):
            child, delay = started(out), chance.uniform(0, 0.15)
            while not reached(work, begun) and not out.exists():
                time.sleep(0.001)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            left.append(sorted(path.name for path in work.iterdir()) if work.exists() else [])
        ends.append(finished(out))
    print(json.dumps({"whole": whole, "ends": ends, "left": left, "beside": sorted(os.listdir(root))}))


def reached(work: Path, layer: int) -> bool:
    """Whether a run has begun to write what this layer reads, or later things."""
    names = os.listdir(work) if work.exists() else []
    return any(name.startswith(("spool-", "layer-")) and int(name.split("-")[1][:3]) >= layer for name in names)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize(("recipe", "trials"), [("", 5), (GPTQ, 2)])
def test_killed_runs_end_in_the_same_bytes(recipe: str, trials: int, tmp_path: Path) -> None:
    code = "import sys; from tests.test_calibrate import kill_and_resume; kill_and_resume(*sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), recipe, str(trials)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert {RANGES, RANGES_MANIFEST} <= set(report["whole"])
    assert ("rounded-003.safetensors" in report["whole"]) == bool(recipe)
    assert report["ends"] == [report["whole"]] * trials
    assert report["beside"] == sorted(["whole", *(f"trial-{trial}" for trial in range(trials))])
    midway = [names for names in report["left"] if "state.json" in names and len(names) > 1]
    assert len(midway) >= trials  # of two kills a trial; a slow machine may let one come too late
    assert len({tuple(names) for names in midway}) > 1
