"""The picture of a terminal: ``docs/images/terminal.svg``, what three commands printed here.

python docs/tools/terminal.py --work DIR --out docs/images/terminal.svg
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COMMANDS = (
    "glm-export export demo --out poems-onnx --force",
    "glm-export check poems-onnx --against demo",
    "glm-export generate poems-onnx --prompt 千山鸟飞绝，万径人踪灭。",
)
WIDTH = 84
WIDE = re.compile(r' textLength="[\d.]+"(?=[^>]*>[^<]*[\u3000-\uffef])')
"""The width that Rich gives a line, which is too small where it has Chinese."""
FONT_FROM_A_SERVER = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> None:
    """Run the commands, and draw what they printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"))  # noqa: SIM115 - for the process
    # The picture is of a first run: whatever lies there from an earlier one is replaced, and that is not shown.
    for command in COMMANDS:
        console.print(Text.assemble(("$ ", "dim"), (command.removesuffix(" --force"), "bold")))
        words = [sys.executable, "-m", "glm_export.cli", *shlex.split(command)[1:]]
        environment = os.environ | {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(WIDTH)}
        done = subprocess.run(
            words, cwd=arguments.work, env=environment, text=True, check=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        console.print(Text.from_ansi(done.stdout.rstrip()))
        console.print()
    svg = console.export_svg(title="glm-export", theme=MONOKAI)
    out.write_text(WIDE.sub("", FONT_FROM_A_SERVER.sub("", svg)), encoding="utf-8")


if __name__ == "__main__":
    main()
