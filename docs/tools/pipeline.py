"""The picture of the pipeline: ``docs/images/pipeline.svg``, light or dark as its reader's system is.

python docs/tools/pipeline.py --out docs/images/pipeline.svg
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from glm_export.reports.pictures.themes import FONTS, colours

WIDTH, HEIGHT = 900, 372
TITLE = (
    "A checkpoint is exported to an ONNX program; calibrate measures ranges for recipes; check, quality and certify "
    "hold the program to PyTorch; it runs in other loaders, becomes a TensorRT engine, and is served."
)


@dataclass(frozen=True, slots=True)
class Box:
    """Something that lies on a disk or runs: its corner, size and words. ``mark``: the colour of its edge."""

    x: int
    y: int
    width: int
    title: str
    words: str
    mark: str = "faint"

    height = 62


CHECKPOINT = Box(20, 70, 190, "checkpoint", "config.json, safetensors", "series-0")
RANGES = Box(20, 270, 190, "ranges", "how far activations reach")
PROGRAM = Box(360, 70, 210, "ONNX program", "onnx · ort · tensorrt · portable", "series-2")
PROOF = Box(360, 270, 210, "proof", "held to PyTorch, signed", "series-3")
LOADERS = Box(690, 16, 200, "other loaders", "genai, Optimum, OpenVINO")
ENGINE = Box(700, 138, 180, "TensorRT engine", "prompts and decoding", "series-1")
SERVER = Box(700, 270, 180, "server", "OpenAI's API, Triton, Ray")
BOXES = (CHECKPOINT, RANGES, PROGRAM, PROOF, LOADERS, ENGINE, SERVER)
ARROWS = (
    ("M210 101 H352", 281, 92, "middle", "export"),
    ("M115 132 V262", 124, 202, "start", "calibrate"),
    ("M210 301 H290 V122 H352", 282, 254, "end", "--recipe"),
    ("M465 132 V262", 474, 184, "start", "check"),
    ("M570 84 L682 48", 628, 54, "end", "loads as it is"),
    ("M570 114 L692 166", 620, 160, "middle", "build"),
    ("M545 132 C560 230 600 300 692 300", 688, 326, "end", "serve, deploy"),
    ("M790 200 V262", 799, 236, "start", "serve"),
)
MORE = ((474, 204, "quality"), (474, 224, "certify"))


def drawing() -> str:
    """The SVG."""
    themes = [";".join(f"--{name}:{value}" for name, value in colours(theme).items()) for theme in ("light", "dark")]
    styles = (
        f":root{{{themes[0]}}}@media(prefers-color-scheme:dark){{:root{{{themes[1]}}}}}text{{font-family:{FONTS};"
        "fill:var(--ink)}.title{font-size:16px;font-weight:600}.words{font-size:12px;fill:var(--faint)}"
        ".verb{font-size:13px;font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
        "rect{fill:var(--heat-0);stroke-width:2}.ground{fill:var(--ground)}"
        + "".join(f".{name}{{stroke:var(--{name})}}" for name in sorted({box.mark for box in BOXES}))
        + "path{fill:none;stroke:var(--faint);stroke-width:1.5}"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">',
        f"<title>{TITLE}</title>",
        f"<style>{styles}</style>",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">',
        '<path d="M0 0 L8 4 L0 8 z" style="fill:var(--faint);stroke:none"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" class="ground"/>',
    ]
    for path, *_ in ARROWS:
        lines.append(f'<path d="{path}" marker-end="url(#end)"/>')
    for box in BOXES:
        lines += [
            f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="8" class="{box.mark}"/>',
            f'<text class="title" x="{box.x + 14}" y="{box.y + 27}">{box.title}</text>',
            f'<text class="words" x="{box.x + 14}" y="{box.y + 47}">{box.words}</text>',
        ]
    for _, x, y, anchor, verb in ARROWS:
        lines.append(f'<text class="verb" x="{x}" y="{y}" text-anchor="{anchor}">{verb}</text>')
    for x, y, verb in MORE:
        lines.append(f'<text class="verb" x="{x}" y="{y}">{verb}</text>')
    return "\n".join([*lines, "</svg>\n"])


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.parse_args().out.write_text(drawing(), encoding="utf-8")


if __name__ == "__main__":
    main()
