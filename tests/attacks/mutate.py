"""Seeded damage: bytes, JSON values, tensors."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RAW = {
    "@nan": "NaN",
    "@infinity": "-Infinity",
    "@large": "1e999",
    "@digits": "9" * 5000,
    "@deep": "[" * 3000 + "]" * 3000,
}
"""Texts that take the place of a string in what is written: Python would not write them."""
ODD: tuple[Any, ...] = (
    *RAW, None, True, False, 0, -1, 1, 2, 0.5, 1e-300, 3_000_000, 10**9, 2**31, 2**63, 10**40, "", "false", "0",
    "x" * 10_000, "a\nb\x1b[31m", "\ud800", "../bait/model.safetensors", "/etc/passwd", "/dev/zero", ".", "..", "\0",
    [], [0], [-1], [[]], ["a"], [None], {}, {"a": 1}, {"content": 1}, {"content": "<x>"}, list(range(5000)),
)  # fmt: skip


def damaged(data: bytes, chooser: Random) -> bytes:
    """Bytes flipped, cut, doubled, put in or emptied; damage gathers where formats begin."""
    if not data:
        return bytes(chooser.randrange(256) for _ in range(chooser.randrange(64)))
    held = bytearray(data)
    near = min(len(held), chooser.choice((16, 256, 4096, len(held))))
    for _ in range(chooser.choice((1, 1, 2, 8, 64))):
        held[chooser.randrange(near)] = chooser.choice((0, 255, 0x80, 0x0A, 0x22, chooser.randrange(256)))
    start = chooser.randrange(len(data))
    stop = min(len(data), start + chooser.choice((1, 8, 100, 5000)))
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: bytes(held),
        lambda: bytes(held),
        lambda: data[: chooser.choice((0, 1, 8, start))],
        lambda: data[:start] + data[stop:],
        lambda: data[:stop] + data[start:],
        lambda: (
            data[:start] + chooser.choice((b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1b[31m", b"\n")) * 9 + data[start:]
        ),
        lambda: data + data[:stop],
        lambda: bytes(len(data)),
    )
    return chooser.choice(ways)()


def damaged_json(data: bytes, chooser: Random) -> bytes:
    """One or two values replaced, taken out, added or said twice; at times the text itself."""
    if chooser.random() < 0.15:
        return damaged(data, chooser)
    values = json.loads(data)
    for _ in range(chooser.choice((1, 1, 1, 2))):
        values = _with_one_change(values, chooser)
    text = json.dumps(values)
    for word, raw in RAW.items():
        text = text.replace(f'"{word}"', raw)
    if chooser.random() < 0.05:
        # A key a second time, with another value.
        text = text.replace("{", '{"model_type": 5, "a": 1, "a": 2, ', 1)
    return chooser.choice((b"", b"", b"", b"\xef\xbb\xbf")) + text.encode("utf-8", "surrogatepass")


def _with_one_change(values: Any, chooser: Random) -> Any:
    odd = deepcopy(chooser.choice(ODD))  # it may be changed in its turn
    if not isinstance(values, dict | list) or not values or chooser.random() < 0.02:
        return odd
    home, place = _place(values, chooser)
    kind = chooser.random()
    if kind < 0.15:
        del home[place]
    elif kind < 0.25 and isinstance(home, dict):
        home[chooser.choice(("", "a\nb", "x" * 3000, "../bait/model.safetensors", str(place) + "_", "0"))] = odd
    elif kind < 0.35 and isinstance(home, list):
        home.append(odd)
    else:
        home[place] = odd
    return values


def _place(values: Any, chooser: Random) -> tuple[Any, Any]:
    """A container within, and a key of it: any depth is as likely."""
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        key = chooser.choice(keys)
        below = values[key]
        if not isinstance(below, dict | list) or not below or chooser.random() < 0.3:
            return values, key
        values = below


def _sliced(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2] if tensor.dim() else tensor


def odd_tensors(tensor: Tensor) -> dict[str, Callable[[], Any]]:
    """What may lie in place of a tensor, by name."""
    finite = tensor.float()
    return {
        "sparse": lambda: finite.to_sparse(),
        "csr": lambda: finite.reshape(-1, 1).to_sparse_csr(),
        "meta": lambda: tensor.to("meta"),
        "conjugate": lambda: finite.to(torch.complex64).conj(),
        "negative": lambda: torch._neg_view(finite),
        "complex": lambda: finite.to(torch.complex64),
        "quantized": lambda: torch.quantize_per_tensor(finite, 0.1, 0, torch.quint8),
        "scalar": lambda: finite.sum(),
        "empty": lambda: tensor[:0],
        "no columns": lambda: tensor[..., :0],
        "more axes": lambda: tensor[None, None],
        "transposed": lambda: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor.flip(0),
        "strided": lambda: _sliced(tensor),
        "expanded": lambda: tensor[:1].expand(tensor.shape) if tensor.dim() else tensor,
        "bool": lambda: tensor != 0,
        "int8": lambda: tensor.to(torch.int8),
        "int64": lambda: tensor.to(torch.int64),
        "float64": lambda: tensor.double(),
        "float8": lambda: finite.to(torch.float8_e4m3fn),
        "NaN": lambda: torch.full_like(finite, float("nan")),
        "huge": lambda: torch.full_like(finite, 3e38),
        "vast": lambda: torch.zeros(1).expand(1 << 40),
        "parameter": lambda: torch.nn.Parameter(finite),
        "a list": lambda: tensor.tolist()[:3] if tensor.dim() else 1,
        "None": lambda: None,
        "a text": lambda: "weights",
    }


def odd_names(name: str) -> tuple[Any, ...]:
    """What may stand in place of a tensor's name."""
    return (
        1,
        2.5,
        None,
        b"name",
        (name,),
        "",
        name + "\n",
        "\x1b[31m" + name,
        name * 200,
        "." * 50,
        name + ".weight",
        "\ud800",
    )


def damaged_torch(path: Path, chooser: Random) -> None:
    """A file of ``torch.save`` with one tensor or name replaced, or another structure, or damaged bytes."""
    if chooser.random() < 0.35:
        path.write_bytes(damaged(path.read_bytes(), chooser))
        return
    held = dict(torch.load(path, weights_only=True))
    name = chooser.choice(sorted(held))
    kind = chooser.random()
    if kind < 0.55:
        held[name] = chooser.choice(sorted(odd_tensors(held[name]).items()))[1]()
    elif kind < 0.8:
        held[chooser.choice(odd_names(name))] = held.pop(name)
    else:
        saved: Any = chooser.choice(
            ([], {}, None, 5, held[name], [held], {"model": held, "module": held}, {"state_dict": {}})
        )
        torch.save(saved, path)
        return
    torch.save(held, path, _use_new_zipfile_serialization=chooser.random() < 0.8)


def damaged_safetensors(path: Path, chooser: Random) -> None:
    """The header's bytes, or a tensor or name replaced by one that the format can hold."""
    if chooser.random() < 0.4:
        path.write_bytes(damaged(path.read_bytes(), chooser))
        return
    held = load_file(path)
    name = chooser.choice(sorted(held))
    if chooser.random() < 0.7:
        kept = (
            "scalar",
            "empty",
            "no columns",
            "more axes",
            "bool",
            "int8",
            "int64",
            "float64",
            "float8",
            "NaN",
            "huge",
        )
        held[name] = odd_tensors(held[name])[chooser.choice(kept)]()
    else:
        held[chooser.choice([new for new in odd_names(name) if isinstance(new, str) and new != "\ud800"])] = held.pop(
            name
        )
    save_file({key: tensor.contiguous().clone() for key, tensor in held.items()}, path)


def zip_bomb(path: Path) -> None:
    """A file of ``torch.save`` whose tensor is a gigabyte of zeros, packed into a megabyte."""
    import zipfile

    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in whole.infolist():
            data = whole.read(entry)
            packed.writestr(entry.filename, bytes(1 << 30) if "/data/" in entry.filename else data)
