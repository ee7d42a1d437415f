"""P-Tuning prefixes in every runtime and dialect: golden logits of the publisher's code, batches, rows, dtypes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glm_export import api
from glm_export.artifacts.initial_cache import INITIAL_CACHE
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import CheckpointError, ComparisonFailedError, InputError
from glm_export.exporter import export as exporter
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.performance.bench import require_within_context
from glm_export.performance.report import BenchOptions
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession, load_reference
from glm_export.spec.signature import past_names
from tests.helpers.golden_data import BOUND, difference
from tests.helpers.golden_folders import folder, golden_of
from tests.helpers.recorded import recorded_again

FULL = ("ptuning_full_chatglm2", "ptuning_proj_chatglm2", "ptuning_full_chatglm")
DIALECTS = ("onnx", "portable", "ort", "tensorrt")
LENGTH = 64
STOPPING = Stopping(max_new_tokens=9)
Export = Callable[..., OnnxProgram]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A folder in a dialect, made once."""
    made: dict[tuple[str, ...], OnnxProgram] = {}
    root = tmp_path_factory.mktemp("prefixes")

    def export(name: str, dialect: str, dtype: str = "float32", logits: str = "all") -> OnnxProgram:
        key = (name, dialect, dtype, logits)
        if key not in made:
            length = LENGTH if dialect == "tensorrt" else None
            made[key] = exporter.export(
                api.open_checkpoint(folder(name)),
                root / "-".join(key),
                dialect=dialect,
                dtype=dtype,
                logits=logits,
                max_length=length,
            )
        return made[key]

    return export


def prompts_of(session: Session, name: str) -> list[Prompt]:
    """The golden one and shorter ones."""
    ids = golden_of(name)[0][0].tolist()
    shorter = [ids[5:], ids[8:]] if session.config.prefix_mask else [ids[3:8], ids[:2]]
    return [session.prompt(row) for row in [ids, *shorter]]


def off_by(session: Session, name: str) -> float:
    """How far from the golden logits."""
    logits = golden_of(name)[1]
    found = session.prefill(session.feeds(prompts_of(session, name)[:1]))
    return difference(found, logits[:, -found.shape[1] :])


def continued(checkpoint: Checkpoint, prompts: list[Prompt], count: int) -> list[list[int]]:
    """Greedy ids without a session: the whole row is read anew for each."""
    model, cache, found = load_reference(checkpoint), checkpoint.initial_cache, []
    for prompt in prompts:
        ids = list(prompt.ids)
        for _ in range(count):
            given = prefill_feeds([replace(prompt, ids=tuple(ids))], checkpoint.config).named().values()
            ids.append(int(model(*map(torch.from_numpy, given), cache).logits[0, -1].argmax()))
        found.append(ids[len(prompt.ids) :])
    return found


def sessions(name: str, exported: Export) -> Iterator[Session]:
    yield TorchSession(api.open_checkpoint(folder(name)))
    for dialect in DIALECTS:
        yield OrtSession(exported(name, dialect))


@pytest.mark.parametrize("name", FULL)
def test_golden_logits_everywhere(name: str, exported: Export) -> None:
    for session in sessions(name, exported):
        with session:
            assert off_by(session, name) <= BOUND / 5


@pytest.mark.parametrize("name", FULL)
def test_greedy_ids_everywhere(name: str, exported: Export) -> None:
    """A padded batch and each row alone; what is expected comes from no cache that grows."""
    checkpoint = api.open_checkpoint(folder(name))
    expected: list[list[int]] = []
    for session in sessions(name, exported):
        with session:
            prompts = prompts_of(session, name)
            expected = expected or continued(checkpoint, prompts, STOPPING.max_new_tokens)
            assert [row.ids for row in generate_ids(session, prompts, stopping=STOPPING)] == expected
            for prompt, ids in zip(prompts, expected, strict=True):
                assert generate_ids(session, [prompt], stopping=STOPPING)[0].ids == ids


@pytest.mark.parametrize("name", ["ptuning_full_chatglm2", "ptuning_full_chatglm"])
@pytest.mark.parametrize(
    ("dialect", "limits"),
    [("portable", {}), ("tensorrt", {"prefill_tokens": 16}), ("tensorrt", {"prefill_batch": 2})],
)
def test_in_an_engine(name: str, dialect: str, limits: dict[str, int], exported: Export) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install 'glm-export[rtx]'")
    from tests.helpers.engine_stand_in import stand_in_session

    program = exported(name, dialect, logits="last")
    session, _ = stand_in_session(program, **limits)
    with session, OrtSession(program) as reference:
        assert off_by(session, name) <= BOUND / 5
        prompts = prompts_of(session, name)
        expected = [row.ids for row in generate_ids(reference, prompts, stopping=STOPPING)]
        for _ in range(2):  # the second time buffers are there already
            assert [row.ids for row in generate_ids(session, prompts, stopping=STOPPING)] == expected
        alone = [generate_ids(session, [prompt], stopping=STOPPING)[0].ids for prompt in prompts]
        assert alone == expected


@pytest.mark.parametrize("name", ["ptuning_full_chatglm2", "ptuning_full_chatglm"])
def test_rows_come_and_go(name: str, exported: Export) -> None:
    """One row joins while another is written, then the first leaves: each as if it were alone."""
    for session in sessions(name, exported):
        with session:
            first, second = prompts_of(session, name)[:2]
            alone = [generate_ids(session, [prompt], stopping=STOPPING)[0].ids for prompt in (first, second)]
            feeds = session.feeds([first])
            last = session.last_position(feeds)
            written = [int(feeds.last_logits(session.prefill(feeds)).argmax())]
            new = session.feeds([second])
            feeds, logits = session.join(feeds, new)
            joined = [int(new.last_logits(logits).argmax())]
            feeds = feeds.next_step([written[-1], joined[-1]], last)
            both = feeds.last_logits(session.decode(feeds)).argmax(-1).tolist()
            feeds = session.leave(feeds, [0]).next_step([both[1]], last)
            third = int(feeds.last_logits(session.decode(feeds)).argmax())
            assert [*written, both[0]] == alone[0][:2]
            assert [*joined, both[1], third] == alone[1][:3]
            with pytest.raises(InputError, match="cannot be cut back"):
                session.truncate(feeds, 0, session.config.prefix_length - 1)


ROUNDED = {"float16": 2e-2, "bfloat16": 2e-1}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("dtype", ROUNDED)
def test_in_half_precision(dtype: str, dialect: str, exported: Export) -> None:
    name = "ptuning_full_chatglm2"
    program = exported(name, dialect, dtype)
    stored = load_file(program.folder / INITIAL_CACHE)
    expected = api.open_checkpoint(folder(name)).initial_cache
    assert expected is not None
    for layer, pair in enumerate(expected):
        for key, tensor in zip(past_names(layer), pair, strict=True):
            assert torch.equal(stored[key], tensor.to(getattr(torch, dtype)))
    with OrtSession(program) as session:
        assert BOUND < off_by(session, name) <= ROUNDED[dtype]


@pytest.mark.parametrize("name", ["ptuning_full_chatglm2", "ptuning_full_chatglm"])
def test_check_starts_both_sides_from_it(name: str, exported: Export, tmp_path: Path) -> None:
    """And sees one that is another."""
    checkpoint = api.open_checkpoint(folder(name))
    for dialect in ("ort", "tensorrt"):
        assert api.check(exported(name, dialect), checkpoint).passed
    program = copied(exported(name, "onnx"), tmp_path / "c", lambda values: values * 1.01)
    with pytest.raises(ComparisonFailedError, match=r"key of .* should be the checkpoint's prefix within .* apart"):
        api.check(program, checkpoint)


def copied(program: OnnxProgram, target: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> OnnxProgram:
    """A program with another initial cache of the same size."""
    shutil.copytree(program.folder, target)
    tensors = load_file(program.folder / INITIAL_CACHE)
    save_file({name: change(tensor).contiguous() for name, tensor in tensors.items()}, target / INITIAL_CACHE)
    recorded_again(target)
    return load_program(target)


def swapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys for values."""
    layers = range(len(tensors) // 2)
    names = [past_names(layer) for layer in layers]
    return {name: tensors[other] for pair in names for name, other in zip(pair, pair[::-1], strict=True)}


def test_no_other_cache_gives_the_logits(exported: Export, tmp_path: Path) -> None:
    for name in ("ptuning_full_chatglm2", "ptuning_full_chatglm"):
        program = exported(name, "onnx")
        zeroed = copied(program, tmp_path / f"{name}-zeroed", torch.zeros_like)
        dealt = copied(program, tmp_path / f"{name}-dealt", lambda values: values.roll(1, dims=3))
        exchanged = copied(program, tmp_path / f"{name}-exchanged", lambda values: values)
        save_file(swapped(load_file(program.folder / INITIAL_CACHE)), exchanged.folder / INITIAL_CACHE)
        for other in (zeroed, dealt, exchanged):
            with OrtSession(other) as session:
                assert off_by(session, name) > 100 * BOUND


def test_what_is_wrong_with_the_file_is_told(exported: Export, tmp_path: Path) -> None:
    program = exported("ptuning_full_chatglm2", "onnx")
    other = copied(program, tmp_path / "c", lambda values: values)
    path = other.folder / INITIAL_CACHE
    tensors = load_file(path)
    save_file({name: tensor[:, :, :4].contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(CheckpointError, match=r"as floats \[1, 2, 8, 16\], found float32 \[1, 2, 4, 16\]"):
        OrtSession(other)
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        OrtSession(other)
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing, and the program starts from it; export again"):
        OrtSession(other)


def test_a_prompt_that_forgets_the_prefix_is_refused(exported: Export) -> None:
    """Its tokens would be written over it, or stand where the prefix should."""
    for session in sessions("ptuning_full_chatglm2", exported):
        with session:
            config = replace(session.config, prefix_length=0)
            feeds = prefill_feeds([Prompt(ids=(5, 6, 7))], config, own_lengths=session.signature.own_lengths)
            with pytest.raises(InputError, match="goes on behind 0 tokens of row 0, which holds 8"):
                session.prefill(feeds)


def test_the_context_counts_it(exported: Export) -> None:
    """Of ChatGLM2 a prefix takes the first positions; a cache of fixed size holds it in every family."""
    checkpoint = api.open_checkpoint(folder("ptuning_full_chatglm2"))
    assert (checkpoint.config.max_positions, checkpoint.config.text_positions) == (520, 512)
    with TorchSession(checkpoint) as session:
        assert session.remaining_tokens(Prompt(ids=(5,) * 500)) == 12
        session.feeds([Prompt(ids=(5,) * 512)])
        with pytest.raises(InputError, match="513 tokens, the model's context 512: 1 too many"):
            session.feeds([Prompt(ids=(5,) * 513)])
    require_within_context(checkpoint.config, BenchOptions(prompt_tokens=512, context=400, new_tokens=112))
    with pytest.raises(InputError, match="513 prompt tokens are wanted, the model's context is 512"):
        require_within_context(checkpoint.config, BenchOptions(prompt_tokens=513))
    for name in ("ptuning_full_chatglm2", "ptuning_full_chatglm"):
        with OrtSession(exported(name, "tensorrt")) as session:
            prompt = prompts_of(session, name)[0]
            assert session.remaining_tokens(prompt) == LENGTH - 8 - len(prompt.ids)
            (row,) = generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=100))
            assert (len(row.ids), row.finish_reason) == (LENGTH - 8 - len(prompt.ids), "context")
    with pytest.raises(InputError, match="must be 9 to 520, the model's context; found 8"):
        exporter.export(checkpoint, Path("never"), dialect="tensorrt", max_length=8)


def test_no_loader_is_offered_what_it_cannot_begin(exported: Export, tmp_path: Path) -> None:
    """Optimum, transformers and onnxruntime-genai begin on an empty cache, and would answer as another model."""
    program = exported("ptuning_full_chatglm2", "ort")
    names = {path.name for path in program.folder.iterdir()}
    assert not names & {"config.json", "genai_config.json"}
    assert INITIAL_CACHE in program.manifest["sizes"]
    assert program.manifest["config"]["prefix_length"] == 8
    demo = api.export("demo", tmp_path / "demo", dialect="ort").folder
    assert {"config.json", "genai_config.json"} <= {path.name for path in demo.iterdir()}


def test_a_prefix_too_large_for_the_dtype(tmp_path: Path) -> None:
    source = folder("ptuning_full_chatglm2")
    shutil.copytree(source, tmp_path / "c")
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    tensors["transformer.prefix_encoder.embedding.weight"][0, 40] = 1e6
    torch.save(tensors, tmp_path / "c" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"of the prefix should fit float16, found 1e\+06; export"):
        api.export(tmp_path / "c", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_a_prefix_stored_in_half_precision(tmp_path: Path) -> None:
    """As the publisher's training saves it: off by the rounding of what is stored, and no more."""
    name = "ptuning_full_chatglm2"
    shutil.copytree(folder(name), tmp_path / "c")
    tensors = torch.load(folder(name) / "pytorch_model.bin", weights_only=True)
    halved = {key: value.half() if "prefix_encoder" in key else value for key, value in tensors.items()}
    torch.save(halved, tmp_path / "c" / "pytorch_model.bin")
    with TorchSession(api.open_checkpoint(tmp_path / "c")) as session:
        assert 0 < off_by(session, name) <= 50 * BOUND
    assert json.loads((tmp_path / "c" / "config.json").read_text())["pre_seq_len"] == 8


def plain_onnx_runtime(text: str, names: dict[str, Any]) -> None:
    """Run a snippet of the docs."""
    exec(compile(text, "docs/prefixes.md", "exec"), names)


@pytest.mark.parametrize("dialect", ["onnx", "portable"])
def test_the_documented_snippet(dialect: str, exported: Export) -> None:
    """Plain ONNX Runtime, fed as docs/prefixes.md says, writes what ``generate`` writes."""
    page = (Path(__file__).parents[2] / "docs" / "prefixes.md").read_text(encoding="utf-8")
    snippet = page.split("```python\n")[1].split("```")[0]
    name = "ptuning_full_chatglm2"
    program = exported(name, dialect)
    ids = golden_of(name)[0][0].tolist()
    names: dict[str, Any] = {"folder": program.folder, "ids": ids, "np": np}
    plain_onnx_runtime(snippet, names)
    with OrtSession(program) as session:
        (row,) = generate_ids(session, [session.prompt(ids)], stopping=Stopping(max_new_tokens=len(names["written"])))
    assert names["written"] == row.ids
    assert len(row.ids) >= 8
